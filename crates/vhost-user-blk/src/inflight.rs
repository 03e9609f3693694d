//! Memory that outlives this process and holds what is in flight: [`InflightMemory`].

use std::fs::File;
use std::os::fd::RawFd;
use std::sync::Arc;

use coblk_virtio_blk::{InflightLog, PackedLog, RequestLog};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Error, Result};
use vm_memory::{FileOffset, MmapRegion};

use crate::memory::check_length;
use crate::sigbus::Guard;
use crate::uffd;

/// Logs of all queues, one after the other. The front end keeps the file, and gives it to the daemon that
/// serves it next.
pub(crate) struct InflightMemory {
    _guard: Guard,
    region: Arc<MmapRegion>,
    num_queues: u16,
    queue_size: u16,
}

impl InflightMemory {
    /// New memory, all zeroes, for a front end to keep; it cannot be resized. It is enough for split queues,
    /// or also for packed ones.
    pub(crate) fn create(
        num_queues: u16,
        queue_size: u16,
        packed: bool,
    ) -> Result<(VhostUserInflight, File)> {
        let bytes = Self::bytes(num_queues, queue_size, packed);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let system = |error: rustix::io::Errno| Error::ReqHandlerError(error.into());
        let file = File::from(memfd_create("vhost-user-inflight", flags).map_err(system)?);
        file.set_len(bytes).map_err(Error::ReqHandlerError)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(system)?;
        Ok((VhostUserInflight::new(bytes, 0, num_queues, queue_size), file))
    }

    /// Maps what a front end has kept.
    pub(crate) fn open(layout: &VhostUserInflight, file: File, socket: RawFd) -> Result<Self> {
        let (num_queues, queue_size) = (layout.num_queues, layout.queue_size);
        if layout.mmap_size < Self::bytes(num_queues, queue_size, false) {
            return Err(Error::InvalidOperation("the inflight memory is too small"));
        }
        let bytes = layout.mmap_size.min(Self::bytes(num_queues, queue_size, true));
        check_length(&file, layout.mmap_offset, bytes)?;
        let region =
            MmapRegion::from_file(FileOffset::new(file, layout.mmap_offset), bytes as usize)
                .map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))?;
        let guard = Guard::new(&region, socket)
            .ok_or(Error::InvalidOperation("the process has too many memory regions"))?;
        Ok(InflightMemory { _guard: guard, region: Arc::new(region), num_queues, queue_size })
    }

    /// What is written from here on stays in this process.
    pub(crate) fn detach(&self) -> std::io::Result<()> {
        uffd::detach(&self.region)
    }

    fn bytes(num_queues: u16, queue_size: u16, packed: bool) -> u64 {
        Self::queue_bytes(queue_size, packed) as u64 * u64::from(num_queues)
    }

    fn queue_bytes(queue_size: u16, packed: bool) -> usize {
        if packed { PackedLog::bytes(queue_size) } else { InflightLog::bytes(queue_size) }
    }

    /// Forgets the requests in flight of one queue that does not run. If the front end has not said of which
    /// kind it is, either log is cleared that it may have; all queues are to be cleared then.
    pub(crate) fn clear(&self, index: u16, packed: Option<bool>) -> Result<()> {
        if index >= self.num_queues {
            return Ok(());
        }
        for kind in [true, false] {
            let has_room = self.has_room(index, kind);
            if packed.map_or(has_room, |packed| packed == kind) {
                let cleared = self.log(index, 0, kind)?.clear();
                cleared.map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))?;
            }
        }
        Ok(())
    }

    fn has_room(&self, index: u16, packed: bool) -> bool {
        Self::queue_bytes(self.queue_size, packed) * (usize::from(index) + 1) <= self.region.size()
    }

    /// The log of one queue, which has `size` entries.
    pub(crate) fn log(&self, index: u16, size: u16, packed: bool) -> Result<RequestLog> {
        if index >= self.num_queues || size > self.queue_size {
            return Err(Error::InvalidOperation("the inflight memory has no place for a queue"));
        }
        let offset = Self::queue_bytes(self.queue_size, packed) * usize::from(index);
        if !self.has_room(index, packed) {
            return Err(Error::InvalidOperation("the inflight memory is too small"));
        }
        let region = Arc::clone(&self.region);
        Ok(match packed {
            true => PackedLog::new(region, offset, size).into(),
            false => InflightLog::new(region, offset, self.queue_size).into(),
        })
    }
}
