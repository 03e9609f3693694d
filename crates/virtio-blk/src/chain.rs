//! Descriptor chains: from a head index to two lists of guest memory, what the device may read and
//! what it may write.
//!
//! Every field of every descriptor is read exactly once, so the guest cannot change its mind between
//! a check and a use. The walk is bounded by the number of descriptors there can be, and the list
//! it fills is reused from request to request.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Address, GuestAddress, VolatileMemory, VolatileSlice};

use crate::memory::GuestMap;

/// Descriptors of one chain, at most, however large an indirect table is. A request of
/// [`MAX_SEGMENTS`](crate::kind::MAX_SEGMENTS) data segments fits.
const MAX_CHAIN: u32 = 1026;
const DESCRIPTOR_BYTES: u32 = 16;
/// Of a request's header, and of a range of a discard.
const WORDS_BYTES: u32 = 16;

/// Why a chain cannot be followed to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// An index, the head's or a `next`, beyond the table.
    #[error("descriptor index {index} in a table of {entries}")]
    IndexOutOfRange {
        /// The index.
        index: u16,
        /// Descriptors in the table.
        entries: u32,
    },
    /// More steps than descriptors.
    #[error("it loops, or is longer than {limit} descriptors")]
    TooLong {
        /// The limit that was passed.
        limit: u32,
    },
    /// A descriptor cannot be read.
    #[error("its descriptors are outside guest memory, at {addr:#x}")]
    Unreadable {
        /// Where the descriptor should have been.
        addr: u64,
    },
    /// Indirect descriptors were not negotiated.
    #[error("an indirect descriptor, which was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor inside an indirect table, or one with a `next`.
    #[error("an indirect descriptor where none may be")]
    MisplacedIndirect,
    /// An indirect table whose length is zero or no multiple of 16 bytes.
    #[error("an indirect table of {len_bytes} bytes")]
    IndirectLength {
        /// The length.
        len_bytes: u32,
    },
}

/// One descriptor, as it was when it was read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len_bytes: u32,
    pub(crate) flags: u16,
    /// In a packed ring, the buffer id.
    pub(crate) next: u16,
}

