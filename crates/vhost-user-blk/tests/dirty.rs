//! The log of dirty pages, checked by a front end that compares memory before and after: each page that the
//! device has changed is marked, and none that no request was to change.

mod util;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{BlockNode, ErrorPolicies, ErrorPolicy};
use coblk_tests::random::Random;
use coblk_vhost_user_blk::VhostUserBlkOptions;
use coblk_virtio_blk::VirtioBlkConfig;
use rustix::fs::{MemfdFlags, memfd_create};
use util::guest::{
    AVAIL, BLOCK, DEPTH, GET_ID, Guest, MEMORY_BYTES, READ, STATUSES, USED, WRITE, negotiate,
};
use util::{DISK_BYTES, Server};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const LOG_ALL: u64 = 1 << 26;
const PAGE: u64 = 4096;
/// Where data lies that spans regions: two that meet at `SEAM`.
const DATA: u64 = 1 << 24;
const REGION: usize = 1 << 20;
const SEAM: u64 = DATA + REGION as u64;
const END: u64 = SEAM + REGION as u64;
/// Bytes of a log for all of it.
const LOG_BYTES: u64 = END / PAGE / 8;

struct Log(File);

impl Log {
    fn new(bytes: u64) -> Log {
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(bytes).unwrap();
        Log(file)
    }

    fn region(&self, bytes: u64) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion {
            mmap_size: bytes,
            mmap_offset: 0,
            mmap_handle: self.0.as_raw_fd(),
        }
    }

    fn give(&self, front: &Frontend) {
        front.set_log_base(0, Some(self.region(self.0.metadata().unwrap().len()))).unwrap();
    }

    fn marked(&self) -> BTreeSet<u64> {
        let mut bytes = vec![0; self.0.metadata().unwrap().len() as usize];
        self.0.read_exact_at(&mut bytes, 0).unwrap();
        (0..bytes.len() as u64 * 8)
            .filter(|it| bytes[*it as usize / 8] & 1 << (it % 8) != 0)
            .collect()
    }

    /// Only while no request is in flight.
    fn clear(&self) {
        let bytes = self.0.metadata().unwrap().len() as usize;
        self.0.write_all_at(&vec![0; bytes], 0).unwrap();
    }
}

/// A guest with more memory than that of its rings.
struct Large {
    guest: Guest,
    regions: [Guest; 2],
}

fn at(place: u64, bytes: usize, guest: &Guest) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: place,
        memory_size: bytes as u64,
        userspace_addr: place,
        mmap_offset: 0,
        mmap_handle: guest.file.as_raw_fd(),
    }
}

impl Large {
    fn start(front: &mut Frontend) -> Large {
        let large =
            Large { guest: Guest::new(), regions: [(); 2].map(|()| Guest::with_memory(REGION)) };
        for (region, place) in large.regions.iter().zip([DATA, SEAM]) {
            front.add_mem_region(&at(place, REGION, region)).unwrap();
        }
        large.guest.start(front);
        large
    }

    /// Guest addresses and contents of all there is.
    fn contents(&self) -> Vec<(u64, Vec<u8>)> {
        let places = [(0, &self.guest, MEMORY_BYTES)].into_iter();
        let places =
            places.chain([(DATA, &self.regions[0], REGION), (SEAM, &self.regions[1], REGION)]);
        let contents = places.map(|(place, guest, bytes)| {
            let mut contents = vec![0; bytes];
            guest.load_bytes(0, &mut contents);
            (place, contents)
        });
        contents.collect()
    }

    /// Pages that are not as they were. The index of the available ring is the guest's.
    fn changed(&self, before: &[(u64, Vec<u8>)]) -> BTreeSet<u64> {
        let mut changed = BTreeSet::new();
        for ((place, before), (_, after)) in before.iter().zip(self.contents()) {
            let pages = before.chunks(PAGE as usize).zip(after.chunks(PAGE as usize)).enumerate();
            let different = pages.filter(|(_, (before, after))| before != after);
            changed.extend(different.map(|(page, _)| place / PAGE + page as u64));
        }
        changed.remove(&(AVAIL as u64 / PAGE));
        changed
    }
}

