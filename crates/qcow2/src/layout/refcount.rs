//! Refcounts: one for each cluster of the file, in blocks that the refcount table lists.

use super::{FormatError, Geometry};

/// Reserved bits of an entry of the refcount table.
const TABLE_RESERVED: u64 = 0x1ff;

/// The offset of the block that an entry of the refcount table leads to, aligned or not; `None` if all its
/// refcounts are 0.
pub fn block_offset(entry: u64) -> Option<u64> {
    Some(entry & !TABLE_RESERVED).filter(|offset| *offset != 0)
}

/// How many bits a refcount has: 1, 2, 4, 8, 16, 32 or 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefcountWidth {
    order: u32,
}

impl RefcountWidth {
    /// Of `2^order` bits.
    ///
    /// # Errors
    /// EINVAL if that is more than 64.
    pub fn new(order: u32) -> Result<RefcountWidth, FormatError> {
        match order {
            0..=6 => Ok(RefcountWidth { order }),
            _ => Err(FormatError::invalid(
                "reference count entry width too large; may not exceed 64 bits",
            )),
        }
    }

    /// Its bits.
    pub fn bits(self) -> u32 {
        1 << self.order
    }

    /// The largest refcount.
    pub fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Refcounts of a block.
    pub fn per_block(self, geometry: Geometry) -> u64 {
        geometry.cluster_bytes() << 3 >> self.order
    }

    /// How many whole refcounts are in `bytes` bytes.
    pub fn count_in(self, bytes: usize) -> usize {
        (bytes << 3) >> self.order
    }

