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
use crate::{BlockStatus, BlockStatusKind};

/// What `stat` counts in, whatever the file system does.
const STAT_BLOCK_BYTES: u64 = 512;

impl File {
    /// What the file system knows of a range. It may have to look it up on the disk, so a worker
    /// asks.
    pub(super) fn co_status(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
    ) -> io::Result<BlockStatus> {
        Ok(self.share.submit_co(co, || self.status(offset, bytes)))
    }

    fn status(&self, offset: u64, bytes: u64) -> BlockStatus {
        let file = self.file.as_fd();
        let (kind, end) = match retry(&OnWorker, || sys::seek_data(file, offset)) {
            // Nothing but a hole to the end of the file, and beyond that there are zeroes.
            Ok(None) => (BlockStatusKind::Hole, None),
            Ok(Some(data)) if data > offset => (BlockStatusKind::Hole, Some(data)),
            Ok(Some(_)) => match retry(&OnWorker, || sys::seek_hole(file, offset)) {
                Ok(hole) => (BlockStatusKind::Data, hole.filter(|hole| *hole > offset)),
                Err(_) => (BlockStatusKind::Data, None),
            },
            // A file system that does not tell: all of it may be data.
            Err(_) => (BlockStatusKind::Data, None),
        };
        BlockStatus { kind, bytes: end.map_or(bytes, |end| bytes.min(end - offset)) }
    }

    /// Cuts the file, or makes it longer by a hole. A device has the length it has: that is looked
    /// at, as it may have grown.
    pub(super) fn co_set_length(&self, co: &Co<'_>, bytes: u64) -> io::Result<()> {
        if self.device {
            return match self.co_refresh(co)? {
                there if bytes <= there => Ok(()),
                there => Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("Cannot grow device files: the device has {there} bytes"),
                )),
            };
        }
        let block = self.mode.limits().request_alignment();
        if !bytes.is_multiple_of(block.into()) {
            let why = format!("{bytes} is not a multiple of {block}, the block of O_DIRECT there");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        self.share.submit_co(co, || {
            // What is cut off is not asked for any more, nor missed by a read that is on its way.
            self.length.fetch_min(bytes.next_multiple_of(SECTOR_BYTES), Ordering::AcqRel);
            self.end_of_file.fetch_min(bytes, Ordering::AcqRel);
            let result = retry(&OnWorker, || sys::ftruncate(self.file.as_fd(), bytes));
            let refreshed = self.refresh_length();
            result.and(refreshed.map(|_| ()))
        })
    }

    /// What the file takes on its file system. A device takes none.
    pub(super) fn co_allocated(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        let metadata = PoolShare::once(co, || self.file.metadata())?;
        Ok(Some(metadata.blocks() * STAT_BLOCK_BYTES))
    }

    /// Asks for the length again; whoever owns the storage may have changed it.
    pub(super) fn co_refresh(&self, co: &Co<'_>) -> io::Result<u64> {
        self.share.submit_co(co, || self.refresh_length())
    }

    fn refresh_length(&self) -> io::Result<u64> {
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
