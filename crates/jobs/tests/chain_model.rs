//! Jobs that make a chain of images shorter, under guests that write at random, while commands, drains and errors
//! come at random. Guests find all that they have written, whatever becomes of the job, and so does a program that
//! opens the images as their headers say.

mod util;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::{Co, IoVector, Timer};
use coblk_block::{BackendOptions, BlockBackend, WriteFlags, ZeroFlags};
use coblk_jobs::{Commit, Job, JobOptions, JobStatus, OnError, Stream};
use coblk_tests::random::seeds;
use coblk_tests::recorded::{Disturbance, Kind};
use fastrand::Rng;
use util::chain::{CLUSTER, Chain, LENGTH, read_files};
use util::{take, until};

const GUESTS: u64 = 3;
const PART: u64 = LENGTH / GUESTS / CLUSTER * CLUSTER;
/// How often a request is tried that a disturbance may have met.
const ATTEMPTS: u32 = 50;
const NAMES: [&str; 4] = ["base", "low", "high", "top"];

/// A guest, and the part of the disk that it alone changes.
struct Guest {
    backend: BlockBackend,
    start: u64,
    expected: RefCell<Vec<u8>>,
    is_told_to_stop: Rc<Cell<bool>>,
    has_stopped: Cell<bool>,
}

impl Guest {
    fn co_run(&self, co: &Co<'_>, rng: &mut Rng) {
        while !self.is_told_to_stop.get() {
            self.co_change(co, rng);
            if rng.u8(..4) == 0 {
                self.co_check(co);
            }
            // A mirror is to come up with them at times.
            co.sleep(Duration::from_micros(rng.u64(..10_000)));
        }
        self.has_stopped.set(true);
    }

    fn co_change(&self, co: &Co<'_>, rng: &mut Rng) {
        let offset = rng.u64(..PART);
        let bytes = rng.u64(1..=(PART - offset).min(3 * CLUSTER));
        let (at, place) = (self.start + offset, offset as usize..(offset + bytes) as usize);
        let byte = if rng.u8(..4) == 0 { 0 } else { rng.u8(..) };
        let data = vec![byte; bytes as usize];
        let is_zeroes = byte == 0 && rng.bool();
        // What has failed may have been written in part.
        for attempt in 0.. {
            let written = match is_zeroes {
                true => self.backend.co_pwrite_zeroes(co, at, bytes, ZeroFlags::MAY_UNMAP),
                false => {
                    let source = IoVector::from(&data[..]);
                    self.backend.co_pwritev(co, at, &source, WriteFlags::empty())
                }
            };
            match written {
                Ok(()) => break,
                Err(error) => assert!(attempt < ATTEMPTS, "write at {at}: {error}"),
            }
        }
        self.expected.borrow_mut()[place].fill(byte);
        if rng.u8(..8) == 0 {
            let _ = self.backend.co_flush(co);
        }
    }

    fn co_check(&self, co: &Co<'_>) {
        let mut data = vec![0; PART as usize];
        for attempt in 0.. {
            match self.backend.co_read(co, self.start, &mut data) {
                Ok(()) => break,
                Err(error) => assert!(attempt < ATTEMPTS, "read at {}: {error}", self.start),
            }
        }
        let at =
            data.iter().zip(&*self.expected.borrow()).position(|(found, wanted)| found != wanted);
        assert_eq!(at, None, "guest at {} finds other bytes", self.start);
    }
}

struct World {
    chain: Chain,
    guests: Vec<Rc<Guest>>,
    stop: Rc<Cell<bool>>,
    /// Ends a world that hangs.
    _watchdog: Timer,
}

impl World {
    fn new(rng: &mut Rng) -> World {
        let chain = Chain::new(&NAMES, rng.u64(..));
        let watchdog = util::watchdog(&chain.ctx, Duration::from_secs(600));
        let stop = Rc::<Cell<bool>>::default();
        let options = BackendOptions::new("guests");
        let guest = |number: u64| {
            let start = number * PART;
            let own = &chain.disk[start as usize..][..PART as usize];
            Rc::new(Guest {
                backend: options.open(&chain.ctx, chain.node("top")).unwrap(),
                start,
                expected: RefCell::new(own.to_vec()),
                is_told_to_stop: Rc::clone(&stop),
                has_stopped: Cell::new(false),
            })
        };
        let guests: Vec<_> = (0..GUESTS).map(guest).collect();
        for guest in &guests {
            let (guest, mut rng) = (Rc::clone(guest), rng.fork());
            chain.ctx.spawn("guest", move |co| guest.co_run(co, &mut rng));
        }
        World { chain, guests, stop, _watchdog: watchdog }
    }

    fn options(rng: &mut Rng, kind: &'static str) -> JobOptions {
        JobOptions::new("j", kind).auto_finalize(rng.u8(..4) > 0)
    }

    fn stream(&self, rng: &mut Rng, base: Option<&str>, policy: OnError) -> Rc<Job> {
        let mut stream = Stream::new(self.chain.node("top")).on_error(policy);
        if let Some(base) = base {
            stream = stream.above(&self.chain.node(base)).unwrap().backing_file(base);
        }
        let options = World::options(rng, "stream");
        let Chain { ctx, jobs, blockdevs, .. } = &self.chain;
        ctx.run(|co| stream.co_start(co, jobs, options, blockdevs)).unwrap()
    }

