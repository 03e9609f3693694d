//! [`LazyWords`]: a long row of atomic words, in memory that is taken where words are written.

use std::io;
use std::ops::{Deref, Range};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a page. Where pages are larger the kernel refuses to forget a part of one, and zeroes are stored.
const UNIT_BYTES: usize = 4096;
const UNIT_WORDS: usize = UNIT_BYTES / size_of::<AtomicU64>();

/// Words that are 0 at first, and take memory only where they were written. Ranges of them become 0 again, and
/// [give their memory back](Self::give_back), while other threads look at them. Any thread.
///
/// ```
/// use std::sync::atomic::Ordering::Relaxed;
///
/// // 8 GiB of addresses, and one page.
/// let words = coblk_aio::sys::LazyWords::new(1 << 30)?;
/// words[12345].store(7, Relaxed);
/// words.give_back(12000..13000);
/// assert_eq!(words[12345].load(Relaxed), 0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct LazyWords {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: it owns its mapping, which is atomics: they may be reached, and the mapping removed, by any thread.
unsafe impl Send for LazyWords {}
// SAFETY: as above; what a shared reference reaches are atomics, and system calls that do not move them.
unsafe impl Sync for LazyWords {}

impl LazyWords {
    /// A row of `len` words.
    ///
    /// # Errors
    /// ENOMEM if there are no addresses for so many.
    pub fn new(len: usize) -> io::Result<LazyWords> {
        if len == 0 {
            return Ok(LazyWords { start: NonNull::dangling(), len });
        }
        let no_memory = || io::Error::from_raw_os_error(libc::ENOMEM);
        let bytes = len.checked_mul(size_of::<AtomicU64>()).ok_or_else(no_memory)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the kernel chooses where it is, so it overlaps nothing that the program has.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping is new and of this length. A huge page would take memory where nothing was
        // written; a kernel that has none refuses the advice, which does no harm.
        unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) };
        let start = NonNull::new(start.cast()).ok_or_else(no_memory)?;
        Ok(LazyWords { start, len })
    }

    /// Makes a range of words 0, and gives the memory of whole pages back. Words that other threads store
    /// there meanwhile may be lost, or not.
    ///
    /// # Panics
    /// If the range is not within the row.
    pub fn give_back(&self, range: Range<usize>) {
        let all = &self[range.clone()];
        let whole = range.start.next_multiple_of(UNIT_WORDS)..range.end / UNIT_WORDS * UNIT_WORDS;
        if whole.is_empty() || !self.discard(&self[whole.clone()]) {
            return store_zeroes(all);
        }
        store_zeroes(&self[range.start..whole.start]);
        store_zeroes(&self[whole.end..range.end]);
    }

    /// Has the kernel forget whole pages. `false` if it refuses, as it does for memory that is locked.
    #[allow(clippy::unused_self)]
    fn discard(&self, words: &[AtomicU64]) -> bool {
        let start = words.as_ptr().cast_mut().cast();
        // SAFETY: the range is a part of this mapping, which is private and anonymous: what is read there next
        // is 0, as if that had been stored. Its words are atomics, which may change at any time.
        unsafe { libc::madvise(start, size_of_val(words), libc::MADV_DONTNEED) == 0 }
    }
}

fn store_zeroes(words: &[AtomicU64]) {
    words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
}

impl Deref for LazyWords {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has this many words, which are there, zeroed and aligned, until it is dropped.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for LazyWords {
    fn drop(&mut self) {
        if self.len > 0 {
            let bytes = self.len * size_of::<AtomicU64>();
            // SAFETY: it is this value's own mapping, and no reference into it is left.
            unsafe { libc::munmap(self.start.as_ptr().cast(), bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pages of a row have memory.
    fn resident(words: &LazyWords) -> usize {
        let bytes = words.len * 8;
        let mut pages = vec![0_u8; bytes.div_ceil(UNIT_BYTES)];
        // SAFETY: the mapping is this long, and the vector has a byte for each of its pages.
        let result =
            unsafe { libc::mincore(words.start.as_ptr().cast(), bytes, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn words_take_memory_where_they_are_written_until_it_is_given_back() {
        let words = LazyWords::new(100 * UNIT_WORDS).unwrap();
        assert_eq!(resident(&words), 0);
        words[10 * UNIT_WORDS..20 * UNIT_WORDS]
            .iter()
            .for_each(|it| it.store(1, Ordering::Relaxed));
        assert_eq!(resident(&words), 10);
        // Parts of pages at both ends are 0 as well, and stay in memory.
        words.give_back(10 * UNIT_WORDS + 1..19 * UNIT_WORDS + 1);
        assert_eq!(resident(&words), 2);
        let left: u64 = words.iter().map(|word| word.load(Ordering::Relaxed)).sum();
        assert_eq!(left, 1 + UNIT_WORDS as u64 - 1);
        words.give_back(19 * UNIT_WORDS + 5..19 * UNIT_WORDS + 10);
        let left: u64 = words.iter().map(|word| word.load(Ordering::Relaxed)).sum();
        assert_eq!(left, UNIT_WORDS as u64 - 5);
        assert!(LazyWords::new(0).unwrap().is_empty());
        assert!(LazyWords::new(usize::MAX / 8).is_err() && LazyWords::new(usize::MAX).is_err());
    }
}
