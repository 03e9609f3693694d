//! Where a packed queue begins, and where it is when it ends. The invariants are those of `unanswered.rs`.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, VolatileSlice};

use super::chains::Chains;
use super::log::Recovered;
use super::position::Position;
use super::{FLAGS_OFFSET, PackedLog, PackedRing};
use crate::inflight::InflightError;
use crate::memory::GuestMap;
use crate::virtqueue::{DESCRIPTOR_BYTES, VirtqueueError, VirtqueueLayout};

/// Descriptors of a ring, at most: what positions can count.
const MAX_SIZE: u16 = 1 << 15;

/// Where a packed queue was paused.
#[derive(Clone, Debug)]
pub(crate) struct PausedPacked {
    avail: Position,
    used: Position,
    chains: Chains,
    /// The log, by its place, and the number of the next request in it.
    log: Option<(usize, u64)>,
    /// Taken and not answered, in the order in which they are to be served.
    ids: Vec<u16>,
}

impl PausedPacked {
    /// Whether it goes on at the position `bits`, and owes no answer.
    pub(crate) fn is_at(&self, bits: u16) -> bool {
        let is_new = bits == 0 && self.avail == Position::START;
        self.ids.is_empty() && (self.avail.bits() == bits || is_new)
    }
}

impl PackedRing {
    /// Checks `layout` against `mem`. What was taken earlier and not answered comes first; with a log, the
    /// positions too are those that the log tells.
    pub(crate) fn new(
        mem: &GuestMap,
        layout: VirtqueueLayout,
        size_max: u16,
        event_idx: bool,
        log: Option<PackedLog>,
        paused: Option<PausedPacked>,
    ) -> Result<PackedRing, VirtqueueError> {
        check_layout(&layout, size_max)?;
        let size = layout.size;
        let mut ring = PackedRing {
            layout,
            event_idx,
            avail: Position::START,
            used: Position::START,
            unsignalled: 0,
            chains: Chains::new(size),
            batch: Vec::with_capacity(usize::from(size)),
            log,
            dirty: None,
            resubmit: Vec::new(),
        };
        // Each part in one piece of memory, and aligned for atomic access.
        let rings = ring.map(mem)?;
        match (&ring.log, paused) {
            (log, Some(paused)) => {
                if paused.chains.entries.len() != usize::from(size) {
                    return Err(VirtqueueError::Layout("it was paused with another size"));
                }
                let PausedPacked { avail, used, chains, log: before, ids } = paused;
                if let Some(log) = log {
                    log.go_on(before, &chains, used, &ids)?;
                }
                (ring.avail, ring.used, ring.chains, ring.resubmit) = (avail, used, chains, ids);
            }
            (Some(log), None) => {
                let base = ring.base(&rings.desc)?;
                let Recovered { chains, used, ids } = log.recover(&rings.desc, base)?;
                let count = size - chains.num_free();
                (ring.avail, ring.used) = (used.advance(count, size), used);
                (ring.chains, ring.resubmit) = (chains, ids);
            }
            (None, None) => {
                let base = ring.base(&rings.desc)?;
                (ring.avail, ring.used) = (base, base);
            }
        }
        ring.resubmit.reverse();
        ring.available(&rings)?;
        Ok(ring)
    }

    /// Where the front end says that the queue begins. Some say 0 for a new ring, which is also what a ring
    /// has come to after one round. Then there are descriptors that were used.
    fn base(&self, ring: &VolatileSlice<'_>) -> Result<Position, VirtqueueError> {
        let base = Position::from_bits(self.layout.next_index);
        if base.index >= self.layout.size {
            return Err(VirtqueueError::Layout("it begins behind its last descriptor"));
        }
        if base.bits() != 0 {
            return Ok(base);
        }
        for index in 0..usize::from(self.layout.size) {
            let flags = ring.load(DESCRIPTOR_BYTES * index + FLAGS_OFFSET, Ordering::Relaxed)?;
            if Position::has_used_mark(u16::from_le(flags)) {
                return Ok(base);
            }
        }
        Ok(Position::START)
    }

    /// Where the device goes on: the next descriptor to take, and the next to mark as used.
    pub(crate) fn positions(&self) -> (u16, u16) {
        (self.avail.bits(), self.used.bits())
    }

    /// The queue goes on elsewhere, by what this returns. `held` was taken and not answered.
    pub(crate) fn pause(&mut self, held: Vec<u16>) -> PausedPacked {
        PausedPacked {
            avail: self.avail,
            used: self.used,
            ids: self.unanswered(held),
            chains: self.chains.clone(),
            log: self.log.as_ref().map(PackedLog::place),
        }
    }

    /// What was taken and not answered, in its order.
    fn unanswered(&mut self, held: Vec<u16>) -> Vec<u16> {
        let mut ids = std::mem::take(&mut self.resubmit);
        ids.reverse();
        ids.extend(held);
        ids
    }

    /// The queue stops. Without a log it goes back over chains that are still in the ring as they were
    /// taken, and returns the other ones that are unanswered: those must be answered now.
    pub(crate) fn stop(
        &mut self,
        mem: &GuestMap,
        held: Vec<u16>,
    ) -> Result<Vec<u16>, VirtqueueError> {
        let mut ids = self.unanswered(held);
        if self.log.is_some() {
            return Ok(Vec::new());
        }
        // What is in flight has as many descriptors as there are before `avail`, but those of early chains
        // may be overwritten. The last descriptor of a chain has its id.
        let (ring, size) = (self.map_used(mem)?, self.layout.size);
        while !ids.is_empty() {
            let last = super::read(&ring, self.avail.go_back(1, size), Ordering::Relaxed)?;
            let id = last.buffer_id();
            let Some(at) = ids.iter().rposition(|it| *it == id) else { break };
            let Some(head) = self.chains.release(id) else { break };
            ids.remove(at);
            self.avail = self.avail.go_back(head.count, size);
        }
        Ok(ids)
    }

    /// The driver resets: no chain is served any more.
    pub(crate) fn forget(&mut self) -> Result<(), VirtqueueError> {
        self.resubmit.clear();
        self.log.as_ref().map_or(Ok(()), |log| Ok(log.clear().map_err(InflightError::from)?))
    }
}

fn check_layout(layout: &VirtqueueLayout, size_max: u16) -> Result<(), VirtqueueError> {
    let wrong = |what| Err(VirtqueueError::Layout(what));
    let is_aligned = |addr: u64| addr.is_multiple_of(super::EVENT_BYTES as u64);
    if !layout.size.is_power_of_two() || layout.size > size_max.min(MAX_SIZE) {
        return wrong("the size is no power of two, or above the maximum");
    }
    if !layout.desc_table.is_multiple_of(DESCRIPTOR_BYTES as u64) {
        return wrong("the descriptor ring is not aligned to 16 bytes");
    }
    if !is_aligned(layout.avail_ring) || !is_aligned(layout.used_ring) {
        return wrong("an event suppression structure is not aligned to 4 bytes");
    }
    Ok(())
}
