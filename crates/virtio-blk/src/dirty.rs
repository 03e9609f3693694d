//! Which pages of guest memory the device has written, for a guest that moves to another host while it
//! runs: [`DirtyLog`].
//!
//! The front end reads the log and clears it while the device goes on: it takes a bit, and then copies
//! the page. The invariants:
//!
//! * **A page is marked after it was written**, by an atomic OR that the write happens before. A mark that
//!   came first could be taken, and the page copied, before it has its new contents.
//! * **What an answer consists of is marked before the driver can see the answer**: data, status, entries of
//!   the used ring. The index that shows it is marked at once afterwards. A device that is killed in between
//!   leaves the index to its successor, which marks the whole used ring when it starts.
//! * **All is marked when a queue has stopped**: the last copy of the memory is made after that.
//!
//! A request marks when it ends, whatever it has come to, and so also if the log came after its beginning.
//! What was written before there was a log is in the first copy, which covers all memory.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use coblk_aio::EventNotifier;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion,
    VolatileMemory,
};

/// A bit each for the pages of guest memory, the lowest bit of a byte first.
pub struct DirtyLog {
    region: Arc<MmapRegion>,
    /// Told when something was marked.
    notifier: Option<EventNotifier>,
}

impl DirtyLog {
    /// Bytes of guest memory to a bit.
    pub const PAGE_BYTES: u64 = 4096;

    /// A log in `region`, which is marked for good: the device clears nothing.
    pub fn new(region: Arc<MmapRegion>) -> DirtyLog {
        DirtyLog { region, notifier: None }
    }

    /// The same; `notifier` is written when an answer was marked.
    #[must_use]
    pub fn notifying(self, notifier: Option<EventNotifier>) -> DirtyLog {
        DirtyLog { notifier, ..self }
    }

    /// Whether there is a bit for each page of `[addr, addr + len)`.
    pub fn covers(&self, addr: u64, len: u64) -> bool {
        let end = addr.checked_add(len);
        end.is_some_and(|end| {
            end.div_ceil(Self::PAGE_BYTES).div_ceil(8) <= self.region.len() as u64
        })
    }

    /// Marks all of `memory`, for an owner that does not know better.
    pub fn mark_all(&self, memory: &GuestMemoryMmap) {
        memory.iter().for_each(|region| self.mark(region.start_addr(), region.len()));
    }

    /// `len` bytes at `addr` were written. Pages without a bit are left out.
    pub(crate) fn mark(&self, addr: GuestAddress, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|it| addr.raw_value().checked_add(it)) else {
            return;
        };
        let (mut page, last) = (addr.raw_value() / Self::PAGE_BYTES, last / Self::PAGE_BYTES);
        while page <= last {
            // As many as there are in one byte of the log.
            let end = last.min(page | 7);
            let bits = (0xff << (page & 7)) & (0xff >> (7 - (end & 7)));
            let Ok(byte) = self.region.get_atomic_ref::<AtomicU8>((page / 8) as usize) else {
                return;
            };
            // After the write, for a front end that takes the bit and then looks at the page.
            byte.fetch_or(bits, Ordering::AcqRel);
            page = end + 1;
        }
    }

    fn notify(&self) {
        if let Some(notifier) = &self.notifier
            && let Err(error) = notifier.set()
        {
            tracing::debug!(%error, "the front end is not told of dirty pages");
        }
    }
}

impl fmt::Debug for DirtyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyLog").field("bytes", &self.region.len()).finish_non_exhaustive()
    }
}

/// What a queue marks, and where.
#[derive(Clone, Debug)]
pub struct QueueLog {
    /// The pages.
    pub log: Arc<DirtyLog>,
    /// Whether the requests of the queue mark what they write: data and status.
    pub data: bool,
    /// The guest address by which the used ring is marked.
    pub used_ring: u64,
}

/// [`QueueLog`], as the rings of a queue need it.
pub(crate) struct RingLog {
    log: Arc<DirtyLog>,
    used_ring: u64,
}

impl RingLog {
    /// Marks all of the used ring, which has `bytes`.
    pub(crate) fn new(log: &QueueLog, bytes: usize) -> RingLog {
        let ring = RingLog { log: Arc::clone(&log.log), used_ring: log.used_ring };
        ring.wrote(0, bytes);
        ring
    }

    /// The device has written so many bytes at `offset` of the used ring.
    #[cold]
    pub(crate) fn wrote(&self, offset: usize, bytes: usize) {
        let place = self.used_ring.wrapping_add(offset as u64);
        self.log.mark(GuestAddress(place), bytes as u64);
    }

    /// [`wrote`](Self::wrote), and the front end is told.
    #[cold]
    pub(crate) fn published(&self, offset: usize, bytes: usize) {
        self.wrote(offset, bytes);
        self.log.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(bytes: usize) -> (Arc<MmapRegion>, DirtyLog) {
        let region = Arc::new(MmapRegion::new(bytes).unwrap());
        (Arc::clone(&region), DirtyLog::new(region))
    }

    /// Pages that are marked.
    fn marked(region: &MmapRegion) -> Vec<usize> {
        let bytes = region.get_array_ref::<u8>(0, region.len()).unwrap();
        (0..region.len() * 8).filter(|page| bytes.load(page / 8) & 1 << (page % 8) != 0).collect()
    }

    #[test]
    fn each_page_that_was_touched_is_marked_and_no_other() {
        let cases: [(u64, u64, Vec<usize>); 8] = [
            (0, 1, vec![0]),
            (4095, 1, vec![0]),
            (4095, 2, vec![0, 1]),
            (7 * 4096, 4096, vec![7]),
            (7 * 4096, 4097, vec![7, 8]),
            (5 * 4096 + 1, 20 * 4096, (5..=25).collect()),
            (9 * 4096, 0, vec![]),
            (u64::MAX, 1, vec![]),
        ];
        for (addr, len, pages) in cases {
            let (region, log) = log(8);
            log.mark(GuestAddress(addr), len);
            assert_eq!(marked(&region), pages, "{len} bytes at {addr:#x}");
        }
    }

    #[test]
    fn a_log_covers_as_many_pages_as_it_has_bits() {
        let (_, log) = log(2);
        assert!(log.covers(0, 16 * 4096) && log.covers(15 * 4096, 4096));
        assert!(!log.covers(0, 16 * 4096 + 1) && !log.covers(u64::MAX, 1));
    }

    /// Past its end nothing is written, whatever the address.
    #[test]
    fn pages_without_a_bit_are_left_out() {
        let (region, log) = log(1);
        log.mark(GuestAddress(6 * 4096), 100 * 4096);
        log.mark(GuestAddress(u64::MAX - 10), 100);
        assert_eq!(marked(&region), [6, 7]);
    }
}
