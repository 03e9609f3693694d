//! Requests that do nothing, through the whole stack: what the framework itself costs.

use std::io;
use std::sync::Arc;

use coblk::drivers::{Null, Raw};
use coblk::{AioContext, BlockBackend, BlockNode};

use crate::measure::{Contest, Plan};
use crate::peers::qemu_img::{self, QemuImg};
use crate::report::Row;
use crate::stats::median;
use crate::workload::{Generator, Job, Until, threads};
use crate::works::Work;

const SIZE_BYTES: u64 = 1 << 30;

/// How many nodes are above the null node of a chain.
const CHAIN: usize = 8;

/// One `aio_preadv` after the other, `depth` at a time.
pub fn contest(work: Work, depth: usize) -> io::Result<Contest<'static>> {
    let deferred = matches!(work, Work::NullAioQd1 | Work::NullAioQd64);
    let contest = reads(work, null_node(deferred), depth)?;
    let driver = if deferred { "null-aio" } else { "null-co" };
    let name = format!("qemu {driver}");
    Ok(if qemu_img::is_installed() {
        let mut peer = QemuImg::null(driver, depth);
        contest.peer(name, move |ops| peer.run(ops))
    } else {
        contest.missing(name, qemu_img::PACKAGE)
    })
}

/// [`contest`], below nodes that pass requests on: what the levels of a chain cost.
pub fn chain(work: Work, depth: usize) -> io::Result<Contest<'static>> {
    let above = |node, _| BlockNode::new("raw", Raw::new(node));
    reads(work, (0..CHAIN).fold(null_node(work == Work::ChainAioQd64), above), depth)
}

fn null_node(deferred: bool) -> Arc<BlockNode> {
    BlockNode::new("null", Null::new(SIZE_BYTES).deferred(deferred))
}

fn reads(work: Work, node: Arc<BlockNode>, depth: usize) -> io::Result<Contest<'static>> {
    let ctx = AioContext::for_test()?;
    let backend = BlockBackend::new(&ctx, "bench", node);
    let generator = Generator::new(backend, &Job::sequential_reads(depth, SIZE_BYTES))?;
    Ok(Contest::new(work.name(), work.unit(), move |ops| {
        let mut result = Ok(0);
        let lap = crate::measure::lap(ops, || result = generator.run(&ctx, Until::Count(ops)));
        result.map(|_| lap)
    }))
}

/// The throughput of two contexts on two threads as a multiple of that of one.
pub fn two_contexts(plan: &Plan, mut step: impl FnMut()) -> io::Result<Row> {
    let node = BlockNode::new("null", Null::new(SIZE_BYTES));
    let job = Job::sequential_reads(64, SIZE_BYTES);
    let time = Until::Elapsed(plan.lap);
    let mut ratios = Vec::new();
    let mut cpu = Vec::new();
    for _ in 0..plan.rounds {
        let iops = |contexts| -> io::Result<(f64, f64)> {
            let lap = threads::run(&node, &job, contexts, time, 1000)?.lap;
            Ok((lap.ops as f64 / lap.wall_ns, lap.cpu_ns.unwrap_or(0.0) / lap.ops as f64))
        };
        let (one, _) = iops(1)?;
        let (two, cpu_ns) = iops(2)?;
        ratios.push(two / one);
        cpu.push(cpu_ns);
        step();
    }
    let mut row = Row::new(Work::TwoContexts.name(), Work::TwoContexts.unit());
    row.ours = median(&ratios);
    row.cpu_ns_per_op = median(&cpu);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        row.notes.push("this machine has one core".to_owned());
    }
    Ok(row)
}
