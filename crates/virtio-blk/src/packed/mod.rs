//! The device's view of one packed virtqueue: [`PackedRing`].
//!
//! Both sides go round one ring of descriptors. The driver marks a descriptor as available, the device marks
//! it as used, each by two bits that mean the opposite in the next round.
//!
//! ```text
//!   driver writes                          device writes
//!   descriptors  ---> take()               descriptors   <--- publish_used()
//!   driver event ---> needs_interrupt()    device event  <--- enable_notification()
//! ```
//!
//! The invariants:
//!
//! * What lies between `used` and `avail` is in flight: as many descriptors as the chains in
//!   [`Chains`] have. So a driver that makes more available than there are is found out.
//! * Of answers that are published together the first is written last. The driver waits at its place,
//!   and looks at no other before.
//! * The device copies each descriptor once, and looks at its copy from then on.

mod chains;
#[cfg(test)]
mod kills;
mod log;
mod position;
mod start;
mod store;

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use crate::chain::{Chain, ChainError, Descriptor};
use crate::dirty::{QueueLog, RingLog};
use crate::memory::GuestMap;
use crate::virtqueue::{
    DESCRIPTOR_BYTES, RingSlices, VirtqueueError, VirtqueueLayout, is_event_passed,
};
use chains::Chains;
pub use log::PackedLog;
pub(crate) use position::Position;
pub(crate) use start::PausedPacked;
use store::store;

/// Where a new packed queue begins: at its first descriptor, in the first round.
pub const PACKED_START: u16 = 1 << 15;

/// Of an event suppression structure: a position, then flags.
const EVENT_BYTES: usize = 4;
/// In a descriptor: length, buffer id and flags in one word.
const REST_OFFSET: usize = 8;
const FLAGS_OFFSET: usize = 14;

/// An answer that the driver does not see yet.
#[derive(Clone, Copy)]
struct Answer {
    id: u16,
    /// Where the chain has begun, once it is released.
    first: u16,
    written_bytes: u32,
}

/// What a queue marks of its ring.
struct DirtyRing {
    descriptors: RingLog,
    event: RingLog,
}

/// Positions and negotiated behaviour of one packed queue.
pub(crate) struct PackedRing {
    layout: VirtqueueLayout,
    event_idx: bool,
    /// The next descriptor to take.
    avail: Position,
    /// The next one to mark as used.
    used: Position,
    /// Descriptors used since the last decision whether to interrupt.
    unsignalled: u16,
    chains: Chains,
    /// Answers to publish. There is room for all that can be.
    batch: Vec<Answer>,
    log: Option<PackedLog>,
    dirty: Option<DirtyRing>,
    /// Buffer ids of what was taken earlier and not answered, last one first.
    resubmit: Vec<u16>,
}

#[inline]
fn read(
    ring: &VolatileSlice<'_>,
    at: Position,
    order: Ordering,
) -> Result<Descriptor, VirtqueueError> {
    let offset = DESCRIPTOR_BYTES * usize::from(at.index);
    // The flags are in this word: what else there is of the chain may be read after it.
    let rest = ring.load::<u64>(offset + REST_OFFSET, order)?;
    Ok(Descriptor::from_words(ring.load(offset, Ordering::Relaxed)?, rest).of_packed_ring())
}

impl PackedRing {
    pub(crate) fn has_event_idx(&self) -> bool {
        self.event_idx
    }

    pub(crate) fn size(&self) -> u16 {
        self.layout.size
    }

