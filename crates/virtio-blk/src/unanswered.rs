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

use crate::dirty::QueueLog;
use crate::inflight::InflightLog;
use crate::memory::GuestMap;
use crate::virtqueue::{Virtqueue, VirtqueueError};

/// Knowledge, when a queue starts, of requests that were taken from it earlier. By default:
/// nothing.
#[derive(Default)]
pub struct Earlier {
    /// The log of a device before this one. It goes on in it.
    pub log: Option<InflightLog>,
    /// This device has paused the queue.
    pub paused: Option<PausedQueue>,
    /// Where the queue marks what it writes.
    pub dirty: Option<QueueLog>,
}

/// Where a queue was paused, to go on from there; see
/// [`VirtioBlk::co_pause_queue`](crate::VirtioBlk::co_pause_queue).
#[derive(Clone, Debug)]
pub struct PausedQueue {
    pub(crate) next_avail: u16,
    /// Taken and not answered, in the order in which they are to be served.
    pub(crate) heads: Vec<u16>,
}

impl PausedQueue {
    /// Whether it goes on at `index` of the available ring, and owes no answer.
    pub fn is_at(&self, index: u16) -> bool {
        self.heads.is_empty() && self.next_avail == index
    }
}

impl Virtqueue {
    /// The queue goes on elsewhere, by what this returns. `held` was taken and not answered.
    pub(crate) fn pause(&mut self, held: Vec<u16>) -> PausedQueue {
        let mut heads = std::mem::take(&mut self.resubmit);
        heads.reverse();
        heads.extend(held);
        PausedQueue { next_avail: self.next_avail, heads }
    }

    /// The queue stops. Goes back by as many entries as are unanswered without a gap, and returns the
    /// other heads that are: those must be answered now.
    pub(crate) fn stop(
        &mut self,
        mem: &GuestMap,
        held: Vec<u16>,
    ) -> Result<Vec<u16>, VirtqueueError> {
        let PausedQueue { mut next_avail, mut heads } = self.pause(held);
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