    /// The refcount with this index in a block; 0 behind its end.
    #[inline]
    pub fn get(self, block: &[u8], index: usize) -> u64 {
        if self.order < 3 {
            let (byte, shift, mask) = self.place(index);
            return u64::from(block.get(byte).map_or(0, |byte| byte >> shift & mask));
        }
        let bytes = self.bytes_of(index).and_then(|range| block.get(range)).unwrap_or_default();
        bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// How many refcounts of a block are 0.
    pub fn count_free(self, block: &[u8]) -> u64 {
        (0..self.count_in(block.len())).filter(|index| self.get(block, *index) == 0).count() as u64
    }

    /// Sets it; one behind the end of the block is ignored.
    ///
    /// # Errors
    /// EINVAL if the refcount does not fit.
    pub fn set(self, block: &mut [u8], index: usize, value: u64) -> Result<(), FormatError> {
        if value > self.max() {
            let why = format!("refcount {value} does not fit into {} bits", self.bits());
            return Err(FormatError::invalid(why));
        }
        if self.order < 3 {
            let (byte, shift, mask) = self.place(index);
            if let Some(byte) = block.get_mut(byte) {
                *byte = *byte & !(mask << shift) | (value as u8) << shift;
            }
            return Ok(());
        }
        if let Some(bytes) = self.bytes_of(index).and_then(|range| block.get_mut(range)) {
            bytes.copy_from_slice(&value.to_be_bytes()[8 - bytes.len()..]);
        }
        Ok(())
    }

    /// Sets those with some indices to 0, as far as the block has them.
    pub fn clear(self, block: &mut [u8], indices: std::ops::Range<usize>) {
        let end = indices.end.min(self.count_in(block.len()));
        // Whole bytes at once: a block may have millions of refcounts.
        let per_byte = (8 >> self.order).max(1);
        let whole = indices.start.next_multiple_of(per_byte).min(end)..end / per_byte * per_byte;
        let edges = (indices.start..whole.start).chain(whole.end.max(whole.start)..end);
        for index in edges {
            // 0 fits.
            let _ = self.set(block, index, 0);
        }
        if whole.start < whole.end {
            let byte = |index: usize| index << self.order >> 3;
            block[byte(whole.start)..byte(whole.end)].fill(0);
        }
    }

    /// The byte of a refcount of less than 8 bits, its place there and its mask: they lie from the low bits
    /// of each byte up.
    fn place(self, index: usize) -> (usize, u32, u8) {
        let per_byte = 8 >> self.order;
        let shift = (index % per_byte) as u32 * self.bits();
        (index / per_byte, shift, self.max() as u8)
    }

    fn bytes_of(self, index: usize) -> Option<std::ops::Range<usize>> {
        let bytes = 1 << (self.order - 3);
        let start = index.checked_mul(bytes)?;
        Some(start..start.checked_add(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn width(order: u32) -> RefcountWidth {
        RefcountWidth::new(order).unwrap()
    }

    #[test]
    fn q44_a_block_is_a_cluster_of_refcounts() {
        assert_eq!(block_offset(0x1ff), None);
        assert_eq!(block_offset(0x10000 | 0x1ff), Some(0x10000));
        assert_eq!(block_offset(u64::MAX), Some(u64::MAX - 511));
        let geometry = Geometry::new(16, false).unwrap();
        assert_eq!(width(4).per_block(geometry), 32768);
        assert_eq!(width(0).per_block(geometry), 524288);
        assert_eq!(width(6).per_block(geometry), 8192);
    }

    #[test]
    fn q45_refcounts_of_all_widths_are_where_they_belong() {
        let block = [0xe4, 0x1b, 0x80, 0x01, 0, 0, 0, 9];
        let all = |order| {
            let width = width(order);
            let count = width.count_in(block.len());
            (0..count).map(|index| width.get(&block, index)).collect::<Vec<_>>()
        };
        assert_eq!(all(0)[..8], [0, 0, 1, 0, 0, 1, 1, 1]);
        assert_eq!(all(1)[..8], [0, 1, 2, 3, 3, 2, 1, 0]);
        assert_eq!(all(2)[..4], [4, 14, 11, 1]);
        assert_eq!(all(3)[..4], [0xe4, 0x1b, 0x80, 1]);
        assert_eq!(all(4), [0xe41b, 0x8001, 0, 9]);
        assert_eq!(all(5), [0xe41b_8001, 9]);
        assert_eq!(all(6), [0xe41b_8001_0000_0009]);
        assert_eq!(RefcountWidth::new(7).unwrap_err().errno(), libc::EINVAL);
    }

    #[test]
    fn q45_refcounts_are_cleared_and_no_other_changes() {
        for order in 0..=6 {
            let width = width(order);
            let count = width.count_in(32);
            for start in 0..=count.min(20) {
                for end in (start..=count.min(20)).chain([count - 1, count, count + 9]) {
                    let mut block = [0xff; 32];
                    width.clear(&mut block, start..end);
                    for index in 0..count {
                        let is_cleared = (start..end).contains(&index);
                        let expected = if is_cleared { 0 } else { width.max() };
                        let bits = width.bits();
                        assert_eq!(width.get(&block, index), expected, "{bits}: {start}..{end}");
                    }
                }
            }
        }
    }

    #[test]
    fn q45_a_set_refcount_is_read_back_and_no_other_changes() {
        let mut random = fastrand::Rng::with_seed(45);
        for order in 0..=6 {
            let width = width(order);
            let count = width.count_in(64);
            let (mut block, mut model) = ([0; 64], vec![0; count]);
            for _ in 0..500 {
                let (index, value) = (random.usize(..count), random.u64(..) & width.max());
                width.set(&mut block, index, value).unwrap();
                model[index] = value;
                let read: Vec<u64> = (0..count).map(|index| width.get(&block, index)).collect();
                assert_eq!(read, model, "{} bits", width.bits());
            }
            if order < 6 {
                let error = width.set(&mut block, 0, width.max() + 1).unwrap_err();
                assert_eq!(error.errno(), libc::EINVAL);
            }
            // Behind the end nothing is there, and nothing happens.
            assert_eq!(width.get(&block, count), 0);
            assert_eq!(width.get(&block, usize::MAX), 0);
            width.set(&mut block, count, width.max()).unwrap();
            width.set(&mut block, usize::MAX, width.max()).unwrap();
        }
    }
}