    /// Looks descriptors and event suppression structures up.
    pub(crate) fn map<'m>(&self, mem: &'m GuestMap) -> Result<RingSlices<'m>, VirtqueueError> {
        let event = |addr| mem.slice(GuestAddress(addr), EVENT_BYTES);
        Ok(RingSlices {
            desc: self.map_used(mem)?,
            avail: event(self.layout.avail_ring)?,
            used: event(self.layout.used_ring)?,
        })
    }

    /// Looks up what answers are written to: the descriptors.
    #[inline]
    pub(crate) fn map_used<'m>(
        &self,
        mem: &'m GuestMap,
    ) -> Result<VolatileSlice<'m>, VirtqueueError> {
        let bytes = DESCRIPTOR_BYTES * usize::from(self.layout.size);
        Ok(mem.slice(GuestAddress(self.layout.desc_table), bytes)?)
    }

    /// 0 if nothing waits to be taken, or else how much there may be.
    #[inline]
    pub(crate) fn available(&self, rings: &RingSlices<'_>) -> Result<u16, VirtqueueError> {
        let offset = DESCRIPTOR_BYTES * usize::from(self.avail.index) + FLAGS_OFFSET;
        let flags = u16::from_le(rings.desc.load(offset, Ordering::Acquire)?);
        let is_available = self.avail.is_available(flags) || !self.resubmit.is_empty();
        Ok(if is_available { self.layout.size } else { 0 })
    }

    /// Takes the next chain into `chain`. Returns its buffer id; `None` if there is none.
    pub(crate) fn take(
        &mut self,
        mem: &GuestMap,
        rings: &RingSlices<'_>,
        chain: &mut Chain,
        allow_indirect: bool,
    ) -> Result<Option<u16>, VirtqueueError> {
        if let Some(id) = self.resubmit.pop() {
            self.walk(mem, id, chain, allow_indirect)?;
            return Ok(Some(id));
        }
        let (size, head, mut at) = (self.layout.size, self.avail, self.avail);
        let mut descriptor = read(&rings.desc, at, Ordering::Acquire)?;
        if !at.is_available(descriptor.flags) {
            return Ok(None);
        }
        let broken = |source| VirtqueueError::Chain { head: head.index, source };
        let mut draft = self.chains.begin();
        chain.clear();
        loop {
            if !self.chains.push(&mut draft, descriptor) {
                let limit = u32::from(self.chains.num_free());
                return Err(broken(ChainError::TooLong { limit }));
            }
            add(mem, chain, &descriptor, draft.count(), allow_indirect).map_err(broken)?;
            at = at.advance(1, size);
            if !descriptor.has(VRING_DESC_F_NEXT) {
                break;
            }
            descriptor = read(&rings.desc, at, Ordering::Relaxed)?;
            if !at.is_available(descriptor.flags) {
                return Err(VirtqueueError::NotAvailable { head: head.index, index: at.index });
            }
        }
        let id = descriptor.buffer_id();
        if id >= size {
            return Err(VirtqueueError::BufferId { id, size });
        }
        if !self.chains.is_free(id) {
            return Err(VirtqueueError::BufferInFlight { id });
        }
        self.chains.commit(draft, id);
        self.avail = at;
        if let Some(log) = &self.log {
            log.taken(&self.chains, id)?;
        }
        Ok(Some(id))
    }

    /// Follows a chain that was taken before, by what was copied of it.
    #[cold]
    pub(crate) fn walk(
        &self,
        mem: &GuestMap,
        id: u16,
        chain: &mut Chain,
        allow_indirect: bool,
    ) -> Result<(), VirtqueueError> {
        chain.clear();
        let head = self.chains.head(id).unwrap_or_default();
        for (count, (_, entry)) in (1..).zip(self.chains.descriptors(head)) {
            add(mem, chain, &entry.descriptor, count, allow_indirect)
                .map_err(|source| VirtqueueError::Chain { head: id, source })?;
        }
        Ok(())
    }

    /// A chain is answered. The driver sees it after [`publish_used`](Self::publish_used).
    #[inline]
    pub(crate) fn push_used(&mut self, id: u16, written_bytes: u32) {
        self.batch.push(Answer { id, first: 0, written_bytes });
    }

    /// Answers pushed that the driver does not see yet.
    #[inline]
    pub(crate) fn unpublished(&self) -> u16 {
        self.batch.len() as u16
    }

    /// Shows the driver all answers pushed so far.
    #[inline(never)]
    pub(crate) fn publish_used(&mut self, ring: &VolatileSlice<'_>) -> Result<(), VirtqueueError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        if self.log.is_some() {
            self.log_batch()?;
        }
        let (size, first) = (self.layout.size, self.used);
        let mut first_word = None;
        let (mut at, mut count) = (first, 0u16);
        for answer in &mut self.batch {
            let word = answer.used_word(at).to_le();
            if first_word.is_none() {
                first_word = Some(word);
            } else {
                let offset = DESCRIPTOR_BYTES * usize::from(at.index) + REST_OFFSET;
                store(ring, offset, word, Ordering::Relaxed)?;
            }
            // Each was taken, and is answered once.
            let released = self.chains.release(answer.id).unwrap_or_default();
            answer.first = released.first;
            at = at.advance(released.count, size);
            count = count.saturating_add(released.count);
        }
        if self.dirty.is_some() {
            self.mark_descriptors(first, count);
        }
        if let Some(word) = first_word {
            let offset = DESCRIPTOR_BYTES * usize::from(first.index) + REST_OFFSET;
            // Release: the other answers, and all data, before the one that the driver waits for.
            store(ring, offset, word, Ordering::Release)?;
        }
        self.used = at;
        self.unsignalled = self.unsignalled.saturating_add(count);
        if let Some(dirty) = &self.dirty {
            let offset = DESCRIPTOR_BYTES * usize::from(first.index);
            dirty.descriptors.published(offset, DESCRIPTOR_BYTES);
        }
        if let Some(log) = &self.log {
            log.published(self.batch.iter().map(|answer| answer.first))?;
        }
        self.batch.clear();
        Ok(())
    }

    /// Says in the log what the driver is about to see.
    #[cold]
    fn log_batch(&self) -> Result<(), VirtqueueError> {
        let Some(log) = &self.log else { return Ok(()) };
        let (mut free, mut at) = (self.chains.free, self.used);
        for head in self.batch.iter().filter_map(|answer| self.chains.head(answer.id)) {
            log.released(head, free)?;
            (free, at) = (head.first, at.advance(head.count, self.layout.size));
        }
        Ok(log.publishes(free, at)?)
    }

    /// From now on what is written of the ring is marked in `log`, or nowhere.
    pub(crate) fn set_dirty_log(&mut self, log: Option<&QueueLog>) {
        let bytes = DESCRIPTOR_BYTES * usize::from(self.layout.size);
        let desc_table = self.layout.desc_table;
        self.dirty = log.map(|event| {
            let descriptors = QueueLog { used_ring: desc_table, ..event.clone() };
            DirtyRing {
                descriptors: RingLog::new(&descriptors, bytes),
                event: RingLog::new(event, EVENT_BYTES),
            }
        });
    }

    #[cold]
    fn mark_descriptors(&self, first: Position, count: u16) {
        let (size, first) = (usize::from(self.layout.size), usize::from(first.index));
        let before_end = usize::from(count).min(size - first);
        for (index, count) in [(first, before_end), (0, usize::from(count) - before_end)] {
            let (offset, bytes) = (DESCRIPTOR_BYTES * index, DESCRIPTOR_BYTES * count);
            self.dirty.iter().for_each(|it| it.descriptors.wrote(offset, bytes));
        }
    }

    /// Whether answers were published since this was last asked, and the driver wants to know.
    pub(crate) fn needs_interrupt(&mut self, mem: &GuestMap) -> Result<bool, VirtqueueError> {
        let count = std::mem::take(&mut self.unsignalled);
        if count == 0 {
            return Ok(false);
        }
        let event = mem.slice(GuestAddress(self.layout.avail_ring), EVENT_BYTES)?;
        // The answers are visible before we read what the driver wants: it writes its wish and then
        // looks at the ring.
        fence(Ordering::SeqCst);
        let event = u32::from_le(event.load(0, Ordering::Relaxed)?);
        Ok(match event >> 16 & 3 {
            VRING_PACKED_EVENT_FLAG_DISABLE => false,
            VRING_PACKED_EVENT_FLAG_DESC if self.event_idx => {
                self.used.has_passed(Position::from_bits(event as u16), count, self.layout.size)
            }
            _ => true,
        })
    }

    /// Asks the driver not to kick.
    pub(crate) fn disable_notification(
        &self,
        rings: &RingSlices<'_>,
    ) -> Result<(), VirtqueueError> {
        // With EVENT_IDX, the place that we last asked a kick for is behind: none comes.
        if self.event_idx { Ok(()) } else { self.set_event(rings, VRING_PACKED_EVENT_FLAG_DISABLE) }
    }

    /// Asks the driver to kick for the next chain. Returns true if one is there already, for which no
    /// kick may come.
    pub(crate) fn enable_notification(
        &self,
        rings: &RingSlices<'_>,
    ) -> Result<bool, VirtqueueError> {
        self.set_event(rings, if self.event_idx { VRING_PACKED_EVENT_FLAG_DESC } else { 0 })?;
        // Our wish is visible before we look: the driver writes the ring and then reads our wish.
        fence(Ordering::SeqCst);
        Ok(self.available(rings)? != 0)
    }

    fn set_event(&self, rings: &RingSlices<'_>, flags: u32) -> Result<(), VirtqueueError> {
        let event = u32::from(self.avail.bits()) | flags << 16;
        rings.used.store(event.to_le(), 0, Ordering::Relaxed)?;
        self.dirty.iter().for_each(|it| it.event.wrote(0, EVENT_BYTES));
        Ok(())
    }
}

