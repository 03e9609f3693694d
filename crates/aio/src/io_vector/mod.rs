//! Scatter-gather lists: [`IoVector`] to write from, [`IoVectorMut`] to read into.
//!
//! Both are lists of raw memory ranges with a lifetime. They never hand out a `&mut [u8]`, because
//! the memory may belong to a guest that writes to it at any time (design decision D10); bytes go
//! in and out by copy, or by a system call that is given the ranges.
//!
//! A list of up to four ranges lives inside the value, a longer one on the heap.

mod buffer;
mod volatile;

use std::fmt;
use std::io::IoSlice;
use std::marker::PhantomData;

use libc::{c_void, iovec};
use smallvec::SmallVec;

pub use buffer::{AlignedBuffer, IoBuffer};
use volatile::{copy_from_shared, copy_to_shared, fill_shared, is_shared_zero};

/// A vector keeps the address of guest memory, and not the guard that vm-memory gives it with: the
/// lifetime keeps the memory mapped, as long as there is nothing that a guard undoes when it is dropped.
/// There would be with vm-memory's feature `xen`, which does not compile here.
#[cfg(feature = "vm-memory")]
const _: () = {
    use vm_memory::volatile_memory::{PtrGuard, PtrGuardMut};
    assert!(!std::mem::needs_drop::<PtrGuard>() && !std::mem::needs_drop::<PtrGuardMut>());
};

/// Ranges kept without an allocation.
const INLINE_RANGES: usize = 4;

/// The ranges and their total length; what both public types share.
#[derive(Clone, Default)]
struct Ranges {
    list: SmallVec<[iovec; INLINE_RANGES]>,
    len_bytes: usize,
}

// SAFETY: the ranges are plain addresses. What may be done with the memory behind them is decided
// by the lifetime and the kind (`IoVector`, `IoVectorMut`) of the type that owns this list, just
// as for `&[u8]` and `&mut [u8]`, which are both `Send` and `Sync`.
unsafe impl Send for Ranges {}
// SAFETY: as above; through a shared reference the list itself is only read.
unsafe impl Sync for Ranges {}

impl Ranges {
    fn push(&mut self, base: *mut u8, len_bytes: usize) {
        if len_bytes == 0 {
            return;
        }
        self.len_bytes += len_bytes;
        self.list.push(iovec { iov_base: base.cast::<c_void>(), iov_len: len_bytes });
    }

    fn cleared(mut self) -> Ranges {
        self.list.clear();
        self.len_bytes = 0;
        self
    }

    /// The part `[offset, offset + len)`; ranges are cut, no byte moves.
    fn slice(&self, offset: usize, len: usize) -> Ranges {
        let end = offset.checked_add(len).filter(|end| *end <= self.len_bytes);
        assert!(end.is_some(), "slice {offset}+{len} of a vector of {} bytes", self.len_bytes);
        let mut part = Ranges::default();
        self.for_each_piece(offset, len, |base, piece| part.push(base, piece));
        part
    }

    /// Calls `visit(address, length)` for each contiguous piece of `[offset, offset + len)`.
    fn for_each_piece(&self, offset: usize, len: usize, mut visit: impl FnMut(*mut u8, usize)) {
        let (mut skip, mut left) = (offset, len);
        for range in &self.list {
            if left == 0 {
                return;
            }
            if skip >= range.iov_len {
                skip -= range.iov_len;
                continue;
            }
            let piece = left.min(range.iov_len - skip);
            visit(range.iov_base.cast::<u8>().wrapping_add(skip), piece);
            left -= piece;
            skip = 0;
        }
    }

    fn copy_to(&self, offset: usize, target: &mut [u8]) -> usize {
        let len = target.len().min(self.len_bytes.saturating_sub(offset));
        let mut done = 0;
        self.for_each_piece(offset, len, |base, piece| {
            // SAFETY: `base..base + piece` lies inside one of our ranges, which the lifetime of
            // the owning type keeps readable; `target` has `len >= done + piece` bytes and, being
            // an exclusive borrow, does not overlap it.
            unsafe { copy_from_shared(base, target.as_mut_ptr().add(done), piece) };
            done += piece;
        });
        done
    }

