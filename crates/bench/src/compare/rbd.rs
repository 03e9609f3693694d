//! `compare rbd`: our RBD driver beside fio's engine and QEMU's driver, on the same image.
//!
//! Ours is a node in this process. None of them caches.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use coblk::drivers::RbdOptions;
use coblk::options::NodeOptions;
use coblk::{AioContext, BlockBackend, Blockdevs};

use super::args;
use crate::fio;
use crate::measure::{Contest, Lap, Plan, lap};
use crate::peers::fio_rbd::{self, FioRbd};
use crate::peers::qemu_img::{self, QemuImg};
use crate::progress::Progress;
use crate::report::{At, Report, Row};
use crate::workload::{Generator, Job, Pattern, ReadWrite, Until};
use crate::works::Unit;

const SMALL_BYTES: usize = 4096;
const LARGE_BYTES: usize = 1 << 20;
const LARGE_DEPTH: usize = 4;
/// Length of the image: qemu-img begins anew at its end, as we do.
const IMAGE_BYTES: u64 = 256 << 20;
const IMAGE: &str = "coblk-bench";
/// The package of QEMU's driver.
const QEMU_PACKAGE: &str = "qemu-block-extra";

/// Arguments of `compare rbd`.
#[derive(Args, Clone, Debug)]
pub struct RbdArgs {
    /// Configuration of a cluster, as tests/ceph/up makes one.
    #[arg(long, value_name = "PATH", default_value = "target/ceph/ceph.conf")]
    conf: PathBuf,
    /// The pool in which an image is made, and removed at the end.
    #[arg(long, value_name = "POOL", default_value = "rbd")]
    pool: String,
    /// Measure only rows whose name contains this; may be given again.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How long a lap takes, in milliseconds. Each of the others' is a process of its own, whose first requests are
    /// slower: short laps say little.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    lap: u64,
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    write: bool,
    block_bytes: usize,
    depth: usize,
}

impl Work {
    /// All rows, in their order.
    pub fn all() -> Vec<Work> {
        let sizes = [(SMALL_BYTES, 1), (SMALL_BYTES, 32), (LARGE_BYTES, LARGE_DEPTH)];
        let works = sizes.map(|(block_bytes, depth)| {
            [false, true].map(|write| Work { write, block_bytes, depth }) //
        });
        works.concat()
    }

    /// Its name.
    pub fn name(&self) -> String {
        let (kind, size) = (self.kind().name(), fio::size_word(self.block_bytes as u64));
        format!("rbd {kind} {size} QD{}", self.depth)
    }

    fn kind(&self) -> ReadWrite {
        if self.write { ReadWrite::Write } else { ReadWrite::Read }
    }

    fn job(&self) -> Job {
        let read_percent = if self.write { 0 } else { 100 };
        let pattern = Pattern { kind: self.kind(), read_percent };
        let block_bytes = self.block_bytes;
        Job { pattern, block_bytes, ..Job::sequential_reads(self.depth, u64::MAX) }
    }
}

/// An image that is full, and goes with the value.
struct Target {
    conf: tempfile::NamedTempFile,
    pool: String,
}

impl Target {
    fn new(arguments: &RbdArgs) -> io::Result<Target> {
        let mut conf = tempfile::NamedTempFile::new()?;
        conf.write_all(&std::fs::read(&arguments.conf)?)?;
        conf.write_all(b"\n[client]\nrbd_cache = false\n")?;
        let target = Target { conf, pool: arguments.pool.clone() };
        let size = format!("{IMAGE_BYTES}B");
        // Without the lock, which several clients would take from each other.
        let features = ["--image-feature", "layering"];
        target.rbd(&[&["create", "--size", &size][..], &features].concat())?;
        target.rbd(&[
            "bench",
            "--io-type=write",
            "--io-size=4M",
            &format!("--io-total={IMAGE_BYTES}"),
        ])?;
        Ok(target)
    }

    fn conf(&self) -> &str {
        self.conf.path().to_str().unwrap_or_default()
    }

