//! Mirrors under guests that write at random, while commands, drains and errors come at random. Guests find all
//! that they have written, wherever the mirror has led them; and a mirror that ends well has left a target that is
//! equal.

mod util;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, Co, IoVector};
use coblk_block::{
    BackendOptions, BlockBackend, BlockLimits, BlockNode, Blockdevs, WriteFlags, ZeroFlags,
};
use coblk_jobs::{CopyMode, Job, JobChange, JobOptions, JobStatus, Jobs, Mirror, OnError};
use fastrand::Rng;
use util::disk::{DISCARDED, Disk, OnDisk, Op, Verdict};
use util::{Told, jobs, take, until};

const LENGTH: u64 = 64 << 10;
const GUESTS: u64 = 4;
/// The longest block of the disks.
const BLOCK: u64 = 512;
const PART: u64 = LENGTH / GUESTS;

/// A guest and the part of the disk that it alone changes.
struct Guest {
    backend: BlockBackend,
    start: u64,
    expected: RefCell<Vec<u8>>,
    is_told_to_stop: Rc<Cell<bool>>,
    has_stopped: Cell<bool>,
}

impl Guest {
    fn run(self: &Rc<Self>, ctx: &AioContext, mut rng: Rng) {
        let guest = Rc::clone(self);
        ctx.spawn("guest", move |co| {
            while !guest.is_told_to_stop.get() {
                guest.change(co, &mut rng);
                if rng.u8(..8) == 0 {
                    guest.check(co);
                }
                // The copy is to come up with them at times.
                co.sleep(std::time::Duration::from_micros(rng.u64(..10_000)));
            }
            guest.has_stopped.set(true);
        });
    }

    fn change(&self, co: &Co<'_>, rng: &mut Rng) {
        let offset = rng.u64(..PART);
        let bytes = rng.u64(1..=(PART - offset).min(2_000));
        let is_discard = rng.u8(..10) == 0;
        // Of blocks that are discarded in part some bytes stay.
        let part = if is_discard { BLOCK } else { 1 };
        let (offset, bytes) = (offset / part * part, bytes.next_multiple_of(part));
        let (at, place) = (self.start + offset, offset as usize..(offset + bytes) as usize);
        let byte = match rng.u8(..10) {
            _ if is_discard => {
                self.backend.co_pdiscard(co, at, bytes).unwrap();
                DISCARDED
            }
            0 | 1 => {
                let flags = ZeroFlags::MAY_UNMAP;
                self.backend.co_pwrite_zeroes(co, at, bytes, flags).unwrap();
                0
            }
            _ => {
                let (byte, flags) = (rng.u8(..), rng.bool());
                let data = vec![byte; bytes as usize];
                let flags = if flags { WriteFlags::FUA } else { WriteFlags::empty() };
                self.backend.co_pwritev(co, at, &IoVector::from(&data[..]), flags).unwrap();
                byte
            }
        };
        self.expected.borrow_mut()[place].fill(byte);
    }

    fn check(&self, co: &Co<'_>) {
        let mut data = vec![0; PART as usize];
        self.backend.co_read(co, self.start, &mut data).unwrap();
        assert!(data == *self.expected.borrow(), "guest at {} finds other bytes", self.start);
    }
}

struct World {
    ctx: AioContext,
    jobs: Rc<Jobs>,
    told: Told,
    blockdevs: Blockdevs,
    source: Arc<Disk>,
    target: Arc<Disk>,
    source_node: Arc<BlockNode>,
    target_node: Arc<BlockNode>,
    guests: Vec<Rc<Guest>>,
    stop: Rc<Cell<bool>>,
    /// Ends a world that hangs.
    _watchdog: coblk_aio::Timer,
}

impl World {
    fn new(rng: &mut Rng) -> World {
        let ctx = util::simulated(rng.u64(..));
        let (jobs, told) = jobs();
        let watchdog = util::watchdog(&ctx, std::time::Duration::from_secs(600));
        let alignment = [1, 512][rng.usize(..2)];
        let limits = BlockLimits { request_alignment: alignment, ..BlockLimits::default() };
        let (source, target) = (Disk::new(LENGTH, limits), Disk::new(LENGTH, limits));
        source.fill(1);
        let node = |name: &str, disk: &Arc<Disk>| BlockNode::new(name, OnDisk(Arc::clone(disk)));
        let (source_node, target_node) = (node("source", &source), node("target", &target));
        let stop = Rc::<Cell<bool>>::default();
        let options = BackendOptions::new("guests").share_rw(rng.bool());
        let guest = |number: u64| {
            Rc::new(Guest {
                backend: options.open(&ctx, Arc::clone(&source_node)).unwrap(),
                start: number * PART,
                expected: RefCell::new(vec![1; PART as usize]),
                is_told_to_stop: Rc::clone(&stop),
                has_stopped: Cell::new(false),
            })
        };
        let guests: Vec<_> = (0..GUESTS).map(guest).collect();
        for guest in &guests {
            guest.run(&ctx, rng.fork());
        }
        let blockdevs = Blockdevs::new(coblk_block::drivers());
        World {
            ctx,
            jobs,
            told,
            blockdevs,
            source,
            target,
            source_node,
            target_node,
            guests,
            stop,
            _watchdog: watchdog,
        }
    }

    /// One request in 30 or so of a kind fails.
    fn break_disks(&self, rng: &mut Rng) {
        let mut own = rng.fork();
        // Guests read their whole part, and no less where nothing is padded.
        let pads = self.source_node.limits().request_alignment > 1;
        self.source.judge(move |op| match op {
            Op::Read(_, bytes) if !pads && bytes != PART && own.u8(..30) == 0 => {
                Verdict::Fail(libc::EIO)
            }
            _ => Verdict::Go,
        });
        let mut own = rng.fork();
        let errno = [libc::EIO, libc::ENOSPC][rng.usize(..2)];
        self.target.judge(move |op| match op {
            Op::Write(..) | Op::Flush if own.u8(..30) == 0 => Verdict::Fail(errno),
            _ => Verdict::Go,
        });
    }