    fn is_zero(&self) -> bool {
        // SAFETY: the lifetime of the owning type keeps our ranges readable.
        self.list
            .iter()
            .all(|range| unsafe { is_shared_zero(range.iov_base.cast(), range.iov_len) })
    }

    fn is_aligned(&self, alignment: usize) -> bool {
        self.list
            .iter()
            .all(|range| ((range.iov_base as usize) | range.iov_len).is_multiple_of(alignment))
    }
}

/// Where the ranges are, and not what is in them.
impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.list.iter().map(|range| (range.iov_base, range.iov_len));
        f.debug_list().entries(ranges).finish()
    }
}

macro_rules! common_methods {
    () => {
        /// Ranges kept inside the value; more of them are a list on the heap.
        pub const INLINE_RANGES: usize = INLINE_RANGES;

        /// An empty vector.
        #[inline]
        pub fn new() -> Self {
            Self::default()
        }

        /// Total length in bytes.
        #[inline]
        pub fn len(&self) -> usize {
            self.ranges.len_bytes
        }

        /// Whether it holds no bytes.
        #[inline]
        pub fn is_empty(&self) -> bool {
            self.ranges.len_bytes == 0
        }

        /// The ranges as the kernel takes them. Empty ranges are never stored.
        #[inline]
        pub fn as_iovecs(&self) -> &[iovec] {
            &self.ranges.list
        }

        /// Whether every range starts at, and has a length of, a multiple of `alignment` bytes, which
        /// is a power of two.
        pub fn is_aligned(&self, alignment: usize) -> bool {
            self.ranges.is_aligned(alignment)
        }

        /// Copies bytes from `offset` on into `target`; returns how many there were.
        pub fn copy_to(&self, offset: usize, target: &mut [u8]) -> usize {
            self.ranges.copy_to(offset, target)
        }

        /// Whether all bytes are zero. What a guest may change meanwhile is taken as it was when it
        /// was looked at.
        pub fn is_zero(&self) -> bool {
            self.ranges.is_zero()
        }
    };
}

/// Memory that a write takes its data from.
///
/// ```
/// use coblk_aio::IoVector;
/// let (head, body) = (*b"head", vec![7u8; 512]);
/// let mut vector = IoVector::from(&head[..]);
/// vector.push(&body);
/// assert_eq!(vector.len(), 516);
/// ```
#[derive(Clone, Debug, Default)]
pub struct IoVector<'a> {
    ranges: Ranges,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> IoVector<'a> {
    common_methods!();

    /// Appends a slice.
    pub fn push(&mut self, slice: &'a [u8]) {
        self.ranges.push(slice.as_ptr().cast_mut(), slice.len());
    }

    /// Appends guest memory.
    #[cfg(feature = "vm-memory")]
    pub fn push_volatile(&mut self, slice: &vm_memory::VolatileSlice<'a>) {
        self.ranges.push(slice.ptr_guard().as_ptr().cast_mut(), slice.len());
    }

    /// The part `[offset, offset + len)`, without copying.
    ///
    /// # Panics
    /// If the part is not inside the vector.
    pub fn slice(&self, offset: usize, len: usize) -> IoVector<'_> {
        IoVector { ranges: self.ranges.slice(offset, len), memory: PhantomData }
    }

    /// An empty vector that keeps the memory of the list, for ranges of any lifetime: a list that is
    /// used again and again is allocated once.
    ///
    /// ```
    /// # use coblk_aio::IoVector;
    /// let mut kept = IoVector::<'static>::new();
    /// for block in [[1; 512], [2; 512]] {
    ///     let mut vector = kept.recycle();
    ///     block.chunks(64).for_each(|part| vector.push(part));
    ///     assert_eq!((vector.len(), vector.as_iovecs().len()), (512, 8));
    ///     kept = vector.recycle();
    ///     assert!(kept.is_empty() && kept.as_iovecs().is_empty());
    /// }
    /// ```
    pub fn recycle<'b>(self) -> IoVector<'b> {
        IoVector { ranges: self.ranges.cleared(), memory: PhantomData }
    }

    /// Appends all ranges of `other`.
    pub fn extend(&mut self, other: &IoVector<'a>) {
        self.ranges.list.extend_from_slice(&other.ranges.list);
        self.ranges.len_bytes += other.len();
    }
}

