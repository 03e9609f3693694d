//! A daemon that is killed under load, and its successor: no request is lost, none is answered
//! twice. The daemon is this test program, started again with a variable set.
//!
//! The front end is written here, on the messages of the vhost crate: the driver of libblkio cannot
//! reconnect. `COBLK_RESTART_ROUNDS` sets how often the daemon is killed (default 8).

mod util;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

const SIZE: usize = 64;
/// Requests in flight: each has three descriptors, and a slot for its data.
const DEPTH: usize = SIZE / 3;
const AVAIL: usize = 4096;
const USED: usize = 8192;
const HEADERS: usize = 12288;
const STATUSES: usize = 16384;
const DATA: usize = 20480;
const BLOCK: usize = 4096;
const MEMORY_BYTES: usize = DATA + DEPTH * BLOCK;

#[test]
fn daemon() {
    util::daemon::run_if_asked();
}

/// A driver of one queue that survives its device.
struct Guest {
    file: File,
    memory: MmapRegion,
    kick: EventFd,
    call: EventFd,
    inflight: Option<(VhostUserInflight, File)>,
    avail_idx: u16,
    used_idx: u16,
    /// For each slot, the block it writes, if it is in flight.
    pending: [Option<u64>; DEPTH],
    answered: u64,
}

impl Guest {
    fn new() -> Guest {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY_BYTES as u64).unwrap();
        let shared = FileOffset::new(file.try_clone().unwrap(), 0);
        Guest {
            memory: MmapRegion::from_file(shared, MEMORY_BYTES).unwrap(),
            file,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
            inflight: None,
            avail_idx: 0,
            used_idx: 0,
            pending: [None; DEPTH],
            answered: 0,
        }
    }

    fn store(&self, offset: usize, bytes: &[u8]) {
        self.memory.get_slice(offset, bytes.len()).unwrap().write_slice(bytes, 0).unwrap();
    }

    fn load(&self, offset: usize) -> u16 {
        let memory = self.memory.get_slice(offset, 2).unwrap();
        memory.load(0, Ordering::Acquire).unwrap()
    }

    fn connect(&mut self, socket: &Path) -> Frontend {
        let mut front = Frontend::connect(socket, 1).unwrap();
        front.set_owner().unwrap();
        // Everything but VIRTIO_RING_F_EVENT_IDX, to be told of each answer.
        let features = front.get_features().unwrap() & !(1 << 29);
        front.set_features(features).unwrap();
        let protocol = front.get_protocol_features().unwrap();
        front.set_protocol_features(protocol).unwrap();
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let layout = VhostUserInflight::new(0, 0, 1, SIZE as u16);
        let (layout, log) =
            self.inflight.get_or_insert_with(|| front.get_inflight_fd(&layout).unwrap());
        front.set_inflight_fd(layout, log.as_raw_fd()).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY_BYTES as u64,
            userspace_addr: 0,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        front.add_mem_region(&region).unwrap();
        let rings = VringConfigData {
            queue_max_size: SIZE as u16,
            queue_size: SIZE as u16,
            flags: 0,
            desc_table_addr: 0,
            avail_ring_addr: AVAIL as u64,
            used_ring_addr: USED as u64,
            log_addr: None,
        };
        front.set_vring_num(0, SIZE as u16).unwrap();
        front.set_vring_addr(0, &rings).unwrap();
        front.set_vring_base(0, self.used_idx).unwrap();
        front.set_vring_call(0, &self.call).unwrap();
        front.set_vring_kick(0, &self.kick).unwrap();
        front.set_vring_enable(0, true).unwrap();
        front
    }

    /// Writes `value` all over `block`.
    fn submit(&mut self, slot: usize, block: u64, value: u8) {
        assert!(self.pending[slot].replace(block).is_none());
        let head = slot * 3;
        self.store(DATA + slot * BLOCK, &[value; BLOCK]);
        self.store(STATUSES + slot, &[0xff]);
        let header = [1, block * (BLOCK as u64 / 512)].map(u64::to_le_bytes).concat();
        self.store(HEADERS + slot * 16, &header);
        let parts = [
            (HEADERS + slot * 16, 16u32, 1u16),
            (DATA + slot * BLOCK, BLOCK as u32, 1),
            (STATUSES + slot, 1, 2),
        ];
        for (at, (addr, len, flags)) in parts.into_iter().enumerate() {
            let mut bytes = (addr as u64).to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(((head + at + 1) as u16).to_le_bytes());
            self.store((head + at) * 16, &bytes);
        }
        let entry = usize::from(self.avail_idx) % SIZE;
        self.store(AVAIL + 4 + entry * 2, &(head as u16).to_le_bytes());
        self.avail_idx = self.avail_idx.wrapping_add(1);
        let avail = self.memory.get_slice(AVAIL + 2, 2).unwrap();
        avail.store(self.avail_idx.to_le(), 0, Ordering::Release).unwrap();
    }

    /// Takes the answers that are there; the slots are free again.
    fn reap(&mut self) -> usize {
        let before = self.answered;
        while self.load(USED + 2) != self.used_idx {
            let entry = usize::from(self.used_idx) % SIZE;
            let slot = usize::from(self.load(USED + 4 + entry * 8)) / 3;
            assert!(self.pending[slot].take().is_some(), "slot {slot} is answered twice");
            let status: u8 =
                self.memory.get_slice(STATUSES + slot, 1).unwrap().read_obj(0).unwrap();
            assert_eq!(status, 0);
            self.used_idx = self.used_idx.wrapping_add(1);
            self.answered += 1;
        }
        (self.answered - before) as usize
    }

    fn wait_for_all(&mut self) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.pending.iter().any(Option::is_some) {
            assert!(Instant::now() < end, "requests are lost: {:?}", self.pending);
            if self.reap() == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}

