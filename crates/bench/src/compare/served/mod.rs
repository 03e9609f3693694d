//! `compare nbd` and `compare vhost-user`: our server beside those of others, each in a process of
//! its own, asked by the same client in turn.
//!
//! Two figures count: requests a second, and the CPU time that a request costs the server, in all
//! its threads. The client runs on CPUs of its own, so that a server is not charged for it.

mod latency;
pub mod works;

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use clap::Args;

use super::args::{self, CommonArgs};
use crate::engine::Engine;
use crate::image::Image;
use crate::measure::{Contest, Lap, Plan, lap};
use crate::peers::programs::{Program, Protocol, Service};
use crate::peers::server::{Places, Server};
use crate::plot;
use crate::progress::Progress;
use crate::report::{Report, Row};
use crate::workload::nbd::NbdClient;
use crate::workload::vhost_user::VhostUserClient;
use crate::works::Unit;
use works::{Device, Work};

/// From here on a client's share of its CPU says that it is what is measured.
const BOTTLENECK: f64 = 0.95;
/// Until then a server has noticed that no requests come any more.
const SETTLED: Duration = Duration::from_millis(2);

/// Arguments of `compare nbd` and `compare vhost-user`.
#[derive(Args, Clone, Debug)]
pub struct ServedArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Our server: a coblk-storage-daemon, or the example nbd_export or vhost_user_blk. Without this,
    /// the daemon that lies beside this program.
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// What does the servers' I/O, where they have a choice: threads, io_uring.
    #[arg(long, default_value = "io_uring", alias = "aio")]
    engine: Engine,
    /// Clients and servers run on any CPU, instead of each on its own.
    #[arg(long)]
    any_cpu: bool,
}

/// Measures the rows.
///
/// # Errors
/// If no row is wanted, there is no server of ours, or it fails.
pub fn run(
    protocol: Protocol,
    arguments: &ServedArgs,
    plan: &Plan,
    report: &mut Report,
) -> io::Result<()> {
    let works = args::wanted(Work::all(protocol), &arguments.common.only, Work::name)?;
    let ours = Program::ours(arguments.server.as_deref(), protocol)?;
    let needs_image = works.iter().any(|work| work.device == Device::Cached);
    let image = needs_image.then(|| arguments.common.image(plan)).transpose()?;
    let progress = Progress::new(works.len());
    for work in &works {
        progress.now(&work.name());
        let image = image.as_ref().filter(|_| work.device == Device::Cached);
        let stage = Stage { work, image, arguments };
        report.add(stage.measure(&ours, plan, &progress)?)?;
        progress.step();
    }
    drop(progress);
    if let Some(directory) = &arguments.common.plot {
        std::fs::create_dir_all(directory)?;
        plot::bars::write(&directory.join("ratios.svg"), report.rows())?;
        let curves = latency::measure(protocol, image.as_ref(), arguments, &ours, plan, report)?;
        let title = format!("Mean latency of {} 4 KiB reads over queue depth", protocol.name());
        plot::curve::write(&directory.join("latency.svg"), &title, &curves)?;
    }
    Ok(())
}

/// What the servers of one row have in common.
struct Stage<'a> {
    work: &'a Work,
    image: Option<&'a Image>,
    arguments: &'a ServedArgs,
}

impl Stage<'_> {
    fn measure(&self, ours: &Program, plan: &Plan, progress: &Progress) -> io::Result<Row> {
        if let Some(image) = self.image {
            image.warm()?;
        }
        let directory = tempfile::Builder::new().prefix("coblk-bench-").tempdir()?;
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("our server for {}: {error}", self.work.name()))
        };
        let mut bench = self.bench(ours, &directory.path().join("ours.sock")).map_err(named)?;
        let client_share = Rc::clone(&bench.client_share);
        let mut contest = Contest::new(self.work.name(), Unit::Iops, move |ops| bench.run(ops));
        if let Some(count) = self.arguments.common.count {
            contest = contest.ops(count);
        }
        let mut notes = Vec::new();
        for (index, (program, goal)) in self.work.peers().iter().enumerate() {
            let (name, package) = program.name();
            if !program.is_installed() {
                contest = contest.missing(name, package);
                continue;
            }
            match self.bench(program, &directory.path().join(format!("{index}.sock"))) {
                Ok(mut bench) => {
                    contest = contest.peer_to_beat(name, *goal, move |ops| bench.run(ops));
                }
                Err(error) => notes.push(format!("{name}: {error}")),
            }
        }
        let mut row = contest.run(plan, || progress.tick())?;
        if client_share.get() >= BOTTLENECK {
            row.notes.push("the client has no time left: our server may be faster".to_owned());
        }
        row.notes.extend(notes);
        Ok(row)
    }

    /// Starts a server, and connects to it.
    fn bench(&self, program: &Program, socket: &Path) -> io::Result<Bench> {
        let work = self.work;
        let service = Service {
            protocol: work.protocol,
            image: self.image.map(Image::path),
            engine: self.arguments.engine,
            queues: work.queues,
            socket,
        };
        let places =
            if self.arguments.any_cpu { Places::any()? } else { Places::new(work.queues)? };
        let mut server = Server::start(program.command(&service)?, &places)?;
        let connect = |socket: &Path| match work.protocol {
            Protocol::Nbd => {
                NbdClient::connect(socket, program.export(), &work.job()).map(Client::Nbd)
            }
            Protocol::VhostUser => {
                VhostUserClient::connect(socket, work.queues, &work.job()).map(Client::VhostUser)
            }
        };
        let client = server.connect(socket, connect)?;
        Ok(Bench { client, server, places, client_share: Rc::default() })
    }
}

enum Client {
    Nbd(NbdClient),
    VhostUser(VhostUserClient),
}

/// A server and its client.
struct Bench {
    /// It leaves before the server ends.
    client: Client,
    server: Server,
    places: Places,
    /// How much of the last lap the client had its CPU busy.
    client_share: Rc<Cell<f64>>,
}

impl Bench {
    fn run(&mut self, ops: u64) -> io::Result<Lap> {
        self.places.be_client()?;
        let before = self.server.cpu_ns()?;
        let mut done = Ok(ops);
        let client = lap(ops, || {
            done = match &mut self.client {
                Client::Nbd(client) => client.run(ops).map(|()| ops),
                Client::VhostUser(client) => client.run(ops),
            };
        });
        // The kernel counts the time of a thread when it goes to sleep.
        std::thread::sleep(SETTLED);
        let server_ns = self.server.cpu_ns()?.saturating_sub(before);
        self.places.leave()?;
        self.client_share.set(client.cpu_ns.unwrap_or(0.0) / client.wall_ns);
        Ok(Lap { ops: done?, cpu_ns: Some(server_ns as f64), allocs: None, ..client })
    }
}
