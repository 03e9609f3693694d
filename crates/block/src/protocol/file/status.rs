//! Where an image holds data, and how long it is.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use coblk_aio::{Co, PoolShare, sys};

use super::open::length_of;
use super::transfer::{OnWorker, retry};
use super::{File, SECTOR_BYTES};
use crate::driver::MAX_LENGTH;
use crate::driver::extent::Extent;
use crate::driver::stamp::StorageStamp;

/// The unit of `stat`, whatever the file system does.
const STAT_BLOCK_BYTES: u64 = 512;

impl File {
    /// What the file system knows of a range. It may have to look it up on the disk, so a worker
    /// asks, unless the range begins in data that is known.
    pub(super) fn co_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        if let Some(known) = self.known_status(offset, bytes) {
            return Ok(known);
        }
        Ok(self.share.submit_co(co, || {
            let _looking = self.known_data.look();
            self.known_status(offset, bytes).unwrap_or_else(|| self.status(offset, bytes))
        }))
    }

    fn known_status(&self, offset: u64, bytes: u64) -> Option<Extent> {
        let end = self.known_data.end_of(offset)?;
        Some(Extent::data(bytes.min(end - offset)).stored_at(None, offset))
    }

    fn status(&self, offset: u64, bytes: u64) -> Extent {
        let file = self.file.as_fd();
        let asked = self.known_data.ask();
        let (kind, end): (fn(u64) -> Extent, _) =
            match retry(&OnWorker, || sys::seek_data(file, offset)) {
                // Nothing but a hole to the end of the file, and beyond that there are zeroes.
                Ok(None) => (Extent::hole, None),
                Ok(Some(data)) if data > offset => (Extent::hole, Some(data)),
                Ok(Some(_)) => match retry(&OnWorker, || sys::seek_hole(file, offset)) {
                    Ok(hole) => (Extent::data, hole.filter(|hole| *hole > offset)),
                    Err(_) => (Extent::data, None),
                },
                // A file system that does not tell: all of it may be data.
                Err(_) => (Extent::data, None),
            };
        let extent = kind(end.map_or(bytes, |end| bytes.min(end - offset)));
        if extent.data {
            self.known_data.remember(asked, offset..end.unwrap_or(offset + bytes));
        }
        extent.stored_at(None, offset)
    }

    /// The bytes that the file takes on its file system. A device takes none.
    pub(super) fn co_allocated(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        let metadata = PoolShare::once(co, || self.file.metadata())?;
        Ok(Some(metadata.blocks() * STAT_BLOCK_BYTES))
    }

    /// Which file it is, and when it was changed last. A device does not tell.
    pub(super) fn co_look_at_stamp(&self, co: &Co<'_>) -> io::Result<Option<StorageStamp>> {
        let metadata = PoolShare::once(co, || self.file.metadata())?;
        let changed = (metadata.mtime(), metadata.mtime_nsec());
        Ok(metadata.is_file().then(|| StorageStamp::new(metadata.ino(), changed)))
    }

    /// Asks for the length again; another process may have changed it.
    pub(super) fn co_refresh(&self, co: &Co<'_>) -> io::Result<u64> {
        self.share.submit_co(co, || self.refresh_length())
    }

    pub(super) fn refresh_length(&self) -> io::Result<u64> {
        // Cut, or changed by another process: what was data need not be any more.
        self.known_data.forget(0..u64::MAX);
        let bytes = length_of(&self.file)?;
        if bytes > MAX_LENGTH {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        self.end_of_file.store(bytes, Ordering::Release);
        let length = bytes.next_multiple_of(SECTOR_BYTES);
        self.length.store(length, Ordering::Release);
        Ok(length)
    }
}