impl Descriptor {
    /// From the two little-endian words that it consists of.
    #[inline]
    pub(crate) fn from_words(addr: u64, rest: u64) -> Descriptor {
        let rest = u64::from_le(rest);
        Descriptor {
            addr: u64::from_le(addr),
            len_bytes: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    /// Read of a packed ring, where the last two fields are the other way round.
    #[inline]
    pub(crate) fn of_packed_ring(self) -> Descriptor {
        Descriptor { flags: self.next, next: self.flags, ..self }
    }

    #[inline]
    pub(crate) fn buffer_id(&self) -> u16 {
        self.next
    }

    #[inline]
    pub(crate) fn has(&self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

/// A piece of guest memory that a descriptor names. Not checked to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) addr: GuestAddress,
    pub(crate) len_bytes: u32,
}

/// One chain, as far as it has not been consumed. Reused: it keeps its allocation.
#[derive(Default)]
pub(crate) struct Chain {
    segments: Vec<Segment>,
    /// Where, in `segments`, what is left of the readable part begins.
    readable_start: usize,
    /// Where the readable part ends and the writable part begins.
    writable_start: usize,
    /// A readable descriptor came after a writable one.
    misordered: bool,
    last_is_writable: bool,
}

impl Chain {
    /// Reads the chain that starts at `head` of `table`. Empty descriptors are left out.
    pub(crate) fn walk(
        &mut self,
        mem: &GuestMap,
        table: &VolatileSlice<'_>,
        head: u16,
        allow_indirect: bool,
    ) -> Result<(), ChainError> {
        self.clear();
        let entries = table.len() as u32 / DESCRIPTOR_BYTES;
        let mut index = head;
        for _ in 0..entries.min(MAX_CHAIN) {
            let descriptor = read_from_table(table, index)?;
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                if !allow_indirect {
                    return Err(ChainError::IndirectNotNegotiated);
                }
                return self.walk_indirect(mem, &descriptor);
            }
            self.push(&descriptor);
            if !descriptor.has(VRING_DESC_F_NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(ChainError::TooLong { limit: entries.min(MAX_CHAIN) })
    }

    /// Empties it for the next chain.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.readable_start = 0;
        self.writable_start = 0;
        self.misordered = false;
        self.last_is_writable = false;
    }

    /// Adds a descriptor of a packed ring, unless the chain is too long.
    #[inline]
    pub(crate) fn push_bounded(&mut self, descriptor: &Descriptor) -> Result<(), ChainError> {
        if self.segments.len() >= MAX_CHAIN as usize {
            return Err(ChainError::TooLong { limit: MAX_CHAIN });
        }
        self.push(descriptor);
        Ok(())
    }

    /// Adds all of the table that a descriptor of a packed ring points to. There all descriptors are part of
    /// the chain, and have no flag but that of their direction.
    pub(crate) fn push_table(
        &mut self,
        mem: &GuestMap,
        indirect: &Descriptor,
    ) -> Result<(), ChainError> {
        let (entries, table) = open_table(mem, indirect)?;
        if entries > MAX_CHAIN {
            return Err(ChainError::TooLong { limit: MAX_CHAIN });
        }
        for index in 0..entries as u16 {
            let descriptor = match &table {
                Some(table) => read_from_table(table, index)?,
                None => read_from_memory(mem, GuestAddress(indirect.addr), entries, index)?,
            };
            self.push(&descriptor.of_packed_ring());
        }
        Ok(())
    }

    fn walk_indirect(&mut self, mem: &GuestMap, indirect: &Descriptor) -> Result<(), ChainError> {
        let addr = GuestAddress(indirect.addr);
        let (entries, table) = open_table(mem, indirect)?;
        let mut index = 0;
        for _ in 0..entries.min(MAX_CHAIN) {
            let descriptor = match &table {
                Some(table) => read_from_table(table, index)?,
                None => read_from_memory(mem, addr, entries, index)?,
            };
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                return Err(ChainError::MisplacedIndirect);
            }
            self.push(&descriptor);
            if !descriptor.has(VRING_DESC_F_NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(ChainError::TooLong { limit: entries.min(MAX_CHAIN) })
    }

    fn push(&mut self, descriptor: &Descriptor) {
        if descriptor.len_bytes == 0 {
            return;
        }
        self.last_is_writable = descriptor.has(VRING_DESC_F_WRITE);
        if !self.last_is_writable {
            self.misordered |= self.segments.len() > self.writable_start;
            self.writable_start += 1;
        }
        let addr = GuestAddress(descriptor.addr);
        self.segments.push(Segment { addr, len_bytes: descriptor.len_bytes });
    }

    /// Whether the readable part comes before the writable part, as it must. If not, only
    /// [`take_status`](Self::take_status) means something.
    pub(crate) fn is_ordered(&self) -> bool {
        !self.misordered
    }

    /// Takes the last byte, if the device may write it, and says where it is.
    pub(crate) fn take_status(&mut self) -> Option<GuestAddress> {
        if self.misordered && !self.last_is_writable {
            return None;
        }
        if self.segments.len() <= self.writable_start && !self.misordered {
            return None;
        }
        let last = self.segments.last_mut()?;
        last.len_bytes -= 1;
        let status = last.addr.checked_add(u64::from(last.len_bytes))?;
        if last.len_bytes == 0 {
            self.segments.pop();
        }
        Some(status)
    }

    /// Takes 16 bytes, two little-endian words, from the front of the readable part, however they
    /// are cut up. `None` if there are fewer, or if they cannot be read.
    #[inline]
    pub(crate) fn take_words(&mut self, mem: &GuestMap) -> Option<(u64, u64)> {
        let segment = self.segments[..self.writable_start].get_mut(self.readable_start)?;
        if segment.len_bytes == WORDS_BYTES
            && let Ok(place) = mem.slice(segment.addr, WORDS_BYTES as usize)
        {
            self.readable_start += 1;
            let (first, second) = read_words(&place, 0)?;
            return Some((u64::from_le(first), u64::from_le(second)));
        }
        self.take_scattered_words(mem)
    }

    /// The general case: in several segments, or in one that goes on.
    fn take_scattered_words(&mut self, mem: &GuestMap) -> Option<(u64, u64)> {
        let mut words = [0; WORDS_BYTES as usize];
        let mut left = &mut words[..];
        while !left.is_empty() {
            let segment = self.segments[..self.writable_start].get_mut(self.readable_start)?;
            let piece = (segment.len_bytes as usize).min(left.len());
            let (target, rest) = left.split_at_mut(piece);
            mem.read(target, segment.addr).ok()?;
            left = rest;
            segment.addr = segment.addr.checked_add(piece as u64)?;
            segment.len_bytes -= piece as u32;
            if segment.len_bytes == 0 {
                self.readable_start += 1;
            }
        }
        let (first, second) = words.split_at(8);
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).ok();
        Some((word(first)?, word(second)?))
    }

    /// What is left of the readable part.
    pub(crate) fn readable(&self) -> &[Segment] {
        &self.segments[self.readable_start..self.writable_start]
    }

    /// What is left of the writable part.
    pub(crate) fn writable(&self) -> &[Segment] {
        &self.segments[self.writable_start..]
    }
}

/// How many descriptors there are in a table, and the table. Usually it is in one piece; when regions meet
/// inside it, descriptors are looked up one by one.
#[inline(always)]
fn open_table<'m>(
    mem: &'m GuestMap,
    indirect: &Descriptor,
) -> Result<(u32, Option<VolatileSlice<'m>>), ChainError> {
    let len_bytes = indirect.len_bytes;
    if indirect.has(VRING_DESC_F_NEXT) {
        return Err(ChainError::MisplacedIndirect);
    }
    if len_bytes == 0 || !len_bytes.is_multiple_of(DESCRIPTOR_BYTES) {
        return Err(ChainError::IndirectLength { len_bytes });
    }
    let table = mem.slice(GuestAddress(indirect.addr), len_bytes as usize).ok();
    Ok((len_bytes / DESCRIPTOR_BYTES, table))
}

/// Total length. Cannot overflow: there are few segments, of at most 4 GiB each.
pub(crate) fn total_bytes(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len_bytes)).sum()
}

