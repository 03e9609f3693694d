//! [`GuestQueue`]: the driver's side of one virtqueue, with virtio-blk requests.
//!
//! All of a queue is one piece of guest memory, its area, looked up once per call:
//!
//! ```text
//!   split:   descriptors | available ring | used ring    | one slot per descriptor | indirect tables
//!   packed:  descriptors | driver event   | device event |  header, range, status
//! ```

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coblk_aio::{AioContext, RemoteBottomHalf};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use vm_memory::{Bytes, VolatileSlice};

use super::area::{IN_AREA, put_u64, slice_of, store};
use super::descriptors::{DESCRIPTOR_BYTES, Descriptors, IndirectTables, OVERHEAD, Parts};
use super::packed::{EVENT_BYTES, PackedDriver};
use super::split::{self, SplitDriver};
use super::{Completion, GuestBuffer, GuestRam, GuestRequest, InterruptLine};
use crate::kind::BlkStatus;
use crate::packed::PACKED_START;
use crate::virtqueue::VirtqueueLayout;

const SLOT_BYTES: usize = 64;
const HEADER_BYTES: u32 = 16;
/// In a slot: the header at 0, then the range of a discard, then the status byte.
const SLOT_RANGE: u64 = 16;
const SLOT_STATUS: u64 = 32;
const RANGE_BYTES: u32 = 16;

/// How a queue is made.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// Entries; a power of two.
    pub size: u16,
    /// Whether EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// If not 0, requests go through indirect tables with room for this many data segments each;
    /// then as many requests as there are entries can be in flight.
    pub indirect_segments: u16,
    /// Whether the device should interrupt. If not, reap often.
    pub interrupts: bool,
    /// Whether the ring is packed, which must have been negotiated.
    pub packed: bool,
}

impl Default for QueueOptions {
    fn default() -> Self {
        QueueOptions {
            size: 256,
            event_idx: true,
            indirect_segments: 0,
            interrupts: true,
            packed: false,
        }
    }
}

/// There are not enough free descriptors for a request: reap first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct QueueFull;

/// One queue of a guest's driver. `Send`: it can be driven from any thread.
pub struct GuestQueue {
    options: QueueOptions,
    layout: VirtqueueLayout,
    requests: Requests,
    ring: DriverRing,
    /// Reaped while another one was waited for.
    set_aside: VecDeque<Completion>,
    kick: Option<RemoteBottomHalf>,
    interrupt: Arc<InterruptLine>,
}

enum DriverRing {
    Split(SplitDriver),
    Packed(PackedDriver),
}

/// What a driver does with a ring of either kind.
pub(super) trait RingDriver {
    fn has_room(&self, data_segments: usize) -> bool;

    /// What the next request is known by.
    fn next_head(&self) -> u16;

    /// Writes a request; there is room for it. Returns how many descriptors it took.
    fn put(&mut self, area: &VolatileSlice<'_>, parts: &Parts<'_>) -> u16;

