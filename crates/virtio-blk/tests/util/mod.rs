//! Helpers of the tests: a block driver that remembers and misbehaves on demand, and a guest that
//! writes whatever it likes into the rings.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::{
    BlockBackend, BlockDriver, BlockLimits, BlockNode, ReadFlags, WriteFlags, ZeroFlags,
};
use coblk_virtio_blk::guest::GuestRam;
use coblk_virtio_blk::{Interrupt, VirtioBlk, VirtioBlkConfig, VirtqueueLayout};
use vm_memory::{Bytes, GuestAddress};

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;
/// What a status byte is before the device writes it.
pub const UNTOUCHED: u8 = 0xee;

/// A request as it reached the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Read { offset: u64, bytes: usize, ranges: usize },
    Write { offset: u64, bytes: usize, ranges: usize, fua: bool },
    Flush,
    Discard { offset: u64, bytes: u64 },
    Zeroes { offset: u64, bytes: u64, unmap: bool, fua: bool },
}

/// A disk in memory that logs its requests.
pub struct TestDisk {
    pub data: Mutex<Vec<u8>>,
    pub seen: Mutex<Vec<Seen>>,
    pub read_only: bool,
    /// Requests suspend once before they go on.
    pub deferred: bool,
    /// Requests do not go on before this is false again.
    pub held: AtomicBool,
    /// Reads and writes that touch this offset fail. `u64::MAX` for none.
    pub bad_offset: AtomicU64,
    /// Reads and writes that touch this offset panic. `u64::MAX` for none.
    pub panic_offset: AtomicU64,
    pub running: AtomicUsize,
    /// Called when a request comes.
    pub on_request: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl TestDisk {
    pub fn new(sectors: usize) -> TestDisk {
        TestDisk {
            data: Mutex::new(vec![0; sectors * 512]),
            seen: Mutex::default(),
            read_only: false,
            deferred: false,
            held: AtomicBool::new(false),
            bad_offset: AtomicU64::new(u64::MAX),
            panic_offset: AtomicU64::new(u64::MAX),
            running: AtomicUsize::new(0),
            on_request: Mutex::default(),
        }
    }

    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    fn enter(&self, co: &Co<'_>, offset: u64, bytes: usize, seen: Seen) -> io::Result<()> {
        self.seen.lock().unwrap().push(seen);
        if let Some(on_request) = &mut *self.on_request.lock().unwrap() {
            on_request();
        }
        self.running.fetch_add(1, Ordering::Relaxed);
        if self.deferred {
            co.yield_now();
        }
        while self.held.load(Ordering::Relaxed) {
            co.yield_now();
        }
        self.running.fetch_sub(1, Ordering::Relaxed);
        let range = offset..offset + bytes as u64;
        assert!(
            !range.contains(&self.panic_offset.load(Ordering::Relaxed)),
            "the test asked for this panic"
        );
        if range.contains(&self.bad_offset.load(Ordering::Relaxed)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }
}

/// The node owns its driver; the test keeps looking at it through this.
pub struct SharedDisk(pub Arc<TestDisk>);

impl BlockDriver for SharedDisk {
    fn format_name(&self) -> &'static str {
        "test"
    }
    fn length(&self) -> u64 {
        self.0.data.lock().unwrap().len() as u64
    }
    fn is_read_only(&self) -> bool {
        self.0.read_only
    }
    fn limits(&self) -> BlockLimits {
        // To see what the device asks for, and not a flush in its place.
        BlockLimits { write_flags: WriteFlags::FUA, ..BlockLimits::default() }
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        let (bytes, ranges) = (target.len(), target.as_iovecs().len());
        self.0.enter(co, offset, bytes, Seen::Read { offset, bytes, ranges })?;
        target.copy_from(0, &self.0.data.lock().unwrap()[offset as usize..]);
        Ok(())
    }
    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let (bytes, ranges) = (source.len(), source.as_iovecs().len());
        let fua = flags.contains(WriteFlags::FUA);
        self.0.enter(co, offset, bytes, Seen::Write { offset, bytes, ranges, fua })?;
        source.copy_to(0, &mut self.0.data.lock().unwrap()[offset as usize..][..bytes]);
        Ok(())
    }
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.0.enter(co, 0, 0, Seen::Flush)
    }
    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let (unmap, fua) = (flags.contains(ZeroFlags::MAY_UNMAP), flags.contains(ZeroFlags::FUA));
        self.0.enter(co, offset, bytes as usize, Seen::Zeroes { offset, bytes, unmap, fua })?;
        self.0.data.lock().unwrap()[offset as usize..][..bytes as usize].fill(0);
        Ok(())
    }
    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.0.enter(co, offset, bytes as usize, Seen::Discard { offset, bytes })
    }
}

