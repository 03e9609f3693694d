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
use crate::peers::stranger::Stranger;
use crate::plot::{self, curve::Axes};
use crate::progress::Progress;
use crate::report::{self, Report, Row};
use crate::stats::Percentiles;
use crate::workload::nbd::clients::NbdClients;
use crate::workload::vhost_user::VhostUserClient;
use works::{Device, Special, Work};

/// From here on a client's share of its CPU says that it is what is measured.
const BOTTLENECK: f64 = 0.95;
/// Below this share of the requests that were due, a server did not keep up.
const KEPT_UP: f64 = 0.99;
/// The share of its requests that a server has to make while it marks dirty pages.
const LOGGED: f64 = 0.9;
/// Until then a server has noticed that no requests come any more, or goes on after a pause.
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
    measure_all(&works, image.as_ref(), arguments, &ours, plan, report)?;
    if let Some(directory) = &arguments.common.plot {
        std::fs::create_dir_all(directory)?;
        plot::bars::write(&directory.join("ratios.svg"), report.rows())?;
        let curves = latency::measure(protocol, image.as_ref(), arguments, &ours, plan, report)?;
        let title = format!("Mean latency of {} 4 KiB reads over queue depth", protocol.name());
        let axes = Axes { title: &title, across: "requests in flight", value: report::time };
        plot::curve::write(&directory.join("latency.svg"), &axes, &curves)?;
    }
    Ok(())
}

/// Measures the rows of the curves, over depths and over rates, and what a stranger changes.
///
/// # Errors
/// As of [`run`].
pub fn curves(
    protocol: Protocol,
    server: Option<PathBuf>,
    plan: &Plan,
    report: &mut Report,
) -> io::Result<()> {
    let ours = Program::ours(server.as_deref(), protocol)?;
    let (common, engine) = (CommonArgs::default(), Engine::IoUring);
    let arguments = ServedArgs { common, server, engine, any_cpu: false };
    measure_all(&Work::of_curves(protocol), None, &arguments, &ours, plan, report)
}

fn measure_all(
    works: &[Work],
    image: Option<&Image>,
    arguments: &ServedArgs,
    ours: &Program,
    plan: &Plan,
    report: &mut Report,
) -> io::Result<()> {
    let progress = Progress::new(works.len());
    for work in works {
        progress.now(&work.name());
        let image = image.filter(|_| work.device == Device::Cached);
        let stage = Stage { work, image, arguments, rate_lap: plan.rate_lap };
        report.add(stage.measure(ours, plan, &progress)?)?;
        progress.step();
    }
    Ok(())
}

/// What the servers of one row have in common.
struct Stage<'a> {
    work: &'a Work,
    image: Option<&'a Image>,
    arguments: &'a ServedArgs,
    /// How long a lap at a fixed rate takes.
    rate_lap: Duration,
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
        let queues = self.work.queues;
        let socket = directory.path().join("ours.sock");
        let bench = self.bench(ours, queues, self.work.special, &socket).map_err(named)?;
        let mut seen = vec![("coblk", Rc::clone(&bench.seen))];
        let mut contest = Contest::new(self.work.name(), self.work.unit(), bench.laps());
        if let Some(per_s) = self.work.per_s {
            contest = contest.ops((per_s as f64 * self.rate_lap.as_secs_f64()) as u64);
        } else if let Some(count) = self.arguments.common.count {
            contest = contest.ops(count);
        }
        if self.work.is_threaded() {
            let socket = directory.path().join("one.sock");
            let bench = self.bench(ours, 1, None, &socket).map_err(named)?;
            contest = contest.peer_to_beat("coblk, 1 iothread", 1.8, bench.laps());
        }
        if let Some(special) = self.work.special {
            let socket = directory.path().join("plain.sock");
            let bench = self.bench(ours, queues, None, &socket).map_err(named)?;
            contest = match special {
                Special::Packed => contest.peer("coblk, split", bench.laps()),
                Special::Logged => contest.peer_to_beat("coblk, no log", LOGGED, bench.laps()),
            };
        }
        let mut notes = Vec::new();
        for (index, (program, goal)) in self.work.peers().iter().enumerate() {
            let (name, package) = program.name();
            if !program.is_installed() {
                contest = contest.missing(name, package);
                continue;
            }
            let socket = directory.path().join(format!("{index}.sock"));
            match self.bench(program, queues, None, &socket) {
                Ok(bench) => {
                    seen.push((name, Rc::clone(&bench.seen)));
                    contest = match goal {
                        Some(goal) => contest.peer_to_beat(name, *goal, bench.laps()),
                        None => contest.peer(name, bench.laps()),
                    };
                }
                Err(error) => notes.push(format!("{name}: {error}")),
            }
        }
        if self.work.taken {
            contest = contest.beside(Stranger::take(self.places()?.servers()[0])?);
        }
        let mut row = contest.run(plan, || progress.tick())?;
        row.at = Some(self.work.at());
        let is_busy = self.work.per_s.is_none() && seen[0].1.client_share.get() >= BOTTLENECK;
        if is_busy {
            row.notes.push("the client has no time left: our server may be faster".to_owned());
        }
        let behind = seen.iter().filter(|(_, seen)| seen.is_behind.get());
        row.notes.extend(behind.map(|(name, _)| format!("{name} does not keep up")));
        row.notes.extend(notes);
        Ok(row)
    }

    fn places(&self) -> io::Result<Places> {
        if self.arguments.any_cpu { Places::any() } else { Places::new(self.work.queues) }
    }

    /// Starts a server, one of NBD with so many iothreads if several are measured, and connects to it.
    fn bench(
        &self,
        program: &Program,
        iothreads: usize,
        special: Option<Special>,
        socket: &Path,
    ) -> io::Result<Bench> {
        let work = self.work;
        let packed = special == Some(Special::Packed);
        let service = Service {
            protocol: work.protocol,
            image: self.image.map(Image::path),
            engine: self.arguments.engine,
            queues: work.queues,
            iothreads: if work.is_threaded() { iothreads } else { 0 },
            socket,
        };
        let places = self.places()?;
        let mut server = Server::start(program.command(&service)?, &places)?;
        let connect = |socket: &Path| match work.protocol {
            Protocol::Nbd => {
                NbdClients::connect(socket, program.export(), work.queues, &work.job())
                    .map(Client::Nbd)
            }
            Protocol::VhostUser => {
                VhostUserClient::connect(socket, work.queues, packed, &work.job())
                    .map(Client::VhostUser)
            }
        };
        let mut client = server.connect(socket, connect)?;
        if let (Client::VhostUser(client), Some(Special::Logged)) = (&mut client, special) {
            client.give_log(socket)?;
        }
        if program.spins() {
            server.pause()?;
        }
        let rate = work.per_s.map(|per_s| (per_s, self.rate_lap));
        Ok(Bench { client, server, places, spins: program.spins(), rate, seen: Rc::default() })
    }
}

