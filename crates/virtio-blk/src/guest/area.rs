//! The memory of a queue of the guest, in one piece, and accesses to it.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::{GuestBuffer, GuestRam};

/// Why what is below cannot fail: the area was allocated in one region.
pub(super) const IN_AREA: &str = "inside the queue's own memory";

#[inline]
pub(super) fn slice_of(ram: &GuestRam, area: GuestBuffer) -> VolatileSlice<'_> {
    ram.memory().get_slice(GuestAddress(area.addr), area.len as usize).expect(IN_AREA)
}

#[inline]
pub(super) fn put_u64(area: &VolatileSlice<'_>, offset: usize, value: u64) {
    area.store(value.to_le(), offset, Ordering::Relaxed).expect(IN_AREA);
}

#[inline]
pub(super) fn get_u32(area: &VolatileSlice<'_>, offset: usize) -> u32 {
    u32::from_le(area.load(offset, Ordering::Relaxed).expect(IN_AREA))
}

#[inline]
pub(super) fn store(area: &VolatileSlice<'_>, offset: usize, value: u16, order: Ordering) {
    area.store(value.to_le(), offset, order).expect(IN_AREA);
}

#[inline]
pub(super) fn load(area: &VolatileSlice<'_>, offset: usize) -> u16 {
    u16::from_le(area.load(offset, Ordering::Acquire).expect(IN_AREA))
}
