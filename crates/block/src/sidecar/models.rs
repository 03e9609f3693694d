//! Models that loom runs in every order that the memory model allows, of the hand-over between writes and a checkpoint:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p coblk-block --release --lib models
//! ```

use std::sync::Arc;

use loom::sync::Notify;
use loom::thread;

use super::format::REGION_SHIFT;
use super::in_flight::InFlight;
use crate::bitmap::DirtyBits;

const REGION: u64 = 1 << REGION_SHIFT;
const GRANULE: u64 = 512;

/// One region of a disk, and a bitmap of it.
struct Disk {
    entered: DirtyBits,
    bits: DirtyBits,
    in_flight: InFlight<Arc<Notify>>,
}

impl Disk {
    /// With its region in the journal.
    fn new() -> Arc<Disk> {
        let disk = Disk {
            entered: DirtyBits::new(REGION, REGION).unwrap(),
            bits: DirtyBits::new(GRANULE, GRANULE).unwrap(),
            in_flight: InFlight::default(),
        };
        disk.entered.mark(0..REGION);
        Arc::new(disk)
    }

    /// A write as `Sidecar::co_begin` and `Writing` make it. Returns whether it has relied on the journal; one that
    /// does not waits for the lock that the checkpoint has.
    fn write(&self) -> bool {
        let half = self.in_flight.begin();
        let relies = self.entered.next_clean(0..REGION).is_none();
        if relies {
            self.bits.mark(0..GRANULE);
        }
        self.in_flight.end(half).into_iter().for_each(|waiter| waiter.notify());
        relies
    }

    /// As `Sidecar::co_checkpoint`. Returns whether the file has the write.
    fn checkpoint(&self) -> bool {
        self.entered.clear_all();
        self.in_flight.wait(|half| {
            let waiter = Arc::new(Notify::new());
            if self.in_flight.leave(half, Arc::clone(&waiter)).is_none() {
                waiter.wait();
            }
        });
        self.bits.is_dirty(0)
    }
}

/// Runs a model in every order with at most three switches away from a thread that could go on.
fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

/// Another write enters the region again between two checkpoints. A write that has found its half before the first one
/// may be counted there as late as that.
#[test]
fn j136_a_write_that_relied_on_the_journal_is_in_the_file_that_goes_without_it() {
    model(|| {
        let disk = Disk::new();
        let writer = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || disk.write())
        };
        disk.checkpoint();
        disk.entered.mark(0..REGION);
        let is_in_file = disk.checkpoint();
        let relied = writer.join().unwrap();
        assert!(is_in_file || !relied, "it is in no file that a crash would leave");
    });
}

/// Two, of which one has begun in the half of before.
#[test]
fn j136_a_checkpoint_waits_for_all_that_have_begun_and_is_woken() {
    model(|| {
        let disk = Disk::new();
        let half = disk.in_flight.begin();
        let writer = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                disk.bits.mark(0..GRANULE);
                disk.in_flight.end(half).into_iter().for_each(|waiter| waiter.notify());
                disk.write();
            })
        };
        assert!(disk.checkpoint(), "it was under way");
        writer.join().unwrap();
    });
}
