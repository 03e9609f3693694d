//! The driver's side of a split ring: [`SplitDriver`].

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use vm_memory::VolatileSlice;

use super::area::{get_u32, load, store};
use super::descriptors::{Descriptors, Parts};
use super::driver::RingDriver;
use crate::virtqueue::is_event_passed;

/// In both rings: flags at 0, the index, the entries.
const RING_IDX: usize = 2;
const RING_ENTRIES: usize = 4;

/// Bytes of the available ring of `size` entries, the index of the next interrupt included.
pub(super) const fn available_bytes(size: usize) -> usize {
    used_event(size) + 2
}

/// Bytes of the used ring, the index of the next kick included.
pub(super) const fn used_bytes(size: usize) -> usize {
    avail_event(size) + 2
}

const fn used_event(size: usize) -> usize {
    RING_ENTRIES + 2 * size
}

const fn avail_event(size: usize) -> usize {
    RING_ENTRIES + 8 * size
}

pub(super) struct SplitDriver {
    descriptors: Descriptors,
    size: u16,
    /// Where the rings begin in the area.
    avail: usize,
    used: usize,
    next_avail: u16,
    published_avail: u16,
    next_used: u16,
    /// The used index as last read.
    seen_used: u16,
}

impl SplitDriver {
    pub(super) fn new(size: u16, avail: usize, used: usize, descriptors: Descriptors) -> Self {
        SplitDriver {
            descriptors,
            size,
            avail,
            used,
            next_avail: 0,
            published_avail: 0,
            next_used: 0,
            seen_used: 0,
        }
    }

    /// Shows the device what was put. Returns whether it wants a kick.
    pub(super) fn show(&mut self, area: &VolatileSlice<'_>, event_idx: bool) -> bool {
        let (old, new) = (self.published_avail, self.next_avail);
        if old == new {
            return false;
        }
        store(area, self.avail + RING_IDX, new, Ordering::Release);
        self.published_avail = new;
        // The index is visible before we look whether the device wants to hear of it.
        fence(Ordering::SeqCst);
        if event_idx {
            let event = load(area, self.used + avail_event(usize::from(self.size)));
            return is_event_passed(event, new, old);
        }
        u32::from(load(area, self.used)) & VRING_USED_F_NO_NOTIFY == 0
    }
}

impl RingDriver for SplitDriver {
    #[inline]
    fn has_room(&self, data_segments: usize) -> bool {
        self.descriptors.has_room(data_segments)
    }

    #[inline]
    fn next_head(&self) -> u16 {
        self.descriptors.next_head()
    }

    #[inline]
    fn put(&mut self, area: &VolatileSlice<'_>, parts: &Parts<'_>) -> u16 {
        let head = self.descriptors.next_head();
        let count = self.descriptors.write(area, parts);
        let entry = usize::from(self.next_avail & (self.size - 1));
        store(area, self.avail + RING_ENTRIES + 2 * entry, head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
        count
    }

    #[inline]
    fn next_used(&mut self, area: &VolatileSlice<'_>, ask: bool) -> Option<(u16, u32)> {
        let idx = self.used + RING_IDX;
        if self.next_used == self.seen_used {
            self.seen_used = load(area, idx);
        }
        if self.next_used == self.seen_used {
            if !ask {
                return None;
            }
            let event = self.avail + used_event(usize::from(self.size));
            store(area, event, self.next_used, Ordering::Relaxed);
            // Our wish is visible before we look once more.
            fence(Ordering::SeqCst);
            self.seen_used = load(area, idx);
            if self.next_used == self.seen_used {
                return None;
            }
        }
        let entry = usize::from(self.next_used & (self.size - 1));
        let place = self.used + RING_ENTRIES + 8 * entry;
        self.next_used = self.next_used.wrapping_add(1);
        Some((get_u32(area, place) as u16, get_u32(area, place + 4)))
    }

    #[inline]
    fn release(&mut self, head: u16, count: u16) {
        self.descriptors.release(head, count);
    }
}
