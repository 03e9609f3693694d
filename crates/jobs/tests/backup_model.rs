//! Backups under guests that write at random, while commands, drains and errors come at random. A backup that ends well
//! has left the source as it was at the instant of its start; and one after another by one bitmap, whatever has
//! become of those before, lose nothing.

mod util;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, Co, IoVector};
use coblk_block::{
    BackendOptions, BlockBackend, BlockLimits, BlockNode, Blockdevs, DirtyBitmap, NewBitmap,
    WriteFlags, ZeroFlags,
};
use coblk_jobs::{
    Backup, BackupSync, BitmapMode, Job, JobOptions, JobStatus, Jobs, OnCbwError, OnError,
};
use fastrand::Rng;
use util::disk::{DISCARDED, Disk, OnDisk, Op, Verdict};
use util::{Told, jobs, take, until};

const CLUSTER: u64 = 64 << 10;
const LENGTH: u64 = 10 * CLUSTER + 512;
const GUESTS: u64 = 3;
/// The longest block of the disks.
const BLOCK: u64 = 512;
const PART: u64 = LENGTH / GUESTS / BLOCK * BLOCK;

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
        guest.has_stopped.set(false);
        ctx.spawn("guest", move |co| {
            while !guest.is_told_to_stop.get() {
                guest.change(co, &mut rng);
                co.sleep(Duration::from_micros(rng.u64(..8_000)));
            }
            guest.has_stopped.set(true);
        });
    }

    /// A change that fails has changed nothing.
    fn change(&self, co: &Co<'_>, rng: &mut Rng) {
        let offset = rng.u64(..PART) / BLOCK * BLOCK;
        let most = if rng.u8(..4) == 0 { 2 * CLUSTER } else { 4096 };
        let bytes = rng.u64(1..=(PART - offset).min(most));
        let is_discard = rng.u8(..10) == 0;
        // Of blocks that are discarded in part some bytes stay.
        let bytes = if is_discard { bytes.next_multiple_of(BLOCK) } else { bytes };
        let (at, place) = (self.start + offset, offset as usize..(offset + bytes) as usize);
        let (byte, changed) = match rng.u8(..10) {
            _ if is_discard => (DISCARDED, self.backend.co_pdiscard(co, at, bytes)),
            0 => {
                let flags = ZeroFlags::MAY_UNMAP;
                (0, self.backend.co_pwrite_zeroes(co, at, bytes, flags))
            }
            _ => {
                let (byte, flags) = (rng.u8(..), WriteFlags::empty());
                let data = vec![byte; bytes as usize];
                (byte, self.backend.co_pwritev(co, at, &IoVector::from(&data[..]), flags))
            }
        };
        if changed.is_ok() {
            self.expected.borrow_mut()[place].fill(byte);
        }
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
        let watchdog = util::watchdog(&ctx, Duration::from_secs(6000));
        let alignment = [1, 512][rng.usize(..2)];
        let limits = BlockLimits { request_alignment: alignment, ..BlockLimits::default() };
        let (source, target) = (Disk::new(LENGTH, limits), Disk::new(LENGTH, limits));
        source.fill(1);
        target.fill(1);
        let node = |name: &str, disk: &Arc<Disk>| BlockNode::new(name, OnDisk(Arc::clone(disk)));
        let (source_node, target_node) = (node("source", &source), node("target", &target));
        let granularity = 4096 << rng.u32(..7);
        let new = NewBitmap::new("dirty".to_owned(), granularity);
        ctx.run(|co| source_node.co_add_bitmap(co, new)).unwrap();
        let stop = Rc::<Cell<bool>>::default();
        let options = BackendOptions::new("guests").share_rw(true);
        let guest = |number: u64| {
            Rc::new(Guest {
                backend: options.open(&ctx, Arc::clone(&source_node)).unwrap(),
                start: number * PART,
                expected: RefCell::new(vec![1; PART as usize]),
                is_told_to_stop: Rc::clone(&stop),
                has_stopped: Cell::new(true),
            })
        };
        let guests: Vec<_> = (0..GUESTS).map(guest).collect();
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

    /// One request in 12 or so of a kind fails.
    fn break_disks(&self, rng: &mut Rng) {
        let mut own = rng.fork();
        // Guests do not read, unless they are padded.
        let pads = self.source_node.limits().request_alignment > 1;
        self.source.judge(move |op| match op {
            Op::Read(..) if !pads && own.u8(..12) == 0 => Verdict::Fail(libc::EIO),
            _ => Verdict::Go,
        });
        let mut own = rng.fork();
        let errno = [libc::EIO, libc::ENOSPC][rng.usize(..2)];
        self.target.judge(move |op| match op {
            Op::Write(..) | Op::Zeroes(..) | Op::Flush if own.u8(..12) == 0 => Verdict::Fail(errno),
            _ => Verdict::Go,
        });
    }

    fn mend_disks(&self) {
        self.source.judge(|_| Verdict::Go);
        self.target.judge(|_| Verdict::Go);
    }

    /// Starts a backup; returns the job, and the source at its instant.
    fn start(&self, backup: Backup, rng: &mut Rng) -> (Rc<Job>, Vec<u8>) {
        let policies = [OnError::Ignore, OnError::Stop, OnError::Report];
        let breaks = [OnCbwError::BreakGuestWrite, OnCbwError::BreakSnapshot];
        let on_error = breaks[rng.usize(..2)];
        let hold = match on_error {
            OnCbwError::BreakGuestWrite => 0,
            OnCbwError::BreakSnapshot => [0, CLUSTER, 64 << 20][rng.usize(..3)],
        };
        let backup = backup
            .on_source_error(policies[rng.usize(..3)])
            .on_target_error(policies[rng.usize(..3)])
            .on_cbw_error(on_error)
            .hold(hold)
            .max_workers(rng.u64(1..5))
            .max_chunk((2 * CLUSTER) << rng.u32(..3))
            .min_cluster_size([0, 2 * CLUSTER][rng.usize(..2)]);
        let options = JobOptions::new("j", "backup").auto_finalize(rng.bool());
        self.ctx.run(|co| {
            // The instant of a job is that of a drain; in this one nothing changes.
            let _drained = self.source_node.co_drain(co);
            let instant = self.source.data();
            let job = backup.co_start(co, &self.jobs, options, &self.blockdevs).unwrap();
            (job, instant)
        })
    }

    fn sleep(&self, rng: &mut Rng) {
        let time = Duration::from_micros(rng.u64(..3000));
        self.ctx.run(|co| co.sleep(time));
    }

    /// What a user may do to a job at any time. Refusals are none of the test's business.
    fn disturb(&self, rng: &mut Rng) {
        match rng.u8(..6) {
            0 => drop(self.jobs.pause("j")),
            1 => drop(self.jobs.resume("j")),
            2 => drop(self.jobs.set_speed("j", [0, 1_000_000, 100_000_000][rng.usize(..3)])),
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

    fn start_guests(&self, rng: &mut Rng) {
        self.stop.set(false);
        self.guests.iter().for_each(|guest| guest.run(&self.ctx, rng.fork()));
    }

    fn stop_guests(&self) {
        self.stop.set(true);
        until(&self.ctx, || self.guests.iter().all(|guest| guest.has_stopped.get()));
    }

    /// Lets the job come to its end, or gives it up. Returns whether it has succeeded.
    fn end(&self, job: &Job, rng: &mut Rng) -> bool {
        let is_over = || matches!(job.status(), JobStatus::Concluded | JobStatus::Null);
        if rng.u8(..4) == 0 {
            let _ = self.ctx.run(|co| self.jobs.co_cancel(co, "j", rng.bool()));
        }
        until(&self.ctx, || {
            let _ = self.jobs.set_speed("j", 0);
            let _ = self.jobs.resume("j");
            job.status() == JobStatus::Pending || is_over()
        });
        let _ = self.ctx.run(|co| self.jobs.co_finalize(co, "j"));
        // Writes that a job has left behind keep its target in use.
        until(&self.ctx, || is_over() && self.target_node.parents().is_empty());
        let told = take(&self.told);
        assert_eq!(told.last().map(String::as_str), Some("null"), "{told:?}");
        assert_eq!(self.source_node.parents().len() as u64, GUESTS, "{told:?}");
        told.contains(&"COMPLETED".to_owned())
    }

    fn check_guests(&self) {
        let data = self.source.data();
        for guest in &self.guests {
            let part = &data[guest.start as usize..][..PART as usize];
            assert!(part == *guest.expected.borrow(), "guest at {} finds others", guest.start);
        }
    }

    /// What is clean is in the target as it is in the source: a backup of what is dirty brings the rest.
    fn check_clean(&self) {
        let _drained = self.source_node.drain(&self.ctx);
        let (source, target, bitmap) = (self.source.data(), self.target.data(), self.bitmap());
        let (bits, granularity) = (bitmap.bits(), bitmap.bits().granularity());
        for start in (0..bits.granules()).map(|granule| granule * granularity) {
            let place = start as usize..(start + granularity).min(LENGTH) as usize;
            let is_equal = source[place.clone()] == target[place];
            assert!(is_equal || bits.is_dirty(start), "{start} is lost");
        }
    }

    /// The bitmap of today, which may be a successor.
    fn bitmap(&self) -> Arc<DirtyBitmap> {
        self.source_node.bitmaps().find("dirty").unwrap()
    }
}

/// A random round of a chain of backups by one bitmap.
fn round(world: &World, rng: &mut Rng) {
    let modes = [BitmapMode::OnSuccess, BitmapMode::Never, BitmapMode::Always];
    let mode = modes[rng.usize(..3)];
    let backup = Backup::new(Arc::clone(&world.source_node), Arc::clone(&world.target_node));
    let backup = match rng.u8(..4) {
        0 if mode != BitmapMode::Never => backup.sync(BackupSync::Full).bitmap("dirty", mode),
        _ => backup.sync(BackupSync::Bitmap).bitmap("dirty", mode),
    };
    let is_broken = rng.bool();
    if is_broken {
        world.break_disks(rng);
    }
    let (job, instant) = world.start(backup, rng);
    for _ in 0..rng.u8(..8) {
        world.sleep(rng);
        world.disturb(rng);
    }
    if is_broken && rng.bool() {
        world.mend_disks();
    }
    let has_succeeded = world.end(&job, rng);
    world.mend_disks();
    if has_succeeded {
        assert!(world.target.durable() == instant, "the copy is another");
    }
    world.check_clean();
}

fn run(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let world = World::new(&mut rng);
    world.start_guests(&mut rng);
    for _ in 0..4 {
        world.sleep(&mut rng);
        round(&world, &mut rng);
    }
    world.stop_guests();
    world.check_guests();
    // A last one, with nothing in its way.
    let backup = Backup::new(Arc::clone(&world.source_node), Arc::clone(&world.target_node));
    let (job, instant) = world.start(backup.incremental("dirty"), &mut rng);
    until(&world.ctx, || {
        let _ = world.ctx.run(|co| world.jobs.co_finalize(co, "j"));
        job.status() == JobStatus::Null
    });
    assert!(world.target.data() == instant && world.source.data() == instant);
    assert_eq!(world.bitmap().bits().count(), 0);
}

#[test]
fn j142_a_chain_of_backups_loses_nothing() {
    for seed in 0..100 {
        let told = std::panic::catch_unwind(|| run(seed));
        assert!(told.is_ok(), "seed {seed}");
    }
}
