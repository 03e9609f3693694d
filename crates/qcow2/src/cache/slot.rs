//! [`Slot`]: the words of one slice, for readers without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// The number of no slice.
pub(super) const NONE: u64 = u64::MAX;
/// How often a reader looks again while words change. A change is a few stores.
const MAX_LOOKS: u32 = 100;

/// A place for a slice. Changed by one at a time: under the lock of the image's state.
pub(super) struct Slot {
    /// Odd while words change.
    sequence: AtomicU64,
    slice: AtomicU64,
    /// A hit since the slot was last passed over.
    is_used: AtomicBool,
    words: OnceLock<Box<[AtomicU64]>>,
}

impl Slot {
    pub(super) fn new() -> Slot {
        Slot {
            sequence: AtomicU64::new(0),
            slice: AtomicU64::new(NONE),
            is_used: AtomicBool::new(false),
            words: OnceLock::new(),
        }
    }

    /// The slice that it has.
    pub(super) fn slice(&self) -> u64 {
        self.slice.load(Ordering::Relaxed)
    }

    /// The words, for a caller that keeps others from changing them.
    pub(super) fn words(&self) -> &[AtomicU64] {
        self.words.get().map_or(&[], |words| words)
    }

    /// Whether it was used since this was asked last.
    pub(super) fn take_used(&self) -> bool {
        self.is_used.swap(false, Ordering::Relaxed)
    }

    /// Puts another slice there, with its words.
    pub(super) fn fill(&self, slice: u64, words: impl ExactSizeIterator<Item = u64>) {
        let slots = || (0..words.len()).map(|_| AtomicU64::new(0)).collect();
        let slots = self.words.get_or_init(slots);
        self.change(|| {
            self.slice.store(slice, Ordering::Relaxed);
            for (slot, word) in slots.iter().zip(words) {
                slot.store(word, Ordering::Relaxed);
            }
        });
        self.is_used.store(true, Ordering::Relaxed);
    }

    /// Forgets the slice.
    pub(super) fn clear(&self) {
        self.change(|| self.slice.store(NONE, Ordering::Relaxed));
    }

    /// Has readers see all of what `change` stores, or nothing of it.
    pub(super) fn change(&self, change: impl FnOnce()) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // A reader that sees a word of what comes sees that the sequence is odd, or another.
        fence(Ordering::Release);
        change();
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// What `look` finds in the words, if they are those of the slice, before and after.
    #[inline]
    pub(super) fn look<R>(&self, slice: u64, look: impl Fn(&[AtomicU64]) -> R) -> Option<R> {
        for _ in 0..MAX_LOOKS {
            let sequence = self.sequence.load(Ordering::Acquire);
            if self.slice.load(Ordering::Relaxed) != slice {
                return None;
            }
            let found = look(self.words.get()?);
            // Pairs with that of the writer.
            fence(Ordering::Acquire);
            if sequence.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == sequence {
                if !self.is_used.load(Ordering::Relaxed) {
                    self.is_used.store(true, Ordering::Relaxed);
                }
                return Some(found);
            }
            std::hint::spin_loop();
        }
        None
    }
}
