//! Packed rings: what a driver may do, and what it may not.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coblk_aio::AioContext;
use coblk_virtio_blk::guest::{GuestRam, GuestRequest, Machine, QueueOptions};
use coblk_virtio_blk::{
    BlkStatus, DirtyLog, Interrupt, PACKED_START, QueueLog, VirtioBlk, VirtioBlkConfig,
    VirtqueueLayout, feature,
};
use util::{INDIRECT, NEXT, TestDisk, UNTOUCHED, WRITE, backend, settle};
use vm_memory::{Bytes, GuestAddress, MmapRegion, VolatileMemory};

const SIZE: u16 = 8;
const RING: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const DATA: u64 = 0x6000;
const TABLE: u64 = 0x8000;
const MEMORY_BYTES: usize = 0x10000;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Address, length, flags and buffer id of a descriptor.
type Part = (u64, u32, u16, u16);

/// A driver that writes its ring by hand.
struct Raw {
    ctx: AioContext,
    device: VirtioBlk,
    disk: Arc<TestDisk>,
    ram: GuestRam,
    /// The descriptor to write next, and the wrap counter of the driver.
    at: u16,
    wrap: bool,
    used: (u16, bool),
    interrupts: Rc<Cell<u32>>,
}

impl Raw {
    fn new(without: u64) -> Raw {
        let ctx = AioContext::for_test().unwrap();
        let (disk, backend) = backend(&ctx, TestDisk::new(1024));
        let device = VirtioBlk::new(backend, VirtioBlkConfig::default()).unwrap();
        device.negotiate(device.features() & !without).unwrap();
        let ram = GuestRam::with_regions(&[(0, MEMORY_BYTES)]).unwrap();
        let (used, interrupts) = ((0, true), Rc::default());
        let guest = Raw { ctx, device, disk, ram, at: 0, wrap: true, used, interrupts };
        guest.start(PACKED_START).unwrap();
        guest
    }

    fn layout(next_index: u16) -> VirtqueueLayout {
        let (desc_table, avail_ring, used_ring) = (RING, DRIVER, DEVICE);
        VirtqueueLayout { size: SIZE, desc_table, avail_ring, used_ring, next_index }
    }

    fn start(&self, next_index: u16) -> Result<(), coblk_virtio_blk::VirtioBlkError> {
        self.start_at(Self::layout(next_index))
    }

    fn start_at(&self, layout: VirtqueueLayout) -> Result<(), coblk_virtio_blk::VirtioBlkError> {
        let interrupts = Rc::clone(&self.interrupts);
        let count = move |_: &AioContext| interrupts.set(interrupts.get() + 1);
        let memory = self.ram.memory();
        self.device.start_queue(&self.ctx, 0, memory, layout, Interrupt::callback(count))
    }

