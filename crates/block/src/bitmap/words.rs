//! [`Words`]: bits in words, and for each word a bit that says whether it has any.
//!
//! # Order
//!
//! Writers set bits, copiers clear them, and neither takes a lock. What holds:
//!
//! 1. A copier that clears a bit and then reads the data has the data of each write that has found the bit
//!    set, or sets it again. A writer writes its data, then looks at the bit; a copier clears the bit, then
//!    reads the data. All accesses to words are sequentially consistent, the look that lets a writer skip its
//!    `fetch_or` included: if it comes before the `fetch_and`, so does the data. That the data is there
//!    for other threads by then is the driver's doing: none returns from a write without a system call or
//!    a locked instruction behind its last store.
//! 2. A word with bits is noted in the summary. A writer looks at the note after the word, whether it has set
//!    the bit or has found it, so its bit is noted when it returns. A clearer that has emptied a word
//!    takes the note back, looks at the word again, and puts the note back if a bit has come.
//! 3. Between these last two steps a scan may miss a bit that was set in the same moment. The next one finds
//!    it. Scans beside writers alone miss nothing.
//!
//! `models.rs` has 1 and 2 checked in every order.

use super::atomics::{AtomicU64, Ordering, model_fence};

/// Bits in a word.
pub(super) const WORD_BITS: u64 = 64;

/// Bits, all clear at first. Any thread.
pub(super) struct Words {
    leaf: Box<[AtomicU64]>,
    /// A bit for each word of `leaf`.
    summary: Box<[AtomicU64]>,
}

/// Words that are zero; `None` without memory.
fn zeroes(words: u64) -> Option<Box<[AtomicU64]>> {
    let words = usize::try_from(words).ok()?;
    let mut all = Vec::new();
    all.try_reserve_exact(words).ok()?;
    all.extend((0..words).map(|_| AtomicU64::new(0)));
    Some(all.into_boxed_slice())
}

/// The bits of a word from `bit` on.
fn from(bit: u64) -> u64 {
    !0 << bit
}

impl Words {
    /// So many words; `None` without memory.
    pub(super) fn new(words: u64) -> Option<Words> {
        Some(Words { leaf: zeroes(words)?, summary: zeroes(words.div_ceil(WORD_BITS))? })
    }

    /// How many words there are.
    #[inline]
    pub(super) fn len(&self) -> u64 {
        self.leaf.len() as u64
    }

    #[inline]
    pub(super) fn get(&self, word: u64) -> u64 {
        self.leaf[word as usize].load(Ordering::SeqCst)
    }

    /// Sets the bits of `mask`: two loads if they are set.
    #[inline]
    pub(super) fn set(&self, word: u64, mask: u64) {
        let leaf = &self.leaf[word as usize];
        model_fence();
        if leaf.load(Ordering::SeqCst) & mask != mask {
            leaf.fetch_or(mask, Ordering::SeqCst);
        }
        model_fence();
        let (note, summary) = self.note(word);
        if summary.load(Ordering::SeqCst) & note == 0 {
            summary.fetch_or(note, Ordering::SeqCst);
        }
    }

    /// Clears the bits of `mask`, and returns those that were set.
    pub(super) fn clear(&self, word: u64, mask: u64) -> u64 {
        let leaf = &self.leaf[word as usize];
        if leaf.load(Ordering::SeqCst) & mask == 0 {
            return 0;
        }
        let old = leaf.fetch_and(!mask, Ordering::SeqCst);
        self.cleared(word, old & !mask);
        model_fence();
        old & mask
    }

    /// Clears bits that follow each other, all of them set, and returns them: `choose` says which of those of the
    /// word; 0 for none.
    pub(super) fn take(&self, word: u64, choose: impl Fn(u64) -> u64) -> u64 {
        let leaf = &self.leaf[word as usize];
        let mut old = leaf.load(Ordering::SeqCst);
        loop {
            let taken = choose(old) & old;
            if taken == 0 {
                return 0;
            }
            let new = old & !taken;
            match leaf.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    self.cleared(word, new);
                    model_fence();
                    return taken;
                }
                Err(now) => old = now,
            }
        }
    }

    /// A word has become `now` by a clear.
    fn cleared(&self, word: u64, now: u64) {
        if now != 0 {
            return;
        }
        let (note, summary) = self.note(word);
        model_fence();
        summary.fetch_and(!note, Ordering::SeqCst);
        model_fence();
        if self.get(word) != 0 {
            summary.fetch_or(note, Ordering::SeqCst);
        }
    }

    #[inline]
    fn note(&self, word: u64) -> (u64, &AtomicU64) {
        (1 << (word % WORD_BITS), &self.summary[(word / WORD_BITS) as usize])
    }

    /// The first bit that is set, from `bit` on.
    pub(super) fn next_set(&self, bit: u64) -> Option<u64> {
        let mut word = bit / WORD_BITS;
        if word >= self.len() {
            return None;
        }
        let found = self.get(word) & from(bit % WORD_BITS);
        if found != 0 {
            return Some(word * WORD_BITS + u64::from(found.trailing_zeros()));
        }
        word += 1;
        while word < self.len() {
            let (_, summary) = self.note(word);
            let noted = summary.load(Ordering::SeqCst) & from(word % WORD_BITS);
            if noted == 0 {
                word = (word / WORD_BITS + 1) * WORD_BITS;
                continue;
            }
            word = word / WORD_BITS * WORD_BITS + u64::from(noted.trailing_zeros());
            let found = self.get(word);
            if found != 0 {
                return Some(word * WORD_BITS + u64::from(found.trailing_zeros()));
            }
            word += 1;
        }
        None
    }

    /// The first bit that is clear, from `bit` on.
    pub(super) fn next_clear(&self, bit: u64) -> Option<u64> {
        let mut rest = from(bit % WORD_BITS);
        for word in bit / WORD_BITS..self.len() {
            let found = !self.get(word) & rest;
            if found != 0 {
                return Some(word * WORD_BITS + u64::from(found.trailing_zeros()));
            }
            rest = !0;
        }
        None
    }

    /// How many bits are set.
    pub(super) fn count(&self) -> u64 {
        let noted = |word: &u64| self.note(*word).1.load(Ordering::SeqCst) != 0;
        let ones = |word| u64::from(self.get(word).count_ones());
        let blocks = (0..self.len()).step_by(WORD_BITS as usize).filter(noted);
        blocks.flat_map(|at| at..self.len().min(at + WORD_BITS)).map(ones).sum()
    }
}
