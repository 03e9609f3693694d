//! `compare fuse`: our FUSE export beside QEMU's. fio asks for the mounted files in turn, past the page
//! cache, as a program with libaio does.
//!
//! Each daemon serves its file all the time. Requests a second are fio's own figure, without its start;
//! the CPU time of a request is that of all threads of the daemon. Needs root and `/dev/fuse`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::Value;

use super::args::{self, CommonArgs};
use crate::fio;
use crate::image::Image;
use crate::measure::{Contest, Lap, Plan};
use crate::peers::programs::{NULL_BYTES, Program, Protocol};
use crate::peers::server::{Places, Server};
use crate::progress::Progress;
use crate::report::{At, Report, Row};
use crate::workload::ReadWrite;
use crate::works::Unit;

const SMALL_BYTES: usize = 4096;
const LARGE_BYTES: usize = 1 << 20;
const LARGE_DEPTH: usize = 4;

/// Arguments of `compare fuse`.
#[derive(Args, Clone, Debug)]
pub struct FuseArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Our server: a coblk-storage-daemon. Without this, the daemon that lies beside this program.
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// Our export takes requests over io_uring. Needs Linux 6.14, and `enable_uring` of its module fuse.
    #[arg(long)]
    io_uring: bool,
}

/// Whether the kernel offers FUSE over io_uring.
const ENABLED: &str = "/sys/module/fuse/parameters/enable_uring";

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    cached: bool,
    kind: ReadWrite,
    block_bytes: usize,
    depth: usize,
    /// Threads that serve our export, and jobs of fio. QEMU's has one thread.
    threads: usize,
}

impl Work {
    /// All rows, in their order.
    pub fn all() -> Vec<Work> {
        let mut works = Vec::new();
        for (cached, threads) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
            for (block_bytes, depth) in
                [(SMALL_BYTES, 1), (SMALL_BYTES, 32), (LARGE_BYTES, LARGE_DEPTH)]
            {
                if threads == 1 || depth == 32 {
                    works.extend([ReadWrite::RandRead, ReadWrite::RandWrite].map(|kind| {
                        Work { cached, kind, block_bytes, depth, threads } //
                    }));
                }
            }
        }
        works
    }

    /// Its name.
    pub fn name(&self) -> String {
        let device = if self.cached { "page cache" } else { "null" };
        let (kind, size) = (self.kind.name(), fio::size_word(self.block_bytes as u64));
        let threads = if self.threads > 1 { format!(" x{}", self.threads) } else { String::new() };
        format!("fuse {device} {kind} {size} QD{}{threads}", self.depth)
    }

    /// How many times QEMU's export is to be beaten.
    fn goal(&self) -> f64 {
        if self.depth == 32 { 2.0 } else { 1.0 }
    }

    /// Requests of a lap.
    fn ops(&self) -> u64 {
        match (self.block_bytes, self.depth) {
            (LARGE_BYTES, _) => 1_000,
            (_, 1) => 4_000,
            _ => 40_000,
        }
    }
}

/// Measures the rows.
///
/// # Errors
/// If no row is wanted, there is no server, it cannot mount, or fio fails.
pub fn run(arguments: &FuseArgs, plan: &Plan, report: &mut Report) -> io::Result<()> {
    if arguments.io_uring && fs::read_to_string(ENABLED)?.trim() != "Y" {
        return Err(io::Error::other(format!("{ENABLED} is not Y")));
    }
    let works = args::wanted(Work::all(), &arguments.common.only, Work::name)?;
    let ours = Program::ours(arguments.server.as_deref(), Protocol::Nbd)?;
    let needs_image = works.iter().any(|work| work.cached);
    let image = needs_image.then(|| arguments.common.image(plan)).transpose()?;
    let progress = Progress::new(works.len());
    for work in works {
        progress.now(&work.name());
        let image = image.as_ref().filter(|_| work.cached);
        if let Some(image) = image {
            image.warm()?;
        }
        report.add(measure(&work, &ours, image, arguments, plan, &progress)?)?;
        progress.step();
    }
    Ok(())
}

fn measure(
    work: &Work,
    ours: &Program,
    image: Option<&Image>,
    arguments: &FuseArgs,
    plan: &Plan,
    progress: &Progress,
) -> io::Result<Row> {
    let directory = tempfile::Builder::new().prefix("coblk-bench-").tempdir()?;
    let bench = |program: &Program, name: &str| {
        let file = directory.path().join(name);
        Bench::start(work, program, image.map(Image::path), file, arguments.io_uring)
    };
    let ops = arguments.common.count.unwrap_or(work.ops() / if plan.quick { 100 } else { 1 });
    let contest = Contest::new(work.name(), Unit::Iops, bench(ours, "ours")?.laps());
    let contest = contest.ops(ops.max(1));
    let qemu = Program::QemuStorageDaemon;
    let (name, package) = qemu.name();
    let contest = match qemu.is_installed() {
        true => contest.peer_to_beat(name, work.goal(), bench(&qemu, "qemu")?.laps()),
        false => contest.missing(name, package),
    };
    let mut row = contest.run(plan, || progress.tick())?;
    row.at = Some(At::Depth(work.depth));
    Ok(row)
}