/// A backend on a disk that the test can look at.
pub fn backend(ctx: &AioContext, disk: TestDisk) -> (Arc<TestDisk>, BlockBackend) {
    let disk = Arc::new(disk);
    let node = BlockNode::new("test", SharedDisk(Arc::clone(&disk)));
    (disk, BlockBackend::new(ctx, "drive", node))
}

/// Polls until nothing happens any more.
pub fn settle(ctx: &AioContext) {
    while ctx.try_poll() {}
}

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const RAW_SIZE: u16 = 64;
pub const DESC: u64 = 0x1000;
pub const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Header, status and data of the honest request.
const HONEST: u64 = 0x4000;
const HONEST_STATUS: u64 = HONEST + 0x800;
const HONEST_DATA: u64 = HONEST + 0x1000;
const HONEST_HEAD: u16 = RAW_SIZE - 3;
/// Free for the test to use; ends with the first region.
pub const SCRATCH: u64 = 0x10000;
/// Where two regions of guest memory meet.
pub const SEAM: u64 = 0x100000;
/// Where the memory without a hole ends.
pub const HOLE: u64 = 0x200000;
/// A third region, behind a hole.
pub const ISLAND: u64 = 0x400000;

/// A guest that knows no rules. It lays its rings out by hand, so it is also a second opinion on
/// what the standard says.
pub struct RawGuest {
    pub ctx: AioContext,
    pub device: VirtioBlk,
    pub disk: Arc<TestDisk>,
    pub ram: GuestRam,
    avail_idx: u16,
    used_idx: u16,
}

impl RawGuest {
    pub fn new() -> RawGuest {
        Self::with(TestDisk::new(1024), VirtioBlkConfig::default())
    }

    pub fn with(disk: TestDisk, config: VirtioBlkConfig) -> RawGuest {
        let ctx = AioContext::for_test().unwrap();
        let (disk, backend) = backend(&ctx, disk);
        let device = VirtioBlk::new(backend, config).unwrap();
        let regions = [(0, SEAM as usize), (SEAM, (HOLE - SEAM) as usize), (ISLAND, 0x100000)];
        let ram = GuestRam::with_regions(&regions).unwrap();
        let guest = RawGuest { ctx, device, disk, ram, avail_idx: 0, used_idx: 0 };
        guest.start();
        guest
    }

    pub fn start(&self) {
        let layout = VirtqueueLayout {
            size: RAW_SIZE,
            desc_table: DESC,
            avail_ring: AVAIL,
            used_ring: USED,
            next_index: self.avail_idx,
        };
        let memory = self.ram.memory();
        self.device.start_queue(&self.ctx, 0, memory, layout, Interrupt::None).unwrap();
    }

    pub fn put(&self, addr: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn byte(&self, addr: u64) -> u8 {
        self.ram.memory().read_obj(GuestAddress(addr)).unwrap()
    }

    pub fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.memory().read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub fn put_header(&self, addr: u64, kind: u32, sector: u64) {
        self.put(addr, &kind.to_le_bytes());
        self.put(addr + 4, &[0; 4]);
        self.put(addr + 8, &sector.to_le_bytes());
    }

    /// Writes one descriptor into the table at `table`.
    pub fn put_descriptor(&self, table: u64, index: u16, descriptor: (u64, u32, u16, u16)) {
        let (addr, len, flags, next) = descriptor;
        let place = table + 16 * u64::from(index);
        self.put(place, &addr.to_le_bytes());
        self.put(place + 8, &len.to_le_bytes());
        self.put(place + 12, &flags.to_le_bytes());
        self.put(place + 14, &next.to_le_bytes());
    }

    pub fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.put_descriptor(DESC, index, (addr, len, flags, next));
    }

    /// Writes a chain of (address, length, flags) from descriptor 0 on, linked in order.
    pub fn chain(&self, parts: &[(u64, u32, u16)]) {
        for (index, (addr, len, flags)) in (0..).zip(parts) {
            let last = usize::from(index) + 1 == parts.len();
            let flags = flags | if last { 0 } else { NEXT };
            self.descriptor(index, *addr, *len, flags, index + 1);
        }
    }

