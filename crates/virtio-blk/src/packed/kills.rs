//! A device with a log that is killed between any two of its stores, and its successor, killed too.

use std::collections::HashMap;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion, VolatileMemory};

use super::store::fuse;
use super::*;
use crate::inflight::InflightError;

const SIZE: u16 = 8;
const RING: u64 = 0;
const EVENTS: u64 = 0x100;

/// The driver, which outlives its device.
struct Driver {
    memory: Arc<GuestMemoryMmap>,
    avail: Position,
    used: Position,
    free_ids: Vec<u16>,
    num_free: u16,
    /// Of each id in flight: how many descriptors, and when it was offered.
    in_flight: HashMap<u16, (u16, u64)>,
    next_token: u64,
}

impl Driver {
    fn new() -> Driver {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        Driver {
            memory: Arc::new(memory),
            avail: Position::START,
            used: Position::START,
            free_ids: vec![5, 0, 7, 2, 1, 6, 4, 3],
            num_free: SIZE,
            in_flight: HashMap::new(),
            next_token: 1,
        }
    }

    /// A chain of `count`, if there is room. Its addresses say which it is.
    fn offer(&mut self, count: u16) {
        if self.num_free < count {
            return;
        }
        let (id, token) = (self.free_ids.remove(0), self.next_token);
        let mut at = self.avail.advance(count, SIZE);
        self.avail = at;
        for link in 0..count {
            at = at.go_back(1, SIZE);
            let flags = at.available_marks() | u16::from(link > 0);
            let place = RING + 16 * u64::from(at.index);
            self.memory.write_obj(token * 16, GuestAddress(place)).unwrap();
            let rest = 16 | u64::from(id) << 32 | u64::from(flags) << 48;
            self.memory.write_obj(rest, GuestAddress(place + 8)).unwrap();
        }
        self.in_flight.insert(id, (count, token));
        self.num_free -= count;
        self.next_token += 1;
    }

    fn reap(&mut self) {
        loop {
            let place = GuestAddress(RING + 16 * u64::from(self.used.index) + 8);
            let rest: u64 = self.memory.read_obj(place).unwrap();
            if self.num_free == SIZE || !self.used.is_used((rest >> 48) as u16) {
                return;
            }
            let id = (rest >> 32) as u16;
            let (count, _) = self.in_flight.remove(&id).expect("an answer to what is in flight");
            self.used = self.used.advance(count, SIZE);
            self.num_free += count;
            self.free_ids.push(id);
        }
    }
}

struct Device {
    mem: GuestMap,
    ring: PackedRing,
    /// Taken and not answered: ids, and when they were offered.
    held: Vec<(u16, u64)>,
}

impl Device {
    fn start(driver: &Driver, region: &Arc<MmapRegion>) -> Result<Device, VirtqueueError> {
        let mem = GuestMap::new(&driver.memory);
        let layout = VirtqueueLayout {
            size: SIZE,
            desc_table: RING,
            avail_ring: EVENTS,
            used_ring: EVENTS + 4,
            next_index: 0,
        };
        let log = PackedLog::new(Arc::clone(region), 0, SIZE);
        let ring = PackedRing::new(&mem, layout, SIZE, true, Some(log), None)?;
        Ok(Device { mem, ring, held: Vec::new() })
    }

    fn take(&mut self) {
        let rings = self.ring.map(&self.mem).unwrap();
        let mut chain = Chain::default();
        while let Some(id) = self.ring.take(&self.mem, &rings, &mut chain, true).unwrap() {
            let token = chain.readable()[0].addr.0 / 16;
            assert!(chain.readable().iter().all(|segment| segment.addr.0 == token * 16));
            self.held.push((id, token));
        }
    }

    fn answer(&mut self, count: usize, at: usize) {
        for _ in 0..count.min(self.held.len()) {
            let (id, _) = self.held.remove(at % self.held.len());
            self.ring.push_used(id, 1);
        }
        let ring = self.ring.map_used(&self.mem).unwrap();
        self.ring.publish_used(&ring).unwrap();
    }
}

/// A life of the two, in which the device does so many stores and is killed. Says whether it was.
fn live(seed: u64, stores: Option<u32>, driver: &mut Driver, region: &Arc<MmapRegion>) -> bool {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    fuse::set(stores);
    let mut device = Device::start(driver, region).unwrap();
    for _ in 0..24 {
        if fuse::has_blown() {
            break;
        }
        match random(4) {
            0 | 1 => driver.offer(1 + random(3) as u16),
            2 => device.take(),
            _ => device.answer(1 + random(3) as usize, random(3) as usize),
        }
        // Sometimes late, when the place was used again.
        if random(2) == 0 {
            driver.reap();
        }
    }
    let was_killed = fuse::has_blown();
    fuse::set(None);
    was_killed
}

