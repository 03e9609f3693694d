//! `compare`: our engines, `qemu-img bench` and bare loops on the same image, with the same number
//! of requests of the same size, as many at a time, one block after the other.

pub mod args;
pub mod fuse;
pub mod img;
pub mod in_place;
pub mod jobs;
mod latency;
pub mod nbd_client;
mod nbd_contexts;
pub mod qcow2;
pub mod rbd;
pub mod served;
pub mod works;

use std::io;
use std::path::Path;
use std::sync::Arc;

use coblk::drivers::{File, Null};
use coblk::{AioContext, BlockBackend, BlockDriver, BlockNode};

use crate::engine::Engine;
use crate::floors::hand_over::{HandOver, Way};
use crate::floors::loopback::Loopback;
use crate::image::Image;
use crate::measure::{Contest, Lap, Plan, lap};
use crate::peers::bare::{self, Call};
use crate::peers::coroutines;
use crate::peers::qemu_img::{self, QemuImg};
use crate::peers::stranger::Stranger;
use crate::peers::uring::Ring;
use crate::plot::{self, curve::Axes};
use crate::progress::Progress;
use crate::report::{self, At, Report, Row};
use crate::sys;
use crate::workload::virtio::Guest;
use crate::workload::{Generator, Job, Until};
use crate::works::Unit;
use args::CompareArgs;
use works::{Access, DEPTH, Work};

/// Length of a request.
const BLOCK_BYTES: usize = 4096;
/// What rows call a loop on a bare ring.
const BARE_RING: &str = "bare io_uring";
/// Length of the null device.
const NULL_BYTES: u64 = 1 << 30;

/// Measures the rows.
///
/// # Errors
/// If no row is wanted, the image cannot be made, or one of our requests fails.
pub fn run(options: &CompareArgs, plan: &Plan, report: &mut Report) -> io::Result<()> {
    let works = args::wanted(Work::all(), &options.common.only, |work| work.name())?;
    let image = options.common.image(plan)?;
    let progress = Progress::new(works.len());
    for work in &works {
        progress.now(&work.name());
        let row = match work.engine().map_or(Ok(()), Engine::check) {
            Ok(()) => measure(*work, &image, options, plan, &progress)?,
            Err(error) => {
                let mut row = Row::new(work.name(), Unit::NsPerOp);
                row.notes.push(format!("the engine does not run here: {error}"));
                row
            }
        };
        report.add(row)?;
        progress.step();
    }
    drop(progress);
    if let Some(directory) = &options.common.plot {
        std::fs::create_dir_all(directory)?;
        plot::bars::write(&directory.join("ratios.svg"), report.rows())?;
        let curves = latency::measure(&image, options, plan, report)?;
        let title = "Latency of O_DIRECT 4 KiB reads over queue depth";
        let axes = Axes { title, across: "requests in flight", value: report::time };
        plot::curve::write(&directory.join("latency.svg"), &axes, &curves)?;
    }
    Ok(())
}

fn measure(
    work: Work,
    image: &Image,
    options: &CompareArgs,
    plan: &Plan,
    progress: &Progress,
) -> io::Result<Row> {
    let cached = match work {
        Work::File(access, ..) => !access.is_direct(),
        Work::VirtioCached(_) | Work::WorkerTaken => true,
        Work::Null | Work::VirtioNull => false,
    };
    if cached {
        image.warm()?;
    }
    let ops =
        options.common.count.unwrap_or(if plan.quick { work.ops() / 100 } else { work.ops() });
    let ours = ours(work, image.path(), options)?;
    let contest = Contest::new(work.name(), Unit::NsPerOp, ours).ops(ops.max(1));
    let contest = add_peers(contest, work, image.path())?;
    let mut row = contest.run(plan, || progress.tick())?;
    row.at = Some(At::Depth(work.depth()));
    if let Some(us) = options.poll_max {
        row.more.push(("poll_max_us", f64::from(us)));
    }
    Ok(row)
}

type OurBench = Box<dyn FnMut(u64) -> io::Result<Lap>>;

fn ours(work: Work, image: &Path, options: &CompareArgs) -> io::Result<OurBench> {
    let ctx = options.context().build()?;
    match work {
        Work::Null => requests(ctx, Null::new(NULL_BYTES), DEPTH),
        Work::VirtioNull => guest_requests(ctx, Null::new(NULL_BYTES), DEPTH),
        Work::VirtioCached(engine) => {
            guest_requests(ctx, open(image, Access::Cached, engine)?, DEPTH)
        }
        Work::File(access, engine, depth) if access.writes() => {
            writes(ctx, open(image, access, engine)?, depth)
        }
        Work::File(access, engine, depth) => requests(ctx, open(image, access, engine)?, depth),
        Work::WorkerTaken => ours(Work::BY_WORKERS, image, options),
    }
}

/// Opens the image as a row wants it.
fn open(image: &Path, access: Access, engine: Engine) -> io::Result<File> {
    File::options()
        .direct(access.is_direct())
        .read_only(!access.writes())
        .engine(engine.into())
        .in_place_reads(access == Access::Cached)
        .open(image)
        .map_err(io::Error::other)
}

fn backend(ctx: &AioContext, driver: impl BlockDriver + 'static) -> BlockBackend {
    BlockBackend::new(ctx, "bench", BlockNode::new("bench", driver))
}

