//! [`Slot`]: the words of one slice, for readers without a lock.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The number of no slice.
pub(super) const NONE: u64 = u64::MAX;
/// Words of a head: a sequence number, odd while words change; the slice, plus one; whether there was a hit since
/// the slot was last passed over; and one that is not used, so that heads do not straddle cache lines.
pub(super) const HEAD_WORDS: usize = 4;
/// How often a reader looks again while words change. A change is a few stores.
const MAX_LOOKS: u32 = 100;

/// The head of a slot. One whose words are all 0 has no slice.
#[derive(Clone, Copy)]
pub(super) struct Head<'a>(pub(super) &'a [AtomicU64; HEAD_WORDS]);

impl<'a> Head<'a> {
    fn sequence(self) -> &'a AtomicU64 {
        &self.0[0]
    }

    /// The slice of the slot.
    #[inline]
    pub(super) fn slice(self) -> u64 {
        self.0[1].load(Ordering::Relaxed).wrapping_sub(1)
    }

    fn set_slice(self, slice: u64) {
        self.0[1].store(slice.wrapping_add(1), Ordering::Relaxed);
    }

    fn is_used(self) -> &'a AtomicU64 {
        &self.0[2]
    }

    /// Keeps the slice for another round. Seldom stores: readers of several contexts share the head.
    #[inline]
    fn use_it(self) {
        if self.is_used().load(Ordering::Relaxed) == 0 {
            self.is_used().store(1, Ordering::Relaxed);
        }
    }

    /// What `look` finds in the words of the slot, if it has the slice and nothing changes meanwhile.
    #[inline]
    pub(super) fn look_once<R>(self, slice: u64, look: impl FnOnce() -> R) -> Option<R> {
        let sequence = self.sequence().load(Ordering::Acquire);
        if self.slice() != slice {
            return None;
        }
        let found = look();
        // Pairs with that of the writer.
        fence(Ordering::Acquire);
        let is_same = self.sequence().load(Ordering::Relaxed) == sequence;
        if !sequence.is_multiple_of(2) || !is_same {
            return None;
        }
        self.use_it();
        Some(found)
    }

    /// Whether it was used since this was asked last.
    pub(super) fn take_used(self) -> bool {
        self.is_used().swap(0, Ordering::Relaxed) != 0
    }

    /// Forgets the slice.
    pub(super) fn clear(self) {
        self.change(|| self.set_slice(NONE));
    }

    /// Has readers see all of what `change` stores, or nothing of it.
    pub(super) fn change(self, change: impl FnOnce()) {
        let sequence = self.sequence().load(Ordering::Relaxed);
        self.sequence().store(sequence.wrapping_add(1), Ordering::Relaxed);
        // A reader that sees a word of what comes sees that the sequence is odd, or another.
        fence(Ordering::Release);
        change();
        self.sequence().store(sequence.wrapping_add(2), Ordering::Release);
    }
}

/// A place for a slice. Changed by one at a time: under the lock of the image's state.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) head: Head<'a>,
    pub(super) words: &'a [AtomicU64],
}

impl Slot<'_> {
    /// Puts another slice there, with its words.
    pub(super) fn fill(self, slice: u64, words: impl Iterator<Item = u64>) {
        self.head.change(|| {
            self.head.set_slice(slice);
            for (slot, word) in self.words.iter().zip(words) {
                slot.store(word, Ordering::Relaxed);
            }
        });
        self.head.is_used().store(1, Ordering::Relaxed);
    }

    /// What `look` finds in the words, if they are those of the slice, before and after.
    #[inline]
    pub(super) fn look<R>(self, slice: u64, look: impl Fn(&[AtomicU64]) -> R) -> Option<R> {
        for _ in 0..MAX_LOOKS {
            let found = self.head.look_once(slice, || look(self.words));
            if found.is_some() || self.head.slice() != slice {
                return found;
            }
            std::hint::spin_loop();
        }
        None
    }
}
