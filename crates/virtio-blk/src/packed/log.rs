//! Which chains of a packed queue are in flight, in memory that outlives the device: [`PackedLog`].
//!
//! The layout is the one that the vhost-user specification gives for packed virtqueues. One queue:
//!
//! ```text
//!   0   features: u64   8  version: u16   10  descriptors: u16   12  free_head: u16   14  old_free_head: u16
//!   16  used_idx: u16   18  old_used_idx: u16   20  used_wrap: u8   21  old_used_wrap: u8
//!   32  for each descriptor:  0  inflight: u8   2  next: u16   4  last: u16   6  descriptors of the chain: u16
//!                             8  counter: u64  16  id: u16    18  flags: u16 20  length: u32   24  address: u64
//! ```
//!
//! The invariant: killed between any two stores, a successor finds each chain that the driver has not seen an
//! answer to, and no other. Two words decide, each written at once:
//!
//! * `free_head` with `old_free_head`. A chain is taken when both have left its entries behind; before, they
//!   are free, whatever is in them.
//! * `used_idx` with its wrap counter and their old values. They differ from the old ones while answers are
//!   published. All that is written of the ring then lies between the two. Whether the descriptor at the old
//!   index is still available tells whether the driver can see the answers. If not, the others are made available
//!   again: the successor answers in another order, perhaps, and the driver would take an old mark for an answer.
//!   If it can, the free list is committed first, and then the index: the successor of a device that is killed in
//!   between commits both again.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, MmapRegion, VolatileMemory, VolatileMemoryError, VolatileSlice};

use super::FLAGS_OFFSET;
use super::chains::{Chains, Entry, Head};
use super::position::Position;
use super::store::store;
use crate::chain::Descriptor;
use crate::inflight::InflightError;
use crate::virtqueue::DESCRIPTOR_BYTES;

const VERSION: u16 = 1;
const VERSION_OFFSET: usize = 8;
const DESC_NUM_OFFSET: usize = 10;
const FREE_OFFSET: usize = 12;
const USED_OFFSET: usize = 16;
const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 32;
/// In an entry. At 0 is the mark.
const NEXT_OFFSET: usize = 2;
const COUNTER_OFFSET: usize = 8;
const DESCRIPTOR_OFFSET: usize = 16;
const ADDR_OFFSET: usize = 24;
/// Each queue's part begins at a multiple of this.
const ALIGNMENT: usize = 64;

/// A log of the chains in flight in one packed queue, in shared memory; see
/// [`InflightLog`](crate::InflightLog).
pub struct PackedLog {
    region: Arc<MmapRegion>,
    offset_bytes: usize,
    size: u16,
    counter: Cell<u64>,
    /// Where the driver sees the device, as the log says.
    used: Cell<Position>,
    /// What is about to be published.
    next: Cell<(u16, Position)>,
}

impl fmt::Debug for PackedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedLog")
            .field("offset_bytes", &self.offset_bytes)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// What a predecessor has left.
pub(super) struct Recovered {
    pub(super) chains: Chains,
    pub(super) used: Position,
    /// Buffer ids of what is to be served again, in the order in which it was taken.
    pub(super) ids: Vec<u16>,
}

type Stored = Result<(), VolatileMemoryError>;

impl PackedLog {
    /// Bytes that the log of one queue of `size` entries takes; those of several follow each other.
    pub fn bytes(size: u16) -> usize {
        (HEADER_BYTES + ENTRY_BYTES * usize::from(size)).next_multiple_of(ALIGNMENT)
    }

    /// The log of a queue of `size` entries, at `offset_bytes` of `region`. Zeroes are an empty log.
    pub fn new(region: Arc<MmapRegion>, offset_bytes: usize, size: u16) -> PackedLog {
        let start = Position::START;
        let (counter, used, next) = (Cell::new(0), Cell::new(start), Cell::new((0, start)));
        PackedLog { region, offset_bytes, size, counter, used, next }
    }

