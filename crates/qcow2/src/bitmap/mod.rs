//! Dirty bitmaps that are kept in an image.
//!
//! ```text
//! mod.rs   what an image has of them; the mark that they are in use
//! load     from the image into memory
//! store    from memory into the image
//! ```
//!
//! # Order
//!
//! While the disk is written its bitmaps live in memory, and the image says so of each: it is in use. A crash
//! then leaves bitmaps that are known to mean nothing. What holds:
//!
//! 1. A bitmap that the image says is not in use marks all that has changed since it was stored. So the mark is
//!    durable before the first write to the disk goes to a child, and it is taken away when no write
//!    comes any more, and all of them, and the bits, are durable.
//! 2. A directory is never overwritten. Another one is written elsewhere, and is durable, and counted, before
//!    one sector of the header leads to it. A crash leaves the old directory or the new one. What only the
//!    old one has led to is freed after that; before, a crash leaves clusters that leak.
//!
//! A node that is opened for writes has not marked its bitmaps yet: the first write does. So it is with one
//! that has become writable, and with one whose close has failed after the bitmaps were stored.

mod load;
mod store;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::Co;
use coblk_block::{BitmapError, BitmapUse, Bitmaps, DirtyBitmap};

use crate::image::{Hurdle, Image};
use crate::layout::{
    Autoclear, Bitmap, BitmapFlags, BitmapsExtension, FormatError, MAX_BITMAP_BYTES, MAX_BITMAPS,
    MAX_DIRECTORY_BYTES, data_bytes,
};
use crate::metadata::Metadata;

pub(crate) use load::co_load;

/// The bitmaps of an image.
pub(crate) struct StoredBitmaps {
    /// Those in memory. Those that are persistent are the image's.
    pub(crate) set: Arc<Bitmaps>,
    /// The directory in the file.
    directory: Mutex<Vec<Bitmap>>,
}

impl StoredBitmaps {
    pub(crate) fn new(set: Arc<Bitmaps>, directory: Vec<Bitmap>) -> StoredBitmaps {
        StoredBitmaps { set, directory: Mutex::new(directory) }
    }

    /// The directory in the file.
    pub(crate) fn directory(&self) -> MutexGuard<'_, Vec<Bitmap>> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those in memory that are the image's, oldest first.
    fn persistent(&self) -> Vec<Arc<DirtyBitmap>> {
        let mut list = self.set.list();
        list.retain(|bitmap| bitmap.is_persistent());
        list.reverse();
        list
    }

    /// Whether bits would be lost without a [store](Image::co_store_bitmaps).
    pub(crate) fn needs_store(&self) -> bool {
        !self.persistent().is_empty()
    }

    /// The image is written, or not.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        self.persistent().iter().for_each(|bitmap| bitmap.set_read_only(read_only));
    }

    /// What the image has is not to be used: it is another process's.
    pub(crate) fn forget(&self) {
        self.persistent().iter().for_each(|bitmap| self.set.remove(bitmap));
    }

    /// Whether a write has to mark the bitmaps first.
    pub(crate) fn is_unmarked(&self) -> bool {
        self.directory().iter().any(|it| !it.flags.contains(BitmapFlags::IN_USE))
    }

    /// Checks that the disk may get another length.
    ///
    /// # Errors
    /// If a bitmap of the image is busy or inconsistent.
    pub(crate) fn check_resize(&self) -> Result<(), BitmapError> {
        self.persistent().iter().try_for_each(|bitmap| bitmap.check(BitmapUse::Change))
    }
}

impl Image {
    /// Before a change of the disk: whether the image is used at all, and the mark that its bitmaps are in use.
    ///
    /// # Errors
    /// ENOMEDIUM if the image is not used any more; those of writing.
    #[inline]
    pub(crate) fn co_begin_change(&self, co: &Co<'_>) -> io::Result<()> {
        if self.hurdles().is_empty() { Ok(()) } else { self.co_mark_bitmaps(co) }
    }

    #[cold]
    #[inline(never)]
    fn co_mark_bitmaps(&self, co: &Co<'_>) -> io::Result<()> {
        self.check_alive()?;
        let _turn = self.co_turn(co)?;
        if self.bitmaps.is_unmarked() {
            let mut directory = self.bitmaps.directory().clone();
            directory.iter_mut().for_each(|it| it.flags.insert(BitmapFlags::IN_USE));
            self.co_store_directory(co, directory)?;
        }
        self.lower_hurdle(Hurdle::UNMARKED);
        Ok(())
    }

