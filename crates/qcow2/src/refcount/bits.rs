//! [`Bits`]: a row of bits.

use std::ops::Range;

const WORD: usize = u64::BITS as usize;

/// A row of bits whose length is fixed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    /// `len` bits that are not set.
    pub(super) fn new(len: usize) -> Bits {
        Bits { words: vec![0; len.div_ceil(WORD)], len }
    }

    /// `len` bits that are set.
    pub(super) fn all(len: usize) -> Bits {
        let mut bits = Bits { words: vec![u64::MAX; len.div_ceil(WORD)], len };
        if let Some(last) = bits.words.last_mut()
            && !len.is_multiple_of(WORD)
        {
            *last >>= WORD - len % WORD;
        }
        bits
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, index: usize) -> bool {
        index < self.len && self.words[index / WORD] >> (index % WORD) & 1 != 0
    }

    pub(super) fn set(&mut self, index: usize, is_set: bool) {
        let (word, bit) = (&mut self.words[index / WORD], 1 << (index % WORD));
        if is_set { *word |= bit } else { *word &= !bit }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Sets what is set in the other, of the same length.
    pub(super) fn unite(&mut self, other: &Bits) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
    }

    /// Clears all bits, and returns them as they were.
    pub(super) fn take(&mut self) -> Bits {
        let empty = Bits::new(self.len);
        std::mem::replace(self, empty)
    }

    /// The first bit from `from` on that is set; the length if there is none.
    pub(super) fn next_set(&self, from: usize) -> usize {
        self.next(from, self.len, 0)
    }

    /// The first bit from `from` on that is not set; `end` if there is none before it.
    pub(super) fn next_clear_before(&self, from: usize, end: usize) -> usize {
        self.next(from, end.min(self.len), u64::MAX)
    }

    /// The last bit that is not set.
    pub(super) fn last_clear(&self) -> Option<usize> {
        (0..self.words.len()).rev().find_map(|at| {
            let end = self.len - at * WORD;
            let behind = if end < WORD { u64::MAX << end } else { 0 };
            let clear = !(self.words[at] | behind);
            (clear != 0).then(|| at * WORD + clear.ilog2() as usize)
        })
    }

    /// The first bit from `from` to `end` that is set once all are turned by `turn`; `end` if there is none.
    fn next(&self, from: usize, end: usize, turn: u64) -> usize {
        let mut at = from / WORD;
        let mut skip = u64::MAX << (from % WORD);
        while let Some(word) = self.words.get(at)
            && at * WORD < end
        {
            let found = (word ^ turn) & skip;
            if found != 0 {
                return (at * WORD + found.trailing_zeros() as usize).min(end);
            }
            (at, skip) = (at + 1, u64::MAX);
        }
        end
    }

    /// Runs of bits that are set.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next_set(at);
            at = self.next_clear_before(start, self.len);
            (start < self.len).then_some(start..at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_found_from_any_place() {
        let mut random = fastrand::Rng::with_seed(1);
        for len in [1, 8, 63, 64, 65, 128, 200] {
            let (mut bits, mut model) = (Bits::all(len), vec![true; len]);
            assert_eq!((bits.count(), bits.next_clear_before(0, len + 9)), (len as u64, len));
            for _ in 0..300 {
                let (index, is_set) = (random.usize(..len), random.bool());
                bits.set(index, is_set);
                model[index] = is_set;
                let from = random.usize(..len + 70);
                let end = random.usize(..=len);
                let next = |wanted, end| (from..end).find(|at| model[*at] == wanted).unwrap_or(end);
                assert_eq!(bits.next_set(from), next(true, len));
                assert_eq!(bits.next_clear_before(from, end), next(false, end));
                assert_eq!(bits.last_clear(), (0..len).rev().find(|at| !model[*at]));
                assert_eq!(bits.count() as usize, model.iter().filter(|it| **it).count());
                let from_runs: Vec<usize> = bits.runs().flatten().collect();
                assert_eq!(from_runs, (0..len).filter(|at| model[*at]).collect::<Vec<_>>());
            }
            let taken = bits.take();
            assert!(bits.is_empty() && bits.len() == len);
            bits.unite(&taken);
            assert_eq!(bits, taken);
        }
    }
}