    fn mend_disks(&self) {
        self.source.judge(|_| Verdict::Go);
        self.target.judge(|_| Verdict::Go);
    }

    fn start(&self, rng: &mut Rng) -> Rc<Job> {
        let policies = [OnError::Ignore, OnError::Stop];
        let mirror = Mirror::new(Arc::clone(&self.source_node), Arc::clone(&self.target_node))
            .granularity(512 << rng.u32(..5))
            .buffer(4096 << rng.u32(..5))
            .copy_mode([CopyMode::Background, CopyMode::WriteBlocking][rng.usize(..2)])
            .on_source_error(policies[rng.usize(..2)])
            .on_target_error(policies[rng.usize(..2)]);
        let options = JobOptions::new("j", "mirror").auto_finalize(rng.bool());
        let start = |co: &Co<'_>| mirror.co_start(co, &self.jobs, options, &self.blockdevs);
        self.ctx.run(start).unwrap()
    }

    fn sleep(&self, rng: &mut Rng) {
        let time = std::time::Duration::from_micros(rng.u64(..3000));
        self.ctx.run(|co| co.sleep(time));
    }

    /// What a user may do to a job at any time. Refusals are none of the test's business.
    fn disturb(&self, rng: &mut Rng) {
        match rng.u8(..7) {
            6 => {
                let change = JobChange::new("mirror", "write-blocking");
                let _ = self.jobs.change("j", &change);
            }
            0 => drop(self.jobs.pause("j")),
            1 => drop(self.jobs.resume("j")),
            2 => drop(self.jobs.set_speed("j", [0, 100_000, 10_000_000][rng.usize(..3)])),
            3 => drop(self.source_node.drain(&self.ctx)),
            4 => drop(self.target_node.drain(&self.ctx)),
            _ => {
                let target = self.target_node.drain(&self.ctx);
                let source = self.source_node.drain(&self.ctx);
                self.sleep(rng);
                drop((target, source));
            }
        }
    }

    /// Lets the job go on, whatever has stopped it.
    fn undisturb(&self) {
        let _ = self.jobs.set_speed("j", 0);
        let _ = self.jobs.resume("j");
    }

    fn until(&self, done: impl Fn() -> bool) {
        until(&self.ctx, || {
            self.undisturb();
            done()
        });
    }

    fn stop_guests(&self) {
        self.stop.set(true);
        until(&self.ctx, || self.guests.iter().all(|guest| guest.has_stopped.get()));
    }

    fn check(&self) {
        self.ctx.run(|co| self.guests.iter().for_each(|guest| guest.check(co)));
    }

    fn guests_are_on(&self, name: &str) -> bool {
        let is_there = |guest: &Rc<Guest>| guest.backend.node().unwrap().name() == name;
        self.guests.iter().all(is_there)
    }
}

/// Completes the job, with writes up to the end and behind it.
fn complete(world: &World, job: &Job) {
    world.until(|| job.status() == JobStatus::Ready);
    world.jobs.complete("j").unwrap();
    world.until(|| matches!(job.status(), JobStatus::Pending | JobStatus::Null));
    let _ = world.ctx.run(|co| world.jobs.co_finalize(co, "j"));
    world.until(|| job.status() == JobStatus::Null);
    assert!(world.guests_are_on("target"));
}

/// Ends the job without a pivot.
fn cancel_softly(world: &World, job: &Job) {
    world.until(|| job.status() == JobStatus::Ready);
    world.stop_guests();
    world.until(|| job.status() == JobStatus::Ready);
    world.ctx.run(|co| world.jobs.co_cancel(co, "j", false)).unwrap();
    world.until(|| matches!(job.status(), JobStatus::Pending | JobStatus::Null));
    let _ = world.ctx.run(|co| world.jobs.co_finalize(co, "j"));
    world.until(|| job.status() == JobStatus::Null);
    assert!(world.guests_are_on("source"));
    assert!(world.target.durable() == world.source.data(), "the copy is another");
}

fn cancel(world: &World, job: &Job) {
    // It may be over.
    let _ = world.ctx.run(|co| world.jobs.co_cancel(co, "j", true));
    until(&world.ctx, || job.status() == JobStatus::Null);
    assert!(world.guests_are_on("source"));
}

fn run(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let world = World::new(&mut rng);
    let job = world.start(&mut rng);
    let is_broken = rng.bool();
    if is_broken {
        world.break_disks(&mut rng);
    }
    for _ in 0..rng.u8(..12) {
        world.sleep(&mut rng);
        world.disturb(&mut rng);
    }
    if is_broken && rng.bool() {
        world.mend_disks();
    }
    match rng.u8(..4) {
        0 => cancel(&world, &job),
        1 => {
            world.mend_disks();
            cancel_softly(&world, &job);
        }
        _ => {
            // Guests would see the target's errors afterwards.
            world.mend_disks();
            complete(&world, &job);
        }
    }
    world.mend_disks();
    world.sleep(&mut rng);
    world.stop_guests();
    world.check();
    let told = take(&world.told);
    assert_eq!(told.last().map(String::as_str), Some("null"));
    let left = world.source_node.parents().len() + world.target_node.parents().len();
    assert_eq!(left as u64, GUESTS, "{told:?}");
}

#[test]
fn j142_guests_find_what_they_have_written_through_any_mirror() {
    for seed in 0..200 {
        let told = std::panic::catch_unwind(|| run(seed));
        assert!(told.is_ok(), "seed {seed}");
    }
}
