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
//! Memory: addresses for as many slots as the cache may ever have are reserved, and memory is taken where a slot is
//! filled. It is given back by slots that were [not used](SliceCache::clean) for a while, and when the cache gets
//! [another size](SliceCache::resize).

mod owed;
mod slot;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use coblk_aio::sys::LazyWords;

pub(crate) use owed::{Full, Owed};
use slot::{HEAD_WORDS, Head, NONE, Slot};

use crate::layout::SECTOR_BYTES;
use crate::loading::{Load, Loading};

/// Slots of a set.
const WAYS: usize = 8;
/// Parts of a slice that are written each for itself, at most: one bit each.
const MAX_UNITS: u64 = 64;
/// Slots that are looked at together for slices that were not used: for so long requests wait for the lock.
const CLEANED: usize = 256;
/// Memory to read slices to that is kept while none is read, at most, in bytes.
const SPARE_BYTES: u64 = 128 << 10;

pub(crate) struct SliceCache {
    heads: LazyWords,
    words: LazyWords,
    /// Slots of a set, and how many sets there are. They change while the node is drained.
    ways: AtomicUsize,
    sets: AtomicU64,
    slice_bytes: u64,
    /// The binary logarithm of the words of a slice.
    word_bits: u32,
    /// Bytes of a slice that are written together.
    unit_bytes: u64,
    /// Slices that are being read, each to memory of its own, which is kept for others.
    loading: Loading<Vec<u8>>,
}

/// How many slots a cache has, and how they are grouped.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    ways: usize,
    sets: u64,
}

impl Shape {
    /// That of a cache of `bytes` bytes, at least of two slices.
    fn new(bytes: u64, slice_bytes: u64) -> Shape {
        let wanted = usize::try_from(bytes / slice_bytes).unwrap_or(usize::MAX).max(2);
        let ways = wanted.min(WAYS);
        Shape { ways, sets: (wanted / ways) as u64 }
    }

    fn slots(self) -> usize {
        self.sets as usize * self.ways
    }
}

/// Changed words of a slice, as they are to be in the file.
pub(crate) struct DirtyRange {
    pub(crate) slice: u64,
    /// Where in the slice they begin, in bytes.
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
}

impl SliceCache {
    /// A cache of `bytes` bytes, at least of two slices of a power of two, of a file that is written in blocks of
    /// `block` bytes. It may become as large as `most_bytes`.
    ///
    /// # Errors
    /// If there are no addresses for its slots.
    pub(crate) fn new(
        (bytes, most_bytes): (u64, u64),
        slice_bytes: u64,
        block: u64,
    ) -> io::Result<SliceCache> {
        let shape = Shape::new(bytes, slice_bytes);
        let most = Shape::new(bytes.max(most_bytes), slice_bytes).slots();
        let words = (slice_bytes / 8) as usize;
        let unit = block.max(SECTOR_BYTES as u64).max(slice_bytes / MAX_UNITS);
        Ok(SliceCache {
            heads: LazyWords::new(most.saturating_mul(HEAD_WORDS))?,
            words: LazyWords::new(most.saturating_mul(words))?,
            ways: shape.ways.into(),
            sets: shape.sets.into(),
            slice_bytes,
            word_bits: (slice_bytes / 8).ilog2(),
            unit_bytes: unit.min(slice_bytes),
            loading: Loading::keeping((SPARE_BYTES / slice_bytes) as usize),
        })
    }

    fn shape(&self) -> Shape {
        let (ways, sets) = (self.ways.load(Ordering::Relaxed), self.sets.load(Ordering::Relaxed));
        Shape { ways, sets }
    }

    /// What its slots owe: nothing yet.
    pub(crate) fn owed(&self) -> Owed {
        let shape = self.shape();
        Owed::new(shape.slots(), shape.ways)
    }

    /// Bytes of all slots.
    pub(crate) fn bytes(&self) -> u64 {
        self.shape().slots() as u64 * self.slice_bytes
    }

    /// Becomes a cache of `bytes` bytes, as far as addresses were reserved, and gives all of its memory back: it
    /// is empty then. Nothing changes if it has this size, or if slots owe something. Under the lock of the state,
    /// while the node is drained: no look is in flight.
    pub(crate) fn resize(&self, owed: &mut Owed, bytes: u64) {
        let most = (self.heads.len() / HEAD_WORDS) as u64 * self.slice_bytes;
        let shape = Shape::new(bytes.min(most), self.slice_bytes);
        if shape == self.shape() || !owed.is_free_of_all() {
            return;
        }
        self.heads.give_back(0..self.heads.len());
        self.words.give_back(0..self.words.len());
        self.ways.store(shape.ways, Ordering::Relaxed);
        self.sets.store(shape.sets, Ordering::Relaxed);
        *owed = self.owed();
    }

