//! A device loop over a split ring that answers at once: [`Ring`].
//!
//! It has no coroutine, no request of its own and no list of those in flight: it walks a chain,
//! does what it says, and shows the answer, all before it looks at the next one.

use std::io;
use std::sync::atomic::{Ordering, fence};

use coblk::virtio_blk::{SECTOR_BYTES, VirtqueueLayout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::store::Store;
use super::{Wait, invalid};

const DESCRIPTOR_BYTES: usize = 16;
/// Of a descriptor: another follows; the device writes.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// In both rings: flags at 0, the index, the entries.
const INDEX: usize = 2;
const ENTRIES: usize = 4;
/// Flags of both rings: the other side need not be told.
const QUIET: u16 = 1;

const HEADER_BYTES: usize = 16;
/// Longest data of one segment.
const MAX_SEGMENT_BYTES: u32 = 32 << 20;
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A ring in a guest's memory.
pub(super) struct Ring<'m> {
    memory: &'m GuestMemoryMmap,
    descriptors: VolatileSlice<'m>,
    avail: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
}

#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl<'m> Ring<'m> {
    /// The ring at `layout`.
    ///
    /// # Errors
    /// If it does not lie in the memory.
    pub(super) fn new(
        memory: &'m GuestMemoryMmap,
        layout: &VirtqueueLayout,
        event_idx: bool,
        wait: Wait,
    ) -> io::Result<Ring<'m>> {
        let size = usize::from(layout.size);
        if !size.is_power_of_two() {
            return Err(invalid(format!("a queue of {size} entries")));
        }
        let part = |addr, len| slice(memory, addr, len);
        let ring = Ring {
            memory,
            descriptors: part(layout.desc_table, DESCRIPTOR_BYTES * size)?,
            // Each has an index of the other side's behind its entries.
            avail: part(layout.avail_ring, ENTRIES + 2 * size + 2)?,
            used: part(layout.used_ring, ENTRIES + 8 * size + 2)?,
            size: layout.size,
            next_avail: layout.next_index,
            next_used: 0,
            event_idx,
        };
        let next_used = ring.load(&ring.used, INDEX, Ordering::Acquire)?;
        if wait == Wait::Spinning {
            // It looks by itself. An event index is never off, but this one comes once in 65,536.
            ring.store(0, QUIET, Ordering::Relaxed)?;
            ring.store(ring.avail_event(), ring.next_avail.wrapping_sub(1), Ordering::Relaxed)?;
        }
        Ok(Ring { next_used, ..ring })
    }

    /// The next entry of the available ring to be taken.
    pub(super) fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Answers all requests that are available. How many there were, and whether the driver wants
    /// to be told.
    ///
    /// # Errors
    /// If the driver breaks a rule that leaves nothing to answer.
    pub(super) fn serve(&mut self, store: &Store) -> io::Result<(u16, bool)> {
        let available = self.load(&self.avail, INDEX, Ordering::Acquire)?;
        let count = available.wrapping_sub(self.next_avail);
        if count > self.size {
            return Err(invalid(format!("{count} requests in a queue of {}", self.size)));
        }
        let before = self.next_used;
        for _ in 0..count {
            let entry = ENTRIES + 2 * usize::from(self.next_avail % self.size);
            let head = self.load(&self.avail, entry, Ordering::Relaxed)?;
            let written = self.answer(head, store)?;
            let entry = ENTRIES + 8 * usize::from(self.next_used % self.size);
            let pair = [u32::from(head).to_le(), written.to_le()];
            self.used.store(pair[0], entry, Ordering::Relaxed).map_err(misplaced)?;
            self.used.store(pair[1], entry + 4, Ordering::Relaxed).map_err(misplaced)?;
            self.next_avail = self.next_avail.wrapping_add(1);
            self.next_used = self.next_used.wrapping_add(1);
            self.store(INDEX, self.next_used, Ordering::Release)?;
        }
        Ok((count, count > 0 && self.is_to_be_told(before)?))
    }

    /// Asks to be kicked for the next request; false if it has come already.
    ///
    /// # Errors
    /// If the ring is misaligned.
    pub(super) fn may_sleep(&self) -> io::Result<bool> {
        if self.event_idx {
            self.store(self.avail_event(), self.next_avail, Ordering::Relaxed)?;
        }
        // The wish is visible before this looks a last time.
        fence(Ordering::SeqCst);
        Ok(self.load(&self.avail, INDEX, Ordering::Acquire)? == self.next_avail)
    }

    fn avail_event(&self) -> usize {
        ENTRIES + 8 * usize::from(self.size)
    }

    fn is_to_be_told(&self, before: u16) -> io::Result<bool> {
        // The answers are visible before this looks whether the driver waits for one.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return Ok(self.load(&self.avail, 0, Ordering::Relaxed)? & QUIET == 0);
        }
        let place = ENTRIES + 2 * usize::from(self.size);
        let event = self.load(&self.avail, place, Ordering::Relaxed)?;
        let since_event = self.next_used.wrapping_sub(event).wrapping_sub(1);
        Ok(since_event < self.next_used.wrapping_sub(before))
    }

    /// Does what the chain at `head` says; how many bytes of it were written.
    fn answer(&self, head: u16, store: &Store) -> io::Result<u32> {
        let first = self.descriptor(head)?;
        if (first.len as usize) < HEADER_BYTES || first.flags & WRITE != 0 {
            return Err(invalid("a request without a header"));
        }
        let header = slice(self.memory, first.addr, HEADER_BYTES)?;
        let kind = u32::from_le(header.read_obj(0).map_err(misplaced)?);
        let sector = u64::from_le(header.read_obj(8).map_err(misplaced)?);
        let mut offset = sector.saturating_mul(SECTOR_BYTES);
        let mut status = if matches!(kind, T_IN | T_OUT) { OK } else { UNSUPP };
        let (mut written, mut at) = (0, first);
        // A chain is no longer than the ring, or it is a circle.
        for _ in 1..self.size {
            if at.flags & NEXT == 0 {
                return Err(invalid("a request without a status"));
            }
            at = self.descriptor(at.next)?;
            if at.flags & NEXT == 0 {
                if at.flags & WRITE == 0 || at.len != 1 {
                    return Err(invalid("a status that cannot be written"));
                }
                slice(self.memory, at.addr, 1)?.write_obj(status, 0).map_err(misplaced)?;
                return Ok(written + 1);
            }
            if status == OK && self.transfer(kind, at, offset, store).is_err() {
                status = IOERR;
            }
            offset = offset.saturating_add(u64::from(at.len));
            if status == OK && kind == T_IN {
                written += at.len;
            }
        }
        Err(invalid("a request that is a circle"))
    }

    /// One segment of data.
    fn transfer(&self, kind: u32, at: Descriptor, offset: u64, store: &Store) -> io::Result<()> {
        let fits = at.len <= MAX_SEGMENT_BYTES && store.holds(offset, u64::from(at.len));
        if !fits || (at.flags & WRITE != 0) != (kind == T_IN) {
            return Err(invalid("a segment that does not fit"));
        }
        let data = slice(self.memory, at.addr, at.len as usize)?;
        if kind == T_IN {
            store.read_shared(offset, &data)
        } else {
            store.write_shared(offset, &data)
        }
    }

    fn descriptor(&self, index: u16) -> io::Result<Descriptor> {
        if index >= self.size {
            return Err(invalid(format!("descriptor {index} of {}", self.size)));
        }
        let at = DESCRIPTOR_BYTES * usize::from(index);
        let addr: u64 = self.descriptors.load(at, Ordering::Relaxed).map_err(misplaced)?;
        let len: u32 = self.descriptors.load(at + 8, Ordering::Relaxed).map_err(misplaced)?;
        let flags = self.load(&self.descriptors, at + 12, Ordering::Relaxed)?;
        let next = self.load(&self.descriptors, at + 14, Ordering::Relaxed)?;
        Ok(Descriptor { addr: u64::from_le(addr), len: u32::from_le(len), flags, next })
    }

    fn load(&self, from: &VolatileSlice<'_>, at: usize, order: Ordering) -> io::Result<u16> {
        from.load::<u16>(at, order).map(u16::from_le).map_err(misplaced)
    }

    /// Stores into the used ring.
    fn store(&self, at: usize, value: u16, order: Ordering) -> io::Result<()> {
        self.used.store(value.to_le(), at, order).map_err(misplaced)
    }
}

