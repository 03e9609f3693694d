//! Memory in which the front end wants to see what was written, to move its guest while that runs:
//! [`DirtyMemory`]. What is marked, and when, is in [`coblk_virtio_blk::DirtyLog`].
//!
//! Logging is on while the front end has given a log and has accepted VHOST_F_LOG_ALL. A ring for which it
//! has set VHOST_VRING_F_LOG is marked where the front end says. Queues go on while it changes.

use std::fs::File;
use std::os::fd::RawFd;
use std::sync::Arc;

use coblk_aio::EventNotifier;
use coblk_virtio_blk::{DirtyLog, QueueLog};
use vhost::vhost_user::message::VhostUserLog;
use vhost::vhost_user::{Error, Result};
use vm_memory::{FileOffset, MmapRegion};

use crate::memory::{Shown, check_length};
use crate::notifier::share;
use crate::sigbus::Guard;

/// A log that the front end has given.
#[derive(Clone)]
pub(crate) struct DirtyMemory {
    // The mapping is that of the log, and stays until no queue has that.
    _guard: Arc<Guard>,
    region: Arc<MmapRegion>,
    pub(crate) log: Arc<DirtyLog>,
}

impl DirtyMemory {
    pub(crate) fn open(layout: &VhostUserLog, file: File, socket: RawFd) -> Result<DirtyMemory> {
        let (offset, bytes) = (layout.mmap_offset, layout.mmap_size);
        check_length(&file, offset, bytes)
            .map_err(|_| Error::InvalidOperation("the log of dirty pages is past its file"))?;
        let region = MmapRegion::from_file(FileOffset::new(file, offset), bytes as usize)
            .map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))?;
        let guard = Guard::new(&region, socket)
            .ok_or(Error::InvalidOperation("the process has too many memory regions"))?;
        let region = Arc::new(region);
        let log = Arc::new(DirtyLog::new(Arc::clone(&region)));
        Ok(DirtyMemory { _guard: Arc::new(guard), region, log })
    }

    /// The same pages; `notifier` is told of marks.
    pub(crate) fn notifying(self, notifier: Option<&EventNotifier>) -> Result<DirtyMemory> {
        let log = DirtyLog::new(Arc::clone(&self.region));
        let notifier = notifier.map(share).transpose()?;
        Ok(DirtyMemory { log: Arc::new(log.notifying(notifier)), ..self })
    }
}

impl Shown {
    /// Refuses memory that the log has no bits for, while it is in use.
    pub(crate) fn check_log(&self) -> Result<()> {
        match &self.dirty {
            Some(dirty) if self.log_all => self.memory.check_log(&dirty.log),
            _ => Ok(()),
        }
    }

    /// What a queue marks, whose used ring of `bytes` is at `used_ring` of the guest's memory, or is to be
    /// marked at `marked_at`.
    pub(crate) fn queue_log(
        &self,
        used_ring: u64,
        bytes: u64,
        marked_at: Option<u64>,
    ) -> Result<Option<QueueLog>> {
        let Some(dirty) = &self.dirty else { return Ok(None) };
        if !self.log_all && marked_at.is_none() {
            return Ok(None);
        }
        let used_ring = marked_at.unwrap_or(used_ring);
        if !dirty.log.covers(used_ring, bytes) {
            return Err(Error::InvalidOperation("a used ring is past the log of dirty pages"));
        }
        Ok(Some(QueueLog { log: Arc::clone(&dirty.log), data: self.log_all, used_ring }))
    }
}
