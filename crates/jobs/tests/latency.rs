//! Jobs that copy less while guests' requests take long.

mod util;

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{BlockDriver, BlockNode, ReadFlags, WriteFlags};
use coblk_jobs::{Backup, JobOptions, JobStatus};
use util::disk::OnDisk;
use util::stage::{GRANULE, LENGTH as LENGTH_OF_STAGE, Stage, stage, stage_with};
use util::until;

const LENGTH: u64 = 600 * GRANULE;
const LIMIT: Duration = Duration::from_millis(4);

/// A disk on which each request takes a millisecond for each that is under way.
struct Queue {
    inner: OnDisk,
    under_way: Arc<AtomicU64>,
}

impl Queue {
    fn co_wait(&self, co: &Co<'_>) {
        let before = self.under_way.fetch_add(1, Ordering::SeqCst);
        co.sleep(Duration::from_millis(before + 1));
        self.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BlockDriver for Queue {
    fn format_name(&self) -> &'static str {
        "queue"
    }

    fn length(&self) -> u64 {
        self.inner.length()
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.co_wait(co);
        self.inner.co_preadv(co, offset, target, flags)
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.co_wait(co);
        self.inner.co_pwritev(co, offset, source, flags)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.inner.co_flush(co)
    }
}

/// The share of a guest's reads that take longer than the limit, once a job has gone on for a while.
fn long_reads(limit: Option<Duration>, is_mirror: bool) -> f64 {
    let under_way = Arc::new(AtomicU64::new(0));
    let own = Arc::clone(&under_way);
    let stage = stage_with(LENGTH, move |name, disk| {
        let inner = OnDisk(Arc::clone(disk));
        match name {
            "source" => BlockNode::new(name, Queue { inner, under_way: Arc::clone(&own) }),
            _ => BlockNode::new(name, inner),
        }
    });
    let Stage { ctx, jobs, blockdevs, .. } = &stage;
    let nodes = (Arc::clone(&stage.source_node), Arc::clone(&stage.target_node));
    let options = JobOptions::new("j", "copy");
    let job = match is_mirror {
        true => {
            let mirror = stage.mirror().buffer(16 * GRANULE);
            let mirror =
                limit.map_or(stage.mirror().buffer(16 * GRANULE), |it| mirror.guest_latency(it));
            ctx.run(|co| mirror.co_start(co, jobs, options, blockdevs)).unwrap()
        }
        false => {
            let new = || {
                Backup::new(Arc::clone(&nodes.0), Arc::clone(&nodes.1))
                    .max_chunk(GRANULE)
                    .max_workers(16)
            };
            let backup = limit.map_or_else(new, |it| new().guest_latency(it));
            ctx.run(|co| backup.co_start(co, jobs, options, blockdevs)).unwrap()
        }
    };
    let counts = Rc::new([Cell::new(0u32), Cell::new(0)]);
    let (guest, own, watched) = (stage.guest.clone(), Rc::clone(&counts), Rc::clone(&job));
    ctx.spawn("guest", move |co| {
        let begin_ns = co.context().now_ns();
        while watched.status() == JobStatus::Running {
            let before_ns = co.context().now_ns();
            guest.co_read(co, 0, &mut [0; 512]).unwrap();
            let took_ns = co.context().now_ns() - before_ns;
            if before_ns - begin_ns > 300_000_000 {
                let is_long = took_ns > LIMIT.as_nanos() as i64;
                own[usize::from(is_long)].set(own[usize::from(is_long)].get() + 1);
            }
            co.sleep(Duration::from_millis(1));
        }
    });
    until(ctx, || job.status() != JobStatus::Running);
    let [short, long] = [counts[0].get(), counts[1].get()];
    assert!(short + long > 10, "{short} {long}");
    f64::from(long) / f64::from(short + long)
}

#[test]
fn j128_a_job_lets_requests_of_guests_be_as_fast_as_it_is_told() {
    for is_mirror in [false, true] {
        let (free, limited) = (long_reads(None, is_mirror), long_reads(Some(LIMIT), is_mirror));
        assert!(free > 0.9, "{free}");
        // It tries what is too much from time to time.
        assert!(limited < 0.4, "{limited}");
    }
}

/// A target that takes 20 MiB a second, whatever comes first.
struct Slow {
    inner: OnDisk,
    until_ns: AtomicI64,
}

impl BlockDriver for Slow {
    fn format_name(&self) -> &'static str {
        "slow"
    }

