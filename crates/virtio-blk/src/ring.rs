//! One queue of the device, split or packed, as its driver has chosen: [`Ring`].

use crate::chain::Chain;
use crate::dirty::QueueLog;
use crate::memory::GuestMap;
use crate::packed::PackedRing;
use crate::unanswered::{Earlier, Paused, PausedQueue, RequestLog, StoppedAt};
use crate::virtqueue::{RingSlices, Virtqueue, VirtqueueError, VirtqueueLayout};

/// What a driver has chosen of a queue.
#[derive(Clone, Copy)]
pub(crate) struct RingOptions {
    pub(crate) size_max: u16,
    pub(crate) event_idx: bool,
    pub(crate) is_packed: bool,
}

/// A queue. What its methods do is said at those of [`Virtqueue`] and [`PackedRing`].
pub(crate) enum Ring {
    Split(Virtqueue),
    Packed(PackedRing),
}

/// Does the same with either.
macro_rules! either {
    ($ring:expr, $it:ident => $done:expr) => {
        match $ring {
            Ring::Split($it) => $done,
            Ring::Packed($it) => $done,
        }
    };
}

impl Ring {
    /// Checks `layout` against `mem`, and takes up what was taken earlier and not answered.
    pub(crate) fn new(
        mem: &GuestMap,
        layout: VirtqueueLayout,
        options: RingOptions,
        earlier: Earlier,
    ) -> Result<Ring, VirtqueueError> {
        let RingOptions { size_max, event_idx, is_packed } = options;
        const OTHER_KIND: VirtqueueError =
            VirtqueueError::Layout("what is known of it is of a queue of the other kind");
        let Earlier { log, paused, .. } = earlier;
        if is_packed {
            let log = match log {
                Some(RequestLog::Split(_)) => return Err(OTHER_KIND),
                Some(RequestLog::Packed(log)) => Some(log),
                None => None,
            };
            let paused = match paused {
                Some(PausedQueue(Paused::Split(_))) => return Err(OTHER_KIND),
                Some(PausedQueue(Paused::Packed(paused))) => Some(*paused),
                None => None,
            };
            let ring = PackedRing::new(mem, layout, size_max, event_idx, log, paused)?;
            return Ok(Ring::Packed(ring));
        }
        let log = match log {
            Some(RequestLog::Packed(_)) => return Err(OTHER_KIND),
            Some(RequestLog::Split(log)) => Some(log),
            None => None,
        };
        let paused = match paused {
            Some(PausedQueue(Paused::Packed(_))) => return Err(OTHER_KIND),
            Some(PausedQueue(Paused::Split(paused))) => Some(paused),
            None => None,
        };
        Ok(Ring::Split(Virtqueue::new(mem, layout, size_max, event_idx, log, paused)?))
    }

    pub(crate) fn has_event_idx(&self) -> bool {
        either!(self, ring => ring.has_event_idx())
    }

    pub(crate) fn map<'m>(&self, mem: &'m GuestMap) -> Result<RingSlices<'m>, VirtqueueError> {
        either!(self, ring => ring.map(mem))
    }

    /// 0 if nothing waits to be taken, or else how much there may be.
    #[inline]
    pub(crate) fn available(&self, rings: &RingSlices<'_>) -> Result<u16, VirtqueueError> {
        either!(self, ring => ring.available(rings))
    }

    /// Follows a chain that was taken before.
    #[cold]
    pub(crate) fn walk(
        &self,
        mem: &GuestMap,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), VirtqueueError> {
        match self {
            Ring::Split(ring) => {
                let rings = ring.map(mem)?;
                let walked = chain.walk(mem, &rings.desc, head, true);
                walked.map_err(|source| VirtqueueError::Chain { head, source })
            }
            Ring::Packed(ring) => ring.walk(mem, head, chain, true),
        }
    }

    /// Puts answers in: heads, and how many bytes were written for each. The driver sees them after
    /// [`publish`](Self::publish). Returns how many it does not see yet.
    #[inline]
    pub(crate) fn push_all(
        &mut self,
        mem: &GuestMap,
        answers: impl Iterator<Item = (u16, u32)>,
    ) -> Result<u16, VirtqueueError> {
        match self {
            Ring::Split(ring) => {
                let (used, mut failed) = (ring.map_used(mem), None);
                for (head, written_bytes) in answers {
                    if let Ok(used) = &used
                        && let Err(error) = ring.push_used(used, head, written_bytes)
                    {
                        failed = Some(error);
                    }
                }
                used.err().or(failed).map_or(Ok(ring.unpublished()), Err)
            }
            Ring::Packed(ring) => {
                answers.for_each(|(id, written_bytes)| ring.push_used(id, written_bytes));
                Ok(ring.unpublished())
            }
        }
    }

    /// Shows the driver all answers that were put in.
    #[inline]
    pub(crate) fn publish(&mut self, mem: &GuestMap) -> Result<(), VirtqueueError> {
        either!(self, ring => match ring.unpublished() {
            0 => Ok(()),
            _ => ring.map_used(mem).and_then(|used| ring.publish_used(&used)),
        })
    }

    pub(crate) fn set_dirty_log(&mut self, log: Option<&QueueLog>) {
        either!(self, ring => ring.set_dirty_log(log));
    }

    pub(crate) fn needs_interrupt(&mut self, mem: &GuestMap) -> Result<bool, VirtqueueError> {
        either!(self, ring => ring.needs_interrupt(mem))
    }

    pub(crate) fn disable_notification(
        &self,
        rings: &RingSlices<'_>,
    ) -> Result<(), VirtqueueError> {
        either!(self, ring => ring.disable_notification(rings))
    }

    pub(crate) fn enable_notification(
        &self,
        rings: &RingSlices<'_>,
    ) -> Result<bool, VirtqueueError> {
        either!(self, ring => ring.enable_notification(rings))
    }

    /// Where the queue goes on.
    pub(crate) fn stopped_at(&self) -> StoppedAt {
        let (next_index, next_used) = match self {
            Ring::Split(ring) => (ring.next_avail, ring.next_avail),
            Ring::Packed(ring) => ring.positions(),
        };
        StoppedAt { next_index, next_used }
    }

    pub(crate) fn pause(&mut self, held: Vec<u16>) -> PausedQueue {
        PausedQueue(match self {
            Ring::Split(ring) => Paused::Split(ring.pause(held)),
            Ring::Packed(ring) => Paused::Packed(Box::new(ring.pause(held))),
        })
    }

    pub(crate) fn stop(
        &mut self,
        mem: &GuestMap,
        held: Vec<u16>,
    ) -> Result<Vec<u16>, VirtqueueError> {
        either!(self, ring => ring.stop(mem, held))
    }

    pub(crate) fn forget(&mut self) -> Result<(), VirtqueueError> {
        either!(self, ring => ring.forget())
    }
}