#[test]
fn nothing_is_lost_or_answered_twice_when_the_daemon_is_killed() {
    let rounds = std::env::var("COBLK_RESTART_ROUNDS").map_or(8, |it| it.parse().unwrap());
    let directory = util::directory();
    let image = directory.path().join("disk");
    File::create(&image).unwrap().set_len(util::DISK_BYTES).unwrap();
    let blocks = util::DISK_BYTES / BLOCK as u64;
    let mut expected = vec![0u8; blocks as usize];
    let (mut guest, mut next, mut taken_up) = (Guest::new(), 0u64, 0);
    for round in 0..rounds {
        let mut daemon = util::daemon::start(directory.path(), &[]);
        let front = guest.connect(&directory.path().join("vhost.sock"));
        // What the one before has left is answered without a kick.
        guest.wait_for_all();
        let end = Instant::now() + Duration::from_millis(20 + round % 7 * 5);
        while Instant::now() < end {
            for slot in 0..DEPTH {
                if guest.pending[slot].is_none() {
                    let (block, value) = (next % blocks, (next / blocks + next) as u8);
                    // In flight at most once: the blocks come in turn, and there are many.
                    guest.submit(slot, block, value);
                    expected[block as usize] = value;
                    next += 1;
                }
            }
            guest.kick.write(1).unwrap();
            guest.reap();
        }
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        guest.reap();
        taken_up += guest.pending.iter().flatten().count();
        drop(front);
    }
    let mut daemon = util::daemon::start(directory.path(), &[]);
    let front = guest.connect(&directory.path().join("vhost.sock"));
    guest.wait_for_all();
    drop(front);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(guest.answered, next);
    assert!(taken_up > 0, "it was never killed with a request in flight");
    let image = std::fs::read(&image).unwrap();
    for (block, value) in expected.iter().enumerate() {
        let data = &image[block * BLOCK..][..BLOCK];
        assert!(data.iter().all(|byte| byte == value), "block {block} is wrong");
    }
    println!("{rounds} rounds, {next} requests, {taken_up} in flight when it was killed");
}
