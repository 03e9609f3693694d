//! Requests that take the whole way of a guest's: virtqueue, device, block layer, driver.

use std::io;

use coblk::virtio_blk::guest::{GuestBuffer, Machine, QueueOptions};
use coblk::virtio_blk::{BlkStatus, SECTOR_BYTES, VirtioBlkConfig};
use coblk::{AioContext, BlockBackend};

/// Length of a request.
const BLOCK_BYTES: u32 = 4096;

/// A guest that keeps its queue full of reads, on the device's own thread.
pub struct Guest {
    machine: Machine,
    /// One for each request that may be in flight; its index is the request's token.
    buffers: Vec<GuestBuffer>,
    blocks: u64,
    next_block: u64,
}

impl Guest {
    /// A guest with a device on `backend` and up to `depth` requests in flight. The device does not
    /// merge requests, so that each goes all the way.
    ///
    /// # Errors
    /// If the machine cannot be built.
    pub fn new(ctx: &AioContext, backend: BlockBackend, depth: usize) -> io::Result<Guest> {
        let blocks = (backend.length()? / u64::from(BLOCK_BYTES)).max(1);
        let config = VirtioBlkConfig::default().merge_requests(false);
        // It reaps after each turn of the loop anyway.
        let queue = QueueOptions { size: 256, interrupts: false, ..QueueOptions::default() };
        let builder = Machine::builder().config(config).queue(queue);
        let machine = builder.build(ctx, backend).map_err(io::Error::other)?;
        let buffers = machine.ram.alloc_many(depth, BLOCK_BYTES, u64::from(BLOCK_BYTES))?;
        Ok(Guest { machine, buffers, blocks, next_block: 0 })
    }

    /// Makes `ops` reads, one block after the other.
    ///
    /// # Errors
    /// If the device fails one, when all have ended.
    pub fn run(&mut self, ctx: &AioContext, ops: u64) -> io::Result<()> {
        let mut left = ops;
        let mut failed = None;
        for token in 0..(self.buffers.len() as u64).min(ops) {
            self.read(token)?;
            left -= 1;
        }
        self.machine.queues[0].kick();
        while self.machine.queues[0].in_flight() > 0 {
            ctx.poll();
            while let Some(completion) = self.machine.queues[0].reap() {
                if completion.status != BlkStatus::Ok {
                    failed = Some(completion.status);
                }
                if left > 0 && failed.is_none() {
                    self.read(completion.token)?;
                    left -= 1;
                }
            }
            self.machine.queues[0].kick();
        }
        match failed {
            None => Ok(()),
            Some(status) => Err(io::Error::other(format!("the device says {status:?}"))),
        }
    }

    fn read(&mut self, token: u64) -> io::Result<()> {
        let sector = self.next_block * u64::from(BLOCK_BYTES) / SECTOR_BYTES;
        self.next_block = if self.next_block + 1 == self.blocks { 0 } else { self.next_block + 1 };
        let buffer = self.buffers[token as usize];
        self.machine.queues[0].read(sector, buffer, token).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coblk::BlockNode;
    use coblk::drivers::Null;

    #[test]
    fn reads_all_it_should() {
        let ctx = AioContext::for_test().unwrap();
        let node = BlockNode::new("null", Null::new(1 << 20));
        let mut guest = Guest::new(&ctx, BlockBackend::new(&ctx, "bench", node), 64).unwrap();
        for ops in [1, 64, 1000] {
            guest.run(&ctx, ops).unwrap();
        }
    }
}
