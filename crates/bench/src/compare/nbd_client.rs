//! `compare nbd-client`: our NBD client beside QEMU's, libnbd's and a bare one, on the same server.
//!
//! Ours is a node in this process. The server is another process, with CPUs of its own; clients take turns
//! on the others.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Args;
use coblk::drivers::NbdNodeOptions;
use coblk::nbd::SocketAddress;
use coblk::options::NodeOptions;
use coblk::{AioContext, BlockBackend, Blockdevs};

use super::args::{self, CommonArgs};
use super::nbd_contexts;
use crate::engine::Engine;
use crate::fio;
use crate::image::Image;
use crate::measure::{Contest, Lap, Plan, lap};
use crate::peers::programs::{NULL_BYTES, Program, Protocol, Service};
use crate::peers::qemu_img::{self, QemuImg};
use crate::peers::server::{Places, Server};
use crate::progress::Progress;
use crate::report::{At, Report, Row};
use crate::sys;
use crate::workload::nbd::NbdClient;
use crate::workload::{Generator, Job, Pattern, ReadWrite, Until};
use crate::works::Unit;

const SMALL_BYTES: usize = 4096;
const LARGE_BYTES: usize = 1 << 20;
const LARGE_DEPTH: usize = 4;

/// Arguments of `compare nbd-client`.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Our server: a coblk-storage-daemon. Without this, the daemon that lies beside this program.
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    by_nbdkit: bool,
    cached: bool,
    kind: ReadWrite,
    block_bytes: usize,
    depth: usize,
}

impl Work {
    /// All rows, in their order.
    pub fn all() -> Vec<Work> {
        let mut works = Vec::new();
        for by_nbdkit in [false, true] {
            for cached in [false, true] {
                for (block_bytes, depth) in
                    [(SMALL_BYTES, 1), (SMALL_BYTES, 32), (LARGE_BYTES, LARGE_DEPTH)]
                {
                    works.extend([ReadWrite::Read, ReadWrite::Write].map(|kind| {
                        Work { by_nbdkit, cached, kind, block_bytes, depth } //
                    }));
                }
            }
        }
        works
    }

    /// Its name.
    pub fn name(&self) -> String {
        let server = if self.by_nbdkit { "nbdkit" } else { "coblk" };
        let device = if self.cached { "page cache" } else { "null" };
        let (kind, size) = (self.kind.name(), fio::size_word(self.block_bytes as u64));
        format!("nbd-client {server} {device} {kind} {size} QD{}", self.depth)
    }

    fn is_write(&self) -> bool {
        self.kind == ReadWrite::Write
    }

    fn job(&self) -> Job {
        let read_percent = if self.is_write() { 0 } else { 100 };
        let pattern = Pattern { kind: self.kind, read_percent };
        let (block_bytes, depth) = (self.block_bytes, self.depth);
        Job { pattern, block_bytes, ..Job::sequential_reads(depth, u64::MAX) }
    }

    /// How many times QEMU's client is to be beaten.
    fn goal(&self) -> f64 {
        if self.depth == 32 { 2.0 } else { 1.0 }
    }
}

/// The names of all rows, those of [`nbd_contexts`] last.
pub fn names() -> Vec<String> {
    let clients = Work::all().iter().map(Work::name).collect();
    let contexts = nbd_contexts::Work::ALL.map(|work| work.name().to_owned());
    [clients, contexts.to_vec()].concat()
}

/// Measures the rows.
///
/// # Errors
/// If no row is wanted, there is no server, or our client fails.
pub fn run(arguments: &ClientArgs, plan: &Plan, report: &mut Report) -> io::Result<()> {
    let names = args::wanted(names(), &arguments.common.only, String::clone)?;
    let is_wanted = |name: &str| names.iter().any(|it| it == name);
    let works: Vec<Work> = Work::all().into_iter().filter(|it| is_wanted(&it.name())).collect();
    let ours = Program::ours(arguments.server.as_deref(), Protocol::Nbd)?;
    let needs_image = works.iter().any(|work| work.cached);
    let image = needs_image.then(|| arguments.common.image(plan)).transpose()?;
    let progress = Progress::new(names.len());
    for work in works {
        progress.now(&work.name());
        let program = if work.by_nbdkit { Program::Nbdkit } else { ours.clone() };
        if !program.is_installed() {
            let mut row = Row::new(work.name(), Unit::NsPerOp);
            row.notes.push("nbdkit is not installed".to_owned());
            report.add(row)?;
            continue;
        }
        let image = image.as_ref().filter(|_| work.cached);
        if let Some(image) = image {
            image.warm()?;
        }
        report.add(measure(&work, &program, image, arguments, plan, &progress)?)?;
        progress.step();
    }
    for work in nbd_contexts::Work::ALL.into_iter().filter(|it| is_wanted(it.name())) {
        progress.now(work.name());
        report.add(work.measure(&ours, plan, &progress)?)?;
        progress.step();
    }
    Ok(())
}

