//! The descriptors of a queue: which are free, and how a request becomes a chain of them, in the
//! table or in an indirect table.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::VolatileSlice;

use super::GuestBuffer;
use super::area::put_u64;

pub(super) const DESCRIPTOR_BYTES: usize = 16;
/// Descriptors of a request besides its data: header and status.
pub(super) const OVERHEAD: u16 = 2;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;

/// Where the parts of a request are.
pub(super) struct Parts<'a> {
    pub(super) header: GuestBuffer,
    pub(super) data: &'a [GuestBuffer],
    /// Whether the device writes the data.
    pub(super) device_writes: bool,
    pub(super) status: GuestBuffer,
}

impl Parts<'_> {
    /// Each part with the flags of its descriptor, but for `NEXT`.
    pub(super) fn iter(&self) -> impl Iterator<Item = (GuestBuffer, u16)> {
        let flags = if self.device_writes { WRITE } else { 0 };
        let data = self.data.iter().map(move |buffer| (*buffer, flags));
        let status = std::iter::once((self.status, WRITE));
        std::iter::once((self.header, 0)).chain(data).chain(status)
    }

    pub(super) fn len(&self) -> u16 {
        self.data.len() as u16 + OVERHEAD
    }
}

/// The indirect tables of a queue, one for each descriptor.
#[derive(Clone, Copy)]
pub(super) struct IndirectTables {
    /// Where the first begins, in the queue's area and in guest memory.
    pub(super) offset: usize,
    pub(super) addr: u64,
    /// Descriptors in each.
    pub(super) entries: u16,
}

impl IndirectTables {
    /// Writes the table of `head`, for a packed ring or a split one, and returns where it is.
    #[inline]
    pub(super) fn write<const PACKED: bool>(
        &self,
        area: &VolatileSlice<'_>,
        parts: &Parts<'_>,
        head: u16,
    ) -> GuestBuffer {
        let (count, entries) = (parts.len(), self.entries);
        assert!(count <= entries, "{count} descriptors for an indirect table of {entries}");
        let table = DESCRIPTOR_BYTES * usize::from(entries) * usize::from(head);
        for (position, (buffer, flags)) in (1..).zip(parts.iter()) {
            let offset = self.offset + table + DESCRIPTOR_BYTES * usize::from(position - 1);
            // In a packed one all that there is belongs to the chain, and flags are last.
            let (flags, link) = match PACKED {
                true => (0, (0, flags)),
                false if position < count => (flags, (NEXT, position)),
                false => (flags, (0, 0)),
            };
            put_descriptor(area, offset, buffer, flags, link);
        }
        let len = u32::from(count) * DESCRIPTOR_BYTES as u32;
        GuestBuffer { addr: self.addr + table as u64, len }
    }
}

/// The descriptor table, at the start of the queue's area.
pub(super) struct Descriptors {
    /// The first free descriptor; the others follow in `next`.
    free: u16,
    num_free: u16,
    next: Box<[u16]>,
    indirect: Option<IndirectTables>,
}

impl Descriptors {
    pub(super) fn new(size: u16, indirect: Option<IndirectTables>) -> Descriptors {
        Descriptors { free: 0, num_free: size, next: (1..=size).collect(), indirect }
    }

    /// The head of the next chain.
    pub(super) fn next_head(&self) -> u16 {
        self.free
    }

    pub(super) fn has_room(&self, data_segments: usize) -> bool {
        let needed = if self.indirect.is_some() { 1 } else { data_segments + OVERHEAD as usize };
        usize::from(self.num_free) >= needed
    }

    /// Writes a chain that starts at [`next_head`](Self::next_head); there is room for it. Returns
    /// how many descriptors it took.
    #[inline]
    pub(super) fn write(&mut self, area: &VolatileSlice<'_>, parts: &Parts<'_>) -> u16 {
        let count = parts.len();
        if let Some(tables) = self.indirect {
            return self.write_indirect(area, &tables, parts);
        }
        let mut index = self.free;
        for (position, (buffer, flags)) in (1..).zip(parts.iter()) {
            let next = self.next[usize::from(index)];
            let link = if position < count { (NEXT, next) } else { (0, 0) };
            put_descriptor(area, DESCRIPTOR_BYTES * usize::from(index), buffer, flags, link);
            index = next;
        }
        self.free = index;
        self.num_free -= count;
        count
    }

    fn write_indirect(
        &mut self,
        area: &VolatileSlice<'_>,
        tables: &IndirectTables,
        parts: &Parts<'_>,
    ) -> u16 {
        let head = self.free;
        let pointer = tables.write::<false>(area, parts, head);
        let flags = VRING_DESC_F_INDIRECT as u16;
        put_descriptor(area, DESCRIPTOR_BYTES * usize::from(head), pointer, flags, (0, 0));
        self.free = self.next[usize::from(head)];
        self.num_free -= 1;
        1
    }

    /// Takes a chain back; its descriptors are still linked in `next`.
    #[inline]
    pub(super) fn release(&mut self, head: u16, count: u16) {
        let mut last = head;
        for _ in 1..count {
            last = self.next[usize::from(last)];
        }
        self.next[usize::from(last)] = self.free;
        self.free = head;
        self.num_free += count;
    }
}

/// Writes a descriptor; `link` is `NEXT` or nothing, and the index that goes with it.
#[inline]
fn put_descriptor(
    area: &VolatileSlice<'_>,
    offset: usize,
    buffer: GuestBuffer,
    flags: u16,
    link: (u16, u16),
) {
    let flags = flags | link.0;
    let rest = u64::from(buffer.len) | u64::from(flags) << 32 | u64::from(link.1) << 48;
    put_u64(area, offset, buffer.addr);
    put_u64(area, offset + 8, rest);
}