/// The bytes of all slices, one after the other.
impl<'a> From<&'a [IoSlice<'a>]> for IoVector<'a> {
    fn from(slices: &'a [IoSlice<'a>]) -> Self {
        slices.iter().map(|slice| &**slice).collect()
    }
}

/// ```
/// # use coblk_aio::IoVector;
/// let vector: IoVector = [&b"hel"[..], b"lo"].into_iter().collect();
/// assert_eq!((vector.len(), vector.as_iovecs().len()), (5, 2));
/// ```
impl<'a> FromIterator<&'a [u8]> for IoVector<'a> {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(slices: I) -> Self {
        let mut vector = Self::new();
        slices.into_iter().for_each(|slice| vector.push(slice));
        vector
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for IoVector<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::from(bytes.as_slice())
    }
}

impl<'a> From<&'a Vec<u8>> for IoVector<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::from(bytes.as_slice())
    }
}

impl<'a> From<&'a [u8]> for IoVector<'a> {
    fn from(slice: &'a [u8]) -> Self {
        let mut vector = Self::new();
        vector.push(slice);
        vector
    }
}

/// Memory that a read puts its data into.
///
/// Not `Clone`: like `&mut [u8]` there is one at a time for one place in memory.
#[derive(Debug, Default)]
pub struct IoVectorMut<'a> {
    ranges: Ranges,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> IoVectorMut<'a> {
    common_methods!();

    /// Appends a slice.
    pub fn push(&mut self, slice: &'a mut [u8]) {
        self.ranges.push(slice.as_mut_ptr(), slice.len());
    }

    /// Appends guest memory. Two vectors over the same guest memory are no safety problem: it is
    /// shared with the guest anyway and only ever accessed by copy.
    #[cfg(feature = "vm-memory")]
    pub fn push_volatile(&mut self, slice: &vm_memory::VolatileSlice<'a>) {
        self.ranges.push(slice.ptr_guard_mut().as_ptr(), slice.len());
    }

    /// The part `[offset, offset + len)`, without copying.
    ///
    /// # Panics
    /// If the part is not inside the vector.
    pub fn slice(&mut self, offset: usize, len: usize) -> IoVectorMut<'_> {
        IoVectorMut { ranges: self.ranges.slice(offset, len), memory: PhantomData }
    }

    /// As [`IoVector::recycle`].
    pub fn recycle<'b>(self) -> IoVectorMut<'b> {
        IoVectorMut { ranges: self.ranges.cleared(), memory: PhantomData }
    }

    /// Appends all ranges of `other`.
    pub fn extend(&mut self, other: IoVectorMut<'a>) {
        self.ranges.list.extend_from_slice(&other.ranges.list);
        self.ranges.len_bytes += other.len();
    }

    /// Copies `source` to `offset`; returns how many bytes fitted.
    pub fn copy_from(&mut self, offset: usize, source: &[u8]) -> usize {
        let len = source.len().min(self.len().saturating_sub(offset));
        let mut done = 0;
        self.ranges.for_each_piece(offset, len, |base, piece| {
            // SAFETY: `base..base + piece` lies inside one of our ranges, writable for `'a`;
            // `source` has `len >= done + piece` bytes. The two do not overlap: our memory was
            // borrowed exclusively, or is a guest's, of which there is no `&[u8]`.
            unsafe { copy_to_shared(source.as_ptr().add(done), base, piece) };
            done += piece;
        });
        done
    }

    /// Fills from `offset` to the end with `byte`.
    pub fn fill_from(&mut self, offset: usize, byte: u8) {
        let len = self.len().saturating_sub(offset);
        self.ranges.for_each_piece(offset, len, |base, piece| {
            // SAFETY: the piece lies inside one of our ranges, writable for `'a`.
            unsafe { fill_shared(base, byte, piece) };
        });
    }
}