fn slice(memory: &GuestMemoryMmap, addr: u64, len: usize) -> io::Result<VolatileSlice<'_>> {
    memory.get_slice(GuestAddress(addr), len).map_err(io::Error::other)
}

fn misplaced(error: vm_memory::VolatileMemoryError) -> io::Error {
    invalid(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use coblk::virtio_blk::BlkStatus;
    use coblk::virtio_blk::guest::{GuestQueue, GuestRam, GuestRequest, QueueOptions};

    /// Descriptors of a queue in these tests.
    const SIZE: u16 = 8;

    fn pattern() -> Vec<u8> {
        (0..1u32 << 16).map(|index| (index / 512 * 7 + index % 251) as u8).collect()
    }

    struct Guest {
        file: tempfile::NamedTempFile,
        store: Store,
        ram: GuestRam,
        queue: GuestQueue,
    }

    fn guest(event_idx: bool) -> Guest {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pattern()).unwrap();
        let store = Store::open(Some(file.path())).unwrap();
        let ram = GuestRam::new(1).unwrap();
        let options = QueueOptions { size: SIZE, event_idx, ..QueueOptions::default() };
        let queue = GuestQueue::new(&ram, options).unwrap();
        Guest { file, store, ram, queue }
    }

    #[test]
    fn reads_and_writes_what_the_file_has() {
        for (event_idx, wait) in
            [(true, Wait::Spinning), (true, Wait::Blocking), (false, Wait::Blocking)]
        {
            let Guest { file, store, ram, mut queue } = guest(event_idx);
            let mut ring = Ring::new(ram.memory(), &queue.layout(), event_idx, wait).unwrap();
            assert_eq!(ring.serve(&store).unwrap(), (0, false));
            let buffers = ram.alloc_many(2, 1024, 512).unwrap();
            // Longer than the rings, so that both wrap.
            for turn in 0..40u64 {
                queue.submit(GuestRequest::Read { sector: turn, buffers: &buffers }, turn).unwrap();
                queue.kick();
                assert_eq!(ring.serve(&store).unwrap(), (1, true), "{turn}");
                let done = queue.reap().unwrap();
                assert_eq!((done.token, done.status), (turn, BlkStatus::Ok));
                assert_eq!(done.written_bytes, 2048 + 1);
                let mut data = vec![0; 2048];
                ram.read(buffers[0], &mut data[..1024]);
                ram.read(buffers[1], &mut data[1024..]);
                let begin = turn as usize * 512;
                assert_eq!(data, pattern()[begin..begin + 2048]);
                assert!(queue.reap().is_none() && ring.may_sleep().unwrap());
            }
            ram.write(buffers[1], &[9; 1024]);
            queue.write(4, buffers[1], 7).unwrap();
            queue.kick();
            ring.serve(&store).unwrap();
            let done = queue.reap().unwrap();
            assert_eq!((done.status, done.written_bytes), (BlkStatus::Ok, 1));
            let mut wanted = pattern();
            wanted[2048..3072].fill(9);
            assert_eq!(std::fs::read(file.path()).unwrap(), wanted);
            assert_eq!(ring.next_avail(), 41);
        }
    }

    #[test]
    fn what_does_not_fit_fails_and_changes_nothing() {
        let Guest { file, store, ram, mut queue } = guest(true);
        let mut ring = Ring::new(ram.memory(), &queue.layout(), true, Wait::Blocking).unwrap();
        let buffer = ram.alloc(1024, 512).unwrap();
        for (request, status) in [
            (GuestRequest::Read { sector: 127, buffers: &[buffer] }, BlkStatus::IoErr),
            (GuestRequest::Write { sector: 127, buffers: &[buffer] }, BlkStatus::IoErr),
            (GuestRequest::Write { sector: u64::MAX, buffers: &[buffer] }, BlkStatus::IoErr),
            (GuestRequest::Write { sector: u64::MAX / 512, buffers: &[buffer] }, BlkStatus::IoErr),
            (GuestRequest::Flush, BlkStatus::Unsupported),
        ] {
            queue.submit(request, 1).unwrap();
            queue.kick();
            ring.serve(&store).unwrap();
            assert_eq!(queue.reap().unwrap().status, status);
        }
        assert_eq!(std::fs::read(file.path()).unwrap(), pattern());
    }

    /// Puts a chain of these descriptors into a queue, by hand, and has it answered.
    fn answer(descriptors: &[(u64, u32, u16, u16)], head: u16, available: u16) -> io::Error {
        let Guest { file, store, ram, queue } = guest(true);
        let layout = queue.layout();
        let memory = ram.memory();
        for (index, (addr, len, flags, next)) in descriptors.iter().enumerate() {
            let at = GuestAddress(layout.desc_table + 16 * index as u64);
            let words = u64::from(*len) | u64::from(*flags) << 32 | u64::from(*next) << 48;
            memory.write_obj([*addr, words], at).unwrap();
        }
        memory.write_obj(head, GuestAddress(layout.avail_ring + 4)).unwrap();
        memory.write_obj(available, GuestAddress(layout.avail_ring + 2)).unwrap();
        let mut ring = Ring::new(memory, &layout, true, Wait::Blocking).unwrap();
        let error = ring.serve(&store).unwrap_err();
        assert_eq!(std::fs::read(file.path()).unwrap(), pattern());
        error
    }

    #[test]
    fn a_driver_that_breaks_the_rules_is_told_apart() {
        let far = 1 << 40;
        for (chain, head, available, says) in [
            (&[][..], 0, SIZE + 1, "9 requests in a queue of 8"),
            (&[], SIZE, 1, "descriptor 8 of 8"),
            (&[(4096, 15, NEXT, 1)], 0, 1, "without a header"),
            (&[(4096, 16, NEXT | WRITE, 1)], 0, 1, "without a header"),
            (&[(4096, 16, 0, 0)], 0, 1, "without a status"),
            (&[(4096, 16, NEXT, 0)], 0, 1, "a circle"),
            (&[(4096, 16, NEXT, 1), (4096, 1, 0, 0)], 0, 1, "cannot be written"),
            (&[(4096, 16, NEXT, 1), (4096, 2, WRITE, 0)], 0, 1, "cannot be written"),
            (&[(far, 16, NEXT, 1), (4096, 1, WRITE, 0)], 0, 1, "ddress"),
            (&[(4096, 16, NEXT, 1), (far, 1, WRITE, 0)], 0, 1, "ddress"),
        ] {
            let error = answer(chain, head, available).to_string();
            assert!(error.contains(says), "{error} instead of {says}");
        }
    }

    #[test]
    fn a_ring_outside_of_memory_is_refused() {
        let Guest { ram, queue, .. } = guest(true);
        let layout = queue.layout();
        for layout in [
            VirtqueueLayout { used_ring: (1 << 20) - 8, ..layout },
            VirtqueueLayout { desc_table: u64::MAX - 8, ..layout },
            VirtqueueLayout { size: 0, ..layout },
            VirtqueueLayout { size: 3, ..layout },
        ] {
            assert!(Ring::new(ram.memory(), &layout, true, Wait::Blocking).is_err());
        }
    }
}
