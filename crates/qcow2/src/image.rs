//! [`Image`]: an open image, as its requests see it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use coblk_aio::{Co, PoolShare};
use coblk_block::{Child, ChildSlot, EventSink};

use crate::cache::SliceCache;
use crate::encryption::Encryption;
use crate::event::ImageCorrupted;
use crate::inflated::InflatedClusters;
use crate::layout::{
    Bitmap, CompressionType, Corruption, EntryRules, Geometry, Header, Purpose, Snapshot,
};
use crate::source::Source;
use crate::tables;

/// An open image. Any thread; several contexts at once.
pub(crate) struct Image {
    pub(crate) header: Box<Header>,
    pub(crate) geometry: Geometry,
    pub(crate) rules: EntryRules,
    pub(crate) compression: CompressionType,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) bitmaps: Vec<Bitmap>,
    /// The L1 table, as far as it is in the file. Behind it nothing is mapped.
    pub(crate) l1: Box<[AtomicU64]>,
    pub(crate) cache: SliceCache,
    /// Bytes of a slice of an L2 table.
    pub(crate) slice_bytes: u64,
    pub(crate) inflated: InflatedClusters,
    /// Where the file ended when it was looked at last.
    end: AtomicU64,
    pub(crate) file: Child,
    pub(crate) data_file: Option<Child>,
    pub(crate) backing: ChildSlot,
    pub(crate) encryption: Option<Encryption>,
    /// Decompression shares workers with nothing else.
    pub(crate) workers: PoolShare,
    events: EventSink,
    /// A corruption was told.
    is_told: AtomicBool,
}

/// What an opening has found, for an [`Image`] to be made.
pub(crate) struct Parts {
    pub(crate) header: Box<Header>,
    pub(crate) l1: Vec<u64>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) bitmaps: Vec<Bitmap>,
    pub(crate) cache: SliceCache,
    pub(crate) slice_bytes: u64,
    /// Most bytes of decompressed clusters in memory.
    pub(crate) inflated_bytes: u64,
    pub(crate) file: Child,
    pub(crate) data_file: Option<Child>,
    pub(crate) encryption: Option<Encryption>,
    pub(crate) events: EventSink,
}

impl Image {
    /// The image of a header that has been [checked](Header::check).
    pub(crate) fn new(parts: Parts, backing: ChildSlot) -> io::Result<Image> {
        let geometry = parts.header.geometry()?;
        let rules = EntryRules {
            geometry,
            is_v2: parts.header.version == 2,
            has_data_file: parts.data_file.is_some(),
        };
        Ok(Image {
            geometry,
            rules,
            compression: parts.header.compression()?,
            header: parts.header,
            snapshots: parts.snapshots,
            bitmaps: parts.bitmaps,
            l1: parts.l1.into_iter().map(AtomicU64::new).collect(),
            cache: parts.cache,
            slice_bytes: parts.slice_bytes,
            inflated: InflatedClusters::new(parts.inflated_bytes, geometry.cluster_bytes()),
            end: parts.file.end().into(),
            file: parts.file,
            data_file: parts.data_file,
            backing,
            encryption: parts.encryption,
            workers: PoolShare::new(),
            events: parts.events,
            is_told: AtomicBool::new(false),
        })
    }

    /// The child that has data, and its name.
    pub(crate) fn data(&self) -> (&Child, &'static str) {
        match &self.data_file {
            Some(data_file) => (data_file, "data-file"),
            None => (&self.file, "file"),
        }
    }

    /// Where the file ends, at least behind `offset` if it does so. It may have become longer.
    pub(crate) fn end_behind(&self, offset: u64) -> u64 {
        let end = self.end.load(Ordering::Relaxed);
        if offset < end {
            return end;
        }
        let end = self.file.end();
        self.end.store(end, Ordering::Relaxed);
        end
    }

    /// Tells of a corruption, the first one, and returns the error for the request that met it.
    #[cold]
    pub(crate) fn corrupt(&self, corruption: &Corruption) -> io::Error {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tracing::warn!("qcow2 image is corrupt: {corruption}");
            self.events.tell(&ImageCorrupted::new(corruption));
        }
        io::Error::from_raw_os_error(libc::EIO)
    }

    /// Reads anew what another process may have changed.
    ///
    /// # Errors
    /// If the image is another one by now: it has to be opened again.
    pub(crate) fn co_read_anew(&self, co: &Co<'_>) -> io::Result<()> {
        let (header, _) = tables::co_header(co, &self.file)?;
        header.check(Purpose::Read)?;
        if *header != *self.header {
            let why = "the header of the image has changed: it has to be opened again";
            return Err(io::Error::other(why));
        }
        let l1 = tables::co_words(co, &self.file, header.l1_offset, header.l1_entries.into())?;
        if l1.len() != self.l1.len() {
            return Err(io::Error::other("the L1 table of the image has another length"));
        }
        for (entry, new) in self.l1.iter().zip(l1) {
            entry.store(new, Ordering::Relaxed);
        }
        self.cache.clear();
        self.inflated.clear();
        Ok(())
    }
}
