//! The driver's side of a packed ring: [`PackedDriver`].

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
};
use vm_memory::{Bytes, VolatileSlice};

use super::GuestBuffer;
use super::area::{IN_AREA, get_u32, load, put_u64, store};
use super::descriptors::{DESCRIPTOR_BYTES, IndirectTables, OVERHEAD, Parts};
use super::driver::RingDriver;
use crate::packed::Position;

/// Of an event suppression structure.
pub(super) const EVENT_BYTES: usize = 4;
/// In a descriptor: length, id and flags.
const REST: usize = 8;
const ID: usize = 12;
const FLAGS: usize = 14;

pub(super) struct PackedDriver {
    size: u16,
    /// Where the event suppression structures of driver and device are in the area.
    driver_event: usize,
    device_event: usize,
    indirect: Option<IndirectTables>,
    /// The next descriptor to make available, and the next that the device uses.
    avail: Position,
    used: Position,
    num_free: u16,
    free_ids: Vec<u16>,
    /// The first descriptor that the device is not to see yet: where, and its last word.
    hidden: Option<(Position, u64)>,
    /// Descriptors put since the device was last shown any.
    put: u16,
}

impl PackedDriver {
    pub(super) fn new(
        size: u16,
        driver_event: usize,
        device_event: usize,
        indirect: Option<IndirectTables>,
    ) -> Self {
        PackedDriver {
            size,
            driver_event,
            device_event,
            indirect,
            avail: Position::START,
            used: Position::START,
            num_free: size,
            free_ids: (0..size).rev().collect(),
            hidden: None,
            put: 0,
        }
    }

    /// The device is not to interrupt.
    pub(super) fn disable_interrupts(&self, area: &VolatileSlice<'_>) {
        let flags = VRING_PACKED_EVENT_FLAG_DISABLE as u16;
        store(area, self.driver_event + 2, flags, Ordering::Relaxed);
    }

    #[inline]
    fn put_descriptor(
        &mut self,
        area: &VolatileSlice<'_>,
        buffer: GuestBuffer,
        flags: u16,
        id: u16,
    ) {
        let offset = DESCRIPTOR_BYTES * usize::from(self.avail.index);
        let flags = flags | self.avail.available_marks();
        let rest = u64::from(buffer.len) | u64::from(id) << 32 | u64::from(flags) << 48;
        put_u64(area, offset, buffer.addr);
        // The device waits at the first, and looks at no other before.
        if self.hidden.is_some() {
            put_u64(area, offset + REST, rest);
        } else {
            self.hidden = Some((self.avail, rest));
        }
        self.avail = self.avail.advance(1, self.size);
        self.num_free -= 1;
        self.put += 1;
    }

    /// Shows the device what was put. Returns whether it wants a kick.
    pub(super) fn show(&mut self, area: &VolatileSlice<'_>, event_idx: bool) -> bool {
        let Some((first, rest)) = self.hidden.take() else { return false };
        let offset = DESCRIPTOR_BYTES * usize::from(first.index) + REST;
        area.store(rest.to_le(), offset, Ordering::Release).expect(IN_AREA);
        let count = std::mem::take(&mut self.put);
        // It is visible before we look whether the device wants to hear of it.
        fence(Ordering::SeqCst);
        let event = get_u32(area, self.device_event);
        match event >> 16 & 3 {
            VRING_PACKED_EVENT_FLAG_DISABLE => false,
            VRING_PACKED_EVENT_FLAG_DESC if event_idx => {
                self.avail.has_passed(Position::from_bits(event as u16), count, self.size)
            }
            _ => true,
        }
    }

    fn is_used(&self, area: &VolatileSlice<'_>) -> bool {
        let offset = DESCRIPTOR_BYTES * usize::from(self.used.index);
        self.used.is_used(load(area, offset + FLAGS))
    }
}

impl RingDriver for PackedDriver {
    fn next_head(&self) -> u16 {
        self.free_ids.last().copied().unwrap_or_default()
    }

    fn has_room(&self, data_segments: usize) -> bool {
        let needed = if self.indirect.is_some() { 1 } else { data_segments + OVERHEAD as usize };
        usize::from(self.num_free) >= needed
    }

    #[inline]
    fn put(&mut self, area: &VolatileSlice<'_>, parts: &Parts<'_>) -> u16 {
        let id = self.free_ids.pop().expect("as many ids as descriptors");
        let count = parts.len();
        if let Some(tables) = self.indirect {
            let pointer = tables.write::<true>(area, parts, id);
            self.put_descriptor(area, pointer, VRING_DESC_F_INDIRECT as u16, id);
            return 1;
        }
        for (position, (buffer, flags)) in (1..).zip(parts.iter()) {
            let link = if position < count { VRING_DESC_F_NEXT as u16 } else { 0 };
            self.put_descriptor(area, buffer, flags | link, id);
        }
        count
    }

    #[inline]
    fn next_used(&mut self, area: &VolatileSlice<'_>, ask: bool) -> Option<(u16, u32)> {
        if !self.is_used(area) {
            if !ask {
                return None;
            }
            let event = u32::from(self.used.bits()) | VRING_PACKED_EVENT_FLAG_DESC << 16;
            area.store(event.to_le(), self.driver_event, Ordering::Relaxed).expect(IN_AREA);
            // Our wish is visible before we look once more.
            fence(Ordering::SeqCst);
            if !self.is_used(area) {
                return None;
            }
        }
        let offset = DESCRIPTOR_BYTES * usize::from(self.used.index);
        Some((load(area, offset + ID), get_u32(area, offset + REST)))
    }

    #[inline]
    fn release(&mut self, id: u16, count: u16) {
        self.used = self.used.advance(count, self.size);
        self.num_free += count;
        self.free_ids.push(id);
    }
}