impl<'a, const N: usize> From<&'a mut [u8; N]> for IoVectorMut<'a> {
    fn from(bytes: &'a mut [u8; N]) -> Self {
        Self::from(bytes.as_mut_slice())
    }
}

impl<'a> From<&'a mut Vec<u8>> for IoVectorMut<'a> {
    fn from(bytes: &'a mut Vec<u8>) -> Self {
        Self::from(bytes.as_mut_slice())
    }
}

impl<'a> FromIterator<&'a mut [u8]> for IoVectorMut<'a> {
    fn from_iter<I: IntoIterator<Item = &'a mut [u8]>>(slices: I) -> Self {
        let mut vector = Self::new();
        slices.into_iter().for_each(|slice| vector.push(slice));
        vector
    }
}

impl<'a> From<&'a mut [u8]> for IoVectorMut<'a> {
    fn from(slice: &'a mut [u8]) -> Self {
        let mut vector = Self::new();
        vector.push(slice);
        vector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_across_ranges() {
        let (mut a, mut b) = ([0u8; 3], [0u8; 5]);
        let mut vector = IoVectorMut::from(&mut a[..]);
        vector.push(&mut b);
        assert_eq!(vector.copy_from(1, b"hello!!!!"), 7);
        let mut back = [0u8; 4];
        assert_eq!(vector.copy_to(2, &mut back), 4);
        assert_eq!(&back, b"ello");
        vector.fill_from(6, 0);
        assert_eq!((&a, &b), (b"\0he", b"llo\0\0"));
    }

    #[test]
    fn zeroes_are_zeroes_to_the_last_byte() {
        assert!(IoVector::new().is_zero());
        for len in [1, 511, 512, 513, 4096, 5000] {
            let (mut data, zeroes) = (vec![0; len], vec![0; 700]);
            for at in [0, len / 2, len - 1] {
                data[at] = 1;
                let mut vector = IoVector::from(&zeroes[..]);
                vector.push(&data);
                assert!(!vector.is_zero(), "byte {at} of {len}");
                data[at] = 0;
            }
            let mut vector = IoVector::from(&zeroes[..]);
            vector.push(&data);
            assert!(vector.is_zero());
        }
    }

    #[test]
    fn vectors_are_made_of_what_there_is() {
        let (mut array, mut list) = (*b"abc", vec![b'd'; 2]);
        let bytes = |vector: &IoVector<'_>| {
            let mut out = vec![0; vector.len()];
            vector.copy_to(0, &mut out);
            out
        };
        assert_eq!(bytes(&IoVector::from(&array)), b"abc");
        assert_eq!(bytes(&IoVector::from(&list)), b"dd");
        let slices = [IoSlice::new(&array), IoSlice::new(&list)];
        assert_eq!(bytes(&IoVector::from(&slices[..])), b"abcdd");
        IoVectorMut::from(&mut array).fill_from(1, b'x');
        IoVectorMut::from(&mut list).fill_from(0, b'y');
        assert_eq!((&array, &list[..]), (b"axx", &b"yy"[..]));
        let mut both: IoVectorMut<'_> = [&mut array[..], &mut list[..]].into_iter().collect();
        both.fill_from(2, b'z');
        assert_eq!((&array, &list[..]), (b"axz", &b"zz"[..]));
    }

    #[test]
    fn slices_cut_ranges() {
        let data = *b"abcdefgh";
        let mut vector = IoVector::from(&data[..4]);
        vector.push(&data[4..]);
        let part = vector.slice(3, 2);
        assert_eq!((part.as_iovecs().len(), part.len()), (2, 2));
        let mut out = [0u8; 2];
        part.copy_to(0, &mut out);
        assert_eq!(&out, b"de");
    }
}
