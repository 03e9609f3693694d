//! Which requests of a queue are in flight, in memory that outlives the device: [`InflightLog`].
//!
//! The layout is the one that the vhost-user specification gives for split virtqueues. One queue:
//!
//! ```text
//!   0   features: u64   8  version: u16   10  descriptors: u16
//!   12  last_batch_head: u16              14  used_idx: u16
//!   16  for each descriptor:  0  inflight: u8   6  next: u16   8  counter: u64
//! ```
//!
//! A head is marked when it is taken. When it has been answered, it is first put on the list of the
//! last batch, then the used index is shown to the driver, then its mark is cleared. Killed at any
//! point, a successor can tell from the used index whether the last batch was answered.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, MmapRegion, VolatileMemory, VolatileMemoryError, VolatileSlice};

const VERSION: u16 = 1;
const VERSION_OFFSET: usize = 8;
const DESC_NUM_OFFSET: usize = 10;
const LAST_BATCH_HEAD_OFFSET: usize = 12;
const USED_IDX_OFFSET: usize = 14;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const NEXT_OFFSET: usize = 6;
const COUNTER_OFFSET: usize = 8;
/// Each queue's part begins at a multiple of this.
const ALIGNMENT: usize = 64;

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InflightError {
    /// The memory is too small, or not aligned.
    #[error("the log is not where it should be: {0}")]
    Access(#[from] VolatileMemoryError),
    /// It was not written for such a queue.
    #[error("the log has version {version} and {entries} entries; the queue has {size}")]
    Header {
        /// Version in the log; 1 is known.
        version: u16,
        /// Descriptors it was made for.
        entries: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// What it says cannot have been.
    #[error("the log is inconsistent: {0}")]
    Inconsistent(&'static str),
}

/// A log of the requests in flight in one queue, in shared memory. Its owner hands the memory to
/// the next device after this one was killed; that one then takes up what was not answered.
pub struct InflightLog {
    region: Arc<MmapRegion>,
    offset_bytes: usize,
    size: u16,
    counter: Cell<u64>,
    /// Answered, and not yet shown to the driver.
    batch: RefCell<Vec<u16>>,
}

impl fmt::Debug for InflightLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InflightLog")
            .field("offset_bytes", &self.offset_bytes)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl InflightLog {
    /// Bytes that the log of one queue of `size` entries takes; those of several follow each other.
    pub fn bytes(size: u16) -> usize {
        (HEADER_BYTES + ENTRY_BYTES * usize::from(size)).next_multiple_of(ALIGNMENT)
    }

    /// The log of a queue of `size` entries, at `offset_bytes` of `region`. Zeroes are an empty log.
    pub fn new(region: Arc<MmapRegion>, offset_bytes: usize, size: u16) -> InflightLog {
        let (counter, batch) = (Cell::new(0), RefCell::default());
        InflightLog { region, offset_bytes, size, counter, batch }
    }

    fn slice(&self) -> Result<VolatileSlice<'_>, VolatileMemoryError> {
        self.region.get_slice(self.offset_bytes, Self::bytes(self.size))
    }

    fn entry(&self, head: u16) -> Option<VolatileSlice<'_>> {
        let offset = HEADER_BYTES + ENTRY_BYTES * usize::from(head);
        let inside = (head < self.size).then_some(self.offset_bytes + offset)?;
        self.region.get_slice(inside, ENTRY_BYTES).ok()
    }

    /// Reads what a predecessor has left, for a queue whose used index is `used_idx`: the heads to
    /// serve again, in the order in which they were taken.
    pub(crate) fn recover(&self, used_idx: u16) -> Result<Vec<u16>, InflightError> {
        let log = self.slice()?;
        let version: u16 = log.load(VERSION_OFFSET, Ordering::Relaxed)?;
        let entries: u16 = log.load(DESC_NUM_OFFSET, Ordering::Relaxed)?;
        if version == 0 {
            log.store(self.size, DESC_NUM_OFFSET, Ordering::Relaxed)?;
            log.store(used_idx, USED_IDX_OFFSET, Ordering::Relaxed)?;
            log.store(VERSION, VERSION_OFFSET, Ordering::Release)?;
        } else if version != VERSION || entries != self.size {
            return Err(InflightError::Header { version, entries, size: self.size });
        } else {
            self.settle_last_batch(&log, used_idx)?;
        }
        let mut heads = Vec::new();
        for head in 0..self.size {
            if let Some(entry) = self.entry(head)
                && entry.load::<u8>(0, Ordering::Acquire)? != 0
            {
                heads.push((entry.load::<u64>(COUNTER_OFFSET, Ordering::Relaxed)?, head));
            }
        }
        heads.sort_unstable();
        self.counter.set(heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1)));
        Ok(heads.into_iter().map(|(_, head)| head).collect())
    }

    /// The driver may have seen answers whose marks were not cleared any more.
    fn settle_last_batch(
        &self,
        log: &VolatileSlice<'_>,
        used_idx: u16,
    ) -> Result<(), InflightError> {
        let known: u16 = log.load(USED_IDX_OFFSET, Ordering::Relaxed)?;
        let answered = used_idx.wrapping_sub(known);
        let any_marked = (0..self.size).filter_map(|head| self.entry(head)).any(|entry| {
            entry.load::<u8>(0, Ordering::Acquire).is_ok_and(|mark| mark != 0) //
        });
        // Without marks there is nothing to settle: the driver has begun a new ring, perhaps.
        if any_marked {
            if answered > self.size {
                return Err(InflightError::Inconsistent("more answers than entries"));
            }
            let mut head: u16 = log.load(LAST_BATCH_HEAD_OFFSET, Ordering::Relaxed)?;
            for _ in 0..answered {
                let entry = self.entry(head);
                let entry = entry.ok_or(InflightError::Inconsistent("a head out of range"))?;
                entry.store(0u8, 0, Ordering::Relaxed)?;
                head = entry.load(NEXT_OFFSET, Ordering::Relaxed)?;
            }
        }
        log.store(used_idx, USED_IDX_OFFSET, Ordering::Release)?;
        Ok(())
    }

    /// `head` was taken from the available ring. One out of range is not logged: its chain cannot
    /// be read either.
    #[inline]
    pub(crate) fn taken(&self, head: u16) {
        if let Some(entry) = self.entry(head) {
            let _ = entry.store(self.counter.get(), COUNTER_OFFSET, Ordering::Relaxed);
            let _ = entry.store(1u8, 0, Ordering::Release);
            self.counter.set(self.counter.get().wrapping_add(1));
        }
    }

    /// Forgets all that is in flight: the driver has reset the queue.
    pub fn clear(&self) -> Result<(), VolatileMemoryError> {
        self.batch.borrow_mut().clear();
        let mut entries = (0..self.size).filter_map(|head| self.entry(head));
        entries.try_for_each(|entry| entry.store(0u8, 0, Ordering::Release))
    }

    /// `head` has been put on the used ring, where the driver does not see it yet.
    #[inline]
    pub(crate) fn answered(&self, head: u16) -> Result<(), VolatileMemoryError> {
        let log = self.slice()?;
        if let Some(entry) = self.entry(head) {
            let before: u16 = log.load(LAST_BATCH_HEAD_OFFSET, Ordering::Relaxed)?;
            entry.store(before, NEXT_OFFSET, Ordering::Relaxed)?;
            log.store(head, LAST_BATCH_HEAD_OFFSET, Ordering::Release)?;
            self.batch.borrow_mut().push(head);
        }
        Ok(())
    }

    /// The driver sees all that was answered.
    #[inline]
    pub(crate) fn published(&self, used_idx: u16) -> Result<(), VolatileMemoryError> {
        let mut batch = self.batch.borrow_mut();
        for entry in batch.iter().filter_map(|head| self.entry(*head)) {
            entry.store(0u8, 0, Ordering::Release)?;
        }
        batch.clear();
        self.slice()?.store(used_idx, USED_IDX_OFFSET, Ordering::Release)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u16 = 8;

    fn memory() -> Arc<MmapRegion> {
        Arc::new(MmapRegion::new(4096).unwrap())
    }

    fn log(region: &Arc<MmapRegion>) -> InflightLog {
        InflightLog::new(Arc::clone(region), 64, SIZE)
    }

    #[test]
    fn heads_come_back_in_the_order_in_which_they_were_taken() {
        let region = memory();
        let first = log(&region);
        assert!(first.recover(0).unwrap().is_empty());
        for head in [5, 2, 7, 0] {
            first.taken(head);
        }
        first.answered(2).unwrap();
        first.published(1).unwrap();
        assert_eq!(log(&region).recover(1).unwrap(), vec![5u16, 7, 0]);
    }

    #[test]
    fn a_batch_is_answered_if_and_only_if_the_driver_could_see_it() {
        for (used_idx, left) in [(0, vec![3u16, 1, 4]), (2, vec![4])] {
            let region = memory();
            let first = log(&region);
            first.recover(0).unwrap();
            for head in [3, 1, 4] {
                first.taken(head);
            }
            // Killed before `published`: only the used index tells whether the driver has them.
            first.answered(3).unwrap();
            first.answered(1).unwrap();
            assert_eq!(log(&region).recover(used_idx).unwrap(), left);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let region = memory();
        log(&region).recover(0).unwrap();
        let other = InflightLog::new(Arc::clone(&region), 64, SIZE * 2);
        assert!(matches!(other.recover(0), Err(InflightError::Header { entries: SIZE, .. })));
        log(&region).taken(1);
        assert!(matches!(log(&region).recover(100), Err(InflightError::Inconsistent(_))));
        region.get_slice(64, 16).unwrap().store(999u16, 12, Ordering::Relaxed).unwrap();
        assert!(matches!(log(&region).recover(3), Err(InflightError::Inconsistent(_))));
        let outside = InflightLog::new(region, 4096, SIZE);
        assert!(matches!(outside.recover(0), Err(InflightError::Access(_))));
    }

    #[test]
    fn a_log_without_marks_fits_any_ring() {
        let region = memory();
        let first = log(&region);
        first.recover(40_000).unwrap();
        assert!(log(&region).recover(0).unwrap().is_empty());
    }
}