    /// Puts a head on the available ring.
    pub fn offer(&mut self, head: u16) {
        let entry = u64::from(self.avail_idx % RAW_SIZE);
        self.put(AVAIL + 4 + 2 * entry, &head.to_le_bytes());
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    pub fn set_avail_idx(&mut self, idx: u16) {
        self.avail_idx = idx;
        self.put(AVAIL + 2, &idx.to_le_bytes());
    }

    pub fn kick(&self) {
        self.device.kick(0);
        settle(&self.ctx);
    }

    /// What the device has put on the used ring since the last time: heads and lengths.
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        let idx = u16::from_le_bytes(self.bytes(USED + 2, 2).try_into().unwrap());
        let mut used = Vec::new();
        while self.used_idx != idx {
            let entry = u64::from(self.used_idx % RAW_SIZE);
            let bytes = self.bytes(USED + 4 + 8 * entry, 8);
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            used.push((word(0), word(4)));
            self.used_idx = self.used_idx.wrapping_add(1);
        }
        used
    }

    /// Offers a chain that starts at descriptor 0 and returns the status byte at `status`, which
    /// must have been written together with one used entry.
    pub fn request(&mut self, status: u64) -> u8 {
        self.put(status, &[UNTOUCHED]);
        self.offer(0);
        self.kick();
        assert!(!self.device.needs_reset(), "{:?}", self.device.queue_error(0));
        let used = self.take_used();
        assert_eq!(used.len(), 1, "one answer");
        assert_eq!(used[0].0, 0, "for this head");
        assert_eq!(self.device.in_flight(), 0);
        self.byte(status)
    }

    /// A read of the first sector, as a well-behaved driver would make it.
    pub fn honest_request_works(&mut self) {
        self.offer_honest_request();
        self.kick();
        self.honest_request_was_answered();
    }

    /// Offers that read, and does not kick.
    pub fn offer_honest_request(&mut self) {
        self.put_header(HONEST, 0, 0);
        self.put(HONEST_STATUS, &[UNTOUCHED]);
        self.put(HONEST_DATA, &[0xaa; 512]);
        self.descriptor(HONEST_HEAD, HONEST, 16, NEXT, HONEST_HEAD + 1);
        self.descriptor(HONEST_HEAD + 1, HONEST_DATA, 512, NEXT | WRITE, HONEST_HEAD + 2);
        self.descriptor(HONEST_HEAD + 2, HONEST_STATUS, 1, WRITE, 0);
        self.offer(HONEST_HEAD);
    }

    pub fn honest_request_was_answered(&mut self) {
        assert_eq!(self.take_used(), [(u32::from(HONEST_HEAD), 513)]);
        assert_eq!(self.byte(HONEST_STATUS), OK);
        assert_eq!(self.bytes(HONEST_DATA, 512), self.disk.data.lock().unwrap()[..512]);
    }

    /// Whether the device wants a kick for the next head, with EVENT_IDX, as is offered.
    pub fn wants_kick(&self) -> bool {
        let avail_event = self.bytes(USED + 4 + 8 * u64::from(RAW_SIZE), 2);
        u16::from_le_bytes(avail_event.try_into().unwrap()) == self.avail_idx
    }

    /// Offers a chain that no answer is possible to: the queue breaks, stays broken, and works
    /// again after a reset.
    pub fn breaks_queue(&mut self, head: u16, message: &str) {
        self.offer(head);
        self.is_broken_until_reset(message);
    }

    pub fn is_broken_until_reset(&mut self, message: &str) {
        self.kick();
        assert!(self.device.needs_reset());
        let error = self.device.queue_error(0).expect("a broken queue");
        assert!(error.contains(message), "'{error}' says nothing of '{message}'");
        assert_eq!(self.take_used(), []);
        assert_eq!(self.device.in_flight(), 0);
        self.kick();
        assert_eq!(self.take_used(), [], "a broken queue takes nothing");

        self.device.reset(&self.ctx);
        assert!(!self.device.needs_reset());
        self.avail_idx = 0;
        self.used_idx = 0;
        self.put(AVAIL, &[0; 4]);
        self.put(USED, &[0; 4]);
        self.start();
        self.honest_request_works();
    }
}
