//! [`L1`]: the L1 table in memory.
//!
//! Words are atomics in segments that never move: readers take no lock, and a longer table only adds
//! segments. Words are changed under the lock of the image's state.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of the first segment; each further one has as many as all before it.
const FIRST: u64 = 512;
/// With so many segments there is room for all words that an L1 table may have.
const SEGMENTS: usize = 14;

/// The words of an L1 table. Those that were never set are 0, and take memory only beside others.
pub(crate) struct L1 {
    segments: [OnceLock<Box<[AtomicU64]>>; SEGMENTS],
    /// How many words the table has.
    entries: AtomicU64,
}

/// Where a word is: the segment, its length, and the place in it.
#[inline]
fn place(index: u64) -> (usize, u64, usize) {
    match index / FIRST {
        0 => (0, FIRST, index as usize),
        many => {
            let before = FIRST << many.ilog2();
            (many.ilog2() as usize + 1, before, (index - before) as usize)
        }
    }
}

impl L1 {
    /// A table of `entries` words, which begins with `words`.
    pub(crate) fn new(words: &[u64], entries: u64) -> L1 {
        let segments = [const { OnceLock::new() }; SEGMENTS];
        let l1 = L1 { segments, entries: entries.into() };
        for (index, word) in (0..).zip(words).filter(|(_, word)| **word != 0) {
            l1.set(index, *word);
        }
        l1
    }

    /// How many words the table has.
    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// The word at an index; 0 behind the table.
    #[inline]
    pub(crate) fn get(&self, index: u64) -> u64 {
        let (segment, _, at) = place(index);
        let words = self.segments.get(segment).and_then(OnceLock::get);
        let word = words.and_then(|words| words.get(at));
        word.map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Changes a word; ignored behind the longest table that there may be.
    pub(crate) fn set(&self, index: u64, value: u64) {
        let (segment, len, at) = place(index);
        let Some(segment) = self.segments.get(segment) else { return };
        let words = segment.get_or_init(|| (0..len).map(|_| AtomicU64::new(0)).collect());
        words[at].store(value, Ordering::Relaxed);
    }

    /// Gives the table another length. Words behind it become 0.
    pub(crate) fn resize(&self, entries: u64) {
        let old = self.entries.swap(entries, Ordering::Relaxed);
        for index in entries..old {
            if self.get(index) != 0 {
                self.set(index, 0);
            }
        }
    }

    /// Gives the table these words instead of all that it has, and its length stays.
    pub(crate) fn replace(&self, words: &[u64]) {
        for index in 0..self.entries() {
            let word = words.get(index as usize).copied().unwrap_or(0);
            if self.get(index) != word {
                self.set(index, word);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_where_they_are_while_a_table_grows() {
        let words: Vec<u64> = (1..=1000).collect();
        let l1 = L1::new(&words, 1000);
        let before = &raw const l1.segments[1].get().unwrap()[0];
        l1.resize(4 << 20);
        l1.set((4 << 20) - 1, 7);
        assert_eq!(before, &raw const l1.segments[1].get().unwrap()[0]);
        assert!((0..1000).all(|index| l1.get(index) == index + 1));
        assert_eq!((l1.get(1000), l1.get((4 << 20) - 1), l1.get(u64::MAX)), (0, 7, 0));
        l1.resize(10);
        assert_eq!((l1.get(9), l1.get(10), l1.get((4 << 20) - 1)), (10, 0, 0));
        l1.replace(&[3]);
        assert_eq!((l1.get(0), l1.get(1), l1.entries()), (3, 0, 10));
    }

    #[test]
    fn each_index_has_a_place_of_its_own() {
        assert_eq!(place(0), (0, 512, 0));
        assert_eq!(place(511), (0, 512, 511));
        assert_eq!(place(512), (1, 512, 0));
        assert_eq!(place(1023), (1, 512, 511));
        assert_eq!(place(1024), (2, 1024, 0));
        assert_eq!(place((4 << 20) - 1), (13, 2 << 20, (2 << 20) - 1));
    }
}