impl Answer {
    /// Length, id and flags of a used descriptor.
    #[inline]
    fn used_word(&self, at: Position) -> u64 {
        let wrote = if self.written_bytes > 0 { VRING_DESC_F_WRITE as u16 } else { 0 };
        let flags = at.used_marks() | wrote;
        u64::from(self.written_bytes) | u64::from(self.id) << 32 | u64::from(flags) << 48
    }
}

impl Position {
    /// Whether a side that is here, after `count` descriptors, has passed `event`.
    pub(crate) fn has_passed(self, event: Position, count: u16, size: u16) -> bool {
        // One in the other round is behind.
        let offset = if event.wrap == self.wrap { 0 } else { size };
        let event = event.index.wrapping_sub(offset);
        count >= size || is_event_passed(event, self.index, self.index.wrapping_sub(count))
    }
}

/// Adds a descriptor of a chain, its `count`th, or the table that it points to.
#[inline]
fn add(
    mem: &GuestMap,
    chain: &mut Chain,
    descriptor: &Descriptor,
    count: u16,
    allow_indirect: bool,
) -> Result<(), ChainError> {
    if descriptor.has(VRING_DESC_F_INDIRECT) {
        if !allow_indirect {
            return Err(ChainError::IndirectNotNegotiated);
        }
        if count > 1 {
            return Err(ChainError::MisplacedIndirect);
        }
        return chain.push_table(mem, descriptor);
    }
    chain.push_bounded(descriptor)
}
