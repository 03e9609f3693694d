//! A node of our NBD client on two contexts, each with a connection and a thread of its own, beside one: how many times
//! as many requests a second.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use coblk::drivers::NbdNodeOptions;
use coblk::nbd::SocketAddress;
use coblk::options::NodeOptions;
use coblk::{AioContext, BlockNode, Blockdevs, IoThread};

use crate::engine::Engine;
use crate::measure::{Lap, Plan};
use crate::peers::programs::{NULL_BYTES, Program, Protocol, Service};
use crate::peers::server::{Places, Server};
use crate::progress::Progress;
use crate::report::{At, Row};
use crate::stats::median;
use crate::workload::nbd::NbdClient;
use crate::workload::{Job, Until, threads};
use crate::works::Unit;

const DEPTH: usize = 32;
const BLOCK_BYTES: usize = 4096;
/// Requests of each context that count for nothing.
const WARM_UP: u64 = 1000;
/// What two contexts are to reach.
const GOAL: f64 = 1.7;

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Our server, with a thread for each connection: what the CPUs have room for.
    Own,
    /// A server that answers after a millisecond, as far away ones do.
    Far,
}

impl Work {
    /// All rows, in their order.
    pub const ALL: [Work; 2] = [Work::Own, Work::Far];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Work::Own => "nbd-client coblk null read 4k QD32 two contexts",
            Work::Far => "nbd-client nbdkit 1 ms read 4k QD32 two contexts",
        }
    }

    fn job(self) -> Job {
        Job { block_bytes: BLOCK_BYTES, ..Job::sequential_reads(DEPTH, u64::MAX) }
    }

    fn command(self, ours: &Program, socket: &Path) -> io::Result<Command> {
        match self {
            Work::Own => ours.command(&Service {
                protocol: Protocol::Nbd,
                image: None,
                engine: Engine::IoUring,
                queues: 1,
                iothreads: 2,
                socket,
            }),
            Work::Far => {
                let mut command = Command::new(Program::Nbdkit.path());
                command.args(["--foreground", "--filter=delay", "--unix"]).arg(socket);
                command.args(["null", &NULL_BYTES.to_string(), "rdelay=1ms"]);
                Ok(command)
            }
        }
    }

    fn program(self, ours: &Program) -> Program {
        if self == Work::Far { Program::Nbdkit } else { ours.clone() }
    }

    /// Measures the row.
    ///
    /// # Errors
    /// If there is no server, or our client fails.
    pub fn measure(self, ours: &Program, plan: &Plan, progress: &Progress) -> io::Result<Row> {
        let mut row = Row::new(self.name(), Unit::TimesOne);
        row.at = Some(At::Depth(DEPTH));
        let program = self.program(ours);
        if !program.is_installed() {
            row.notes.push("nbdkit is not installed".to_owned());
            return Ok(row);
        }
        let directory = tempfile::Builder::new().prefix("coblk-bench-").tempdir()?;
        let socket = directory.path().join("server.sock");
        let mut server = Server::start(self.command(ours, &socket)?, &Places::any()?)?;
        drop(server.connect(&socket, |socket| {
            NbdClient::connect(socket, program.export(), &self.job()) //
        })?);
        let node = NbdNodeOptions::new(SocketAddress::unix(&socket), program.export());
        let home = IoThread::new("bench-home")?;
        let blockdevs = Arc::new(Blockdevs::new(coblk::drivers()));
        let node = open_on(&home, &blockdevs, NodeOptions::new(node))?;
        self.compare(&node, plan, progress, &mut row)?;
        Ok(row)
    }

    fn compare(
        self,
        node: &Arc<BlockNode>,
        plan: &Plan,
        progress: &Progress,
        row: &mut Row,
    ) -> io::Result<()> {
        let of = |contexts| {
            let time = Until::Elapsed(plan.lap);
            threads::run(node, &self.job(), contexts, time, WARM_UP).map(|it| it.lap)
        };
        let cpu = |lap: &Lap| lap.cpu_ns.unwrap_or_default() / lap.ops as f64;
        let (mut times, mut cpus) = (Vec::new(), [Vec::new(), Vec::new()]);
        for _ in 0..plan.rounds {
            let laps = [of(1)?, of(2)?];
            let per_ns = laps.each_ref().map(|lap| lap.ops as f64 / lap.wall_ns);
            times.push(per_ns[1] / per_ns[0]);
            laps.iter().zip(&mut cpus).for_each(|(lap, all)| all.push(cpu(lap)));
            progress.tick();
        }
        row.ours = median(&times);
        row.cpu_ns_per_op = median(&cpus[1]);
        let one = median(&cpus[0]).unwrap_or_default();
        row.notes
            .push(format!("one context: {one:.0} ns of CPU time a request; the goal is {GOAL}"));
        Ok(())
    }
}

/// Opens a node whose context runs all the while, as the node makes its connections there, whichever context asks.
fn open_on(
    home: &IoThread,
    nodes: &Arc<Blockdevs>,
    options: NodeOptions,
) -> io::Result<Arc<BlockNode>> {
    let nodes = Arc::clone(nodes);
    let opened = home.handle().spawn("open", move |co| nodes.co_open(co, options));
    let ctx = AioContext::test_builder().name("bench").build()?;
    let opened = ctx.run(|co| co.block_on(opened)).map_err(io::Error::other)?;
    opened.map_err(io::Error::other)
}