#[inline]
fn read_from_table(table: &VolatileSlice<'_>, index: u16) -> Result<Descriptor, ChainError> {
    let offset = usize::from(index) * DESCRIPTOR_BYTES as usize;
    let (addr, rest) = read_words(table, offset).ok_or(ChainError::IndexOutOfRange {
        index,
        entries: table.len() as u32 / DESCRIPTOR_BYTES,
    })?;
    Ok(Descriptor::from_words(addr, rest))
}

/// Two words of guest memory, each read once by a volatile access. Not torn if they are aligned; headers
/// and indirect tables need not be.
#[inline]
fn read_words(place: &VolatileSlice<'_>, offset: usize) -> Option<(u64, u64)> {
    let words = place.get_array_ref(offset, 2).ok()?;
    Some((words.load(0), words.load(1)))
}

/// An indirect table in which two regions of guest memory meet.
#[cold]
fn read_from_memory(
    mem: &GuestMap,
    table: GuestAddress,
    entries: u32,
    index: u16,
) -> Result<Descriptor, ChainError> {
    if u32::from(index) >= entries {
        return Err(ChainError::IndexOutOfRange { index, entries });
    }
    let offset = u64::from(index) * u64::from(DESCRIPTOR_BYTES);
    let unreadable = ChainError::Unreadable { addr: table.raw_value().wrapping_add(offset) };
    let addr = table.checked_add(offset).ok_or(unreadable)?;
    let mut words = [[0; 8]; 2];
    mem.read(words.as_flattened_mut(), addr).map_err(|_| unreadable)?;
    Ok(Descriptor::from_words(u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])))
}
