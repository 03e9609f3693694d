//! [`Sample`]: the numbers of a moment.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coblk::aio::{AioHandle, WaitStats};
use coblk::block::accounting::{KindStatistics, LatencyHistogram};
use coblk::block::{Device, IoStatus, RequestKind, Statistics};
use coblk::export::{ExportInfo, RunningExport};
use coblk::{AioContext, BlockNode, Co};

/// Where bins of latencies meet, in nanoseconds: 10 us to 10 s.
const BOUNDARIES_NS: [u64; 19] = {
    let mut boundaries = [0; 19];
    let (mut place, mut decade) = (0, 10_000);
    while place < boundaries.len() {
        let within = [10, 25, 50][place % 3];
        // One more, for in Prometheus a boundary belongs to the bin below.
        boundaries[place] = decade * within / 10 + 1;
        if place % 3 == 2 {
            decade *= 10;
        }
        place += 1;
    }
    boundaries
};
/// How long the loop of a thread may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is told of the daemon.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(super) start: SystemTime,
    pub(super) loops: Vec<LoopSample>,
    pub(super) exports: Vec<ExportSample>,
    /// Name, driver, and length in bytes.
    pub(super) nodes: Vec<(String, &'static str, u64)>,
    /// If there is a server.
    pub(super) nbd_connections: Option<usize>,
}

/// A loop, and its workers.
#[derive(Debug)]
pub(crate) struct LoopSample {
    pub(super) name: String,
    pub(super) threads: usize,
    pub(super) idle_threads: usize,
    pub(super) queued_jobs: usize,
    pub(super) coroutines: usize,
    pub(super) has_ring: bool,
    pub(super) waits: WaitStats,
}

/// An export: the sum of its backends, which are one a context.
#[derive(Debug)]
pub(super) struct ExportSample {
    pub(super) info: ExportInfo,
    pub(super) in_use: bool,
    pub(super) in_flight: u64,
    pub(super) held: u64,
    pub(super) kinds: Vec<(RequestKind, KindStatistics, Option<LatencyHistogram>)>,
}

/// From now on latencies of a device are counted.
pub(crate) fn measure_latencies(device: Device) {
    for statistics in statistics_of(device) {
        for kind in RequestKind::ALL {
            if statistics.latencies(kind).is_none() {
                let set = statistics.set_latency_bins(kind, Some(&BOUNDARIES_NS));
                set.expect("boundaries that ascend");
            }
        }
    }
}

/// What the backends of an export count, wherever changes of the graph have put them.
fn statistics_of(device: Device) -> Vec<Statistics> {
    device.backends().into_iter().map(|backend| backend.statistics).collect()
}

impl Sample {
    /// Reads them.
    pub(crate) fn take(
        start: SystemTime,
        loops: Vec<LoopSample>,
        exports: &[RunningExport],
        nodes: &[Arc<BlockNode>],
        nbd_connections: Option<usize>,
    ) -> Sample {
        let nodes = nodes.iter();
        Sample {
            start,
            loops,
            exports: exports.iter().map(ExportSample::take).collect(),
            nodes: nodes
                .map(|node| (node.name().to_owned(), node.driver().format_name(), node.length()))
                .collect(),
            nbd_connections,
        }
    }

    pub(super) fn start_seconds(&self) -> f64 {
        self.start.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }
}

/// Suspends, to ask the other loops; one that does not answer is left out.
pub(crate) fn co_ask_loops(co: &Co<'_>, others: Vec<(String, AioHandle)>) -> Vec<LoopSample> {
    let mut loops = vec![LoopSample::take(co.context(), "main")];
    for (name, handle) in others {
        loops.extend(ask(co, name, handle));
    }
    loops
}

fn ask(co: &Co<'_>, name: String, handle: AioHandle) -> Option<LoopSample> {
    let answer = co.timeout(PATIENCE, "metrics of a thread", move |co| {
        co.block_on(handle.spawn("metrics", move |co| LoopSample::take(co.context(), &name)))
    });
    answer.ok()?.ok()
}

impl LoopSample {
    fn take(ctx: &AioContext, name: &str) -> LoopSample {
        let pool = ctx.thread_pool();
        LoopSample {
            name: name.to_owned(),
            threads: pool.threads(),
            idle_threads: pool.idle_threads(),
            queued_jobs: pool.queued_jobs(),
            coroutines: ctx.coroutines().len(),
            has_ring: ctx.has_ring(),
            waits: ctx.wait_stats(),
        }
    }
}

impl ExportSample {
    fn take(export: &RunningExport) -> ExportSample {
        let backends = statistics_of(export.device());
        let sum = |number: fn(&Statistics) -> u64| backends.iter().map(number).sum();
        let of_kind = |kind| {
            let latencies = backends.iter().filter_map(|backend| backend.latencies(kind));
            let counted = backends.iter().map(|backend| backend.of(kind));
            (kind, counted.fold(KindStatistics::default(), add), latencies.reduce(add_latencies))
        };
        ExportSample {
            info: export.info(),
            in_use: export.is_in_use(),
            in_flight: sum(Statistics::queue_depth),
            held: sum(Statistics::held_requests),
            kinds: RequestKind::ALL.into_iter().map(of_kind).collect(),
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.info.io_status != IoStatus::Ok
    }
}

fn add(one: KindStatistics, other: KindStatistics) -> KindStatistics {
    KindStatistics {
        operations: one.operations + other.operations,
        bytes: one.bytes + other.bytes,
        total_time_ns: one.total_time_ns + other.total_time_ns,
        failed: one.failed + other.failed,
        invalid: one.invalid + other.invalid,
        merged: one.merged + other.merged,
    }
}

/// Bins that meet elsewhere, which were set for one backend alone, are left out.
fn add_latencies(mut one: LatencyHistogram, other: LatencyHistogram) -> LatencyHistogram {
    if one.boundaries_ns == other.boundaries_ns {
        one.bins.iter_mut().zip(other.bins).for_each(|(bin, more)| *bin += more);
    }
    one
}
