//! The guest: keeps the virtqueue full, looks at what comes back.

use std::error::Error;
use std::time::{Duration, Instant};

use coblk::AioContext;
use coblk::virtio_blk::BlkStatus;
use coblk::virtio_blk::guest::{Completion, GuestBuffer, GuestRequest, Machine};

use crate::report::{Progress, Results};
use crate::verify::{Checked, Verifier, mix};

const SECTOR_BYTES: u64 = 512;

/// Which requests are made.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// How likely a request is a read, in percent.
    pub read_percent: u8,
    /// Random offsets, or one after the other.
    pub random: bool,
    /// When to stop.
    pub until: Until,
}

/// When a workload ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After this time.
    Elapsed(Duration),
    /// When each block has had its turn.
    EachOnce,
}

/// One request that may be in flight, and its piece of guest memory.
struct Slot {
    buffer: GuestBuffer,
    block: usize,
    is_read: bool,
    submitted: Instant,
}

/// A guest that drives a device.
pub struct Guest<'a> {
    ctx: &'a AioContext,
    machine: Machine,
    block_bytes: u64,
    blocks: usize,
    slots: Vec<Slot>,
    /// Slots that are not in flight.
    free: Vec<usize>,
    /// Blocks that a request is in flight for: no second one may be, or it would not be known what
    /// the block should hold.
    busy: Vec<bool>,
    /// `None` if nothing is checked.
    pub verifier: Option<Verifier>,
    /// A block as the guest's processor sees it.
    scratch: Vec<u8>,
    random: u64,
    /// The next block of sequential writes, and of reads.
    sequential: [usize; 2],
}

impl<'a> Guest<'a> {
    /// A guest on `machine`, with `depth` buffers in its memory. `depth` is at most `blocks`.
    ///
    /// # Errors
    /// If guest memory is too small for that.
    pub fn new(
        ctx: &'a AioContext,
        machine: Machine,
        blocks: usize,
        block_bytes: u64,
        depth: u16,
        seed: u64,
    ) -> Result<Guest<'a>, Box<dyn Error>> {
        let block = u32::try_from(block_bytes)?;
        let buffers = machine.ram.alloc_many(usize::from(depth), block, 4096)?;
        let now = Instant::now();
        let slot = |buffer| Slot { buffer, block: 0, is_read: false, submitted: now };
        Ok(Guest {
            ctx,
            block_bytes,
            blocks,
            free: (0..buffers.len()).rev().collect(),
            slots: buffers.into_iter().map(slot).collect(),
            busy: vec![false; blocks],
            verifier: None,
            scratch: vec![0; block_bytes as usize],
            random: seed,
            sequential: [0; 2],
            machine,
        })
    }

    /// Runs a workload to its end, and until nothing is in flight.
    ///
    /// The end comes early with the first request that fails, or the first wrong block.
    pub fn run(&mut self, mix: Mix, results: &mut Results, progress: &mut Progress) {
        let started = Instant::now();
        self.sequential = [0; 2];
        let mut left = match mix.until {
            Until::Elapsed(_) => u64::MAX,
            Until::EachOnce => self.blocks as u64,
        };
        loop {
            let over = matches!(mix.until, Until::Elapsed(limit) if started.elapsed() >= limit);
            let go_on = !over && results.is_good();
            while go_on && left > 0 && self.submit_next(&mix) {
                left -= 1;
            }
            if self.machine.queues[0].in_flight() == 0 {
                break;
            }
            self.machine.queues[0].kick();
            self.ctx.poll();
            while let Some(completion) = self.machine.queues[0].reap() {
                self.finish(completion, results);
            }
            progress.show(started.elapsed(), results);
        }
        results.elapsed += started.elapsed();
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// If the device says that it could not.
    pub fn flush(&mut self) -> Result<(), String> {
        match self.machine.queues[0].call(self.ctx, GuestRequest::Flush).status {
            BlkStatus::Ok => Ok(()),
            status => Err(format!("the final flush failed: {status:?}")),
        }
    }

    /// Puts one more request on the ring; false if there is no room for one now.
    fn submit_next(&mut self, mix: &Mix) -> bool {
        let Some(&index) = self.free.last() else { return false };
        let is_read = self.next_random() % 100 < u64::from(mix.read_percent);
        let Some(block) = self.next_block(mix.random, is_read) else { return false };
        let slot = &mut self.slots[index];
        let sector = block as u64 * self.block_bytes / SECTOR_BYTES;
        let buffers = &[slot.buffer];
        if !is_read {
            match &mut self.verifier {
                Some(verifier) => verifier.stamp_next(block, &mut self.scratch),
                None => self.scratch[..8].copy_from_slice(&sector.to_le_bytes()),
            }
            self.machine.ram.write(slot.buffer, &self.scratch);
        }
        let request = match is_read {
            true => GuestRequest::Read { sector, buffers },
            false => GuestRequest::Write { sector, buffers },
        };
        slot.submitted = Instant::now();
        if self.machine.queues[0].submit(request, index as u64).is_err() {
            // The queue was made for as many requests as there are slots.
            unreachable!("the virtqueue has less room than there are slots");
        }
        (slot.block, slot.is_read) = (block, is_read);
        self.busy[block] = true;
        self.free.pop();
        true
    }

    /// A block that no request is in flight for.
    fn next_block(&mut self, random: bool, is_read: bool) -> Option<usize> {
        if random {
            // There are no more slots than blocks, so one of them is free.
            let first = (self.next_random() % self.blocks as u64) as usize;
            return (first..self.blocks).chain(0..first).find(|block| !self.busy[*block]);
        }
        let next = &mut self.sequential[usize::from(is_read)];
        let block = *next;
        if self.busy[block] {
            return None;
        }
        *next = (block + 1) % self.blocks;
        Some(block)
    }

    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(1);
        mix(self.random)
    }

    fn finish(&mut self, completion: Completion, results: &mut Results) {
        let index = completion.token as usize;
        let slot = &self.slots[index];
        let offset = slot.block as u64 * self.block_bytes;
        self.busy[slot.block] = false;
        self.free.push(index);
        if completion.status != BlkStatus::Ok {
            results.failed(slot.is_read, offset, completion.status);
            if let Some(verifier) = self.verifier.as_mut().filter(|_| !slot.is_read) {
                verifier.forget(slot.block);
            }
            return;
        }
        results.completed(slot.is_read, self.block_bytes, slot.submitted.elapsed());
        let Some(verifier) = self.verifier.as_ref().filter(|_| slot.is_read) else { return };
        self.machine.ram.read(slot.buffer, &mut self.scratch);
        match verifier.check(slot.block, &self.scratch) {
            Ok(Checked::Good) => results.verified += 1,
            Ok(Checked::Unknown) => results.unknown += 1,
            Err(mismatch) => results.mismatch(&mismatch),
        }
    }
}