    fn put(&self, addr: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    fn word(&self, addr: u64) -> u32 {
        self.ram.memory().read_obj(GuestAddress(addr)).unwrap()
    }

    fn marks(&self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// Writes the next descriptor, available or with other `marks`.
    fn descriptor(&mut self, (addr, len, flags, id): Part, marks: u16) {
        let place = RING + 16 * u64::from(self.at);
        self.put(place, &addr.to_le_bytes());
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags | marks) << 48;
        self.put(place + 8, &rest.to_le_bytes());
        self.at += 1;
        if self.at == SIZE {
            (self.at, self.wrap) = (0, !self.wrap);
        }
    }

    fn chain(&mut self, parts: &[Part]) {
        for part in parts {
            self.descriptor(*part, self.marks());
        }
    }

    /// A read of the first sector, in three descriptors.
    fn offer_read(&mut self, id: u16) {
        self.put(HEADER, &[0; 16]);
        self.put(STATUS, &[UNTOUCHED]);
        self.chain(&[
            (HEADER, 16, NEXT, 0xffff),
            (DATA, 512, NEXT | WRITE, 0xffff),
            (STATUS, 1, WRITE, id),
        ]);
    }

    fn kick(&self) {
        self.device.kick(0);
        settle(&self.ctx);
    }

    /// Takes the answer of a request of `count` descriptors: its id and length.
    fn take_used(&mut self, count: u16) -> Option<(u16, u32)> {
        let place = RING + 16 * u64::from(self.used.0) + 8;
        let (len, rest) = (self.word(place), self.word(place + 4));
        let marks = (rest >> 16) as u16 & (AVAIL | USED);
        if marks != if self.used.1 { AVAIL | USED } else { 0 } {
            return None;
        }
        assert!((rest >> 16) as u16 & WRITE != 0 && (rest >> 16) as u16 & (NEXT | INDIRECT) == 0);
        self.used.0 += count;
        if self.used.0 >= SIZE {
            self.used = (self.used.0 - SIZE, !self.used.1);
        }
        Some((rest as u16, len))
    }

    fn reads(&mut self, id: u16) {
        self.offer_read(id);
        self.kick();
        assert!(!self.device.needs_reset(), "{:?}", self.device.queue_error(0));
        assert_eq!(self.take_used(3), Some((id, 513)));
        assert_eq!(self.word(STATUS) as u8, 0);
    }

    /// What was offered breaks the queue, nothing is answered, and a reset helps.
    #[track_caller]
    fn breaks(mut self, message: &str) {
        self.kick();
        assert!(self.device.needs_reset(), "'{message}' is not found");
        let error = self.device.queue_error(0).unwrap();
        assert!(error.contains(message), "'{error}' says nothing of '{message}'");
        assert_eq!(self.device.in_flight(), 0);
        self.offer_read(1);
        self.kick();
        assert_eq!(self.word(STATUS) as u8, UNTOUCHED, "it takes nothing any more");
        let features = self.device.features();
        self.device.reset(&self.ctx);
        self.device.negotiate(features).unwrap();
        self.put(RING, &[0; 16 * SIZE as usize]);
        (self.at, self.wrap, self.used) = (0, true, (0, true));
        self.start(PACKED_START).unwrap();
        self.reads(3);
    }
}

#[test]
fn c92_chains_of_any_length_go_round_the_ring() {
    let mut guest = Raw::new(0);
    for round in 0..40 {
        guest.reads(round % SIZE);
    }
    // Two at once, of which the second passes the end at some time.
    for _ in 0..40 {
        guest.offer_read(2);
        guest.offer_read(6);
        guest.kick();
        assert_eq!(guest.take_used(3), Some((2, 513)));
        assert_eq!(guest.take_used(3), Some((6, 513)));
        assert_eq!(guest.take_used(3), None);
    }
}

#[test]
fn all_of_an_indirect_table_belongs_to_the_chain() {
    let mut guest = Raw::new(0);
    for round in 0..20u16 {
        guest.put(HEADER, &[0; 16]);
        guest.put(STATUS, &[UNTOUCHED]);
        // Flags but WRITE mean nothing there, and neither do ids.
        for (at, (addr, len, flags)) in
            (0..).zip([(HEADER, 16, 0), (DATA, 512, WRITE | INDIRECT), (STATUS, 1, WRITE | NEXT)])
        {
            guest.put(TABLE + 16 * at, &u64::to_le_bytes(addr));
            let rest = len | 0xffff << 32 | u64::from(flags) << 48;
            guest.put(TABLE + 16 * at + 8, &rest.to_le_bytes());
        }
        guest.chain(&[(TABLE, 48, INDIRECT, round % SIZE)]);
        guest.kick();
        assert_eq!(guest.take_used(1), Some((round % SIZE, 513)));
        assert_eq!(guest.word(STATUS) as u8, 0);
    }
}

#[test]
fn c93_ids_out_of_range_or_in_flight_break_the_queue() {
    for id in [SIZE, 0xffff] {
        let mut guest = Raw::new(0);
        guest.reads(0);
        guest.offer_read(id);
        guest.breaks("buffer id");
    }
    let mut guest = Raw::new(0);
    guest.offer_read(4);
    guest.offer_read(4);
    guest.kick();
    // The first was good, and is answered if it was done by then.
    assert!(guest.device.needs_reset());
    assert_eq!(guest.take_used(3), Some((4, 513)));
    let error = guest.device.queue_error(0).unwrap();
    assert!(error.contains("buffer id 4 is in flight"), "{error}");
}

#[test]
fn c93_a_chain_that_goes_round_breaks_the_queue() {
    let mut guest = Raw::new(0);
    guest.reads(0);
    // All descriptors go on, those of the next round too.
    for _ in 0..SIZE {
        guest.descriptor((DATA, 1, NEXT, 1), guest.marks());
    }
    guest.breaks("goes on at 3, which is not available");
}

/// Descriptors of requests that are not answered are the device's.
#[test]
fn c93_more_descriptors_than_there_are_break_the_queue() {
    let mut guest = Raw::new(0);
    guest.disk.held.store(true, Ordering::Relaxed);
    guest.offer_read(0);
    guest.offer_read(1);
    for _ in 0..3 {
        guest.device.kick(0);
        guest.ctx.try_poll();
    }
    assert_eq!(guest.device.in_flight(), 2);
    guest.offer_read(2);
    guest.device.kick(0);
    guest.ctx.try_poll();
    let error = guest.device.queue_error(0).unwrap();
    assert!(error.contains("longer than 2 descriptors"), "{error}");
    guest.disk.held.store(false, Ordering::Relaxed);
    settle(&guest.ctx);
    assert_eq!(guest.device.in_flight(), 0);
    assert!(guest.take_used(3).is_some() && guest.take_used(3).is_some());
    assert_eq!(guest.take_used(3), None);
}

#[test]
fn c92_a_chain_of_wrong_marks_breaks_the_queue() {
    // Of the other round, used, and never written.
    for marks in [USED, AVAIL | USED, 0] {
        let mut guest = Raw::new(0);
        guest.descriptor((HEADER, 16, NEXT, 0), AVAIL);
        guest.descriptor((DATA, 512, NEXT | WRITE, 0), marks);
        guest.descriptor((STATUS, 1, WRITE, 0), AVAIL);
        guest.breaks("goes on at 1, which is not available");
    }
    // A first descriptor of the other round is nothing yet.
    let mut guest = Raw::new(0);
    guest.wrap = false;
    guest.offer_read(0);
    guest.kick();
    assert!(!guest.device.needs_reset() && guest.take_used(3).is_none());
    assert_eq!(guest.word(STATUS) as u8, UNTOUCHED);
}

#[test]
fn c93_bad_tables_break_the_queue() {
    let cases: [(&[Part], &str); 6] = [
        (&[(TABLE, 0, INDIRECT, 0)], "table of 0 bytes"),
        (&[(TABLE, 40, INDIRECT, 0)], "table of 40 bytes"),
        (&[(TABLE, 0xffff_fff0, INDIRECT, 0)], "longer than 1026"),
        (&[(u64::MAX - 15, 32, INDIRECT, 0)], "outside guest memory"),
        (&[(TABLE, 48, INDIRECT | NEXT, 0), (STATUS, 1, WRITE, 0)], "where none may be"),
        (&[(HEADER, 16, NEXT, 0), (TABLE, 48, INDIRECT, 0)], "where none may be"),
    ];
    for (parts, message) in cases {
        let mut guest = Raw::new(0);
        guest.reads(0);
        guest.chain(parts);
        guest.breaks(message);
    }
    let mut guest = Raw::new(feature::INDIRECT_DESC);
    guest.chain(&[(TABLE, 48, INDIRECT, 0)]);
    guest.kick();
    assert!(guest.device.queue_error(0).unwrap().contains("not negotiated"));
}

#[test]
fn lengths_past_the_memory_are_answered_with_an_error() {
    let mut guest = Raw::new(0);
    for (addr, len) in [(MEMORY_BYTES as u64 - 256, 512), (u64::MAX - 511, 512), (DATA, 0x10_0000)]
    {
        guest.put(HEADER, &[0; 16]);
        guest.put(STATUS, &[UNTOUCHED]);
        guest.chain(&[(HEADER, 16, NEXT, 0), (addr, len, NEXT | WRITE, 0), (STATUS, 1, WRITE, 5)]);
        guest.kick();
        assert_eq!(guest.take_used(3), Some((5, 1)));
        assert_eq!(guest.word(STATUS) as u8, 1);
    }
    guest.chain(&[(HEADER, 16, 0, 0)]);
    guest.breaks("no status byte");
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    let guest = Raw::new(0);
    let features = guest.device.features();
    guest.device.reset(&guest.ctx);
    guest.device.negotiate(features).unwrap();
    let layout = Raw::layout(PACKED_START);
    for (layout, message) in [
        (VirtqueueLayout { size: 6, ..layout }, "no power of two"),
        (VirtqueueLayout { size: 0, ..layout }, "no power of two"),
        (VirtqueueLayout { size: 2048, ..layout }, "above the maximum"),
        (VirtqueueLayout { desc_table: RING + 8, ..layout }, "aligned to 16"),
        (VirtqueueLayout { avail_ring: DRIVER + 2, ..layout }, "aligned to 4"),
        (VirtqueueLayout { used_ring: DEVICE + 2, ..layout }, "aligned to 4"),
        (VirtqueueLayout { used_ring: MEMORY_BYTES as u64, ..layout }, "cannot access"),
        (VirtqueueLayout { desc_table: MEMORY_BYTES as u64 - 64, ..layout }, "cannot access"),
        (VirtqueueLayout { next_index: SIZE, ..layout }, "behind its last descriptor"),
    ] {
        let error = guest.start_at(layout).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    guest.start(PACKED_START).unwrap();
}

/// Some front ends say 0 for a new ring, which is also where one has come to after a round.
#[test]
fn c92_a_ring_that_begins_at_nothing_is_a_new_one_unless_it_was_used() {
    let mut guest = Raw::new(0);
    let features = guest.device.features();
    let restart = |guest: &Raw, at| {
        let stopped_at = guest.ctx.run(|co| guest.device.co_stop_queue(co, 0)).unwrap();
        assert_eq!((stopped_at.next_index, stopped_at.next_used), (at, at));
        guest.device.reset(&guest.ctx);
        guest.device.negotiate(features).unwrap();
        guest.start(if at == PACKED_START { 0 } else { at }).unwrap();
    };
    restart(&guest, PACKED_START);
    guest.reads(0);
    restart(&guest, PACKED_START | 3);
    guest.reads(1);
    guest.chain(&[(HEADER, 16, NEXT, 0), (STATUS, 1, WRITE, 7)]);
    guest.kick();
    assert!(guest.take_used(2).is_some());
    restart(&guest, 0);
    guest.reads(2);
    restart(&guest, 3);
    guest.reads(2);
}

#[test]
fn c95_interrupts_come_where_they_are_asked_for() {
    const DISABLE: u32 = 1 << 16;
    const AT: u32 = 2 << 16;
    let mut guest = Raw::new(0);
    let expect = |guest: &mut Raw, event: u32, wanted: bool| {
        guest.put(DRIVER, &event.to_le_bytes());
        guest.interrupts.set(0);
        guest.reads(1);
        assert_eq!(guest.interrupts.get() > 0, wanted, "{event:#x}");
    };
    // From 0 in the first round: three descriptors a request, and eight in the ring.
    expect(&mut guest, 0, true);
    expect(&mut guest, DISABLE, false);
    // From 6 to 1 of the other round.
    expect(&mut guest, AT | 0x8000 | 7, true);
    expect(&mut guest, AT | 1, true);
    expect(&mut guest, AT | 7, false);
    // From 7 to 2 of the first round.
    expect(&mut guest, AT | 0x8000 | 1, true);
    expect(&mut guest, AT | 0x8000 | 5, false);
    expect(&mut guest, AT | 5, false);
    // What is reserved is a wish.
    expect(&mut guest, 3 << 16, true);
    let mut guest = Raw::new(feature::EVENT_IDX);
    expect(&mut guest, AT | 7, true);
    expect(&mut guest, DISABLE, false);
}

#[test]
fn c95_kicks_are_asked_for_while_nothing_is_there() {
    let mut guest = Raw::new(0);
    guest.kick();
    for at in [0x8003, 0x8006, 1, 4] {
        guest.reads(1);
        assert_eq!(guest.word(DEVICE), 2 << 16 | at);
    }
    let mut guest = Raw::new(feature::EVENT_IDX);
    guest.reads(1);
    assert_eq!(guest.word(DEVICE) >> 16, 0);
}

/// Descriptors and the device's event structure are what the device writes of a ring.
#[test]
fn what_is_written_of_a_packed_ring_is_marked() {
    let mut guest = Raw::new(0);
    let region = Arc::new(MmapRegion::<()>::new(4096).unwrap());
    let log = Arc::new(DirtyLog::new(Arc::clone(&region)));
    let marked = || {
        let byte = |at: usize| region.get_slice(at, 1).unwrap();
        (0..16u64)
            .filter(|page| {
                let byte = byte((*page / 8) as usize);
                let bits: u8 = byte.load(0, Ordering::Relaxed).unwrap();
                bits & 1 << (page % 8) != 0
            })
            .map(|page| page * 4096)
            .collect::<Vec<_>>()
    };
    let clear = || region.get_slice(0, 4).unwrap().store(0u32, 0, Ordering::Relaxed).unwrap();
    let queue_log = QueueLog { log, data: true, used_ring: DEVICE };
    guest.device.set_dirty_log(0, Some(&queue_log)).unwrap();
    assert_eq!(marked(), [RING, DEVICE], "when it begins");
    for _ in 0..10 {
        clear();
        guest.reads(2);
        assert_eq!(marked(), [RING, DEVICE, STATUS, DATA]);
    }
    let rings = QueueLog { data: false, ..queue_log };
    guest.device.set_dirty_log(0, Some(&rings)).unwrap();
    clear();
    guest.reads(2);
    assert_eq!(marked(), [RING, DEVICE]);
    guest.device.set_dirty_log(0, None).unwrap();
    clear();
    guest.reads(2);
    assert!(marked().is_empty());
}

#[test]
fn all_kinds_of_requests_go_through_packed_rings() {
    for indirect_segments in [0, 4] {
        for (size, without) in [(8, 0), (8, feature::EVENT_IDX), (256, 0)] {
            let ctx = AioContext::for_test().unwrap();
            let deferred = TestDisk { deferred: true, ..TestDisk::new(4096) };
            let (disk, backend) = backend(&ctx, deferred);
            let queue =
                QueueOptions { size, indirect_segments, packed: true, ..Default::default() };
            let builder = Machine::builder().queue(queue).without_features(without);
            let mut machine = builder.build(&ctx, backend).unwrap();
            for round in 0..50u64 {
                let data = vec![round as u8 + 1; 4096];
                assert_eq!(machine.write(&ctx, round * 8, &data), BlkStatus::Ok);
                let mut back = vec![0; 4096];
                assert_eq!(machine.read(&ctx, round * 8, &mut back), BlkStatus::Ok);
                assert!(back == data, "round {round}");
                assert_eq!(machine.flush(&ctx), BlkStatus::Ok);
                let zeroes =
                    GuestRequest::WriteZeroes { sector: round * 8, sectors: 1, unmap: true };
                assert_eq!(machine.call(&ctx, zeroes), BlkStatus::Ok);
                let discard = GuestRequest::Discard { sector: 3000, sectors: 8 };
                assert_eq!(machine.call(&ctx, discard), BlkStatus::Ok);
                assert_eq!(disk.data.lock().unwrap()[round as usize * 4096], 0);
            }
            assert_eq!(machine.serial(&ctx), VirtioBlkConfig::default().serial);
        }
    }
}
