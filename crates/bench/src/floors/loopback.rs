//! A guest's driver and a bare device loop, on one thread: the floor of a request through a
//! virtqueue.

use std::io;
use std::path::Path;
use std::sync::Arc;

use coblk::virtio_blk::BlkStatus;
use coblk::virtio_blk::guest::{GuestBuffer, GuestQueue, GuestRam, QueueOptions};
use vm_memory::GuestMemoryMmap;

use super::Wait;
use super::store::Store;
use super::virtqueue::Ring;
use crate::measure::{Lap, lap};

/// Length of a request.
const BLOCK_BYTES: u32 = 4096;
/// Memory of the guest: more than its queue and its buffers need.
const MEMORY_MIB: usize = 16;

/// The same guest as that of our device.
pub struct Loopback {
    queue: GuestQueue,
    memory: Arc<GuestMemoryMmap>,
    store: Store,
    buffers: Vec<GuestBuffer>,
    next_avail: u16,
    next_block: u64,
}

impl Loopback {
    /// A guest with up to `depth` requests in flight to the image; to nothing without one.
    ///
    /// # Errors
    /// If there is no memory, or the image cannot be opened.
    pub fn new(image: Option<&Path>, depth: usize) -> io::Result<Loopback> {
        let ram = GuestRam::new(MEMORY_MIB)?;
        let options = QueueOptions { size: 256, interrupts: false, ..QueueOptions::default() };
        let queue = GuestQueue::new(&ram, options)?;
        let buffers = ram.alloc_many(depth, BLOCK_BYTES, u64::from(BLOCK_BYTES))?;
        let (memory, store) = (Arc::clone(ram.memory()), Store::open(image)?);
        Ok(Loopback { queue, memory, store, buffers, next_avail: 0, next_block: 0 })
    }

    /// Makes `ops` reads, one block after the other.
    ///
    /// # Errors
    /// If one fails.
    pub fn run(&mut self, ops: u64) -> io::Result<Lap> {
        let mut result = Ok(());
        let lap = lap(ops, || result = self.requests(ops));
        result.map(|()| lap)
    }

    fn requests(&mut self, ops: u64) -> io::Result<()> {
        let memory = Arc::clone(&self.memory);
        let mut layout = self.queue.layout();
        layout.next_index = self.next_avail;
        let mut ring = Ring::new(&memory, &layout, true, Wait::Spinning)?;
        let mut left = ops;
        for token in 0..(self.buffers.len() as u64).min(ops) {
            self.read(token)?;
            left -= 1;
        }
        self.queue.kick();
        while self.queue.in_flight() > 0 {
            ring.serve(&self.store)?;
            while let Some(completion) = self.queue.reap() {
                if completion.status != BlkStatus::Ok {
                    return Err(io::Error::other(format!("it says {:?}", completion.status)));
                }
                if left > 0 {
                    self.read(completion.token)?;
                    left -= 1;
                }
            }
            self.queue.kick();
        }
        self.next_avail = ring.next_avail();
        Ok(())
    }

    fn read(&mut self, token: u64) -> io::Result<()> {
        let blocks = (self.store.len_bytes() / u64::from(BLOCK_BYTES)).max(1);
        let sector = self.next_block * u64::from(BLOCK_BYTES) / coblk::virtio_blk::SECTOR_BYTES;
        self.next_block = if self.next_block + 1 == blocks { 0 } else { self.next_block + 1 };
        self.queue.read(sector, self.buffers[token as usize], token).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_as_many_requests_as_it_should() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(3 * 4096).unwrap();
        for image in [None, Some(file.path())] {
            let mut loopback = Loopback::new(image, 64).unwrap();
            for ops in [0, 1, 64, 1000] {
                assert_eq!(loopback.run(ops).unwrap().ops, ops);
            }
        }
        // The file was cut: a read that fails is an error.
        let mut loopback = Loopback::new(Some(file.path()), 4).unwrap();
        file.as_file().set_len(0).unwrap();
        assert!(loopback.run(1).is_err());
    }
}
