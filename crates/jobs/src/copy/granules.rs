//! [`Granules`]: which parts of a disk are to be copied, and which are being copied.
//!
//! A granule has two bits, `todo` and `busy`, in one atomic word, 32 granules a word. So a look at a granule is
//! one load, and a claim, from `todo` to `busy`, one compare-exchange. With two arrays of bits a copy that
//! fails would be nowhere for a moment, or a granule be copied twice at once.
//!
//! ```text
//! guest's write  marks: todo on, beside busy, after the data was written
//! copier         claims: todo off and busy on; reads; writes; and then
//!                ends: busy off                 or fails: busy off and todo on
//! ```
//!
//! Why these are not the words of dirty bitmaps ([`DirtyBits`](coblk_block::DirtyBits)), which have one bit a
//! granule and a summary: a claim takes a granule from one state to another and must not be seen between them. With
//! a bitmap for each of the two bits, the end of a failed copy either clears `busy` first, and then the granule
//! differs and is neither (`j134_what_differs_is_todo` in models.rs finds that), or sets `todo` first, and then
//! another claim may copy it while it is busy still. Bitmaps, for their part, have no use for the second bit, which
//! would double their memory and what a recording write touches. A summary is not missed here: a copier goes on
//! where it was, and finds its next granules in the same word or the next.
//!
//! What holds:
//!
//! 1. A granule is busy by one claim at a time.
//! 2. A granule that differs from its copy is todo, or busy, or written by a guest that has not marked yet.
//!    For the copier clears `todo` before it reads: a write that it does not see marks after that, and the
//!    granule is todo again.
//! 3. A write that finds `todo` on does not set it again, and relies on the copier that will clear it to read
//!    later. So the load that finds it, and the compare-exchange that clears it, are sequentially consistent.
//! 4. A copier that sleeps because nothing is todo is woken: it says that it sleeps, and then looks once more;
//!    a guest marks, and then looks for sleepers. One of the two sees the other.

use std::io;
use std::ops::Range;

use super::atomics::{AtomicBool, AtomicU64, Ordering, model_fence};

/// Granules a word.
const IN_WORD: u64 = 32;
const TODO: u64 = u32::MAX as u64;
/// Most granules whose number a user chooses: their bits take 2 GiB.
const MAX_GRANULES: u64 = 1 << 33;

/// Two bits a granule. Any thread.
pub(crate) struct Granules {
    words: Box<[AtomicU64]>,
    count: u64,
    /// How many are todo, and how many busy. Each change of bits is followed by its count, so that a count may
    /// be behind the bits, and below zero for a moment.
    todo: AtomicU64,
    busy: AtomicU64,
    /// A copier sleeps until something is todo.
    wants_wake: AtomicBool,
    /// A bit for each that was once written as a whole; empty if that does not matter.
    copied: Box<[AtomicU64]>,
}

/// The bits of a word that a range has: `todo` bits. `busy` is further up.
fn bits(first: u64, count: u64) -> u64 {
    debug_assert!(first + count <= IN_WORD && count > 0);
    (TODO >> (IN_WORD - count)) << first
}

fn busy(todo: u64) -> u64 {
    todo << IN_WORD
}

/// Todo bits that are not busy as well.
fn free(word: u64) -> u64 {
    word & !(word >> IN_WORD) & TODO
}

/// A range, word by word: the number of the word, and the range's bits there.
fn by_word(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        let count = (range.end.checked_sub(next)?).min(IN_WORD - next % IN_WORD);
        if count == 0 {
            return None;
        }
        let found = ((next / IN_WORD) as usize, bits(next % IN_WORD, count));
        next += count;
        Some(found)
    })
}

impl Granules {
    /// `count` granules of which none is to be copied.
    pub(crate) fn new(count: u64) -> Granules {
        let words = (0..count.div_ceil(IN_WORD)).map(|_| AtomicU64::new(0)).collect();
        Granules {
            words,
            count,
            todo: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            wants_wake: AtomicBool::new(false),
            copied: Box::default(),
        }
    }