    /// Forgets slices that were not used since the last time, among some slots from `first` on, and gives their
    /// memory back. Under the lock of the state. Returns which slots come next, if there are more, and whether
    /// one of these keeps a slice.
    pub(crate) fn clean(&self, owed: &Owed, first: usize) -> (Option<usize>, bool) {
        let end = self.shape().slots().min(first + CLEANED);
        let words = (self.slice_bytes / 8) as usize;
        let (mut keeps, mut given) = (false, first..first);
        for index in first..end {
            let head = self.head(index);
            if head.slice() == NONE {
                continue;
            }
            if !owed.is_free(index) || head.take_used() {
                keeps = true;
                continue;
            }
            head.clear();
            // Neighbours go together.
            if given.end != index {
                self.words.give_back(given.start * words..given.end * words);
                given.start = index;
            }
            given.end = index + 1;
        }
        self.words.give_back(given.start * words..given.end * words);
        ((end < self.shape().slots()).then_some(end), keeps)
    }

    /// Bytes of a slice.
    #[inline]
    pub(crate) fn slice_bytes(&self) -> u64 {
        self.slice_bytes
    }

    /// The slots of the set of a slice.
    #[inline]
    fn set(&self, slice: u64) -> Range<usize> {
        let Shape { ways, sets } = self.shape();
        // A cache that has room for the whole disk need not divide.
        let set = if slice < sets { slice } else { slice % sets };
        let first = set as usize * ways;
        first..first + ways
    }

    #[inline]
    fn head(&self, slot: usize) -> Head<'_> {
        Head(&self.heads.as_chunks().0[slot])
    }

    #[inline]
    fn slot(&self, slot: usize) -> Slot<'_> {
        Slot { head: self.head(slot), words: self.words(slot) }
    }

    /// What `look` finds in the words of a slice; `None` if it is not there. `look` may see words of two
    /// slices, and its result is dropped then.
    #[inline]
    pub(crate) fn look<R>(&self, slice: u64, look: impl Fn(&[AtomicU64]) -> R) -> Option<R> {
        let slot = self.set(slice).find(|slot| self.head(*slot).slice() == slice)?;
        self.slot(slot).look(slice, look)
    }

    /// The word with this number on the disk, the first of the first slice being 0. `None` also if words of its
    /// slot change at the moment: [`look`](Self::look) waits for that.
    #[inline]
    pub(crate) fn word(&self, number: u64) -> Option<u64> {
        let slice = number >> self.word_bits;
        let at = (number - (slice << self.word_bits)) as usize;
        self.set(slice).find_map(|slot| {
            let word = || self.words.get((slot << self.word_bits) + at);
            self.head(slot).look_once(slice, || word().map(|word| word.load(Ordering::Relaxed)))?
        })
    }

    /// The turn of a coroutine that is to read a slice.
    pub(crate) fn load(&self, slice: u64) -> Load<'_, Vec<u8>> {
        self.loading.enter(slice)
    }

    /// The slot of a slice. Under the lock of the state it stays that for now, and longer if it owes
    /// something.
    pub(crate) fn find(&self, slice: u64) -> Option<usize> {
        self.set(slice).find(|slot| self.head(*slot).slice() == slice)
    }

    /// The slice of a slot.
    pub(crate) fn slice_of(&self, slot: usize) -> u64 {
        self.head(slot).slice()
    }

    /// The words of a slot, under the lock of the state.
    pub(crate) fn words(&self, slot: usize) -> &[AtomicU64] {
        let words = (self.slice_bytes / 8) as usize;
        &self.words[slot * words..(slot + 1) * words]
    }

    /// Puts a slice, which is not there, into a slot that owes nothing.
    pub(crate) fn fill(&self, owed: &Owed, slice: u64, words: impl Iterator<Item = u64>) -> usize {
        let free = self.set(slice).filter(|slot| owed.is_free(*slot));
        let is_empty = |slot: &usize| self.head(*slot).slice() == NONE;
        // All used: the next round is between those that are used again from here on.
        let is_unused = |slot: &usize| !self.head(*slot).take_used();
        let victim = free.clone().find(is_empty).or_else(|| free.clone().find(is_unused));
        let victim = victim.or_else(|| free.clone().next());
        let victim = victim.expect("half of a set owes nothing");
        self.slot(victim).fill(slice, words);
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
        self.head(slot).change(|| change(target));
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
                self.head(slot).clear();
            }
        }
    }

    /// Forgets all slices that owe nothing.
    pub(crate) fn clear(&self, owed: &Owed) {
        for index in 0..self.shape().slots() {
            let head = self.head(index);
            if head.slice() != NONE && owed.is_free(index) {
                head.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests;