    /// The head of the next request that is done, and how many bytes the device has written. If there is
    /// none, the device is asked to interrupt for the next one, if `ask`.
    fn next_used(&mut self, area: &VolatileSlice<'_>, ask: bool) -> Option<(u16, u32)>;

    /// A request is done that had so many descriptors.
    fn release(&mut self, head: u16, count: u16);
}

/// Does the same with a ring of either kind, in code of its own for each.
macro_rules! either {
    ($ring:expr, $it:ident => $done:expr) => {
        match $ring {
            DriverRing::Split($it) => $done,
            DriverRing::Packed($it) => $done,
        }
    };
}

/// The memory of a queue, and what is in flight in it.
struct Requests {
    ram: GuestRam,
    area: GuestBuffer,
    offsets: Offsets,
    /// For each head in flight its token, and how many descriptors it has.
    in_flight: Box<[Option<(u64, u16)>]>,
    num_in_flight: usize,
    /// Whether the device is asked to interrupt when nothing is done.
    asks: bool,
}

/// Where the parts of the area begin. The descriptors are at 0.
#[derive(Clone, Copy)]
struct Offsets {
    /// The available ring, or the driver's event suppression structure.
    avail: usize,
    /// The used ring, or the device's.
    used: usize,
    slots: usize,
    tables: usize,
}

impl Offsets {
    fn new(size: usize, packed: bool) -> Offsets {
        let (avail_bytes, used_bytes) = match packed {
            true => (EVENT_BYTES, EVENT_BYTES),
            false => (split::available_bytes(size), split::used_bytes(size)),
        };
        let avail = DESCRIPTOR_BYTES * size;
        // On a cache line of its own: the two sides write to different ones.
        let used = (avail + avail_bytes).next_multiple_of(64);
        let slots = (used + used_bytes).next_multiple_of(SLOT_BYTES);
        Offsets { avail, used, slots, tables: slots + SLOT_BYTES * size }
    }
}

impl GuestQueue {
    /// Lays a queue out in `ram`. It is not connected to a device yet.
    ///
    /// # Errors
    /// If there is not enough memory, or if the size is no power of two.
    pub fn new(ram: &GuestRam, options: QueueOptions) -> io::Result<GuestQueue> {
        if !options.size.is_power_of_two() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "queue size no power of two"));
        }
        let size = usize::from(options.size);
        let offsets = Offsets::new(size, options.packed);
        let entries = match options.indirect_segments {
            0 => 0,
            segments => segments.saturating_add(OVERHEAD),
        };
        let total = offsets.tables + DESCRIPTOR_BYTES * usize::from(entries) * size;
        let area = ram.alloc(u32::try_from(total).map_err(io::Error::other)?, 4096)?;
        let at = |offset: usize| area.addr + offset as u64;
        let indirect = (entries > 0).then(|| IndirectTables {
            offset: offsets.tables,
            addr: at(offsets.tables),
            entries,
        });
        let ring = Self::new_ring(&slice_of(ram, area), &options, &offsets, indirect);
        let in_flight = vec![None; size].into();
        let asks = options.interrupts && options.event_idx;
        let (ram, num_in_flight) = (ram.clone(), 0);
        let requests = Requests { ram, area, offsets, in_flight, num_in_flight, asks };
        Ok(GuestQueue {
            options,
            layout: VirtqueueLayout {
                size: options.size,
                desc_table: area.addr,
                avail_ring: at(offsets.avail),
                used_ring: at(offsets.used),
                next_index: if options.packed { PACKED_START } else { 0 },
            },
            requests,
            ring,
            set_aside: VecDeque::new(),
            kick: None,
            interrupt: Arc::default(),
        })
    }

    fn new_ring(
        area: &VolatileSlice<'_>,
        options: &QueueOptions,
        offsets: &Offsets,
        indirect: Option<IndirectTables>,
    ) -> DriverRing {
        let (size, avail, used) = (options.size, offsets.avail, offsets.used);
        if options.packed {
            let ring = PackedDriver::new(size, avail, used, indirect);
            if !options.interrupts {
                ring.disable_interrupts(area);
            }
            return DriverRing::Packed(ring);
        }
        let flags = if options.interrupts { 0 } else { VRING_AVAIL_F_NO_INTERRUPT as u16 };
        store(area, avail, flags, Ordering::Relaxed);
        DriverRing::Split(SplitDriver::new(size, avail, used, Descriptors::new(size, indirect)))
    }

    /// Where it is, for the device.
    pub fn layout(&self) -> VirtqueueLayout {
        self.layout
    }

    /// What to kick the device with.
    pub fn set_kick(&mut self, kick: RemoteBottomHalf) {
        self.kick = Some(kick);
    }

    /// The line that the device should raise for [`wait`](Self::wait) to return.
    pub fn interrupt_line(&self) -> &Arc<InterruptLine> {
        &self.interrupt
    }

    /// Requests submitted and not yet reaped.
    pub fn in_flight(&self) -> usize {
        self.requests.num_in_flight + self.set_aside.len()
    }

    /// Whether a request of `data_segments` buffers can be submitted now. A discard or write-zeroes
    /// has one.
    pub fn has_room(&self, data_segments: usize) -> bool {
        either!(&self.ring, ring => ring.has_room(data_segments))
    }

    /// Reads into one buffer; `token` comes back with the completion.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn read(&mut self, sector: u64, buffer: GuestBuffer, token: u64) -> Result<(), QueueFull> {
        self.submit(GuestRequest::Read { sector, buffers: &[buffer] }, token)
    }

    /// Writes one buffer; `token` comes back with the completion.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn write(&mut self, sector: u64, buffer: GuestBuffer, token: u64) -> Result<(), QueueFull> {
        self.submit(GuestRequest::Write { sector, buffers: &[buffer] }, token)
    }

    /// Puts a request on the available ring. The device sees it after the next
    /// [`kick`](Self::kick). `token` comes back with the completion.
    ///
    /// # Errors
    /// If there are not enough free descriptors.
    ///
    /// # Panics
    /// If the queue uses indirect tables and the request has more segments than they have room for.
    #[inline]
    pub fn submit(&mut self, request: GuestRequest<'_>, token: u64) -> Result<(), QueueFull> {
        match request {
            GuestRequest::Read { sector, buffers } => {
                self.put_request(VIRTIO_BLK_T_IN, sector, buffers, true, token)
            }
            GuestRequest::Write { sector, buffers } => {
                self.put_request(VIRTIO_BLK_T_OUT, sector, buffers, false, token)
            }
            GuestRequest::Flush => self.put_request(VIRTIO_BLK_T_FLUSH, 0, &[], false, token),
            GuestRequest::GetId { buffer } => {
                self.put_request(VIRTIO_BLK_T_GET_ID, 0, &[buffer], true, token)
            }
            GuestRequest::Discard { sector, sectors } => {
                let range = self.put_range(sector, sectors, 0)?;
                self.put_request(VIRTIO_BLK_T_DISCARD, 0, &[range], false, token)
            }
            GuestRequest::WriteZeroes { sector, sectors, unmap } => {
                let flags = if unmap { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
                let range = self.put_range(sector, sectors, flags)?;
                self.put_request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[range], false, token)
            }
        }
    }

    /// Shows the device what was submitted, and kicks it if it wants that. Returns whether it did.
    pub fn kick(&mut self) -> bool {
        let (area, event_idx) = (self.requests.area(), self.options.event_idx);
        let wanted = either!(&mut self.ring, ring => ring.show(&area, event_idx));
        if let Some(kick) = self.kick.as_ref().filter(|_| wanted) {
            kick.schedule();
        }
        wanted
    }

    /// The next completion, in the order in which the device completed them. After this has said
    /// `None`, the device interrupts for the next one.
    pub fn reap(&mut self) -> Option<Completion> {
        self.set_aside.pop_front().or_else(|| self.reap_ring())
    }

    /// Waits, on a thread that is not the device's, for an interrupt; false if `timeout` ran out.
    /// Reap until `None` before.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.interrupt.wait(timeout)
    }

    /// Submits a request, kicks, and polls `ctx`, the device's own, until it is done. Others that
    /// complete meanwhile are kept for [`reap`](Self::reap). No other request may have the token
    /// `u64::MAX`.
    ///
    /// # Panics
    /// If the queue is full.
    pub fn call(&mut self, ctx: &AioContext, request: GuestRequest<'_>) -> Completion {
        self.call_with(request, |_| {
            ctx.poll();
        })
    }

    /// [`call`](Self::call), on a thread that is not the device's.
    ///
    /// # Panics
    /// If the queue is full.
    pub fn call_blocking(&mut self, request: GuestRequest<'_>) -> Completion {
        self.call_with(request, |queue| {
            queue.wait(Duration::from_millis(100));
        })
    }

    fn call_with(
        &mut self,
        request: GuestRequest<'_>,
        mut idle: impl FnMut(&GuestQueue),
    ) -> Completion {
        const MINE: u64 = u64::MAX;
        self.submit(request, MINE).expect("room for one more request");
        self.kick();
        loop {
            match self.reap_ring() {
                Some(completion) if completion.token == MINE => return completion,
                Some(completion) => self.set_aside.push_back(completion),
                None => idle(self),
            }
        }
    }

    #[inline(never)]
    fn put_request(
        &mut self,
        kind: u32,
        sector: u64,
        data: &[GuestBuffer],
        device_writes: bool,
        token: u64,
    ) -> Result<(), QueueFull> {
        let (words, requests) = ((u64::from(kind), sector), &mut self.requests);
        match &mut self.ring {
            DriverRing::Split(ring) => requests.put(ring, words, data, device_writes, token),
            DriverRing::Packed(ring) => {
                requests.put_packed(ring, words, data, device_writes, token)
            }
        }
    }

    /// Puts a range into the slot of the next head, which must be there.
    fn put_range(&self, sector: u64, sectors: u32, flags: u32) -> Result<GuestBuffer, QueueFull> {
        if !self.has_room(1) {
            return Err(QueueFull);
        }
        let head = either!(&self.ring, ring => ring.next_head());
        Ok(self.requests.put_range(head, sector, u64::from(sectors) | u64::from(flags) << 32))
    }

    #[inline]
    fn reap_ring(&mut self) -> Option<Completion> {
        match &mut self.ring {
            DriverRing::Split(ring) => self.requests.reap(ring),
            DriverRing::Packed(ring) => self.requests.reap_packed(ring),
        }
    }
}

