//! [`SliceCache`]: slices of L2 tables in memory.
//!
//! A slice is a part of a table, and its key is its number on the disk. A hit takes no lock and does no
//! read-modify-write: it finds the slot by its number, reads words, and then looks whether the slot was
//! filled anew meanwhile (a sequence number, odd while that happens). Slots are in sets; in each set the slot
//! that was not used for longest, as far as one bit can tell, is filled next.
//!
//! A miss waits for its own slice alone: one coroutine reads it, and others that want it wait for that, in
//! whatever context they are. A read that fails leaves nothing, and the next that waits tries again.
//!
//! Memory: the slots at once, 40 bytes each, and the words of a slot when it is filled first.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use coblk_aio::Co;

use crate::loading::Loading;

/// Slots of a set.
const WAYS: usize = 8;
/// The number of no slice.
const NONE: u64 = u64::MAX;

pub(crate) struct SliceCache {
    slots: Box<[Slot]>,
    ways: usize,
    sets: u64,
    slice_words: usize,
    /// Held while a slot is filled; not across a suspension.
    filling: Mutex<()>,
    /// Slices that are being read.
    loading: Loading,
}

struct Slot {
    /// Odd while the slot is filled.
    sequence: AtomicU64,
    slice: AtomicU64,
    /// A hit since the slot was last passed over.
    is_used: AtomicBool,
    words: OnceLock<Box<[AtomicU64]>>,
}

impl Slot {
    /// Changes what the slot has. Called by one at a time.
    fn fill(&self, slice: u64, words: &[u64]) {
        let slots = self.words.get_or_init(|| words.iter().map(|_| AtomicU64::new(0)).collect());
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // A reader that sees a word of what comes sees that the sequence is odd, or another.
        fence(Ordering::Release);
        self.slice.store(slice, Ordering::Relaxed);
        for (slot, word) in slots.iter().zip(words) {
            slot.store(*word, Ordering::Relaxed);
        }
        self.is_used.store(true, Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// What `look` finds in the words, if they are those of the slice, before and after.
    #[inline]
    fn look<R>(&self, slice: u64, look: impl FnOnce(&[AtomicU64]) -> R) -> Option<R> {
        let sequence = self.sequence.load(Ordering::Acquire);
        if self.slice.load(Ordering::Relaxed) != slice || !sequence.is_multiple_of(2) {
            return None;
        }
        let found = look(self.words.get()?);
        // Pairs with that of the filler.
        fence(Ordering::Acquire);
        if self.sequence.load(Ordering::Relaxed) != sequence {
            return None;
        }
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
        Some(found)
    }
}

impl SliceCache {
    /// A cache of `bytes` bytes, at least of two slices.
    ///
    /// # Errors
    /// If there is no memory for its slots.
    pub(crate) fn new(bytes: u64, slice_bytes: u64) -> io::Result<SliceCache> {
        let wanted = usize::try_from(bytes / slice_bytes).unwrap_or(usize::MAX).max(2);
        let ways = wanted.min(WAYS);
        let count = wanted - wanted % ways;
        let mut slots = Vec::new();
        let no_memory = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        slots.try_reserve_exact(count).map_err(no_memory)?;
        slots.extend((0..count).map(|_| Slot {
            sequence: AtomicU64::new(0),
            slice: AtomicU64::new(NONE),
            is_used: AtomicBool::new(false),
            words: OnceLock::new(),
        }));
        Ok(SliceCache {
            slots: slots.into_boxed_slice(),
            ways,
            sets: (count / ways) as u64,
            slice_words: (slice_bytes / 8) as usize,
            filling: Mutex::default(),
            loading: Loading::default(),
        })
    }

    #[inline]
    fn set(&self, slice: u64) -> &[Slot] {
        // A cache that has room for the whole disk need not divide.
        let set = if slice < self.sets { slice } else { slice % self.sets };
        let first = set as usize * self.ways;
        &self.slots[first..first + self.ways]
    }

    /// What `look` finds in the words of a slice; `None` if it is not there. `look` may see words of two
    /// slices, and its result is dropped then.
    #[inline]
    pub(crate) fn look<R>(&self, slice: u64, look: impl Fn(&[AtomicU64]) -> R) -> Option<R> {
        self.set(slice).iter().find_map(|slot| slot.look(slice, &look))
    }

    /// What `look` finds in the words of a slice, which `read` reads as big-endian bytes if it is not there.
    pub(crate) fn co_look<R>(
        &self,
        co: &Co<'_>,
        slice: u64,
        look: impl Fn(&[AtomicU64]) -> R,
        read: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<R> {
        let load = self.loading.enter(slice);
        let _turn = load.co_turn(co);
        if let Some(found) = self.look(slice, &look) {
            return Ok(found);
        }
        let mut bytes = vec![0; self.slice_words * 8];
        read(&mut bytes)?;
        let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
        let words: Vec<u64> = words.collect();
        self.fill(slice, &words);
        let words: Vec<AtomicU64> = words.into_iter().map(AtomicU64::new).collect();
        Ok(look(&words))
    }

    fn fill(&self, slice: u64, words: &[u64]) {
        let _one = lock(&self.filling);
        let set = self.set(slice);
        let is_free = |slot: &&Slot| slot.slice.load(Ordering::Relaxed) == NONE;
        // All used: the next round is between those that are used again from here on.
        let is_unused = |slot: &&Slot| !slot.is_used.swap(false, Ordering::Relaxed);
        let victim = set.iter().find(is_free).or_else(|| set.iter().find(is_unused));
        if let Some(slot) = victim.or(set.first()) {
            slot.fill(slice, words);
        }
    }

    /// Forgets all slices.
    pub(crate) fn clear(&self) {
        let _one = lock(&self.filling);
        for slot in &self.slots {
            if slot.slice.load(Ordering::Relaxed) != NONE {
                slot.fill(NONE, &[]);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
