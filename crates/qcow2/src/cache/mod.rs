//! [`SliceCache`]: slices of L2 tables in memory.
//!
//! A slice is a part of a table, and its key is its number on the disk. A hit takes no lock and does no
//! read-modify-write: it finds the slot by its number, reads words, and then looks whether they have
//! changed meanwhile (a sequence number, odd while that happens). Slots are in sets; in each set the slot
//! that was not used for longest, as far as one bit can tell, is filled next. Slots are filled, and words
//! changed, under the lock of the image's state, which has what slots [owe](Owed).
//!
//! A miss waits for its own slice alone ([`Load`]): one coroutine reads it, and others that want it wait for
//! that, in whatever context they are. A read that fails leaves nothing, and the next that waits tries again.
//!
//! Memory: the slots at once, 64 bytes each, and the words of a slot when it is filled first.

mod owed;
mod slot;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use owed::{Full, Owed};
use slot::{NONE, Slot};

use crate::layout::SECTOR_BYTES;
use crate::loading::{Load, Loading};

/// Slots of a set.
const WAYS: usize = 8;
/// Parts of a slice that are written each for itself, at most: one bit each.
const MAX_UNITS: u64 = 64;

pub(crate) struct SliceCache {
    slots: Box<[Slot]>,
    ways: usize,
    sets: u64,
    slice_bytes: u64,
    /// Bytes of a slice that are written together.
    unit_bytes: u64,
    /// Slices that are being read.
    loading: Loading,
}

/// Changed words of a slice, as they are to be in the file.
pub(crate) struct DirtyRange {
    pub(crate) slice: u64,
    /// Where in the slice they begin, in bytes.
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
}

impl SliceCache {
    /// A cache of `bytes` bytes, at least of two slices, of a file that is written in blocks of `block` bytes.
    ///
    /// # Errors
    /// If there is no memory for its slots.
    pub(crate) fn new(bytes: u64, slice_bytes: u64, block: u64) -> io::Result<SliceCache> {
        let wanted = usize::try_from(bytes / slice_bytes).unwrap_or(usize::MAX).max(2);
        let ways = wanted.min(WAYS);
        let count = wanted - wanted % ways;
        let mut slots = Vec::new();
        let no_memory = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        slots.try_reserve_exact(count).map_err(no_memory)?;
        slots.extend((0..count).map(|_| Slot::new()));
        let unit = block.max(SECTOR_BYTES as u64).max(slice_bytes / MAX_UNITS);
        Ok(SliceCache {
            slots: slots.into_boxed_slice(),
            ways,
            sets: (count / ways) as u64,
            slice_bytes,
            unit_bytes: unit.min(slice_bytes),
            loading: Loading::default(),
        })
    }

    /// What its slots owe: nothing yet.
    pub(crate) fn owed(&self) -> Owed {
        Owed::new(self.slots.len(), self.ways)
    }

    /// Bytes of a slice.
    #[inline]
    pub(crate) fn slice_bytes(&self) -> u64 {
        self.slice_bytes
    }

    #[inline]
    fn first(&self, slice: u64) -> usize {
        // A cache that has room for the whole disk need not divide.
        let set = if slice < self.sets { slice } else { slice % self.sets };
        set as usize * self.ways
    }

    #[inline]
    fn set(&self, slice: u64) -> &[Slot] {
        let first = self.first(slice);
        &self.slots[first..first + self.ways]
    }

    /// What `look` finds in the words of a slice; `None` if it is not there. `look` may see words of two
    /// slices, and its result is dropped then.
    #[inline]
    pub(crate) fn look<R>(&self, slice: u64, look: impl Fn(&[AtomicU64]) -> R) -> Option<R> {
        self.set(slice).iter().find_map(|slot| slot.look(slice, &look))
    }

    /// The turn of a coroutine that is to read a slice.
    pub(crate) fn load(&self, slice: u64) -> Load<'_> {
        self.loading.enter(slice)
    }

    /// The slot of a slice. Under the lock of the state it stays that for now, and longer if it owes
    /// something.
    pub(crate) fn find(&self, slice: u64) -> Option<usize> {
        let at = self.set(slice).iter().position(|slot| slot.slice() == slice)?;
        Some(self.first(slice) + at)
    }

    /// The slice of a slot.
    pub(crate) fn slice_of(&self, slot: usize) -> u64 {
        self.slots[slot].slice()
    }

    /// The words of a slot, under the lock of the state.
    pub(crate) fn words(&self, slot: usize) -> &[AtomicU64] {
        self.slots[slot].words()
    }

    /// Puts a slice, which is not there, into a slot that owes nothing.
    pub(crate) fn fill(
        &self,
        owed: &Owed,
        slice: u64,
        words: impl ExactSizeIterator<Item = u64>,
    ) -> usize {
        let first = self.first(slice);
        let free = (first..first + self.ways).filter(|slot| owed.is_free(*slot));
        let is_empty = |slot: &usize| self.slots[*slot].slice() == NONE;
        // All used: the next round is between those that are used again from here on.
        let is_unused = |slot: &usize| !self.slots[*slot].take_used();
        let victim = free.clone().find(is_empty).or_else(|| free.clone().find(is_unused));
        let victim = victim.or_else(|| free.clone().next());
        let victim = victim.expect("half of a set owes nothing");
        self.slots[victim].fill(slice, words);
        victim
    }

    /// Changes words of a slot that is promised: `change` stores them, within `words`.
    pub(crate) fn change(
        &self,
        owed: &mut Owed,
        slot: usize,
        words: Range<usize>,
        change: impl FnOnce(&[AtomicU64]),
    ) {
        let target = self.words(slot);
        self.slots[slot].change(|| change(target));
        let unit = |word: usize| (word as u64 * 8 / self.unit_bytes) as u32;
        if !words.is_empty() {
            owed.mark(slot, unit(words.start)..unit(words.end - 1) + 1);
        }
    }

    /// The changed words of a slot: `units` are those to be had, as bits.
    pub(crate) fn copy(&self, slot: usize, units: u64) -> Vec<DirtyRange> {
        let (slice, words) = (self.slice_of(slot), self.words(slot));
        let per_unit = (self.unit_bytes / 8) as usize;
        let mut ranges: Vec<DirtyRange> = Vec::new();
        for (unit, words) in (0..).zip(words.chunks(per_unit)) {
            if units >> unit & 1 == 0 {
                continue;
            }
            let at = unit * self.unit_bytes;
            let bytes = words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_be_bytes());
            match ranges.last_mut() {
                Some(last) if last.at + last.bytes.len() as u64 == at => last.bytes.extend(bytes),
                _ => ranges.push(DirtyRange { slice, at, bytes: bytes.collect() }),
            }
        }
        ranges
    }

    /// Forgets a slice, changed or not, unless it is promised.
    pub(crate) fn forget(&self, owed: &mut Owed, slice: u64) {
        if let Some(slot) = self.find(slice) {
            owed.forget(slot);
            if owed.is_free(slot) {
                self.slots[slot].clear();
            }
        }
    }

    /// Forgets all slices that owe nothing.
    pub(crate) fn clear(&self, owed: &Owed) {
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.slice() != NONE && owed.is_free(index) {
                slot.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests;