    fn rbd(&self, arguments: &[&str]) -> io::Result<()> {
        let mut command = Command::new("rbd");
        command.args(["--conf", self.conf()]).args(arguments);
        let output = command.arg(format!("{}/{IMAGE}", self.pool)).output()?;
        match output.status.success() {
            true => Ok(()),
            false => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(io::Error::other(format!("rbd {}: {}", arguments[0], said.trim())))
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Err(error) = self.rbd(&["rm", "--no-progress"]) {
            eprintln!("{error}");
        }
    }
}

/// Measures the rows.
///
/// # Errors
/// If no row is wanted, there is no cluster, or our driver fails.
pub fn run(arguments: &RbdArgs, plan: &Plan, report: &mut Report) -> io::Result<()> {
    let works = args::wanted(Work::all(), &arguments.only, Work::name)?;
    let target = Target::new(arguments)?;
    let lap = if plan.quick { plan.lap } else { Duration::from_millis(arguments.lap) };
    let plan = &Plan { lap, ..*plan };
    let progress = Progress::new(works.len());
    for work in works {
        progress.now(&work.name());
        report.add(measure(&work, &target, plan, &progress)?)?;
        progress.step();
    }
    Ok(())
}

fn measure(work: &Work, target: &Target, plan: &Plan, progress: &Progress) -> io::Result<Row> {
    let contest = Contest::new(work.name(), Unit::NsPerOp, ours(work, target)?);
    let contest = match fio_rbd::is_installed() {
        true => {
            let mut fio = FioRbd {
                conf: target.conf().to_owned(),
                pool: target.pool.clone(),
                image: IMAGE.to_owned(),
                write: work.write,
                depth: work.depth,
                block_bytes: work.block_bytes,
                base_cpu: None,
            };
            contest.peer_to_beat("fio rbd", 0.95, move |ops| fio.run(ops))
        }
        false => contest.missing("fio rbd", fio_rbd::PACKAGE),
    };
    let contest = match has_qemu(target.conf.path(), &target.pool) {
        true => {
            let qemu = QemuImg::node(&node(target), work.depth, work.block_bytes);
            let mut qemu = if work.write { qemu.writing() } else { qemu };
            contest.peer_to_beat("qemu-img bench", 1.0, move |ops| qemu.run(ops))
        }
        false => contest.missing("qemu-img bench", QEMU_PACKAGE),
    };
    let mut row = contest.wary().run(plan, || progress.tick())?;
    row.at = Some(At::Depth(work.depth));
    Ok(row)
}

fn ours(work: &Work, target: &Target) -> io::Result<impl FnMut(u64) -> io::Result<Lap> + use<>> {
    let ctx = AioContext::test_builder().name("bench").build()?;
    let blockdevs = Blockdevs::new(coblk::drivers());
    let mut options = RbdOptions::new(&target.pool, IMAGE);
    options.conf = Some(target.conf().to_owned());
    let mut options = NodeOptions::new(options);
    options.cache_direct = Some(true);
    let node = blockdevs.open(&ctx, options).map_err(io::Error::other)?;
    let backend = BlockBackend::new(&ctx, "bench", node);
    let generator = Generator::new(backend, &work.job())?;
    Ok(move |ops| {
        // The node ends with its registry.
        let _ = &blockdevs;
        let mut result = Ok(0);
        let lap = lap(ops, || result = generator.run(&ctx, Until::Count(ops)));
        result.map(|_| lap)
    })
}

fn node(target: &Target) -> String {
    let (pool, conf) = (&target.pool, target.conf());
    format!(
        "{{\"driver\":\"raw\",\"file\":{{\"driver\":\"rbd\",\"pool\":\"{pool}\",\
         \"image\":\"{IMAGE}\",\"conf\":\"{conf}\",\"cache\":{{\"direct\":true}}}}}}"
    )
}

/// Whether QEMU has its driver: a module of its own.
fn has_qemu(conf: &Path, pool: &str) -> bool {
    let name = format!("rbd:{pool}/{IMAGE}:conf={}", conf.display());
    let asked = Command::new("qemu-img").args(["info", &name]).output();
    qemu_img::is_installed() && asked.is_ok_and(|it| it.status.success())
}