    /// The bitmaps of the file may not be marked as in use.
    pub(crate) fn look_at_bitmaps(&self) {
        if self.bitmaps.is_unmarked() {
            self.raise_hurdle(Hurdle::UNMARKED);
        }
    }

    /// Writes another directory, and has the header lead to it. Clusters of the old one are given up; those that
    /// bitmaps have led to are the caller's to give up.
    fn co_store_directory(&self, co: &Co<'_>, directory: Vec<Bitmap>) -> io::Result<()> {
        let mut bytes = Vec::new();
        directory.iter().for_each(|it| it.encode(&mut bytes));
        let new = self.co_write_new_table(co, bytes.clone(), Metadata::BITMAP_DIRECTORY)?;
        let is_there = self.co_commit(co).and_then(|()| self.co_sync_tables(co));
        is_there.inspect_err(|_| self.give_back(&new))?;
        let old = self.header().extensions.bitmaps(self.geometry)?;
        let place = BitmapsExtension {
            count: directory.len() as u32,
            directory_bytes: bytes.len() as u64,
            directory_offset: new.start,
        };
        // If this fails the header may lead to either: both stay, and one of them leaks.
        self.co_update_header(co, |header| {
            let any = place.count > 0;
            header.extensions.set_bitmaps(any.then_some(place));
            header.autoclear.set(Autoclear::BITMAPS, any);
        })?;
        *self.bitmaps.directory() = directory;
        if let Some(old) = old {
            let old = old.directory_offset..old.directory_offset + old.directory_bytes;
            // It is free when that is counted, perhaps by a node that has other refcounts by then.
            self.metadata.remove(old.clone());
            self.give_up(old);
        }
        Ok(())
    }

    /// Checks that one more bitmap can be kept in the image.
    ///
    /// # Errors
    /// ENOTSUP in version 2, EFBIG beyond the limits of the format; with QEMU's words.
    pub(crate) fn check_new_bitmap(&self, name: &str, granularity: u64) -> Result<(), FormatError> {
        if self.rules.is_v2 {
            let why = "Cannot store dirty bitmaps in qcow2 v2 files";
            return Err(FormatError::invalid(why));
        }
        let disk = self.disk_bytes();
        let all = self.bitmaps.persistent();
        let bytes = |granularity| data_bytes(disk, granularity, self.geometry);
        let stored: u64 = all.iter().map(|it| bytes(it.bits().granularity())).sum();
        if stored.saturating_add(bytes(granularity)) > MAX_BITMAP_BYTES {
            let why = "Too much space will be occupied by the bitmap. Use larger granularity";
            return Err(FormatError::too_big(why));
        }
        if all.len() >= MAX_BITMAPS as usize {
            return Err(FormatError::too_big(
                "Maximum number of persistent bitmaps is already reached",
            ));
        }
        let entry = |name: &str| Bitmap::entry_bytes(name) as u64;
        let names = all.iter().map(|it| it.name().map_or(0, |name| entry(&name)));
        if names.sum::<u64>() + entry(name) > MAX_DIRECTORY_BYTES {
            return Err(FormatError::too_big("Not enough space in the bitmap directory"));
        }
        Ok(())
    }

    /// Removes a bitmap from the image, if it is there.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub(crate) fn co_remove_bitmap(&self, co: &Co<'_>, name: &str) -> io::Result<()> {
        self.check_alive()?;
        let _turn = self.co_turn(co)?;
        let mut directory = self.bitmaps.directory().clone();
        let Some(place) = directory.iter().position(|it| it.name == name) else { return Ok(()) };
        let removed = directory.remove(place);
        let clusters = self.co_clusters_of(co, &[removed])?;
        self.co_store_directory(co, directory)?;
        self.give_up_all(&clusters);
        self.co_commit(co)
    }

    fn give_up_all(&self, clusters: &BTreeSet<u64>) {
        let cluster = self.geometry.cluster_bytes();
        clusters.iter().for_each(|start| self.give_up(*start..start + cluster));
    }
}
