//! [`Slots`]: the bits of all bitmaps of a node, as writes see them.
//!
//! A write looks through slots without a lock or a counter, so a slot is never freed while its node lives.
//! One whose bitmap has gone is used for the next bitmap of the same granularity.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::atomics::{AtomicBool, AtomicUsize, Ordering, model_fence};
use super::bits::DirtyBits;

/// Bits that writes mark while they are switched on.
pub(super) struct Slot {
    pub(super) bits: DirtyBits,
    is_recording: AtomicBool,
    next: OnceLock<Arc<Slot>>,
}

impl Slot {
    pub(super) fn new(bits: DirtyBits) -> Arc<Slot> {
        Arc::new(Slot { bits, is_recording: AtomicBool::new(false), next: OnceLock::new() })
    }

    #[inline]
    pub(super) fn is_recording(&self) -> bool {
        self.is_recording.load(Ordering::SeqCst)
    }

    pub(super) fn set_recording(&self, on: bool) {
        self.is_recording.store(on, Ordering::SeqCst);
        model_fence();
    }
}

impl Drop for Slot {
    /// One after the other: a chain may be longer than a stack is deep.
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut slot) = next {
            next = Arc::get_mut(&mut slot).and_then(|slot| slot.next.take());
        }
    }
}

/// The slots of a node, in the order in which they have come. They change under the lock of the list of bitmaps.
#[derive(Default)]
pub(super) struct Slots {
    first: OnceLock<Arc<Slot>>,
    /// Bitmaps that have a successor.
    pairs: AtomicUsize,
}

impl Slots {
    pub(super) fn is_empty(&self) -> bool {
        self.first.get().is_none()
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Slot>> {
        std::iter::successors(self.first.get(), |slot| slot.next.get())
    }

    /// Marks a range in all that record.
    ///
    /// A bitmap takes over from its successor in this order: it records, it gets the bits of the successor,
    /// that one stops, the pair is forgotten. A write that has found the bitmap off, and the successor off after
    /// that, has seen the pair before, and looks again: the bitmap is on by then.
    #[inline]
    pub(super) fn mark(&self, range: &Range<u64>) {
        let has_pairs = self.pairs.load(Ordering::SeqCst) > 0;
        self.mark_once(range);
        if has_pairs {
            self.mark_once(range);
        }
    }

    /// A pair more, or less.
    pub(super) fn count_pair(&self, more: bool) {
        match more {
            true => self.pairs.fetch_add(1, Ordering::SeqCst),
            false => self.pairs.fetch_sub(1, Ordering::SeqCst),
        };
    }

    #[inline]
    fn mark_once(&self, range: &Range<u64>) {
        for slot in self.iter() {
            if slot.is_recording() {
                slot.bits.mark(range.clone());
            }
        }
    }

    /// A slot that no bitmap has, and that fits, its bits clear.
    pub(super) fn unused(&self, length: u64, granularity: u64) -> Option<Arc<Slot>> {
        // It has the owner of its place alone: others have kept their bitmap, though it is not listed.
        let fits = |slot: &&Arc<Slot>| {
            let is_alone = Arc::strong_count(slot) == 1 && !slot.is_recording();
            is_alone && slot.bits.granularity() == granularity && !slot.bits.is_torn()
        };
        let slot = self.iter().find(fits)?;
        slot.bits.restart(length);
        Some(Arc::clone(slot)).filter(|slot| !slot.bits.is_torn())
    }

    pub(super) fn add(&self, slot: &Arc<Slot>) {
        let mut place = &self.first;
        while let Some(there) = place.get() {
            if Arc::ptr_eq(there, slot) {
                return;
            }
            place = &there.next;
        }
        // Places are filled by one at a time.
        let _ = place.set(Arc::clone(slot));
    }

    pub(super) fn set_length(&self, length: u64) {
        for slot in self.iter() {
            slot.bits.set_length(length, slot.is_recording());
        }
    }
}
