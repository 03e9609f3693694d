//! Models of the copy engine's words, which loom runs in every order.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p coblk-jobs --release --lib models
//! ```
//!
//! The bytes of a disk are one number. Requests take locks and make system calls, which order memory; so the
//! numbers are sequentially consistent.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::bits::GranuleBits;
use super::granules::Granules;

fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

struct Disks {
    granules: Granules,
    source: AtomicU64,
    target: AtomicU64,
    /// Copies at one time.
    copies: AtomicU64,
    /// A copier that was woken.
    is_woken: Mutex<bool>,
    wake: Condvar,
}

impl Disks {
    fn new() -> Arc<Disks> {
        Arc::new(Disks {
            granules: Granules::new(1),
            source: AtomicU64::new(0),
            target: AtomicU64::new(0),
            copies: AtomicU64::new(0),
            is_woken: Mutex::new(false),
            wake: Condvar::new(),
        })
    }

    /// A guest's write.
    fn write(&self, value: u64) {
        self.source.fetch_max(value, Ordering::SeqCst);
        if self.granules.mark(0..1) {
            *self.is_woken.lock().unwrap() = true;
            self.wake.notify_one();
        }
    }

    /// One copy, if there is anything to copy; the first one fails if it is to.
    fn copy(&self, fails: bool) -> bool {
        let Some(claim) = self.granules.claim(0, 1) else { return false };
        assert_eq!(self.copies.fetch_add(1, Ordering::SeqCst), 0, "two copies of one granule");
        let value = self.source.load(Ordering::SeqCst);
        if !fails {
            self.target.store(value, Ordering::SeqCst);
        }
        self.copies.fetch_sub(1, Ordering::SeqCst);
        match fails {
            true => self.granules.fail(claim),
            false => self.granules.end(claim),
        }
        true
    }

    fn is_equal(&self) -> bool {
        self.source.load(Ordering::SeqCst) == self.target.load(Ordering::SeqCst)
    }
}

#[test]
fn j134_what_differs_is_todo() {
    model(3, || {
        let disks = Disks::new();
        disks.write(1);
        let guest = thread::spawn({
            let disks = Arc::clone(&disks);
            move || disks.write(2)
        });
        let copier = thread::spawn({
            let disks = Arc::clone(&disks);
            move || disks.copy(false)
        });
        disks.copy(true);
        guest.join().unwrap();
        copier.join().unwrap();
        assert!(disks.is_equal() || disks.granules.todo() > 0);
        while disks.copy(false) {}
        assert!(disks.is_equal());
        assert_eq!((disks.granules.todo(), disks.granules.busy()), (0, 0));
    });
}

#[test]
fn j57_a_mark_is_not_slept_over() {
    model(3, || {
        let disks = Disks::new();
        let guest = thread::spawn({
            let disks = Arc::clone(&disks);
            move || {
                disks.write(1);
                disks.write(2);
            }
        });
        while disks.target.load(Ordering::SeqCst) != 2 {
            if disks.copy(false) || !disks.granules.may_sleep() {
                continue;
            }
            let mut is_woken = disks.is_woken.lock().unwrap();
            while !*is_woken {
                is_woken = disks.wake.wait(is_woken).unwrap();
            }
            *is_woken = false;
        }
        guest.join().unwrap();
    });
}

#[test]
fn j76_no_write_comes_before_the_copy_of_old_bytes() {
    model(3, || {
        let disks = Disks::new();
        disks.source.store(7, Ordering::SeqCst);
        disks.granules.mark(0..1);
        let copier = thread::spawn({
            let disks = Arc::clone(&disks);
            move || {
                disks.copy(true);
                disks.copy(false);
            }
        });
        while disks.granules.first_pending(0..1).is_some() {
            // Its own copy, or the end of another one.
            if !disks.copy(false) {
                thread::yield_now();
            }
        }
        disks.source.store(9, Ordering::SeqCst);
        copier.join().unwrap();
        assert_eq!(disks.target.load(Ordering::SeqCst), 7);
        assert_eq!((disks.granules.todo(), disks.granules.busy()), (0, 0));
    });
}

/// A granule whose old bytes go to a node nearby at first.
struct Spilling {
    disks: Arc<Disks>,
    spill: AtomicU64,
    there: GranuleBits,
}

impl Spilling {
    /// A guest that changes the source, as `Keeper::co_keep_granules` lets it.
    fn write(&self) {
        let granules = &self.disks.granules;
        while granules.first_pending(0..1).is_some() && !self.there.has(0) {
            match granules.claim_from(0, 1) {
                Some(claim) if !self.there.has(0) => {
                    let old = self.disks.source.load(Ordering::SeqCst);
                    self.spill.store(old, Ordering::SeqCst);
                    self.there.set(&claim, true);
                    granules.fail(claim);
                }
                Some(claim) => granules.fail(claim),
                None => thread::yield_now(),
            }
        }
        self.disks.source.fetch_add(1, Ordering::SeqCst);
    }

    /// A worker's copy, from where the bytes are.
    fn copy(&self) {
        let granules = &self.disks.granules;
        let claim = loop {
            match granules.claim(0, 1) {
                Some(claim) => break claim,
                None => thread::yield_now(),
            }
        };
        let from = if self.there.has(0) { &self.spill } else { &self.disks.source };
        self.disks.target.store(from.load(Ordering::SeqCst), Ordering::SeqCst);
        granules.end(claim.clone());
        self.there.set(&claim, false);
    }
}

/// A guest on another thread alone can come between the end of a guest's claim and the bit that says where its bytes
/// are. Its second write may find them in the spill, or copied.
#[test]
fn j131_the_target_gets_the_old_bytes_whatever_guests_do_meanwhile() {
    model(3, || {
        let disks = Disks::new();
        disks.source.store(7, Ordering::SeqCst);
        disks.granules.mark(0..1);
        let there = GranuleBits::try_new(1).unwrap();
        let spilling = Arc::new(Spilling { disks, spill: AtomicU64::new(0), there });
        let guest = thread::spawn({
            let spilling = Arc::clone(&spilling);
            move || {
                spilling.write();
                spilling.write();
            }
        });
        spilling.copy();
        guest.join().unwrap();
        assert_eq!(spilling.disks.target.load(Ordering::SeqCst), 7);
        assert_eq!(spilling.disks.source.load(Ordering::SeqCst), 9);
        assert_eq!((spilling.disks.granules.todo(), spilling.disks.granules.busy()), (0, 0));
    });
}