fn measure(
    work: &Work,
    program: &Program,
    image: Option<&Image>,
    arguments: &ClientArgs,
    plan: &Plan,
    progress: &Progress,
) -> io::Result<Row> {
    let directory = tempfile::Builder::new().prefix("coblk-bench-").tempdir()?;
    let socket = directory.path().join("server.sock");
    let image = image.map(Image::path);
    let service = Service {
        protocol: Protocol::Nbd,
        image,
        engine: Engine::IoUring,
        queues: 1,
        iothreads: 0,
        socket: &socket,
    };
    let places = Places::new(1)?;
    let mut server = Server::start(program.command(&service)?, &places)?;
    let bare = server
        .connect(&socket, |socket| NbdClient::connect(socket, program.export(), &work.job()))?;
    let contest = Contest::new(work.name(), Unit::NsPerOp, ours(work, &socket, program, &places)?);
    let contest = match arguments.common.count {
        Some(count) => contest.ops(count),
        None => contest,
    };
    let contest = contest.peer_to_beat("bare client", 0.9, bare_laps(bare, &places));
    let contest = add_qemu(contest, work, &socket, program, &places);
    let contest = match !work.is_write() && work.block_bytes == LARGE_BYTES {
        true => contest.peer_to_beat("nbdcopy", 0.9, nbdcopy(work, &socket, program, &places)),
        false => contest,
    };
    let mut row = contest.run(plan, || progress.tick())?;
    row.at = Some(At::Depth(work.depth));
    drop(server);
    Ok(row)
}

/// Runs `client` where clients run.
fn placed<R>(places: &Places, client: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    places.be_client()?;
    let result = client();
    places.leave()?;
    result
}

fn ours(
    work: &Work,
    socket: &Path,
    program: &Program,
    places: &Places,
) -> io::Result<impl FnMut(u64) -> io::Result<Lap> + use<>> {
    let ctx = AioContext::test_builder().name("bench").build()?;
    let blockdevs = Blockdevs::new(coblk::drivers());
    let options = NbdNodeOptions::new(SocketAddress::unix(socket), program.export());
    let mut options = NodeOptions::new(options);
    options.node_name = Some("bench".to_owned());
    let node = blockdevs.open(&ctx, options).map_err(io::Error::other)?;
    let backend = BlockBackend::new(&ctx, "bench", node);
    let generator = Generator::new(backend, &work.job())?;
    let places = places.clone();
    Ok(move |ops| {
        // The node ends with its registry.
        let _ = &blockdevs;
        placed(&places, || {
            let mut result = Ok(0);
            let lap = lap(ops, || result = generator.run(&ctx, Until::Count(ops)));
            result.map(|_| lap)
        })
    })
}

fn bare_laps(mut client: NbdClient, places: &Places) -> impl FnMut(u64) -> io::Result<Lap> + use<> {
    let places = places.clone();
    move |ops| {
        placed(&places, || {
            let mut result = Ok(());
            let lap = lap(ops, || result = client.run(ops));
            result.map(|()| lap)
        })
    }
}

fn uri(socket: &Path, program: &Program) -> String {
    format!("nbd+unix:///{}?socket={}", program.export(), socket.display())
}

fn add_qemu<'a>(
    contest: Contest<'a>,
    work: &Work,
    socket: &Path,
    program: &Program,
    places: &Places,
) -> Contest<'a> {
    if !qemu_img::is_installed() {
        return contest.missing("qemu-img bench", qemu_img::PACKAGE);
    }
    let path = socket.display();
    let node = format!(
        "{{\"driver\":\"raw\",\"file\":{{\"driver\":\"nbd\",\"export\":\"{}\",\
         \"server\":{{\"type\":\"unix\",\"path\":\"{path}\"}}}}}}",
        program.export()
    );
    let qemu = QemuImg::node(&node, work.depth, work.block_bytes);
    let mut qemu = if work.is_write() { qemu.writing() } else { qemu };
    let places = places.clone();
    contest.peer_to_beat("qemu-img bench", work.goal(), move |ops| {
        placed(&places, || qemu.run(ops)) //
    })
}

/// All of the export, with as many requests of the same length; its start is a part of it.
fn nbdcopy(
    work: &Work,
    socket: &Path,
    program: &Program,
    places: &Places,
) -> impl FnMut(u64) -> io::Result<Lap> + use<> {
    let (places, uri) = (places.clone(), uri(socket, program));
    let (depth, bytes) = (work.depth, work.block_bytes);
    move |_| {
        placed(&places, || {
            let mut command = Command::new("nbdcopy");
            command.args(["--no-extents", "--connections=1", "--threads=1"]);
            command.arg(format!("--requests={depth}"));
            command.arg(format!("--request-size={bytes}"));
            let (before, begun) = (sys::children_cpu(), Instant::now());
            let output = command.args([&uri, "null:"]).output()?;
            let wall_ns = begun.elapsed().as_nanos() as f64;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(io::Error::other(format!("nbdcopy: {}", said.trim())));
            }
            let cpu_ns = Some((sys::children_cpu() - before).as_nanos() as f64);
            let ops = NULL_BYTES / bytes as u64;
            Ok(Lap { ops, wall_ns, cpu_ns, allocs: None, latency: None })
        })
    }
}
