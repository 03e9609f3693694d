//! Requests that a queue has taken and not answered when it ends. A stopped backend holds such
//! requests; see [`BlockBackend::give_back_held`](coblk_block::BlockBackend::give_back_held).
//!
//! The invariant: each head that the driver makes available is answered once, by this device or by
//! the one that serves the queue next, unless the driver resets and so forgets it. The available ring
//! is the driver's; the device only reads it (VIRTIO 1.2, 2.7.6). So the one thing that the device can
//! tell the next one is an index, and all entries from there on are taken again: it may lie before an
//! entry only if all heads from there on are unanswered.
//!
//! * A queue is paused, to go on in other memory: they are carried over ([`PausedQueue`]).
//! * A queue stops, and anything may come next. With a log they stay marked in it. Without one the index
//!   goes back over the latest heads, as far as all are unanswered; those before them fail.
//! * The driver resets: they are forgotten, and the log is cleared.
//!
//! A packed queue has its own code for this, in `packed/start.rs`. There the device writes its answers over
//! descriptors, so that an early chain may be gone from the ring.

use vm_memory::VolatileMemoryError;

use crate::dirty::QueueLog;
use crate::inflight::InflightLog;
use crate::memory::GuestMap;
use crate::packed::{PackedLog, PausedPacked};
use crate::virtqueue::{PausedSplit, Virtqueue, VirtqueueError};

/// Knowledge, when a queue starts, of requests that were taken from it earlier. By default:
/// nothing.
#[derive(Default)]
pub struct Earlier {
    /// The log of a device before this one. It goes on in it.
    pub log: Option<RequestLog>,
    /// This device has paused the queue.
    pub paused: Option<PausedQueue>,
    /// Where the queue marks what it writes.
    pub dirty: Option<QueueLog>,
}

/// Where a queue was paused, to go on from there; see
/// [`VirtioBlk::co_pause_queue`](crate::VirtioBlk::co_pause_queue).
#[derive(Clone, Debug)]
pub struct PausedQueue(pub(crate) Paused);

#[derive(Clone, Debug)]
pub(crate) enum Paused {
    Split(PausedSplit),
    // There is a copy of the ring in it.
    Packed(Box<PausedPacked>),
}

impl PausedQueue {
    /// Whether it goes on at `index`, as [`VirtqueueLayout`](crate::VirtqueueLayout) has it, and owes no
    /// answer.
    pub fn is_at(&self, index: u16) -> bool {
        match &self.0 {
            Paused::Split(paused) => paused.heads.is_empty() && paused.next_avail == index,
            Paused::Packed(paused) => paused.is_at(index),
        }
    }
}

/// A log of the requests in flight, of the kind that the queue is of.
#[derive(Debug)]
pub enum RequestLog {
    /// Of a split queue.
    Split(InflightLog),
    /// Of a packed one.
    Packed(PackedLog),
}

impl RequestLog {
    /// Forgets all that is in flight: the driver has reset the queue.
    ///
    /// # Errors
    /// If the memory is too small.
    pub fn clear(&self) -> Result<(), VolatileMemoryError> {
        match self {
            RequestLog::Split(log) => log.clear(),
            RequestLog::Packed(log) => log.clear(),
        }
    }
}

impl From<InflightLog> for RequestLog {
    fn from(log: InflightLog) -> RequestLog {
        RequestLog::Split(log)
    }
}

impl From<PackedLog> for RequestLog {
    fn from(log: PackedLog) -> RequestLog {
        RequestLog::Packed(log)
    }
}

/// Where a queue has stopped. Of a packed one, positions have the wrap counter of their side in bit 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoppedAt {
    /// To start it again with: [`VirtqueueLayout::next_index`](crate::VirtqueueLayout::next_index).
    pub next_index: u16,
    /// Of a packed queue, the next descriptor to be marked as used. It differs from `next_index` if there
    /// are requests in a log. Of a split one, the same as `next_index`: the used ring tells it.
    pub next_used: u16,
}

impl Virtqueue {
    /// The queue goes on elsewhere, by what this returns. `held` was taken and not answered.
    pub(crate) fn pause(&mut self, held: Vec<u16>) -> PausedSplit {
        let mut heads = std::mem::take(&mut self.resubmit);
        heads.reverse();
        heads.extend(held);
        PausedSplit { next_avail: self.next_avail, heads }
    }

    /// The queue stops. Goes back by as many entries as are unanswered without a gap, and returns the
    /// other heads that are: those must be answered now.
    pub(crate) fn stop(
        &mut self,
        mem: &GuestMap,
        held: Vec<u16>,
    ) -> Result<Vec<u16>, VirtqueueError> {
        let PausedSplit { mut next_avail, mut heads } = self.pause(held);
        // No more than `size` are unanswered, so the driver has not come round to their entries.
        let avail = self.map_avail(mem)?;
        while !heads.is_empty() {
            let head = self.head_at(&avail, next_avail.wrapping_sub(1))?;
            let Some(at) = heads.iter().rposition(|it| *it == head) else { break };
            heads.remove(at);
            next_avail = next_avail.wrapping_sub(1);
        }
        if heads.is_empty() || self.log.is_none() {
            self.next_avail = next_avail;
        } else {
            heads.clear();
        }
        Ok(heads)
    }

    /// The driver resets: no head is served any more.
    pub(crate) fn forget(&mut self) -> Result<(), VirtqueueError> {
        self.resubmit.clear();
        self.log.as_ref().map_or(Ok(()), |log| Ok(log.clear()?))
    }
}