impl Requests {
    #[inline]
    fn area(&self) -> VolatileSlice<'_> {
        slice_of(&self.ram, self.area)
    }

    /// Out of line: split rings pay nothing for it but the branch.
    #[inline(never)]
    fn put_packed(
        &mut self,
        ring: &mut PackedDriver,
        words: (u64, u64),
        data: &[GuestBuffer],
        device_writes: bool,
        token: u64,
    ) -> Result<(), QueueFull> {
        self.put(ring, words, data, device_writes, token)
    }

    /// Puts a request whose header has these words.
    #[inline(always)]
    fn put(
        &mut self,
        ring: &mut impl RingDriver,
        words: (u64, u64),
        data: &[GuestBuffer],
        device_writes: bool,
        token: u64,
    ) -> Result<(), QueueFull> {
        if !ring.has_room(data.len()) {
            return Err(QueueFull);
        }
        let area = slice_of(&self.ram, self.area);
        let head = ring.next_head();
        let offset = self.offsets.slots + SLOT_BYTES * usize::from(head);
        // Type, then a reserved word, then the sector.
        put_u64(&area, offset, words.0);
        put_u64(&area, offset + 8, words.1);
        let slot = self.area.addr + offset as u64;
        let header = GuestBuffer { addr: slot, len: HEADER_BYTES };
        let status = GuestBuffer { addr: slot + SLOT_STATUS, len: 1 };
        let count = ring.put(&area, &Parts { header, data, device_writes, status });
        self.in_flight[usize::from(head)] = Some((token, count));
        self.num_in_flight += 1;
        Ok(())
    }

    fn put_range(&self, head: u16, first: u64, second: u64) -> GuestBuffer {
        let offset = self.offsets.slots + SLOT_BYTES * usize::from(head) + SLOT_RANGE as usize;
        let area = self.area();
        put_u64(&area, offset, first);
        put_u64(&area, offset + 8, second);
        GuestBuffer { addr: self.area.addr + offset as u64, len: RANGE_BYTES }
    }

    /// Out of line: split rings pay nothing for it but the branch.
    #[inline(never)]
    fn reap_packed(&mut self, ring: &mut PackedDriver) -> Option<Completion> {
        self.reap(ring)
    }

    #[inline(always)]
    fn reap(&mut self, ring: &mut impl RingDriver) -> Option<Completion> {
        let area = slice_of(&self.ram, self.area);
        let (head, written_bytes) = ring.next_used(&area, self.asks)?;
        let (token, count) =
            self.in_flight[usize::from(head)].take().expect("a head that is in flight");
        self.num_in_flight -= 1;
        let place = self.offsets.slots + SLOT_BYTES * usize::from(head) + SLOT_STATUS as usize;
        let status = area.load(place, Ordering::Relaxed).expect(IN_AREA);
        ring.release(head, count);
        let status = BlkStatus::from_byte(status).unwrap_or(BlkStatus::IoErr);
        Some(Completion { token, status, written_bytes })
    }
}
