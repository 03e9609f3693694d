//! Tables that are read when an image is opened, and anew when its storage is this process's again.

use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::Child;

use super::writable::{self, Known};
use crate::bitmap;
use crate::image::{Image, Shown};
use crate::layout::{Bitmap, FormatError, Header, Incompatible, Purpose, Snapshot};
use crate::metadata::MetadataSet;
use crate::refcount::Refcounts;
use crate::source::ImageError;
use crate::tables;

/// Features that decide what the tables of an image mean. A node has those of its opening.
const MEANING: Incompatible =
    Incompatible::DATA_FILE.union(Incompatible::COMPRESSION).union(Incompatible::EXTENDED_L2);

/// Tables of an image, but for refcounts.
pub(super) struct Tables {
    pub(super) snapshots: Vec<Snapshot>,
    /// Length of the table of snapshots.
    snapshot_bytes: u64,
    pub(super) bitmaps: Vec<Bitmap>,
    pub(super) shown: Shown,
    pub(super) l1: Vec<u64>,
}

impl Tables {
    /// Those of the image in a file, to show the disk, or the snapshot that is `wanted`.
    pub(super) fn co_read(
        co: &Co<'_>,
        file: &Child,
        header: &Header,
        wanted: Option<String>,
    ) -> Result<Tables, ImageError> {
        let (snapshots, snapshot_bytes) = tables::co_snapshots(co, file, header, false)?;
        let bitmaps = tables::co_bitmaps(co, file, header)?;
        let shown = Shown::new(header, &snapshots, wanted)?;
        let l1 = tables::co_words(co, file, shown.l1_offset, shown.l1_entries.into())?;
        Ok(Tables { snapshots, snapshot_bytes, bitmaps, shown, l1 })
    }

    /// The refcounts, with memory for `bytes` bytes of them, for an image that is written. All that is known
    /// of metadata is in `metadata` then, and nothing else.
    pub(super) fn co_refcounts(
        &self,
        co: &Co<'_>,
        file: &Child,
        header: &Header,
        (metadata, bytes): (&Arc<MetadataSet>, u64),
    ) -> Result<Refcounts, ImageError> {
        metadata.clear();
        let known = Known { header, l1: &self.l1, snapshots: &self.snapshots };
        writable::note_metadata(metadata, known, self.snapshot_bytes)?;
        let unit = u64::from(file.limits().request_alignment);
        tables::co_refcounts(co, file, header, metadata, (unit, bytes))
    }
}

impl Image {
    /// Reads anew what another process may have changed, for a node that `writes` the image or not. The node is
    /// inactive, or drained.
    ///
    /// # Errors
    /// If the image has another format by now: it has to be opened again. As of an opening.
    pub(crate) fn co_read_anew(&self, co: &Co<'_>, writes: bool) -> Result<(), ImageError> {
        // A child that was active all the while has not looked.
        for file in [Some(&self.file), self.data_file.as_ref()].into_iter().flatten() {
            file.co_refresh_length(co)?;
        }
        let (mut header, mut cluster) = tables::co_header(co, &self.file)?;
        header.check(if writes { Purpose::Write } else { Purpose::Read })?;
        self.check_meaning(&header)?;
        if writes {
            writable::co_prepare(co, &self.file, &mut header, &mut cluster)?;
        }
        let read = Tables::co_read(co, &self.file, &header, self.shown.clone())?;
        let sizes = (&self.metadata, self.refcount_bytes());
        let refcounts =
            writes.then(|| read.co_refcounts(co, &self.file, &header, sizes)).transpose()?;
        let mut state = self.lock();
        self.l1.resize(read.shown.l1_entries.into());
        self.l1.replace(&read.l1);
        self.cache.clear(&state.owed);
        self.inflated.clear();
        state.refcounts = refcounts;
        drop(state);
        *self.snapshots() = read.snapshots;
        *self.bitmaps.directory() = read.bitmaps;
        self.look_at_bitmaps();
        self.set_disk_bytes(read.shown.disk_bytes);
        self.co_replace_header(co, *header, cluster);
        self.look_at_end();
        Ok(())
    }

    /// Loads the bitmaps, of a node that `writes` the image or not, after its tables were read anew. Those in memory
    /// are another process's by now, or none.
    ///
    /// # Errors
    /// As of an opening.
    pub(crate) fn co_load_bitmaps(&self, co: &Co<'_>, writes: bool) -> Result<(), ImageError> {
        self.bitmaps.forget();
        if self.shown.is_some() {
            return Ok(());
        }
        let directory = self.bitmaps.directory().clone();
        let disk = (self.geometry, self.disk_bytes());
        bitmap::co_load(co, &self.file, disk, &directory, &self.bitmaps.set)?;
        self.bitmaps.set_read_only(!writes);
        Ok(())
    }

    /// That the tables of an image with this header mean what they meant when the node was opened.
    fn check_meaning(&self, new: &Header) -> Result<(), ImageError> {
        let old = self.header();
        let meaning = |it: &Header| {
            let features = it.incompatible & MEANING;
            (it.version, it.cluster_bits, features, it.compression_type, it.crypt_method)
        };
        if meaning(new) != meaning(&old) {
            return Err(changed("the format of the image has changed"));
        }
        // What it has would be missed. One that is left out, or was, is what the options say.
        if self.backing.node().is_none() && old.backing.is_none() && new.backing.is_some() {
            return Err(changed("the image has got a backing file"));
        }
        Ok(())
    }

    /// The refcounts, for an image that has been read only, and is to be written.
    pub(crate) fn co_load_refcounts(&self, co: &Co<'_>) -> Result<Refcounts, ImageError> {
        let header = self.header();
        let read = Tables::co_read(co, &self.file, &header, None)?;
        read.co_refcounts(co, &self.file, &header, (&self.metadata, self.refcount_bytes()))
    }
}

#[cold]
fn changed(what: &str) -> ImageError {
    FormatError::invalid(format!("{what}: it has to be opened again")).into()
}
