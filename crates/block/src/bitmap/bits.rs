//! [`DirtyBits`]: which granules of a disk are dirty.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::words::{WORD_BITS, Words};

/// The smallest and the largest granule, in bytes.
const GRANULARITIES: Range<u64> = 512..(1 << 31) + 1;
/// Most granules: their bits take 1 GiB.
const MAX_GRANULES: u64 = 1 << 33;

/// A bit for each granule of a disk: the bytes that one bit stands for, a power of two. Any thread; several may
/// mark, clear and scan at once. None takes a lock, but where the disk becomes longer.
///
/// Offsets, lengths and ranges are in bytes of the disk.
pub struct DirtyBits {
    /// Binary logarithm of the granularity.
    shift: u32,
    /// Length of the disk.
    length: AtomicU64,
    first: Part,
    /// The longest that the disk has been. Held while the length changes.
    longest: Mutex<u64>,
    /// A mark was lost, as there was no memory for it.
    is_torn: AtomicBool,
}

/// Bits, and those behind them, which have come with a longer disk.
struct Part {
    words: Words,
    next: OnceLock<Box<Part>>,
}

impl Part {
    fn new(words: u64) -> Option<Part> {
        Some(Part { words: Words::new(words)?, next: OnceLock::new() })
    }
}

/// Whether granules of bitmaps can have this size in bytes.
pub(super) fn is_granularity(bytes: u64) -> bool {
    bytes.is_power_of_two() && GRANULARITIES.contains(&bytes)
}

impl DirtyBits {
    /// Bits for a disk of `length` bytes, all clear, one a granule of `granularity` bytes.
    ///
    /// # Errors
    /// EINVAL if the granularity is no power of two from 512 to 2 GiB; EFBIG if there would be more than 2^33
    /// granules; ENOMEM.
    pub fn new(length: u64, granularity: u64) -> io::Result<DirtyBits> {
        if !is_granularity(granularity) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let shift = granularity.trailing_zeros();
        let granules = length.div_ceil(granularity);
        if granules > MAX_GRANULES {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let words = granules.div_ceil(WORD_BITS).max(1);
        let first = Part::new(words).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(DirtyBits {
            shift,
            length: length.into(),
            first,
            longest: Mutex::new(length),
            is_torn: AtomicBool::new(false),
        })
    }

    /// The same bits, for a user of its own. Marks that come meanwhile may be in it.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn copy(&self) -> io::Result<DirtyBits> {
        let copy = DirtyBits::new(self.length(), self.granularity())?;
        copy.merge_from(self);
        Ok(copy)
    }

    /// Bytes that one bit stands for.
    #[inline]
    pub fn granularity(&self) -> u64 {
        1 << self.shift
    }

