//! [`ClusterLocks`]: ranges of the disk whose entries are being changed.
//!
//! Writes that allocate, zeroes and discards lock the clusters whose entries they change, in place the
//! subclusters. Reads, and writes to bytes that have a place of their own, take no such lock.

use std::collections::BTreeMap;
use std::ops::Range;

use coblk_aio::CoWaker;

/// One locked range: where it ends, and the coroutines that wait for it.
struct Locked {
    end: u64,
    waiting: Vec<CoWaker>,
}

/// Locked ranges in bytes of the disk, which do not overlap. Part of the image's state.
#[derive(Default)]
pub(crate) struct ClusterLocks {
    by_start: BTreeMap<u64, Locked>,
}

impl ClusterLocks {
    /// Where the first locked range begins that overlaps another one.
    pub(crate) fn conflict(&self, range: &Range<u64>) -> Option<u64> {
        let before = self.by_start.range(..=range.start).next_back();
        if let Some((start, _)) = before.filter(|(_, locked)| locked.end > range.start) {
            return Some(*start);
        }
        self.by_start.range(range.clone()).next().map(|(start, _)| *start)
    }

    /// Locks a range that overlaps no other.
    pub(crate) fn lock(&mut self, range: &Range<u64>) {
        debug_assert!(self.conflict(range).is_none());
        self.by_start.insert(range.start, Locked { end: range.end, waiting: Vec::new() });
    }

    /// Unlocks the range that begins at `start`. What waits for it is to be woken, without the lock of the
    /// state.
    pub(crate) fn unlock(&mut self, start: u64) -> Vec<CoWaker> {
        self.by_start.remove(&start).map_or(Vec::new(), |locked| locked.waiting)
    }

    /// Has the locked range that begins at `start` wake a coroutine; gives the waker back if it is not
    /// locked.
    pub(crate) fn wait(&mut self, start: u64, waker: CoWaker) -> Option<CoWaker> {
        match self.by_start.get_mut(&start) {
            Some(locked) => {
                locked.waiting.push(waker);
                None
            }
            None => Some(waker),
        }
    }

    /// Whether nothing is locked.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q96_ranges_that_overlap_exclude_each_other() {
        let mut locks = ClusterLocks::default();
        locks.lock(&(100..200));
        locks.lock(&(300..400));
        assert_eq!(locks.conflict(&(0..100)), None);
        assert_eq!(locks.conflict(&(200..300)), None);
        assert_eq!(locks.conflict(&(0..101)), Some(100));
        assert_eq!(locks.conflict(&(150..160)), Some(100));
        assert_eq!(locks.conflict(&(199..500)), Some(100));
        assert_eq!(locks.conflict(&(200..500)), Some(300));
        locks.unlock(100);
        assert_eq!(locks.conflict(&(0..300)), None);
        locks.unlock(300);
        assert!(locks.is_empty());
    }
}