    /// Forgets all that is in flight: the driver has reset the queue.
    ///
    /// # Errors
    /// If the memory is too small.
    pub fn clear(&self) -> Result<(), VolatileMemoryError> {
        // As new memory is.
        store(&self.slice()?, VERSION_OFFSET, 0u16, Ordering::Release)
    }

    /// Which log this is, and the number of the next request.
    pub(super) fn place(&self) -> (usize, u64) {
        (self.region.as_ptr() as usize + self.offset_bytes, self.counter.get())
    }

    fn slice(&self) -> Result<VolatileSlice<'_>, VolatileMemoryError> {
        self.region.get_slice(self.offset_bytes, Self::bytes(self.size))
    }

    fn entry(index: u16) -> usize {
        HEADER_BYTES + ENTRY_BYTES * usize::from(index)
    }

    fn put_free(&self, log: &VolatileSlice<'_>, free: u16, old: u16) -> Stored {
        store(log, FREE_OFFSET, pair(free, old), Ordering::Release)
    }

    fn put_used(&self, log: &VolatileSlice<'_>, used: Position, old: Position) -> Stored {
        let wraps = u16::from_ne_bytes([u8::from(used.wrap), u8::from(old.wrap)]);
        let word = word(pair(used.index, old.index), pair(wraps, 0));
        store(log, USED_OFFSET, word, Ordering::Release)
    }

    /// A chain was taken; the chains after it begin at the head of the free list.
    pub(super) fn taken(&self, chains: &Chains, id: u16) -> Stored {
        let (Some(head), log) = (chains.head(id), self.slice()?) else { return Ok(()) };
        self.put_chain(&log, chains, id, head)?;
        self.put_free(&log, chains.free, chains.free)
    }

    fn put_chain(&self, log: &VolatileSlice<'_>, chains: &Chains, id: u16, head: Head) -> Stored {
        let mut first = None;
        for (index, Entry { descriptor, next }) in chains.descriptors(head) {
            let at = Self::entry(index);
            let place = word(pair(id, descriptor.flags), descriptor.len_bytes);
            store(log, at + DESCRIPTOR_OFFSET, place, Ordering::Relaxed)?;
            store(log, at + ADDR_OFFSET, descriptor.addr, Ordering::Relaxed)?;
            first.get_or_insert(next);
        }
        let at = Self::entry(head.first);
        store(log, at + COUNTER_OFFSET, self.counter.get(), Ordering::Relaxed)?;
        self.counter.set(self.counter.get().wrapping_add(1));
        let mark = u16::from_ne_bytes([1, 0]);
        let link = word(pair(mark, first.unwrap_or(0)), pair(head.last, head.count));
        store(log, at, link, Ordering::Release)
    }

    /// A chain is about to be published; its entries go before `free` on the free list.
    pub(super) fn released(&self, head: Head, free: u16) -> Stored {
        store(&self.slice()?, Self::entry(head.last) + NEXT_OFFSET, free, Ordering::Relaxed)
    }

    /// All of a batch was released. Then the driver is to see it.
    pub(super) fn publishes(&self, free: u16, used: Position) -> Stored {
        let log = self.slice()?;
        let old_free = log.load(FREE_OFFSET + 2, Ordering::Relaxed)?;
        self.put_free(&log, free, old_free)?;
        self.next.set((free, used));
        self.put_used(&log, used, self.used.get())
    }

    /// The driver sees the answers to `heads`, which are the first entries of their chains.
    pub(super) fn published(&self, heads: impl Iterator<Item = u16>) -> Stored {
        let log = self.slice()?;
        for first in heads {
            store(&log, Self::entry(first), 0u8, Ordering::Release)?;
        }
        let (free, used) = self.next.get();
        self.put_free(&log, free, free)?;
        self.used.set(used);
        self.put_used(&log, used, used)
    }

    /// The queue goes on in this log, which may be another one than that of `before`.
    pub(super) fn go_on(
        &self,
        before: Option<(usize, u64)>,
        chains: &Chains,
        used: Position,
        ids: &[u16],
    ) -> Result<(), InflightError> {
        self.used.set(used);
        let log = self.slice()?;
        if let Some((place, counter)) = before
            && place == self.place().0
            && log.load::<u16>(VERSION_OFFSET, Ordering::Relaxed)? == VERSION
        {
            self.counter.set(counter);
            return Ok(());
        }
        store(&log, VERSION_OFFSET, 0u16, Ordering::Release)?;
        for (index, entry) in (0..).zip(&*chains.entries) {
            store(&log, Self::entry(index), word(pair(0, entry.next), 0), Ordering::Relaxed)?;
        }
        for (id, head) in ids.iter().filter_map(|id| Some((*id, chains.head(*id)?))) {
            self.put_chain(&log, chains, id, head)?;
        }
        Ok(self.put_header(&log, chains.free, used)?)
    }

    /// All else is written; the log is one from now on.
    fn put_header(&self, log: &VolatileSlice<'_>, free: u16, used: Position) -> Stored {
        self.put_free(log, free, free)?;
        self.put_used(log, used, used)?;
        store(log, DESC_NUM_OFFSET, self.size, Ordering::Relaxed)?;
        store(log, VERSION_OFFSET, VERSION, Ordering::Release)
    }

    /// Reads what a predecessor has left of the queue with these descriptors. A new one begins at `base`.
    pub(super) fn recover(
        &self,
        ring: &VolatileSlice<'_>,
        base: Position,
    ) -> Result<Recovered, InflightError> {
        let log = self.slice()?;
        let version: u16 = log.load(VERSION_OFFSET, Ordering::Acquire)?;
        let entries: u16 = log.load(DESC_NUM_OFFSET, Ordering::Relaxed)?;
        if version == 0 {
            let chains = Chains::new(self.size);
            self.go_on(None, &chains, base, &[])?;
            return Ok(Recovered { chains, used: base, ids: Vec::new() });
        }
        if version != VERSION || entries != self.size {
            return Err(InflightError::Header { version, entries, size: self.size });
        }
        let (free, used) = self.settle_last_batch(&log, ring)?;
        self.used.set(used);
        let (chains, ids) = self.read_chains(&log, free)?;
        Ok(Recovered { chains, used, ids })
    }

    /// The driver may have seen answers whose marks were not cleared any more. Returns the head of the free
    /// list, and where the driver sees the device.
    fn settle_last_batch(
        &self,
        log: &VolatileSlice<'_>,
        ring: &VolatileSlice<'_>,
    ) -> Result<(u16, Position), InflightError> {
        let [free, old_free] =
            [0, 2].map(|at| log.load::<u16>(FREE_OFFSET + at, Ordering::Acquire));
        let (free, old_free) = (free?, old_free?);
        let position = |index: usize, wrap: usize| -> Result<Position, InflightError> {
            let index: u16 = log.load(USED_OFFSET + index, Ordering::Acquire)?;
            let wrap = log.load::<u8>(USED_OFFSET + wrap, Ordering::Acquire)? != 0;
            let is_inside = index < self.size;
            is_inside
                .then_some(Position { index, wrap })
                .ok_or(InflightError::Inconsistent("a position out of range"))
        };
        let (used, old_used) = (position(0, 4)?, position(2, 5)?);
        let count = used.distance_from(old_used, self.size);
        let count = count.ok_or(InflightError::Inconsistent("more answers than entries"))?;
        if count > 0 && !old_used.is_available(flags_at(ring, old_used)?) {
            // The driver can see them, or has.
            self.put_free(log, free, free)?;
            self.put_used(log, used, used)?;
            return Ok((free, used));
        }
        for step in 0..count {
            let at = old_used.advance(step, self.size);
            let flags = flags_at(ring, at)?;
            if at.is_used(flags) {
                let offset = DESCRIPTOR_BYTES * usize::from(at.index) + FLAGS_OFFSET;
                store(ring, offset, at.available_marks().to_le(), Ordering::Release)?;
            }
        }
        self.put_used(log, old_used, old_used)?;
        self.put_free(log, old_free, old_free)?;
        Ok((old_free, old_used))
    }

    /// All chains that are in flight, and the order in which they were taken.
    fn read_chains(
        &self,
        log: &VolatileSlice<'_>,
        mut free: u16,
    ) -> Result<(Chains, Vec<u16>), InflightError> {
        let mut chains = Chains::new(self.size);
        for (index, entry) in (0..).zip(&mut chains.entries) {
            *entry = self.read_entry(log, index)?;
        }
        let mut seen = vec![false; usize::from(self.size)];
        let mut at = free;
        // The last one has no next.
        while let Some(seen) = seen.get_mut(usize::from(at)) {
            if std::mem::replace(seen, true) {
                return Err(InflightError::Inconsistent("the free list loops"));
            }
            store(log, Self::entry(at), 0u8, Ordering::Relaxed)?;
            at = chains.entries[usize::from(at)].next;
        }
        let mut heads = Vec::new();
        for first in 0..self.size {
            let is_marked = log.load::<u8>(Self::entry(first), Ordering::Acquire)? != 0;
            if is_marked && !seen[usize::from(first)] {
                let (counter, id) = self.read_chain(log, first, &mut chains, &mut seen)?;
                heads.push((counter, id));
            }
        }
        // Free, and not on the list: a device that keeps its log in another way has lost them.
        for index in (0..self.size).filter(|index| !seen[usize::from(*index)]) {
            store(log, Self::entry(index) + NEXT_OFFSET, free, Ordering::Relaxed)?;
            chains.entries[usize::from(index)].next = free;
            free = index;
            self.put_free(log, free, free)?;
        }
        chains.set_free(free);
        heads.sort_unstable();
        self.counter.set(heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1)));
        Ok((chains, heads.into_iter().map(|(_, id)| id).collect()))
    }

    /// The chain that begins at the entry `first`: its number and its id.
    fn read_chain(
        &self,
        log: &VolatileSlice<'_>,
        first: u16,
        chains: &mut Chains,
        seen: &mut [bool],
    ) -> Result<(u64, u16), InflightError> {
        let at = Self::entry(first);
        let [last, count, id] =
            [4, 6, DESCRIPTOR_OFFSET].map(|it| log.load(at + it, Ordering::Relaxed));
        let head = Head { first, last: last?, count: count? };
        let id: u16 = id?;
        if id >= self.size || !chains.is_free(id) {
            return Err(InflightError::Inconsistent("a buffer id out of range, or twice"));
        }
        let mut end = first;
        for (index, _) in chains.descriptors(head) {
            match seen.get_mut(usize::from(index)) {
                Some(seen) if !*seen => (*seen, end) = (true, index),
                _ => return Err(InflightError::Inconsistent("a chain with entries of another")),
            }
        }
        let visited = chains.descriptors(head).count();
        if head.count == 0 || visited != usize::from(head.count) || end != head.last {
            return Err(InflightError::Inconsistent("a chain of another length"));
        }
        chains.adopt(id, head);
        Ok((log.load(at + COUNTER_OFFSET, Ordering::Relaxed)?, id))
    }

    fn read_entry(
        &self,
        log: &VolatileSlice<'_>,
        index: u16,
    ) -> Result<Entry, VolatileMemoryError> {
        let at = Self::entry(index);
        let descriptor = Descriptor {
            addr: log.load(at + ADDR_OFFSET, Ordering::Relaxed)?,
            len_bytes: log.load(at + DESCRIPTOR_OFFSET + 4, Ordering::Relaxed)?,
            flags: log.load(at + DESCRIPTOR_OFFSET + 2, Ordering::Relaxed)?,
            next: log.load(at + DESCRIPTOR_OFFSET, Ordering::Relaxed)?,
        };
        Ok(Entry { descriptor, next: log.load(at + NEXT_OFFSET, Ordering::Relaxed)? })
    }
}

fn flags_at(ring: &VolatileSlice<'_>, at: Position) -> Result<u16, VolatileMemoryError> {
    let offset = DESCRIPTOR_BYTES * usize::from(at.index) + FLAGS_OFFSET;
    Ok(u16::from_le(ring.load(offset, Ordering::Acquire)?))
}

/// Two fields that follow each other in memory, to be written at once.
#[inline]
fn pair(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// The same of two pairs.
#[inline]
fn word(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}
