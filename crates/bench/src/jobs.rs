//! `null` and `file`: a workload in fio's words, on one or more contexts.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use coblk::block::NewBitmap;
use coblk::drivers::{File, Null};
use coblk::{AioContext, BlockNode};
use hdrhistogram::Histogram;

use crate::engine::Engine;
use crate::fio;
use crate::image::Image;
use crate::measure::{Lap, Plan};
use crate::progress::Progress;
use crate::report::{Report, Row};
use crate::workload::{Job, Pattern, ReadWrite, Until, threads};
use crate::works::Unit;

/// Requests that warm up each context.
const WARM_UP: u64 = 1000;

/// What both subcommands take.
#[derive(Args, Clone, Debug)]
pub struct JobArgs {
    /// Kind and order of requests: read, write, randread, randwrite, rw, randrw.
    #[arg(long, default_value = "randread", alias = "readwrite")]
    pub rw: ReadWrite,
    /// Share of reads of rw and randrw, in percent.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmixread: u8,
    /// Length of a request.
    #[arg(long, default_value = "4k", value_parser = fio::size, alias = "blocksize")]
    pub bs: u64,
    /// Requests in flight on each context.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub iodepth: u32,
    /// Contexts, each on a thread of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub numjobs: u16,
    /// How long to run, such as 5, 0.5 or 200ms.
    #[arg(long, value_parser = fio::seconds, conflicts_with = "count")]
    pub runtime: Option<f64>,
    /// How many requests to make, on all contexts together.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

impl JobArgs {
    fn job(&self, range_bytes: u64, latency: bool) -> io::Result<Job> {
        Ok(Job {
            pattern: Pattern { kind: self.rw, read_percent: self.rwmixread },
            block_bytes: usize::try_from(self.bs).map_err(io::Error::other)?,
            depth: self.iodepth as usize,
            range_bytes,
            step_bytes: 0,
            latency,
            seed: 1,
        })
    }

    fn until(&self, plan: &Plan) -> Until {
        match (self.count, self.runtime) {
            (Some(count), _) => Until::Count(count),
            (None, Some(seconds)) => Until::Elapsed(Duration::from_secs_f64(seconds)),
            (None, None) if plan.quick => Until::Elapsed(Duration::from_millis(100)),
            (None, None) => Until::Elapsed(Duration::from_secs(5)),
        }
    }

    /// How a row calls it.
    fn name(&self) -> String {
        let (rw, bs, depth) = (self.rw.name(), fio::size_word(self.bs), self.iodepth);
        let contexts = match self.numjobs {
            1 => String::new(),
            jobs => format!(" x{jobs}"),
        };
        format!("{rw} {bs} QD{depth}{contexts}")
    }
}

/// Arguments of `null`.
#[derive(Args, Clone, Debug)]
pub struct NullArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Measure latencies too. Off by default: two looks at the clock cost as much as a request.
    #[arg(long)]
    latency: bool,
    /// The driver suspends each request once, as null-aio does.
    #[arg(long)]
    aio: bool,
    /// Size of the device.
    #[arg(long, default_value = "1g", value_parser = fio::size)]
    size: u64,
    /// So many dirty bitmaps record, in granules of 64 KiB.
    #[arg(long, default_value = "0")]
    bitmaps: usize,
}

/// Arguments of `file`.
#[derive(Args, Clone, Debug)]
pub struct FileArgs {
    #[command(flatten)]
    job: JobArgs,
    /// The image. Writes change what is in it. Made, of --size, if there is none; without this, a
    /// temporary one is.
    #[arg(long, value_name = "PATH")]
    filename: Option<PathBuf>,
    /// Size of an image that is made, and how much of it is used.
    #[arg(long, value_parser = fio::size)]
    size: Option<u64>,
    /// Bypass the page cache.
    #[arg(long, default_value = "0", value_parser = fio::switch, num_args = 0..=1, default_missing_value = "1",
          action = clap::ArgAction::Set)]
    direct: bool,
    /// What does the I/O: threads, io_uring.
    #[arg(long, default_value = "threads", alias = "ioengine")]
    engine: Engine,
    /// Try buffered reads from the page cache on the loop's own thread first.
    #[arg(long, default_value = "1", value_parser = fio::switch, action = clap::ArgAction::Set)]
    in_place: bool,
}

/// Size of an image that is made, unless told otherwise.
const IMAGE_BYTES: u64 = 256 << 20;
const QUICK_IMAGE_BYTES: u64 = 8 << 20;

/// `null`.
///
/// # Errors
/// If a request fails.
pub fn null(arguments: &NullArgs, plan: &Plan, report: &mut Report) -> io::Result<()> {
    let driver = Null::new(arguments.size).deferred(arguments.aio);
    let name = if arguments.aio { "null-aio" } else { "null" };
    let node = BlockNode::new("null", driver);
    add_bitmaps(&node, arguments.bitmaps)?;
    let job = arguments.job.job(arguments.size, arguments.latency)?;
    run(format!("{name} {}", arguments.job.name()), &node, &job, &arguments.job, plan, report)
}

fn add_bitmaps(node: &Arc<BlockNode>, count: usize) -> io::Result<()> {
    let ctx = AioContext::new()?;
    ctx.run(|co| {
        (0..count).try_for_each(|number| {
            let new = NewBitmap::new(format!("bitmap{number}"), 65536);
            node.co_add_bitmap(co, new).map(drop).map_err(io::Error::other)
        })
    })
}