    /// [`new`](Self::new), for a number that a user chooses.
    ///
    /// # Errors
    /// EFBIG if they are more than 2^33; ENOMEM.
    pub(crate) fn try_new(count: u64) -> io::Result<Granules> {
        if count > MAX_GRANULES {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let mut words = Vec::new();
        let reserved = words.try_reserve_exact(count.div_ceil(IN_WORD) as usize);
        reserved.map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        words.extend((0..count.div_ceil(IN_WORD)).map(|_| AtomicU64::new(0)));
        Ok(Granules { words: words.into(), count, ..Granules::new(0) })
    }

    /// Keeps track of which were [written as a whole](Self::set_copied), before any is.
    pub(crate) fn track_copied(&mut self) {
        self.copied = (0..self.count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
    }

    /// The copy has all of these now.
    pub(crate) fn set_copied(&self, range: Range<u64>) {
        for granule in range.filter(|_| !self.copied.is_empty()) {
            self.copied[(granule / 64) as usize].fetch_or(1 << (granule % 64), Ordering::SeqCst);
        }
    }

    /// Whether a part of a granule may be written to the copy.
    pub(crate) fn is_copied(&self, granule: u64) -> bool {
        let word = self.copied.get((granule / 64) as usize);
        word.is_none_or(|word| word.load(Ordering::SeqCst) >> (granule % 64) & 1 != 0)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// How many are to be copied, and not busy by that. Old when it returns, unless nothing writes.
    pub(crate) fn todo(&self) -> u64 {
        positive(self.todo.load(Ordering::SeqCst))
    }

    /// How many are being copied.
    pub(crate) fn busy(&self) -> u64 {
        positive(self.busy.load(Ordering::SeqCst))
    }

    /// These are to be copied, as their data was changed. Returns whether a copier is to be woken. Costs one
    /// load a word where all of them are todo already.
    pub(crate) fn mark(&self, range: Range<u64>) -> bool {
        debug_assert!(range.end <= self.count);
        let mut new = 0;
        for (index, mask) in by_word(range) {
            let word = &self.words[index];
            model_fence();
            if word.load(Ordering::SeqCst) & mask != mask {
                let before = word.fetch_or(mask, Ordering::SeqCst);
                new += u64::from((mask & !before).count_ones());
            }
        }
        if new == 0 {
            return false;
        }
        self.todo.fetch_add(new, Ordering::SeqCst);
        model_fence();
        self.wants_wake.load(Ordering::SeqCst) && self.wants_wake.swap(false, Ordering::SeqCst)
    }

    /// Says that a copier is about to sleep until something is todo. Returns whether it may: otherwise there is
    /// something.
    pub(crate) fn may_sleep(&self) -> bool {
        self.wants_wake.store(true, Ordering::SeqCst);
        model_fence();
        let may_sleep = self.todo() == 0;
        if !may_sleep {
            self.wants_wake.store(false, Ordering::SeqCst);
        }
        may_sleep
    }

    /// The first granule from `from` on that is todo and not busy.
    fn next(&self, from: u64) -> Option<u64> {
        let first = (from / IN_WORD) as usize;
        let mut from = from % IN_WORD;
        for (index, word) in self.words.iter().enumerate().skip(first) {
            let found = free(word.load(Ordering::SeqCst)) >> from << from;
            if found != 0 {
                return Some(index as u64 * IN_WORD + u64::from(found.trailing_zeros()));
            }
            from = 0;
        }
        None
    }

    /// Claims the first granules from `from` on that are todo, or else the first of all: some in a row, at most
    /// `most`. They are busy until [`end`](Self::end) or [`fail`](Self::fail).
    pub(crate) fn claim(&self, from: u64, most: u64) -> Option<Range<u64>> {
        loop {
            let start = self.next(from).or_else(|| self.next(0))?;
            if let Some(claimed) = self.claim_from(start, most) {
                return Some(claimed);
            }
        }
    }

    /// Claims granules from `start` on as long as they are todo and not busy. Returns where that ends.
    fn claim_at(&self, start: u64, most: u64) -> u64 {
        let limit = start.saturating_add(most).min(self.count);
        for (index, mask) in by_word(start..limit) {
            let claimed = self.claim_in(&self.words[index], mask);
            let first = index as u64 * IN_WORD + u64::from(mask.trailing_zeros());
            let count = u64::from(claimed.count_ones());
            if claimed != mask {
                return first + count;
            }
        }
        limit
    }

    /// Claims the first bits of `mask` in a word that are todo and not busy; returns these bits.
    fn claim_in(&self, word: &AtomicU64, mask: u64) -> u64 {
        let mut seen = word.load(Ordering::SeqCst);
        loop {
            // The run of ones at the beginning of the mask.
            let first = mask.trailing_zeros();
            let run = (!((free(seen) & mask) >> first)).trailing_zeros();
            if run == 0 {
                return 0;
            }
            let claim = bits(u64::from(first), u64::from(run));
            let next = seen & !claim | busy(claim);
            match word.compare_exchange_weak(seen, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    model_fence();
                    return claim;
                }
                Err(now) => seen = now,
            }
        }
    }

    /// Claims granules for a guest that is about to write them, whether they are todo or not, from the first on up
    /// to one that is busy. Returns the first that was not claimed. A guest that waits for that one keeps those
    /// before it: all claim in ascending order, so no two wait for each other.
    pub(crate) fn hold(&self, range: Range<u64>) -> u64 {
        let start = range.start;
        let mut end = start;
        'words: for (index, mask) in by_word(range) {
            let word = &self.words[index];
            let mut seen = word.load(Ordering::SeqCst);
            loop {
                let taken = (seen >> IN_WORD) & mask;
                let free = if taken == 0 {
                    mask
                } else {
                    mask & (taken & taken.wrapping_neg()).wrapping_sub(1)
                };
                if free == 0 {
                    break 'words;
                }
                let next = seen | busy(free);
                match word.compare_exchange_weak(seen, next, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(_) => {
                        end += u64::from(free.count_ones());
                        if taken != 0 {
                            break 'words;
                        }
                        break;
                    }
                    Err(now) => seen = now,
                }
            }
        }
        self.busy.fetch_add(end - start, Ordering::SeqCst);
        end
    }

    /// Whether none of these is to be copied or being copied. Costs a load a word.
    #[inline]
    pub(crate) fn is_idle(&self, range: Range<u64>) -> bool {
        self.first_pending(range).is_none()
    }

    /// The first of these that is to be copied or being copied. What is neither stays so, unless it is marked.
    #[inline]
    pub(crate) fn first_pending(&self, range: Range<u64>) -> Option<u64> {
        debug_assert!(range.end <= self.count);
        by_word(range).find_map(|(index, mask)| {
            let word = self.words[index].load(Ordering::SeqCst);
            let found = (word | word >> IN_WORD) & mask;
            let first = u64::from(found.trailing_zeros());
            (found != 0).then_some(index as u64 * IN_WORD + first)
        })
    }

    /// Claims granules from `start` on as long as they are todo and not busy, at most `most`. `None` if the first
    /// is not.
    pub(crate) fn claim_from(&self, start: u64, most: u64) -> Option<Range<u64>> {
        let end = self.claim_at(start, most);
        (end > start).then(|| self.claimed(start..end))
    }

    /// Counts a claim.
    fn claimed(&self, range: Range<u64>) -> Range<u64> {
        let claimed = range.end - range.start;
        self.busy.fetch_add(claimed, Ordering::SeqCst);
        self.todo.fetch_sub(claimed, Ordering::SeqCst);
        range
    }

    /// These need not be copied any more, as their claimer writes all of them.
    pub(crate) fn clear(&self, range: Range<u64>) {
        let mut cleared = 0;
        for (index, mask) in by_word(range) {
            let before = self.words[index].fetch_and(!mask, Ordering::SeqCst);
            cleared += u64::from((before & mask).count_ones());
        }
        self.todo.fetch_sub(cleared, Ordering::SeqCst);
    }

    /// Whether a granule is to be copied.
    pub(crate) fn is_todo(&self, granule: u64) -> bool {
        let word = self.words[(granule / IN_WORD) as usize].load(Ordering::SeqCst);
        word & bits(granule % IN_WORD, 1) != 0
    }

    /// Whether a granule is claimed.
    pub(crate) fn is_busy(&self, granule: u64) -> bool {
        let word = self.words[(granule / IN_WORD) as usize].load(Ordering::SeqCst);
        word & busy(bits(granule % IN_WORD, 1)) != 0
    }

    /// A claim ends: its granules were copied. What was marked meanwhile is todo.
    pub(crate) fn end(&self, range: Range<u64>) {
        let count = range.end - range.start;
        for (index, mask) in by_word(range) {
            let before = self.words[index].fetch_and(!busy(mask), Ordering::SeqCst);
            debug_assert_eq!(before & busy(mask), busy(mask), "a claim that is none ends");
        }
        self.busy.fetch_sub(count, Ordering::SeqCst);
    }

    /// A claim ends: its granules were not copied, and are todo again. At no moment are they neither.
    pub(crate) fn fail(&self, range: Range<u64>) {
        let mut new = 0;
        for (index, mask) in by_word(range.clone()) {
            let word = &self.words[index];
            let mut seen = word.load(Ordering::SeqCst);
            loop {
                let next = seen & !busy(mask) | mask;
                match word.compare_exchange_weak(seen, next, Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(_) => break,
                    Err(now) => seen = now,
                }
            }
            new += u64::from((mask & !seen).count_ones());
        }
        self.todo.fetch_add(new, Ordering::SeqCst);
        self.busy.fetch_sub(range.end - range.start, Ordering::SeqCst);
    }
}

fn positive(count: u64) -> u64 {
    u64::try_from(count.cast_signed()).unwrap_or(0)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// With these marked, from the first up to the last.
    fn marked(count: u64, ranges: &[(u64, u64)]) -> Granules {
        let granules = Granules::new(count);
        for (first, end) in ranges {
            granules.mark(*first..*end);
        }
        granules
    }

    #[test]
    fn j126_granules_are_claimed_in_rows_across_words() {
        let granules = marked(200, &[(3, 10), (30, 70), (199, 200)]);
        assert_eq!(granules.todo(), 48);
        assert_eq!(granules.claim(0, 100), Some(3..10));
        assert_eq!(granules.claim(0, 35), Some(30..65));
        assert_eq!(granules.claim(0, 100), Some(65..70));
        assert_eq!(granules.claim(150, 100), Some(199..200));
        assert_eq!(granules.claim(0, 100), None);
        assert_eq!((granules.todo(), granules.busy()), (0, 48));
        granules.end(30..65);
        assert_eq!(granules.busy(), 13);
    }

    #[test]
    fn j126_a_busy_granule_is_not_claimed_again_before_its_copy_has_ended() {
        let granules = marked(64, &[(0, 4)]);
        assert_eq!(granules.claim(0, 2), Some(0..2));
        granules.mark(1..3);
        assert_eq!((granules.todo(), granules.busy()), (3, 2));
        assert_eq!(granules.claim(0, 64), Some(2..4));
        assert_eq!(granules.claim(0, 64), None);
        granules.end(0..2);
        assert_eq!(granules.claim(0, 64), Some(1..2));
    }

    #[test]
    fn j52_what_was_not_copied_is_to_be_copied_again() {
        let granules = marked(100, &[(20, 50)]);
        let claim = granules.claim(0, 100).unwrap();
        granules.mark(25..26);
        granules.fail(claim);
        assert_eq!((granules.todo(), granules.busy()), (30, 0));
        assert_eq!(granules.claim(30, 100), Some(30..50));
        assert_eq!(granules.claim(30, 100), Some(20..30));
    }

    #[test]
    fn j62_a_guest_claims_up_to_what_is_busy() {
        let granules = marked(100, &[(40, 42)]);
        let copied = granules.claim(0, 2).unwrap();
        assert_eq!(granules.hold(30..50), 40);
        assert_eq!(granules.hold(40..50), 40);
        granules.end(copied);
        assert_eq!(granules.hold(40..50), 50);
        granules.mark(30..50);
        assert_eq!(granules.claim(0, 100), None, "a guest has them");
        granules.clear(31..49);
        assert_eq!((granules.todo(), granules.busy()), (2, 20));
        granules.end(30..50);
        assert_eq!(granules.claim(0, 100), Some(30..31));
        assert_eq!(granules.claim(0, 100), Some(49..50));
    }

    #[test]
    fn j57_the_first_mark_wakes_a_copier_that_sleeps() {
        let granules = marked(10, &[]);
        assert!(!granules.mark(0..1), "none sleeps");
        assert!(!granules.may_sleep());
        granules.claim(0, 10);
        assert!(granules.may_sleep());
        assert!(granules.mark(5..7));
        assert!(!granules.mark(7..8), "it has been woken");
    }
}
