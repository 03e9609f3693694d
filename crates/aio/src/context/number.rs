//! Numbers of contexts: small, dense, and given again when a context has ended.
//!
//! The set of those in use is four words of bits. A number is taken with acquire and given back with
//! release ordering, so a context sees all that was done with its number before.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many contexts may live at once in a process.
pub const MAX_CONTEXTS: usize = 256;

const BITS: usize = u64::BITS as usize;

static TAKEN: Numbers = Numbers::new();

/// A set of numbers in use.
struct Numbers([AtomicU64; MAX_CONTEXTS / BITS]);

impl Numbers {
    const fn new() -> Numbers {
        Numbers([const { AtomicU64::new(0) }; MAX_CONTEXTS / BITS])
    }

    /// Takes the lowest that is free, if one is.
    fn take(&self) -> Option<usize> {
        let take_in = |(index, word): (usize, &AtomicU64)| {
            let lowest_free = |taken: u64| (taken != u64::MAX).then(|| taken | (taken + 1));
            let before =
                word.fetch_update(Ordering::Acquire, Ordering::Relaxed, lowest_free).ok()?;
            Some(index * BITS + before.trailing_ones() as usize)
        };
        self.0.iter().enumerate().find_map(take_in)
    }

    fn give_back(&self, number: usize) {
        self.0[number / BITS].fetch_and(!(1 << (number % BITS)), Ordering::Release);
    }
}

/// The number of a live context. Its end gives the number back.
pub(super) struct ContextNumber(usize);

impl ContextNumber {
    /// # Errors
    /// If there are [`MAX_CONTEXTS`] contexts.
    pub(super) fn take() -> io::Result<ContextNumber> {
        let none_free = || {
            let message = format!("there are {MAX_CONTEXTS} contexts, as many as there may be");
            io::Error::new(io::ErrorKind::QuotaExceeded, message)
        };
        TAKEN.take().map(ContextNumber).ok_or_else(none_free)
    }

    #[inline]
    pub(super) fn get(&self) -> usize {
        self.0
    }
}

impl Drop for ContextNumber {
    fn drop(&mut self) {
        TAKEN.give_back(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_given() {
        let numbers = Numbers::new();
        for expected in 0..MAX_CONTEXTS {
            assert_eq!(numbers.take(), Some(expected));
        }
        assert_eq!(numbers.take(), None);
        numbers.give_back(200);
        numbers.give_back(63);
        assert_eq!([numbers.take(), numbers.take(), numbers.take()], [Some(63), Some(200), None]);
    }
}