/// A daemon, and the file that it shows.
struct Bench {
    work: Work,
    file: PathBuf,
    server: Server,
    places: Places,
}

impl Bench {
    fn start(
        work: &Work,
        program: &Program,
        image: Option<&Path>,
        file: PathBuf,
        io_uring: bool,
    ) -> io::Result<Bench> {
        // Two threads and their clients share two CPUs.
        let places = if work.threads > 1 { Places::any()? } else { Places::new(1)? };
        fs::write(&file, "")?;
        let mut command = Command::new(program.path());
        let is_qemu = *program == Program::QemuStorageDaemon;
        let threads = if is_qemu { 1 } else { work.threads };
        command.args(words(image, &file, threads, io_uring && !is_qemu)?);
        let mut server = Server::start(command, &places)?;
        server.connect(&file, |file| match fs::metadata(file)?.len() {
            0 => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(()),
        })?;
        Ok(Bench { work: *work, file, server, places })
    }

    fn laps(self) -> impl FnMut(u64) -> io::Result<Lap> {
        move |ops| {
            let before = self.server.cpu_ns()?;
            self.places.be_client()?;
            let said = self.fio(ops);
            self.places.leave()?;
            let cpu_ns = self.server.cpu_ns()?.saturating_sub(before) as f64;
            let said: Value = serde_json::from_str(&said?).map_err(io::Error::other)?;
            let one = if self.work.kind.writes() { "write" } else { "read" };
            let figure = |name: &str| said["jobs"][0][one][name].as_f64().unwrap_or(0.0);
            let (done, per_s) = (figure("total_ios"), figure("iops"));
            if done < 1.0 || per_s <= 0.0 {
                return Err(io::Error::other("fio made no requests"));
            }
            let wall_ns = done / per_s * 1e9;
            Ok(Lap { ops: done as u64, wall_ns, cpu_ns: Some(cpu_ns), allocs: None, latency: None })
        }
    }

    fn fio(&self, ops: u64) -> io::Result<String> {
        let Work { kind, block_bytes, depth, threads, .. } = self.work;
        let mut command = Command::new("fio");
        command.args(["--name=fuse", "--ioengine=libaio", "--direct=1", "--group_reporting"]);
        command.args(["--output-format=json", "--norandommap", "--thread"]);
        command.arg(format!("--filename={}", self.file.display()));
        command.arg(format!("--rw={}", kind.name())).arg(format!("--bs={block_bytes}"));
        command.arg(format!("--iodepth={depth}")).arg(format!("--numjobs={threads}"));
        command.arg(format!("--number_ios={}", ops.div_ceil(threads as u64)));
        // As much as is asked for, however long the file is.
        command.arg(format!("--io_size={}", ops.max(1) * block_bytes as u64));
        let output = command.output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("fio: {}", said.trim())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The daemon is killed, and leaves its mount behind.
        if let Err(error) = unmount(&self.file, UnmountFlags::DETACH) {
            eprintln!("{} cannot be unmounted: {error}", self.file.display());
        }
    }
}

/// Options, which both daemons take, but for `io-uring`.
fn words(
    image: Option<&Path>,
    file: &Path,
    threads: usize,
    io_uring: bool,
) -> io::Result<Vec<String>> {
    let utf8 = |path: &Path| {
        let text = path.to_str().map(|text| text.replace(',', ",,"));
        text.ok_or_else(|| io::Error::other("a path is not UTF-8"))
    };
    let mut words = Vec::new();
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    match image {
        None => add("--blockdev", format!("null-co,node-name=d,size={NULL_BYTES},read-zeroes=on")),
        Some(image) => {
            let how = "aio=io_uring,cache.direct=off,locking=off";
            add("--blockdev", format!("file,node-name=f,filename={},{how}", utf8(image)?));
            add("--blockdev", "raw,node-name=d,file=f".to_owned());
        }
    }
    let mut export = format!("fuse,id=e,node-name=d,mountpoint={},writable=on", utf8(file)?);
    if io_uring {
        export.push_str(",io-uring=on");
    }
    for thread in 0..if threads > 1 { threads } else { 0 } {
        add("--object", format!("iothread,id=t{thread}"));
        export.push_str(&format!(",iothread.{thread}=t{thread}"));
    }
    add("--export", export);
    Ok(words)
}