fn pages(addr: u64, len: usize) -> impl Iterator<Item = u64> {
    addr / PAGE..=(addr + len as u64 - 1) / PAGE
}

/// Says of the rings, which may run, whether and where they are marked.
fn mark_rings(front: &Frontend, log_addr: Option<u64>) {
    let flags = u32::from(log_addr.is_some());
    front.set_vring_addr(0, &VringConfigData { flags, log_addr, ..Guest::rings() }).unwrap();
}

/// What a front end does that begins to migrate.
fn switch_on(front: &Frontend, log: &Log, features: u64) {
    log.give(front);
    front.set_features(features | LOG_ALL).unwrap();
    mark_rings(front, Some(USED as u64));
}

fn switch_off(front: &Frontend, features: u64) {
    front.set_features(features).unwrap();
    mark_rings(front, None);
}

fn connect(server: &Server) -> (Frontend, u64) {
    let front = negotiate(&server.socket, LOG_ALL);
    let features = front.get_features().unwrap() & !(LOG_ALL | util::guest::RING_PACKED);
    (front, features)
}

/// A few requests at once, of any kind and place. Returns the pages that they may change.
fn submit_some(large: &mut Large, random: &mut Random) -> (usize, BTreeSet<u64>) {
    let mut expected = BTreeSet::new();
    let count = 1 + random.below(DEPTH as u64) as usize;
    for slot in 0..count {
        expected.extend(pages((STATUSES + slot) as u64, 1));
        let len = match random.below(8) {
            0 => REGION,
            1 => 64 << 10,
            _ => 512 * (1 + random.below(16) as usize),
        };
        let addr = match random.below(4) {
            0 => SEAM - len as u64 / 2,
            _ => DATA + random.below(END - DATA - len as u64),
        };
        // Some are past the end.
        let sector = random.below((DISK_BYTES + (1 << 20)) / 512);
        let kind = [READ, READ, READ, WRITE, GET_ID][random.below(5) as usize];
        let len = if kind == GET_ID { 20 } else { len };
        large.guest.prepare_at(slot, kind, sector, addr, len);
        if kind != WRITE {
            expected.extend(pages(addr, len));
        }
    }
    (count, expected)
}

#[test]
fn what_requests_change_is_marked_and_nothing_else() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let mut random = Random::new(16);
    let disk: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 512 * 7 + at) as u8 | 1).collect();
    std::fs::write(&server.image, &disk).unwrap();
    let (mut front, features) = connect(&server);
    let mut large = Large::start(&mut front);
    let mut log = Log::new(LOG_BYTES);
    let ring: BTreeSet<u64> = pages(USED as u64, 4 + 8 * 64 + 2).collect();
    let (mut reads, mut is_on) = (0, false);
    for round in 0..200 {
        match random.below(6) {
            0 => {
                switch_off(&front, features);
                is_on = false;
            }
            1 => {
                log = Log::new(LOG_BYTES + random.below(2) * 4096);
                switch_on(&front, &log, features);
                assert_eq!(log.marked(), ring, "all of the ring, when it begins");
                is_on = true;
            }
            _ => {}
        }
        let (count, mut expected) = submit_some(&mut large, &mut random);
        log.clear();
        let before = large.contents();
        large.guest.make_available();
        large.guest.kick.write(1).unwrap();
        large.guest.wait_for(count);
        if is_on {
            // Marks that come at once after an answer are there.
            front.get_features().unwrap();
            server.call(|_, _| ());
            let (changed, marked) = (large.changed(&before), log.marked());
            assert!(
                changed.is_subset(&marked),
                "round {round}: {changed:?} are changed, not {marked:?}"
            );
            expected.extend(&ring);
            assert!(marked.is_subset(&expected), "round {round}: {marked:?} are not {expected:?}");
            reads += changed.range(DATA / PAGE..).count();
        } else {
            server.call(|_, _| ());
            assert!(log.marked().is_empty(), "round {round}: it is off");
        }
    }
    assert!(reads > 1000, "{reads} pages were read into");
}