    fn length(&self) -> u64 {
        self.inner.length()
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.inner.co_preadv(co, offset, target, flags)
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let (now_ns, takes_ns) = (co.context().now_ns(), source.len() as i64 * 48);
        let begin_ns = self.until_ns.load(Ordering::SeqCst).max(now_ns);
        self.until_ns.store(begin_ns + takes_ns, Ordering::SeqCst);
        co.sleep(Duration::from_nanos((begin_ns + takes_ns - now_ns) as u64));
        self.inner.co_pwritev(co, offset, source, flags)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.inner.co_flush(co)
    }
}

/// Without a limit, too: 16 MiB are under way at first, which are most of a second, and a quarter of that later.
#[test]
fn j128_guests_wait_for_little_of_what_a_backup_has_under_way_at_a_slow_target() {
    const LENGTH: u64 = 128 << 20;
    let stage = stage_with(LENGTH, |name, disk| {
        let (inner, until_ns) = (OnDisk(Arc::clone(disk)), AtomicI64::new(0));
        match name {
            "target" => BlockNode::new(name, Slow { inner, until_ns }),
            _ => BlockNode::new(name, inner),
        }
    });
    stage.source.fill(1);
    let Stage { ctx, jobs, blockdevs, .. } = &stage;
    let backup = Backup::new(Arc::clone(&stage.source_node), Arc::clone(&stage.target_node));
    let options = JobOptions::new("j", "backup");
    let job = ctx.run(|co| backup.co_start(co, jobs, options, blockdevs)).unwrap();
    let waits = Rc::<Cell<Vec<Duration>>>::default();
    let (guest, own, watched) = (stage.guest.clone(), Rc::clone(&waits), Rc::clone(&job));
    ctx.spawn("guest", move |co| {
        let mut rng = fastrand::Rng::with_seed(1);
        while watched.status() == JobStatus::Running {
            let begin_ns = co.context().now_ns();
            guest.co_write(co, rng.u64(..LENGTH / 4096) * 4096, &[1; 4096]).unwrap();
            let took = Duration::from_nanos((co.context().now_ns() - begin_ns) as u64);
            let mut waits = own.take();
            waits.push(took);
            own.set(waits);
            co.sleep(Duration::from_millis(1));
        }
    });
    let took = stage.takes(|| stage.until(&job, JobStatus::Null));
    let waits = waits.take();
    let later: Vec<_> = waits.iter().skip(waits.len() / 4).collect();
    let (longest, of_all) = (later.iter().max().unwrap(), waits.iter().max().unwrap());
    println!("{took:?}, {} writes, {of_all:?}, and {longest:?} later", waits.len());
    assert!(*of_all < Duration::from_secs(1), "{of_all:?}");
    assert!(**longest < Duration::from_millis(400), "{longest:?}");
    // It is as fast as the target.
    assert!(took < Duration::from_millis(7_500), "{took:?}");
}

/// The guests' copies are no reason to wake a job that has to wait, but for the last one.
#[test]
fn j33_a_limited_backup_ends_when_guests_have_copied_what_is_left() {
    let stage = stage();
    stage.source.fill(1);
    let backup = Backup::new(Arc::clone(&stage.source_node), Arc::clone(&stage.target_node));
    let options = JobOptions::new("j", "backup").speed(1);
    let Stage { ctx, jobs, blockdevs, .. } = &stage;
    let job = ctx.run(|co| backup.co_start(co, jobs, options, blockdevs)).unwrap();
    stage.settle();
    stage.write(0, 2, LENGTH_OF_STAGE / 2);
    assert_eq!(job.status(), JobStatus::Running);
    let took = stage.takes(|| {
        stage.write(LENGTH_OF_STAGE / 2, 2, LENGTH_OF_STAGE / 2);
        stage.until(&job, JobStatus::Null);
    });
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert!(stage.target.durable().iter().all(|byte| *byte == 1), "another instant");
}
