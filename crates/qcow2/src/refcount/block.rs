//! [`Block`]: a refcount block in memory.

use super::bits::Bits;
use crate::layout::RefcountWidth;

/// The refcounts of a range of clusters, as the file has them and as they have changed.
pub(super) struct Block {
    width: RefcountWidth,
    bytes: Vec<u8>,
    /// Whose refcount is 0.
    pub(super) free: Bits,
    /// Units of the block that differ from the file, or may.
    pub(super) dirty: Bits,
    /// Units that a commit is writing.
    pub(super) committing: Bits,
    unit: usize,
    /// When it was used last.
    pub(super) used: u64,
}

impl Block {
    /// A block of an image, or a new one of zeroes, which is dirty.
    pub(super) fn new(width: RefcountWidth, bytes: Vec<u8>, unit: usize, is_new: bool) -> Block {
        let unit = unit.min(bytes.len());
        let (count, units) = (width.count_in(bytes.len()), bytes.len() / unit);
        let mut free = Bits::all(count);
        if !is_new {
            (0..count).filter(|it| width.get(&bytes, *it) != 0).for_each(|it| free.set(it, false));
        }
        let dirty = if is_new { Bits::all(units) } else { Bits::new(units) };
        Block { width, bytes, free, dirty, committing: Bits::new(units), unit, used: 0 }
    }

    pub(super) fn get(&self, index: usize) -> u64 {
        self.width.get(&self.bytes, index)
    }

    /// Changes a refcount; one that does not fit stays as it is.
    pub(super) fn set(&mut self, index: usize, value: u64) {
        if self.width.set(&mut self.bytes, index, value).is_err() {
            return;
        }
        self.free.set(index, value == 0);
        let bits = self.width.bits() as usize;
        self.dirty.set(index * bits / 8 / self.unit, true);
    }

    /// Whether it has to stay in memory.
    pub(super) fn is_changed(&self) -> bool {
        !self.dirty.is_empty() || !self.committing.is_empty()
    }

    /// What a commit that begins now has to write: places in the block, and bytes.
    pub(super) fn begin_commit(&mut self) -> Vec<(u64, Vec<u8>)> {
        if self.dirty.is_empty() {
            return Vec::new();
        }
        self.committing = self.dirty.take();
        let part = |units: std::ops::Range<usize>| {
            let (start, end) = (units.start * self.unit, units.end * self.unit);
            (start as u64, self.bytes[start..end].to_vec())
        };
        self.committing.runs().map(part).collect()
    }

    /// Ends what [`begin_commit`](Self::begin_commit) began. What failed may be on file or not.
    pub(super) fn end_commit(&mut self, is_done: bool) {
        let committing = self.committing.take();
        if !is_done {
            self.dirty.unite(&committing);
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[cfg(test)]
    pub(super) fn unit(&self) -> usize {
        self.unit
    }
}