/// All that is unanswered is served again, in its order, and answered once: in the opposite order.
fn succeed(driver: &mut Driver, region: &Arc<MmapRegion>) {
    driver.reap();
    let mut device = Device::start(driver, region).unwrap();
    device.take();
    let mut unanswered: Vec<_> = driver.in_flight.iter().map(|(id, it)| (it.1, *id)).collect();
    unanswered.sort_unstable();
    let taken: Vec<_> = device.held.iter().map(|(id, token)| (*token, *id)).collect();
    assert_eq!(taken, unanswered);
    while !device.held.is_empty() {
        device.answer(1, device.held.len() - 1);
        driver.reap();
        assert_eq!(driver.in_flight.len(), device.held.len());
    }
    // And it is a ring like any other.
    for _ in 0..2 * SIZE {
        driver.offer(3);
        device.take();
        device.answer(1, 0);
        driver.reap();
        assert!(driver.in_flight.is_empty());
    }
}

/// Lives that are cut off everywhere.
const SEEDS: u64 = 8;

#[test]
fn c94_a_kill_between_any_two_stores_loses_nothing_and_answers_nothing_twice() {
    for seed in 0..SEEDS {
        for stores in 0.. {
            let mut kills = 0..;
            // The successor is killed as well, as it begins.
            let was_killed = loop {
                let (mut driver, region) =
                    (Driver::new(), Arc::new(MmapRegion::new(4096).unwrap()));
                let was_killed = live(seed, Some(stores), &mut driver, &region);
                fuse::set(kills.next());
                drop(Device::start(&driver, &region).unwrap());
                let again = fuse::has_blown();
                fuse::set(None);
                succeed(&mut driver, &region);
                if !again {
                    break was_killed;
                }
            };
            if !was_killed {
                break;
            }
        }
    }
}

/// Cut off between any two stores, the driver sees all answers that are published together, or none.
#[test]
fn c91_of_a_batch_the_driver_sees_all_answers_or_none() {
    let mut seen = [0; 2];
    for stores in 0.. {
        let (mut driver, region) = (Driver::new(), Arc::new(MmapRegion::new(4096).unwrap()));
        let mut device = Device::start(&driver, &region).unwrap();
        (1..=3).for_each(|count| driver.offer(count));
        device.take();
        fuse::set(Some(stores));
        device.answer(3, 1);
        let was_cut = fuse::has_blown();
        fuse::set(None);
        driver.reap();
        let answers = 3 - driver.in_flight.len();
        assert!(answers == 0 || answers == 3, "{answers} after {stores} stores");
        seen[usize::from(answers == 3)] += 1;
        if !was_cut {
            break;
        }
    }
    assert!(seen[0] > 2 && seen[1] > 2, "{seen:?}");
}

#[test]
fn c94_a_log_that_is_nonsense_is_refused() {
    let mut driver = Driver::new();
    let region = Arc::new(MmapRegion::new(4096).unwrap());
    assert!(!live(3, None, &mut driver, &region));
    succeed(&mut driver, &region);
    let mut device = Device::start(&driver, &region).unwrap();
    driver.offer(2);
    driver.offer(1);
    device.take();
    let first = device.ring.chains.head(device.held[0].0).unwrap().first;
    drop(device);
    let bytes = PackedLog::bytes(SIZE);
    let log = region.get_slice(0, bytes).unwrap();
    let mut good = vec![0; bytes];
    log.read_slice(&mut good, 0).unwrap();
    let entry = 32 + 32 * usize::from(first);
    let free = 12;
    for (offset, value, message) in [
        (8, 2u16, "version 2"),
        (10, SIZE * 2, "16 entries"),
        (16, SIZE, "a position out of range"),
        (18, 0xffff, "a position out of range"),
        (free, first, ""),
        (entry + 6, 0, "a chain of another length"),
        (entry + 6, 999, "another"),
        (entry + 4, first ^ 1, "a chain of another length"),
        (entry + 2, first, "a chain with entries of another"),
        (entry + 16, SIZE, "a buffer id out of range"),
    ] {
        log.write_slice(&good, 0).unwrap();
        log.store(value, offset, Ordering::Relaxed).unwrap();
        match Device::start(&driver, &region) {
            Err(error) => assert!(
                !message.is_empty() && error.to_string().contains(message),
                "{offset}: {error}"
            ),
            // What was being changed when it was killed is taken back.
            Ok(_) => assert!(message.is_empty(), "{message}"),
        }
    }
    log.write_slice(&good, 0).unwrap();
    // A free list that goes round.
    let free: u16 = log.load(free, Ordering::Relaxed).unwrap();
    log.store(free, 32 + 32 * usize::from(free) + 2, Ordering::Relaxed).unwrap();
    let error = Device::start(&driver, &region).err().unwrap();
    let is_loop = matches!(error, VirtqueueError::Inflight(InflightError::Inconsistent(_)));
    assert!(is_loop, "{error}");
    let other = PackedLog::new(region, 4096, SIZE);
    assert!(other.clear().is_err());
}

/// A device that keeps the log in another way may leave entries on no list.
#[test]
fn entries_on_no_list_are_found() {
    let mut driver = Driver::new();
    let region = Arc::new(MmapRegion::new(4096).unwrap());
    drop(Device::start(&driver, &region).unwrap());
    let log = region.get_slice(0, PackedLog::bytes(SIZE)).unwrap();
    for free in [SIZE, 3] {
        log.store(free, 12, Ordering::Relaxed).unwrap();
        log.store(free, 14, Ordering::Relaxed).unwrap();
        succeed(&mut driver, &region);
    }
}