enum Client {
    Nbd(NbdClients),
    VhostUser(VhostUserClient),
}

impl Client {
    fn run(&mut self, ops: u64) -> io::Result<u64> {
        match self {
            Client::Nbd(client) => client.run(ops),
            Client::VhostUser(client) => client.run(ops),
        }
    }

    fn run_at_rate(&mut self, per_s: u64, time: Duration) -> io::Result<u64> {
        match self {
            Client::Nbd(client) => client.run_at_rate(per_s, time),
            Client::VhostUser(client) => client.run_at_rate(per_s, time),
        }
    }

    fn take_latencies(&mut self) -> io::Result<Option<Percentiles>> {
        let latencies = match self {
            Client::Nbd(client) => client.take_latencies()?,
            Client::VhostUser(client) => client.take_latencies()?,
        };
        Ok(Percentiles::of(&latencies))
    }
}

/// What was seen of the laps besides their figures.
#[derive(Default)]
struct Seen {
    /// How much of the last lap the client had its CPU busy.
    client_share: Cell<f64>,
    /// Whether too few requests were made in one.
    is_behind: Cell<bool>,
}

/// A server and its client.
struct Bench {
    /// It leaves before the server ends.
    client: Client,
    server: Server,
    places: Places,
    /// The server takes time from others while it waits.
    spins: bool,
    /// Of an open loop: requests a second, and for how long.
    rate: Option<(u64, Duration)>,
    seen: Rc<Seen>,
}

impl Bench {
    fn laps(mut self) -> impl FnMut(u64) -> io::Result<Lap> {
        move |ops| {
            if self.spins {
                self.server.go_on()?;
                // It takes up its CPU again before the first request comes.
                std::thread::sleep(SETTLED);
            }
            let lap = self.run(ops);
            if self.spins {
                self.server.pause()?;
            }
            lap
        }
    }

    fn run(&mut self, ops: u64) -> io::Result<Lap> {
        self.places.be_client()?;
        let before = self.server.cpu_ns()?;
        let mut done = Ok(ops);
        let client = lap(ops, || {
            done = match self.rate {
                None => self.client.run(ops),
                Some((per_s, time)) => self.client.run_at_rate(per_s, time),
            };
        });
        if !self.spins {
            // The kernel counts the time of a thread when it goes to sleep.
            std::thread::sleep(SETTLED);
        }
        let server_ns = self.server.cpu_ns()?.saturating_sub(before);
        self.places.leave()?;
        self.seen.client_share.set(client.cpu_ns.unwrap_or(0.0) / client.wall_ns);
        let (done, latency) = (done?, self.client.take_latencies()?);
        if self.rate.is_some() && (done as f64) < KEPT_UP * ops as f64 {
            self.seen.is_behind.set(true);
        }
        Ok(Lap { ops: done, cpu_ns: Some(server_ns as f64), allocs: None, latency, ..client })
    }
}