    fn commit(&self, rng: &mut Rng, (top, base): (&str, &str), policy: OnError) -> Rc<Job> {
        let commit = Commit::new(self.chain.node(top), self.chain.node(base)).unwrap();
        let mut commit = commit.on_error(policy);
        if !commit.is_active() {
            commit = commit.backing_file(base);
        }
        let options = World::options(rng, "commit");
        let Chain { ctx, jobs, blockdevs, .. } = &self.chain;
        ctx.run(|co| commit.co_start(co, jobs, options, blockdevs)).unwrap()
    }

    /// One of the jobs, and the node that guests are on in the end if it succeeds.
    fn start(&self, rng: &mut Rng) -> (Rc<Job>, &'static str) {
        let policy = [OnError::Report, OnError::Ignore, OnError::Stop][rng.usize(..3)];
        match rng.u8(..6) {
            0 => (self.stream(rng, None, policy), "top"),
            1 => (self.stream(rng, Some("base"), policy), "top"),
            2 => (self.commit(rng, ("high", "base"), policy), "top"),
            3 => (self.commit(rng, ("low", "base"), policy), "top"),
            4 => (self.commit(rng, ("top", "low"), policy), "low"),
            _ => (self.commit(rng, ("top", "base"), policy), "base"),
        }
    }

    fn sleep(&self, rng: &mut Rng) {
        let time = Duration::from_micros(rng.u64(..3000));
        self.chain.ctx.run(|co| co.sleep(time));
    }

    /// What a user may do to a job at any time. Refusals are none of the test's business.
    fn disturb(&self, rng: &mut Rng) {
        let Chain { ctx, jobs, recorder, .. } = &self.chain;
        match rng.u8(..6) {
            0 => drop(jobs.pause("j")),
            1 => drop(jobs.resume("j")),
            2 => drop(jobs.set_speed("j", [0, 100_000, 10_000_000][rng.usize(..3)])),
            3 => {
                // After a flush that has failed, an image takes no writes any more.
                let kind = [Kind::Read, Kind::Write][rng.usize(..2)];
                let errno = [libc::EIO, libc::ENOSPC][rng.usize(..2)];
                recorder.disturb(Disturbance::fail(errno, rng.u64(..20)).of(kind));
            }
            4 => drop(self.chain.node(NAMES[rng.usize(..4)]).drain(ctx)),
            _ => {
                let drained = self.chain.node(NAMES[rng.usize(..4)]).drain(ctx);
                self.sleep(rng);
                drop(drained);
            }
        }
    }

    /// Runs the job to its end, whatever has stopped it.
    fn finish(&self, job: &Job) {
        let Chain { ctx, jobs, .. } = &self.chain;
        let mut is_completed = false;
        until(ctx, || {
            let _ = jobs.set_speed("j", 0);
            let _ = jobs.resume("j");
            // Once: each time has it look again, and the clock stands meanwhile.
            if job.status() == JobStatus::Ready && !is_completed {
                is_completed = jobs.complete("j").is_ok();
            }
            matches!(job.status(), JobStatus::Pending | JobStatus::Null)
        });
        let _ = ctx.run(|co| jobs.co_finalize(co, "j"));
        until(ctx, || job.status() == JobStatus::Null);
    }

    /// Stops guests, and looks at all that they have written, here and in the files.
    fn check(self, top: &str, seed: u64) {
        self.stop.set(true);
        let Chain { ctx, files, recorder, blockdevs, .. } = &self.chain;
        until(ctx, || self.guests.iter().all(|guest| guest.has_stopped.get()));
        ctx.run(|co| self.guests.iter().for_each(|guest| guest.co_check(co)));
        let mut disk = self.chain.disk.clone();
        for guest in &self.guests {
            let start = guest.start as usize;
            disk[start..][..PART as usize].copy_from_slice(&guest.expected.borrow());
            assert_eq!(guest.backend.node().unwrap().name(), top, "seed {seed}");
        }
        drop(self.guests);
        until(ctx, || !ctx.try_poll());
        self.chain.is_free();
        let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
        // Parents come first, whatever the order of the chain.
        for _ in &names {
            for name in &names {
                let _ = blockdevs.close(ctx, name);
            }
        }
        let found = read_files(&names, &recorder.contents(), top);
        assert!(found.as_ref() == Ok(&disk), "seed {seed}: {:?}", found.err());
    }
}

fn run(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let world = World::new(&mut rng);
    let (job, end) = world.start(&mut rng);
    for _ in 0..rng.u8(..10) {
        world.sleep(&mut rng);
        world.disturb(&mut rng);
    }
    let is_cancelled = rng.u8(..3) == 0;
    if is_cancelled {
        let cancel = |co: &Co<'_>| world.chain.jobs.co_cancel(co, "j", true);
        // It may be over.
        let _ = world.chain.ctx.run(cancel);
        until(&world.chain.ctx, || job.status() == JobStatus::Null);
    } else {
        world.finish(&job);
    }
    world.chain.recorder.calm();
    let told = take(&world.chain.told);
    let has_succeeded = told.contains(&"COMPLETED".to_owned());
    assert_eq!(told.last().map(String::as_str), Some("null"), "seed {seed}: {told:?}");
    world.sleep(&mut rng);
    world.check(if has_succeeded { end } else { "top" }, seed);
}

#[test]
fn j142_guests_find_what_they_have_written_through_streams_and_commits() {
    for seed in seeds(100) {
        eprintln!("seed {seed}");
        let told = std::panic::catch_unwind(|| run(seed));
        assert!(told.is_ok(), "seed {seed}");
    }
}
