//! A driver on another thread sees and hears of answers while their batch is served, and sleeps
//! through none.
//!
//! The driver here lives in the disk: whenever a request begins it may do something, as a driver on
//! another CPU could, but by a seed.

mod util;

use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, EventNotifier};
use coblk_virtio_blk::guest::{GuestBuffer, GuestQueue, Machine};
use coblk_virtio_blk::{VirtioBlk, VirtioBlkConfig, feature};
use util::{TestDisk, backend, settle};

/// Requests of a batch, at most.
const BATCH: u64 = 64;
/// More than the indices of the rings can count.
const REQUESTS: u64 = (1 << 16) + 5000;

/// A driver that sleeps when it finds nothing, and the interrupt that wakes it.
struct Driver {
    queue: GuestQueue,
    interrupt: EventNotifier,
    is_asleep: bool,
    slept: u64,
    told: u64,
    reaped: u64,
    random: u64,
    has_event_idx: bool,
}

impl Driver {
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % below
    }

    /// Does what a driver may do at any time: nothing, take a few answers, or take all and sleep.
    fn step(&mut self) {
        self.hear();
        if self.is_asleep {
            return;
        }
        let at_once = match self.random(4) {
            0 => return,
            1 => 1 + self.random(6),
            _ => u64::MAX,
        };
        self.take(at_once);
    }

    fn hear(&mut self) {
        if !self.interrupt.test_and_clear().unwrap() {
            return;
        }
        self.told += 1;
        // With event indices it has asked for one by going to sleep, and for no other.
        assert!(self.is_asleep || !self.has_event_idx, "one interrupt too many");
        self.is_asleep = false;
    }

    fn take(&mut self, at_once: u64) {
        for _ in 0..at_once {
            if self.queue.reap().is_none() {
                self.is_asleep = true;
                self.slept += 1;
                return;
            }
            self.reaped += 1;
        }
    }
}

/// A device that does not merge, whose driver is woken by the notifier.
fn device(
    ctx: &AioContext,
    without: u64,
    seed: u64,
) -> (VirtioBlk, Arc<Mutex<Driver>>, Arc<TestDisk>, GuestBuffer) {
    let (disk, backend) = backend(ctx, TestDisk::new(8192));
    let config = VirtioBlkConfig::default().merge_requests(false);
    let machine = Machine::builder().config(config).without_features(without);
    let Machine { device, mut queues, ram, .. } = machine.build(ctx, backend).unwrap();
    let interrupt = EventNotifier::new().unwrap();
    device.set_interrupt(0, interrupt.try_clone().unwrap()).unwrap();
    settle(ctx);
    // An empty ring asks for an interrupt with the first answer.
    let driver = Driver {
        queue: queues.remove(0),
        interrupt,
        is_asleep: true,
        slept: 1,
        told: 0,
        reaped: 0,
        random: seed,
        has_event_idx: without == 0,
    };
    let buffer = ram.alloc(512, 512).unwrap();
    (device, Arc::new(Mutex::new(driver)), disk, buffer)
}

#[test]
fn no_answer_is_slept_through_when_indices_wrap() {
    for (without, seed) in [(0, 1), (0, 2), (feature::EVENT_IDX, 3)] {
        let ctx = AioContext::for_test().unwrap();
        let (_device, driver, disk, buffer) = device(&ctx, without, seed);
        let in_disk = Arc::clone(&driver);
        let step = Box::new(move || in_disk.lock().unwrap().step());
        *disk.on_request.lock().unwrap() = Some(step);
        let mut submitted = 0;
        while submitted < REQUESTS {
            let told_before = {
                let mut driver = driver.lock().unwrap();
                for _ in 0..=driver.random(BATCH) {
                    if driver.queue.read(submitted % 4000 * 2, buffer, submitted).is_err() {
                        break;
                    }
                    submitted += 1;
                }
                driver.queue.kick();
                driver.told
            };
            settle(&ctx);
            let mut driver = driver.lock().unwrap();
            driver.hear();
            // All are answered: a driver that still sleeps has nothing to take.
            let unreaped = submitted - driver.reaped;
            assert!(!driver.is_asleep || unreaped == 0, "asleep, and {unreaped} wait");
            if without != 0 {
                assert!(driver.told - told_before <= 2, "the first and the last, no more");
            }
            driver.take(u64::MAX);
            disk.take_seen();
        }
        let driver = driver.lock().unwrap();
        assert_eq!((driver.reaped, driver.queue.in_flight()), (submitted, 0));
        assert!(!driver.has_event_idx || driver.told <= driver.slept);
    }
}
