//! Copies of memory that others change meanwhile: a guest's, seen through an `IoVector`. This is the
//! one place where such memory is touched by instructions of this process.
//!
//! A plain copy would race with the guest, and a compiler may take for granted that nothing races: it
//! might read twice what is written once. A volatile access is made once, as it is written. Bytes
//! that the guest changes meanwhile are unspecified, and never interpreted in here.
//!
//! The shared side is accessed in aligned words as far as possible, the other side as it lies.

const WORD: usize = size_of::<u64>();

/// Where the aligned words of a range are: before them `head` bytes, then `words`, then `tail` bytes.
struct Parts {
    head: usize,
    words: usize,
    tail: usize,
}

impl Parts {
    #[inline]
    fn of(shared: *const u8, len: usize) -> Parts {
        let head = (shared as usize).wrapping_neg() % WORD;
        let head = head.min(len);
        Parts { head, words: (len - head) / WORD, tail: (len - head) % WORD }
    }

    /// Calls `byte` with the offset of each single byte, and `word` with that of each word, in order.
    /// Ends early when one of them returns false, and returns that.
    #[inline]
    fn all(
        &self,
        mut byte: impl FnMut(usize) -> bool,
        mut word: impl FnMut(usize) -> bool,
    ) -> bool {
        let words_end = self.head + self.words * WORD;
        (0..self.head).all(&mut byte)
            && (0..self.words).all(|at| word(self.head + at * WORD))
            && (words_end..words_end + self.tail).all(byte)
    }
}

/// Copies `len` bytes out of shared memory.
///
/// # Safety
/// `shared` is readable and `target` writable for `len` bytes, `target` is not shared, and they do
/// not overlap.
pub(crate) unsafe fn copy_from_shared(shared: *const u8, target: *mut u8, len: usize) {
    Parts::of(shared, len).all(
        |at| {
            // SAFETY: `at` is inside both ranges.
            unsafe { target.add(at).write(shared.add(at).read_volatile()) };
            true
        },
        |at| {
            // SAFETY: a whole word at `at` is inside both ranges; it is aligned in the shared one.
            unsafe {
                let word = shared.add(at).cast::<u64>().read_volatile();
                target.add(at).cast::<u64>().write_unaligned(word);
            }
            true
        },
    );
}

/// Copies `len` bytes into shared memory.
///
/// # Safety
/// `source` is readable and `shared` writable for `len` bytes, `source` is not written to, and they do
/// not overlap.
pub(crate) unsafe fn copy_to_shared(source: *const u8, shared: *mut u8, len: usize) {
    Parts::of(shared, len).all(
        |at| {
            // SAFETY: `at` is inside both ranges.
            unsafe { shared.add(at).write_volatile(source.add(at).read()) };
            true
        },
        |at| {
            // SAFETY: a whole word at `at` is inside both ranges; it is aligned in the shared one.
            unsafe {
                let word = source.add(at).cast::<u64>().read_unaligned();
                shared.add(at).cast::<u64>().write_volatile(word);
            }
            true
        },
    );
}

/// Fills `len` bytes of shared memory.
///
/// # Safety
/// `shared` is writable for `len` bytes.
pub(crate) unsafe fn fill_shared(shared: *mut u8, byte: u8, len: usize) {
    Parts::of(shared, len).all(
        |at| {
            // SAFETY: `at` is inside the range.
            unsafe { shared.add(at).write_volatile(byte) };
            true
        },
        |at| {
            let word = u64::from_ne_bytes([byte; WORD]);
            // SAFETY: a whole word at `at` is inside the range, and aligned.
            unsafe { shared.add(at).cast::<u64>().write_volatile(word) };
            true
        },
    );
}

/// Whether `len` bytes of shared memory are zero, each as it was when it was looked at.
///
/// # Safety
/// `shared` is readable for `len` bytes.
pub(crate) unsafe fn is_shared_zero(shared: *const u8, len: usize) -> bool {
    Parts::of(shared, len).all(
        // SAFETY: `at` is inside the range.
        |at| unsafe { shared.add(at).read_volatile() == 0 },
        // SAFETY: a whole word at `at` is inside the range, and aligned.
        |at| unsafe { shared.add(at).cast::<u64>().read_volatile() == 0 },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All ways to lie on either side, and a byte before and after that stays as it is.
    #[test]
    fn any_alignment_and_length_is_copied_and_nothing_else() {
        let source: Vec<u8> = (1..=64).collect();
        for (from, to) in (0..64).map(|at| (at / 8, at % 8)) {
            for len in 0..40 {
                let mut target = [0xee; 64];
                let mut expected = target;
                expected[to + 1..to + 1 + len].copy_from_slice(&source[from..from + len]);
                let place = target[to + 1..].as_mut_ptr();
                // SAFETY: `len` bytes fit behind both offsets.
                unsafe { copy_from_shared(source[from..].as_ptr(), place, len) };
                assert_eq!(target, expected);
                target = [0xee; 64];
                let place = target[to + 1..].as_mut_ptr();
                // SAFETY: as above.
                unsafe { copy_to_shared(source[from..].as_ptr(), place, len) };
                assert_eq!(target, expected);
                let place = target[to + 1..].as_mut_ptr();
                // SAFETY: as above.
                unsafe { fill_shared(place, 0, len) };
                expected[to + 1..to + 1 + len].fill(0);
                assert_eq!(target, expected);
                let place = target[to + 1..].as_ptr();
                // SAFETY: as above; one byte more is not zero.
                unsafe { assert!(is_shared_zero(place, len) && !is_shared_zero(place, len + 1)) };
            }
        }
    }

    /// What guests share is touched in here alone.
    #[test]
    fn vectors_have_no_copies_of_their_own() {
        let vectors = include_str!("mod.rs");
        for plain in ["copy_nonoverlapping", "write_bytes", "from_raw_parts(base", "ptr::copy("] {
            assert!(!vectors.contains(plain), "{plain}");
        }
    }
}