/// The export holds a read, and a front end begins to log; another log takes the place of the first.
#[test]
fn a_request_in_flight_marks_in_the_log_of_its_end() {
    let policies = ErrorPolicies { read: ErrorPolicy::Stop, write: ErrorPolicy::Stop };
    let device = VirtioBlkConfig::default().error_policies(Some(policies));
    let rules = Rules::new(1);
    rules.add(Rule::fail(libc::EIO).within(0..1));
    let debug = rules.clone();
    let server = Server::start_on(VhostUserBlkOptions::new(device), 0, |image| {
        BlockNode::new("debug", BlkDebug::new(image, debug)) //
    });
    let (mut front, features) = connect(&server);
    let mut large = Large::start(&mut front);
    large.guest.submit_at(0, READ, 0, SEAM - 512, 1024);
    large.guest.kick.write(1).unwrap();
    let held = || -> u64 {
        server.node.backends().iter().map(|backend| backend.statistics.held_requests()).sum()
    };
    let begin = Instant::now();
    while held() == 0 {
        assert!(begin.elapsed() < Duration::from_secs(20), "it is not held");
        std::thread::sleep(Duration::from_millis(1));
    }
    let (first, second) = (Log::new(LOG_BYTES), Log::new(LOG_BYTES));
    switch_on(&front, &first, features);
    second.give(&front);
    first.clear();
    rules.clear();
    server.call(|_, export| export.resume());
    assert_eq!(large.guest.wait_for(1), [(0, 0)]);
    front.get_vring_base(0).unwrap();
    let data = [SEAM / PAGE - 1, SEAM / PAGE];
    assert!(second.marked().is_superset(&data.into()), "{:?}", second.marked());
    assert!(second.marked().contains(&(STATUSES as u64 / PAGE)));
    assert!(first.marked().is_empty(), "it was given back");
}

/// All marks are there when the answer to GET_VRING_BASE is.
#[test]
fn a_queue_that_has_stopped_has_marked_all() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let (mut front, features) = connect(&server);
    let mut large = Large::start(&mut front);
    let log = Log::new(LOG_BYTES);
    switch_on(&front, &log, features);
    std::fs::write(&server.image, vec![7; DISK_BYTES as usize]).unwrap();
    for _ in 0..50 {
        for slot in 0..DEPTH {
            let addr = DATA + (slot * 2 * BLOCK) as u64;
            large.guest.prepare_at(slot, READ, (slot * 8) as u64, addr, BLOCK);
            for region in &large.regions {
                region.store(0, &vec![0; REGION]);
            }
        }
        log.clear();
        let before = large.contents();
        large.guest.make_available();
        large.guest.kick.write(1).unwrap();
        let base = front.get_vring_base(0).unwrap();
        let (changed, marked) = (large.changed(&before), log.marked());
        assert!(changed.is_subset(&marked), "{changed:?} are changed, not {marked:?}");
        front.set_vring_base(0, base as u16).unwrap();
        front.set_vring_kick(0, &large.guest.kick).unwrap();
        large.guest.kick.write(1).unwrap();
        large.guest.wait_for(DEPTH);
    }
}

/// As a front end does that connects while it migrates: what ran meanwhile is not known.
#[test]
fn a_log_that_comes_late_has_all_memory_marked() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let (mut front, features) = connect(&server);
    front.set_features(features | LOG_ALL).unwrap();
    let mut large = Large::start(&mut front);
    assert_eq!(large.guest.one(READ, 1, 0), 0);
    let log = Log::new(LOG_BYTES);
    log.give(&front);
    let whole = pages(0, MEMORY_BYTES).chain(pages(DATA, 2 * REGION));
    assert!(log.marked().is_superset(&whole.collect()));
}

/// A ring is marked where the front end says, also without the data of requests.
#[test]
fn rings_are_marked_by_themselves() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let (mut front, _) = connect(&server);
    let mut large = Large::start(&mut front);
    let log = Log::new(LOG_BYTES);
    log.give(&front);
    mark_rings(&front, Some(DATA));
    assert_eq!(log.marked(), [DATA / PAGE].into());
    log.clear();
    assert_eq!(large.guest.one(READ, 1, 0), 0);
    front.get_vring_base(0).unwrap();
    assert_eq!(log.marked(), [DATA / PAGE].into());
}