fn requests(
    ctx: AioContext,
    driver: impl BlockDriver + 'static,
    depth: usize,
) -> io::Result<OurBench> {
    generated(ctx, driver, &Job::sequential_reads(depth, u64::MAX))
}

fn writes(
    ctx: AioContext,
    driver: impl BlockDriver + 'static,
    depth: usize,
) -> io::Result<OurBench> {
    generated(ctx, driver, &Job::sequential_writes(depth, u64::MAX))
}

fn generated(
    ctx: AioContext,
    driver: impl BlockDriver + 'static,
    job: &Job,
) -> io::Result<OurBench> {
    let generator = Generator::new(backend(&ctx, driver), job)?;
    Ok(Box::new(move |ops| {
        let mut result = Ok(0);
        let lap = lap(ops, || result = generator.run(&ctx, Until::Count(ops)));
        result.map(|_| lap)
    }))
}

fn guest_requests(
    ctx: AioContext,
    driver: impl BlockDriver + 'static,
    depth: usize,
) -> io::Result<OurBench> {
    let mut guest = Guest::new(&ctx, backend(&ctx, driver), depth)?;
    Ok(Box::new(move |ops| {
        let mut result = Ok(());
        let lap = lap(ops, || result = guest.run(&ctx, ops));
        result.map(|()| lap)
    }))
}

fn add_peers<'a>(contest: Contest<'a>, work: Work, image: &Path) -> io::Result<Contest<'a>> {
    match work {
        Work::Null => {
            let contest = add_qemu(contest, "null-co", QemuImg::null("null-co", DEPTH));
            Ok(contest.peer("bare coroutine", coroutines::corosensei_create_run_end()))
        }
        Work::VirtioNull => {
            let contest = add_qemu(contest, "null-co", QemuImg::null("null-co", DEPTH));
            add_virtqueue(contest, None)
        }
        Work::VirtioCached(engine) => {
            let contest = add_file_peers(contest, image, Access::Cached, engine, DEPTH)?;
            add_virtqueue(contest, Some(image))
        }
        Work::File(access, engine, depth) => {
            let contest = add_file_peers(contest, image, access, engine, depth)?;
            if engine == Engine::Threads && depth == 1 && access != Access::Cached {
                return add_hand_over(contest, image, access);
            }
            Ok(contest)
        }
        Work::WorkerTaken => {
            let contest = add_peers(contest, Work::BY_WORKERS, image)?;
            Ok(contest.beside(Stranger::take(sys::cpus()?[0])?))
        }
    }
}

fn add_virtqueue<'a>(contest: Contest<'a>, image: Option<&Path>) -> io::Result<Contest<'a>> {
    let mut loopback = Loopback::new(image, DEPTH)?;
    Ok(contest.peer("bare virtqueue loop", move |ops| loopback.run(ops)))
}

/// A worker's floor: another thread makes the system call.
fn add_hand_over<'a>(
    contest: Contest<'a>,
    image: &Path,
    access: Access,
) -> io::Result<Contest<'a>> {
    let call = if access.writes() { Call::Pwrite } else { Call::Pread };
    let requests = bare::requests(image, BLOCK_BYTES, 1, access.is_direct(), call)?;
    let mut hand_over = HandOver::new(Way::Aware, requests)?;
    Ok(contest.peer(Way::Aware.name(), move |ops| hand_over.run(ops)))
}

fn add_file_peers<'a>(
    contest: Contest<'a>,
    image: &Path,
    access: Access,
    engine: Engine,
    depth: usize,
) -> io::Result<Contest<'a>> {
    let (direct, write) = (access.is_direct(), access.writes());
    let path = image.to_str().ok_or_else(|| io::Error::other("the image's path is not UTF-8"))?;
    let cache = if direct { "none" } else { "writeback" };
    let qemu = QemuImg::file(path, engine.name(), cache, depth, write);
    let mut contest = add_qemu(contest, engine.name(), qemu);
    // A loop of calls has one request in flight, whatever we have.
    let calls: &[Call] = match (write, direct) {
        (true, _) => &[Call::Pwrite],
        (false, false) => &[Call::Pread, Call::Preadv2, Call::Preadv2Nowait],
        // Without the page cache every read waits.
        (false, true) => &[Call::Pread, Call::Preadv2],
    };
    for call in calls {
        let bench = bare::sequential(image, BLOCK_BYTES, depth, direct, *call)?;
        contest = contest.peer(call.name(), bench);
    }
    Ok(add_ring(contest, Ring::new(image, BLOCK_BYTES, depth, direct, write)))
}

fn add_ring(contest: Contest<'_>, ring: io::Result<Ring>) -> Contest<'_> {
    match ring {
        Ok(mut ring) => contest.peer(BARE_RING, move |ops| ring.run(ops)),
        Err(error) => {
            contest.peer(BARE_RING, move |_| Err(io::Error::new(error.kind(), error.to_string())))
        }
    }
}

fn add_qemu<'a>(contest: Contest<'a>, name: &str, mut qemu: QemuImg) -> Contest<'a> {
    let name = format!("qemu {name}");
    if qemu_img::is_installed() {
        contest.peer(name, move |ops| qemu.run(ops))
    } else {
        contest.missing(name, qemu_img::PACKAGE)
    }
}

/// A node on the image, for more than one context.
fn node(image: &Path, access: Access, engine: Engine) -> io::Result<Arc<BlockNode>> {
    Ok(BlockNode::new("bench", open(image, access, engine)?))
}