    /// Length of the disk.
    #[inline]
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::SeqCst)
    }

    /// How many granules the disk has; the last may be a part of one.
    pub fn granules(&self) -> u64 {
        self.length().div_ceil(self.granularity())
    }

    /// Whether marks were lost as there was no memory: what is clean may be dirty then.
    pub fn is_torn(&self) -> bool {
        self.is_torn.load(Ordering::SeqCst)
    }

    /// Marks all granules that a range touches. A range behind the end makes the disk longer.
    ///
    /// Granules that are dirty cost two loads a word of 64 of them, others a `fetch_or` more, and a second one for
    /// the first of a word.
    #[inline]
    pub fn mark(&self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (first, last) = (range.start >> self.shift, (range.end - 1) >> self.shift);
        let word = first / WORD_BITS;
        let is_short = word == last / WORD_BITS && word < self.first.words.len();
        if is_short && range.end <= self.length() {
            self.first.words.set(word, mask(first % WORD_BITS, last % WORD_BITS));
        } else {
            self.mark_long(range.end, first, last);
        }
    }

    #[inline(never)]
    fn mark_long(&self, end: u64, first: u64, last: u64) {
        if end > self.length() {
            let mut longest = self.longest.lock().unwrap_or_else(PoisonError::into_inner);
            // Another mark that finds the length finds a place for its bits.
            self.reserve(last + 1);
            self.length.fetch_max(end, Ordering::SeqCst);
            *longest = end.max(*longest);
        }
        self.each_word(first, last, |words, word, mask| words.set(word, mask));
    }

    /// Clears all granules that a range touches: that of a caller has whole granules, or ends with the disk.
    pub fn clear(&self, range: Range<u64>) {
        if !range.is_empty() {
            let (first, last) = (range.start >> self.shift, (range.end - 1) >> self.shift);
            self.each_word(first, last, |words, word, mask| {
                words.clear(word, mask);
            });
        }
    }

    /// Clears all granules.
    pub fn clear_all(&self) {
        self.clear(0..u64::MAX);
    }

    /// Finds the first dirty granules within a range that follow each other, clears them, and returns their
    /// range, cut at the end of the disk. Of several threads that take at once each granule goes to one. A
    /// granule that a write marks meanwhile is dirty again, or the data of the write is there for a reader who
    /// comes after this (contract of `words.rs`).
    ///
    /// The range begins and ends at granules, or ends with the disk.
    pub fn take(&self, within: Range<u64>) -> Option<Range<u64>> {
        let end = self.granules_before(within.end);
        let mut at = within.start >> self.shift;
        loop {
            at = self.next_set(at).filter(|at| *at < end)?;
            let taken = self.take_run(at, end);
            if taken > 0 {
                return Some(self.bytes(at..at + taken));
            }
        }
    }

    /// How many granules from `at` on were dirty, and are clear now.
    fn take_run(&self, at: u64, end: u64) -> u64 {
        let mut taken = 0;
        while at + taken < end {
            let bit = at + taken;
            let (first, most) = (bit % WORD_BITS, (end - bit).min(WORD_BITS - bit % WORD_BITS));
            let Some((words, word)) = self.find(bit / WORD_BITS) else { break };
            let run = words.take(word, |old| {
                let ones = u64::from((old >> first).trailing_ones()).min(most);
                if ones == 0 { 0 } else { mask(first, first + ones - 1) }
            });
            let run = u64::from(run.count_ones());
            taken += run;
            if run < most {
                break;
            }
        }
        taken
    }

    /// Whether the granule with this offset is dirty.
    pub fn is_dirty(&self, offset: u64) -> bool {
        let granule = offset >> self.shift;
        let found = self.find(granule / WORD_BITS);
        found.is_some_and(|(words, word)| words.get(word) >> (granule % WORD_BITS) & 1 != 0)
    }

    /// The first dirty byte within a range.
    pub fn next_dirty(&self, within: Range<u64>) -> Option<u64> {
        let end = within.end.min(self.length());
        let found = self.next_set(within.start >> self.shift)?;
        Some((found << self.shift).max(within.start)).filter(|at| *at < end)
    }

    /// The first clean byte within a range.
    pub fn next_clean(&self, within: Range<u64>) -> Option<u64> {
        let end = within.end.min(self.length());
        let found = self.next_clear(within.start >> self.shift);
        let at = found.checked_shl(self.shift).filter(|at| at >> self.shift == found)?;
        Some(at.max(within.start)).filter(|at| *at < end)
    }

    /// The first range within a range that is dirty as a whole.
    pub fn next_dirty_range(&self, within: Range<u64>) -> Option<Range<u64>> {
        let start = self.next_dirty(within.clone())?;
        let end = within.end.min(self.length());
        Some(start..self.next_clean(start..end).unwrap_or(end))
    }

    /// All dirty ranges within a range, in order.
    pub fn dirty_ranges(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let mut rest = within;
        std::iter::from_fn(move || {
            let found = self.next_dirty_range(rest.clone())?;
            rest.start = found.end;
            Some(found)
        })
    }

    /// How many granules are dirty, in bytes of whole granules: it may be more than the disk has.
    pub fn count(&self) -> u64 {
        self.parts().map(Words::count).sum::<u64>() << self.shift
    }

    /// Marks what is dirty in `other`, whatever its granularity, as far as this disk goes.
    pub fn merge_from(&self, other: &DirtyBits) {
        for range in other.dirty_ranges(0..self.length()) {
            self.mark(range);
        }
    }

    /// The disk has another length. Granules behind its end are clean. Those that it had before, and has
    /// again, are marked if `marks`; those that it never had are clean.
    pub fn set_length(&self, length: u64, marks: bool) {
        let mut longest = self.longest.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.length();
        if length == old {
            return;
        }
        if length < old {
            self.length.store(length, Ordering::SeqCst);
            let kept = length.div_ceil(self.granularity());
            if let Some(last) = (old.div_ceil(self.granularity())).checked_sub(1)
                && kept <= last
            {
                self.each_word(kept, last, |words, word, mask| {
                    words.clear(word, mask);
                });
            }
            return;
        }
        self.reserve(length.div_ceil(self.granularity()));
        self.length.store(length, Ordering::SeqCst);
        let again = old..length.min(*longest);
        *longest = length.max(*longest);
        if marks && !again.is_empty() {
            let (first, last) = (again.start >> self.shift, (again.end - 1) >> self.shift);
            self.each_word(first, last, |words, word, mask| words.set(word, mask));
        }
    }

    /// As new, for a disk of `length` bytes: none has known it, and all are clear.
    pub(super) fn restart(&self, length: u64) {
        self.set_length(length, false);
        self.clear_all();
        *self.longest.lock().unwrap_or_else(PoisonError::into_inner) = length;
    }

    /// The bits from granule `64 * word` on, the first of them in the lowest bit.
    pub fn word(&self, word: u64) -> u64 {
        self.find(word).map_or(0, |(words, word)| words.get(word))
    }

    /// Sets the bits of a [word](Self::word), as far as the disk goes.
    pub fn set_word(&self, word: u64, bits: u64) {
        let there = self.granules().saturating_sub(word.saturating_mul(WORD_BITS));
        let bits = if there < WORD_BITS { bits & !(!0 << there) } else { bits };
        if let Some((words, word)) = self.find(word).filter(|_| bits != 0) {
            words.set(word, bits);
        }
    }

    /// Calls `change` with each word from that of a granule to that of another one, and the bits between.
    fn each_word(&self, first: u64, last: u64, change: impl Fn(&Words, u64, u64)) {
        let mut before = 0;
        for words in self.parts() {
            let (start, end) = (first / WORD_BITS, last / WORD_BITS);
            for word in start.max(before)..(before + words.len()).min(end.saturating_add(1)) {
                let low = if word == start { first % WORD_BITS } else { 0 };
                let high = if word == end { last % WORD_BITS } else { WORD_BITS - 1 };
                change(words, word - before, mask(low, high));
            }
            before += words.len();
        }
    }

    fn parts(&self) -> impl Iterator<Item = &Words> {
        let parts =
            std::iter::successors(Some(&self.first), |part| part.next.get().map(|it| &**it));
        parts.map(|part| &part.words)
    }

    /// The words that have this one, and its place there.
    fn find(&self, mut word: u64) -> Option<(&Words, u64)> {
        for words in self.parts() {
            if word < words.len() {
                return Some((words, word));
            }
            word -= words.len();
        }
        None
    }

    fn next_set(&self, mut bit: u64) -> Option<u64> {
        let mut before = 0;
        for words in self.parts() {
            let bits = words.len() * WORD_BITS;
            if bit < before + bits
                && let Some(found) = words.next_set(bit - before)
            {
                return Some(before + found);
            }
            before += bits;
            bit = bit.max(before);
        }
        None
    }

    /// The first clear bit from `bit` on; those behind all words are clear.
    fn next_clear(&self, mut bit: u64) -> u64 {
        let mut before = 0;
        for words in self.parts() {
            let bits = words.len() * WORD_BITS;
            if bit < before + bits
                && let Some(found) = words.next_clear(bit - before)
            {
                return before + found;
            }
            before += bits;
            bit = bit.max(before);
        }
        bit
    }

    /// Makes place for so many granules, under the lock of lengths.
    fn reserve(&self, granules: u64) {
        let mut part = &self.first;
        let mut there = part.words.len();
        while let Some(next) = part.next.get() {
            part = next;
            there += part.words.len();
        }
        let words = granules.div_ceil(WORD_BITS);
        if words <= there {
            return;
        }
        // Each growth doubles what is there: there are few parts.
        let more = (granules <= MAX_GRANULES).then(|| (words - there).max(there));
        match more.and_then(Part::new) {
            Some(new) => drop(part.next.set(Box::new(new))),
            None => self.is_torn.store(true, Ordering::SeqCst),
        }
    }

    fn granules_before(&self, end: u64) -> u64 {
        end.min(self.length()).div_ceil(self.granularity())
    }

    fn bytes(&self, granules: Range<u64>) -> Range<u64> {
        granules.start << self.shift..(granules.end << self.shift).min(self.length())
    }
}

/// The bits of a word from `first` to `last`.
#[inline]
fn mask(first: u64, last: u64) -> u64 {
    !0 << first & !0 >> (WORD_BITS - 1 - last)
}