#[test]
fn a_front_end_is_told_of_marks() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let (mut front, features) = connect(&server);
    let mut large = Large::start(&mut front);
    let (log, call) = (Log::new(LOG_BYTES), EventFd::new(EFD_NONBLOCK).unwrap());
    switch_on(&front, &log, features);
    assert_eq!(large.guest.one(READ, 1, 0), 0);
    front.set_log_fd(call.as_raw_fd()).unwrap();
    assert!(call.read().is_err(), "nothing is marked yet");
    assert_eq!(large.guest.one(READ, 1, 0), 0);
    front.get_vring_base(0).unwrap();
    assert!(call.read().is_ok());
    // What is no eventfd could block the device.
    let (front, _) = connect_again(&server, front);
    assert!(front.set_log_fd(log.0.as_raw_fd()).is_err());
}

fn connect_again(server: &Server, before: Frontend) -> (Frontend, u64) {
    drop(before);
    connect(server)
}

/// Each costs the front end its connection; the next one is served, and memory stays as it was.
#[test]
fn logs_that_cannot_be() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let log = Log::new(LOG_BYTES);
    type Wrong = fn(&mut Frontend, &mut Large, &Log, u64) -> bool;
    let wrong: [(&str, Wrong); 6] = [
        ("smaller than the memory", |front, _, log, _| {
            front.set_log_base(0, Some(log.region(LOG_BYTES - 1))).is_err()
        }),
        ("past its file", |front, _, log, _| {
            front.set_log_base(0, Some(log.region(LOG_BYTES * 2))).is_err()
        }),
        ("smaller, while it logs", |front, _, log, features| {
            switch_on(front, log, features);
            front.set_log_base(0, Some(log.region(8))).is_err()
        }),
        ("memory past the log", |front, large, log, features| {
            switch_on(front, log, features);
            front.add_mem_region(&at(END, REGION, &large.regions[0])).is_err()
        }),
        ("a ring past the log", |front, _, log, _| {
            log.give(front);
            let rings = VringConfigData { flags: 1, log_addr: Some(END), ..Guest::rings() };
            front.set_vring_addr(0, &rings).is_err()
        }),
        ("without a descriptor", |front, _, _, features| {
            // As a front end would that has not negotiated LOG_SHMFD.
            front.set_features(features | LOG_ALL).unwrap();
            let _ = front.set_log_base(0, None);
            front.get_features().is_err()
        }),
    ];
    for (what, wrong) in wrong {
        log.clear();
        let (mut front, features) = connect(&server);
        let mut large = Large::start(&mut front);
        assert!(wrong(&mut front, &mut large, &log, features), "{what} is let pass");
        drop(front);
        // Is answered once the one before has ended, which marks what its queue writes as it stops.
        let (mut front, _) = connect(&server);
        log.clear();
        let mut large = Large::start(&mut front);
        assert_eq!(large.guest.one(READ, 1, 0), 0, "{what}");
        front.get_vring_base(0).unwrap();
        assert!(log.marked().is_empty(), "{what}: the next front end has no log");
    }
    // While nothing is logged, memory may be larger than a log of earlier.
    let (mut front, features) = connect(&server);
    let mut large = Large::start(&mut front);
    switch_on(&front, &log, features);
    switch_off(&front, features);
    front.add_mem_region(&at(END, REGION, &large.regions[0])).unwrap();
    assert_eq!(large.guest.one(READ, 1, 0), 0);
}

/// The log is taken away: the front end loses its connection, and the daemon lives.
#[test]
fn a_log_that_is_truncated() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    let (mut front, features) = connect(&server);
    let mut large = Large::start(&mut front);
    let log = Log::new(LOG_BYTES);
    switch_on(&front, &log, features);
    log.0.set_len(0).unwrap();
    assert_eq!(large.guest.one(READ, 1, 0), 0);
    assert!(front.get_vring_base(0).is_err(), "the connection is lost");
    drop(front);
    let (mut front, _) = connect(&server);
    assert_eq!(Large::start(&mut front).guest.one(READ, 1, 0), 0);
}