/// `file`.
///
/// # Errors
/// If the image cannot be opened or made, or a request fails.
pub fn file(arguments: &FileArgs, plan: &Plan, report: &mut Report) -> io::Result<()> {
    arguments.engine.check().map_err(|error| {
        io::Error::other(format!("engine {} does not run here: {error}", arguments.engine.name()))
    })?;
    let default = if plan.quick { QUICK_IMAGE_BYTES } else { IMAGE_BYTES };
    let size = arguments.size.unwrap_or(default);
    let progress = Progress::new(usize::try_from(size >> 20).unwrap_or(usize::MAX));
    progress.now("MiB of the image are made");
    let image = Image::open_or_make(arguments.filename.as_deref(), size, || progress.step())?;
    drop(progress);
    let driver = File::options_for(image.path())
        .direct(arguments.direct)
        .engine(arguments.engine.into())
        .in_place_reads(arguments.in_place)
        .read_only(!arguments.job.rw.writes())
        .open(image.path())
        .map_err(io::Error::other)?;
    let node = BlockNode::new("image", driver);
    let job = arguments.job.job(arguments.size.unwrap_or(u64::MAX), true)?;
    let cache = if arguments.direct { "direct" } else { "buffered" };
    let name = format!("file {} {cache} {}", arguments.engine.name(), arguments.job.name());
    run(name, &node, &job, &arguments.job, plan, report)
}

fn run(
    name: String,
    node: &Arc<BlockNode>,
    job: &Job,
    arguments: &JobArgs,
    plan: &Plan,
    report: &mut Report,
) -> io::Result<()> {
    let progress = Progress::spinner(&name);
    let until = arguments.until(plan);
    let outcome = threads::run(node, job, usize::from(arguments.numjobs), until, WARM_UP)?;
    drop(progress);
    let mut row = row(name, &outcome.lap, &outcome.latency);
    let bytes_per_s = outcome.lap.ops as f64 * job.block_bytes as f64 / outcome.lap.wall_ns * 1e9;
    row.more.insert(0, ("mib_per_s", bytes_per_s / f64::from(1 << 20)));
    report.add(row)
}

/// A row of what a workload did.
pub fn row(name: String, lap: &Lap, latency: &Histogram<u64>) -> Row {
    let mut row = Row::new(name, Unit::Iops);
    row.ours = Some(lap.ops as f64 / lap.wall_ns * 1e9);
    row.allocs_per_op = lap.allocs.map(|allocs| allocs / lap.ops as f64);
    row.cpu_ns_per_op = lap.cpu_ns.map(|cpu_ns| cpu_ns / lap.ops as f64);
    row.more.push(("ns_per_op", lap.wall_ns / lap.ops as f64));
    if !latency.is_empty() {
        let at = |quantile| latency.value_at_quantile(quantile) as f64;
        row.more.extend([
            ("mean_ns", latency.mean()),
            ("p50_ns", at(0.5)),
            ("p99_ns", at(0.99)),
            ("p999_ns", at(0.999)),
            ("max_ns", latency.max() as f64),
        ]);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        file: FileArgs,
    }

    fn parse(words: &[&str]) -> Result<FileArgs, clap::Error> {
        let words = std::iter::once("file").chain(words.iter().copied());
        Cli::try_parse_from(words).map(|cli| cli.file)
    }

    #[test]
    fn fio_words_are_understood() {
        let words = ["--rw", "randrw", "--bs", "8k", "--iodepth", "32", "--size", "64m"];
        let arguments = parse(&words).unwrap();
        assert_eq!(arguments.job.name(), "randrw 8k QD32");
        assert_eq!((arguments.size, arguments.direct), (Some(64 << 20), false));
        assert!(parse(&["--direct", "1"]).unwrap().direct);
        assert!(parse(&["--direct"]).unwrap().direct);
        let words = ["--numjobs=2", "--ioengine=io_uring", "--readwrite=write", "--blocksize=4k"];
        let arguments = parse(&words).unwrap();
        assert_eq!(arguments.job.name(), "write 4k QD64 x2");
        assert_eq!(arguments.engine, Engine::IoUring);
    }

    #[test]
    fn wrong_words_are_refused() {
        for words in [
            ["--iodepth", "0"],
            ["--bs", "4q"],
            ["--rw", "trim"],
            ["--engine", "libaio"],
            ["--runtime", "-1"],
            ["--rwmixread", "101"],
        ] {
            assert!(parse(&words).is_err(), "{words:?}");
        }
        assert!(parse(&["--runtime", "1", "--count", "1"]).is_err());
    }

    #[test]
    fn a_row_has_what_fio_prints() {
        let mut latency = crate::workload::new_histogram();
        latency.record(1000).unwrap();
        let lap =
            Lap { ops: 10, wall_ns: 1e6, cpu_ns: Some(5e5), allocs: Some(0.0), latency: None };
        let json = row("x".into(), &lap, &latency).to_json();
        assert_eq!((&json["ours"], &json["unit"]), (&10_000.0.into(), &"IOPS".into()));
        assert_eq!(json["p99_ns"], 1000);
    }
}
