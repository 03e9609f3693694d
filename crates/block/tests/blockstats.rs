//! What a monitor asks of backends on other contexts, and tells them.

use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, IoThread, IoVector, SimulationOptions};
use coblk_block::accounting::{Average, LatencyBoundaries, LatencyHistogram};
use coblk_block::drivers::{Null, Raw};
use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{
    Accounting, BackendInfo, BackendOptions, BlockBackend, BlockNode, RequestKind, Statistics,
    WriteFlags, ZeroFlags,
};

const MS: u64 = 1_000_000;

struct Scene {
    ctx: AioContext,
    rules: Rules,
    backend: BlockBackend,
    statistics: Statistics,
}

/// A disk whose requests take as long as the rules say.
fn scene() -> Scene {
    let options = SimulationOptions::new(1);
    let ctx = AioContext::test_builder().simulated(options).build().unwrap();
    let rules = Rules::new(1);
    let disk = BlockNode::new("disk", Null::new(1 << 20));
    let node = BlockNode::new("debug", BlkDebug::new(disk, rules.clone()));
    let backend = BlockBackend::new(&ctx, "drive", node);
    let statistics = backend.statistics();
    Scene { ctx, rules, backend, statistics }
}

impl Scene {
    fn write(&self, ms: u64) -> std::io::Result<()> {
        self.write_by(Rule::delay(Duration::from_millis(ms)))
    }

    fn write_by(&self, rule: Rule) -> std::io::Result<()> {
        self.rules.add(rule.once());
        let source = IoVector::from(&[0; 512][..]);
        self.backend.pwritev(&self.ctx, 0, &source, WriteFlags::empty())
    }

    fn zero(&self, ms: u64) {
        self.rules.add(Rule::delay(Duration::from_millis(ms)).once());
        self.backend.pwrite_zeroes(&self.ctx, 0, 4096, ZeroFlags::empty()).unwrap();
    }
}

fn boundaries(ms: &[u64]) -> Option<Vec<u64>> {
    Some(ms.iter().map(|ms| ms * MS).collect())
}

fn bins(histogram: Option<LatencyHistogram>) -> Vec<u64> {
    histogram.expect("bins").bins
}

#[test]
fn latency_boundaries_come_and_go_while_requests_run() {
    let scene = scene();
    let statistics = &scene.statistics;
    let set = |boundaries: LatencyBoundaries| statistics.set_latency_boundaries(&boundaries);
    scene.write(7).unwrap();
    assert_eq!(statistics.snapshot().write.total_time_ns, 0, "no clock yet");
    set(LatencyBoundaries { all: boundaries(&[5, 10]), ..Default::default() }).unwrap();
    assert_eq!(scene.backend.accounting(), Accounting::Counts, "what was asked for");
    [1, 5, 7, 100].into_iter().for_each(|ms| scene.write(ms).unwrap());
    scene.zero(20);
    let stats = statistics.snapshot();
    assert_eq!(bins(stats.write_latencies), [1, 2, 2], "zeroes are writes");
    assert_eq!(bins(stats.read_latencies), [0, 0, 0]);
    assert_eq!((stats.write.operations, stats.write.bytes), (6, 5 * 512 + 4096));
    assert_eq!(stats.write.total_time_ns, 133 * MS);
    // One kind alone, anew; others stay.
    let write = boundaries(&[50]);
    set(LatencyBoundaries { write, ..Default::default() }).unwrap();
    scene.write(60).unwrap();
    let stats = statistics.snapshot();
    assert_eq!(bins(stats.write_latencies), [0, 1]);
    assert_eq!(bins(stats.flush_latencies), [0, 0, 0]);
    // A kind's own boundaries go before those of all.
    let (all, read) = (boundaries(&[1]), boundaries(&[2, 3]));
    set(LatencyBoundaries { all, read, ..Default::default() }).unwrap();
    let stats = statistics.snapshot();
    assert_eq!(stats.read_latencies.unwrap().boundaries_ns, [2 * MS, 3 * MS]);
    assert_eq!(stats.flush_latencies.unwrap().boundaries_ns, [MS]);
    // What makes no sense changes nothing.
    let (all, flush) = (boundaries(&[9]), boundaries(&[2, 2]));
    let error = set(LatencyBoundaries { all, flush, ..Default::default() }).unwrap_err();
    assert_eq!(error.to_string(), "boundaries of flush latency bins must ascend from above 0");
    assert_eq!(statistics.snapshot().read_latencies.unwrap().boundaries_ns, [2 * MS, 3 * MS]);
    set(LatencyBoundaries::default()).unwrap();
    let stats = statistics.snapshot();
    let all = [stats.read_latencies, stats.write_latencies, stats.flush_latencies];
    assert_eq!(all, [None, None, None]);
    let before = statistics.snapshot().write.total_time_ns;
    scene.write(5).unwrap();
    assert_eq!(statistics.snapshot().write.total_time_ns, before, "no clock any more");
}

#[test]
fn averages_of_writes_and_zeroes_are_one() {
    let scene = scene();
    scene.statistics.add_interval(Duration::from_secs(10));
    scene.write(1).unwrap();
    scene.write(3).unwrap();
    scene.zero(8);
    let timed = scene.statistics.snapshot().timed;
    let expected = Average { min: MS, avg: 4 * MS, max: 8 * MS, count: 3 };
    assert_eq!((timed.len(), timed[0].interval), (1, Duration::from_secs(10)));
    assert_eq!((timed[0].write, timed[0].read), (expected, Average::default()));
    assert!((timed[0].write_depth - 1.0).abs() < 0.01, "{}", timed[0].write_depth);
}

#[test]
fn failed_and_invalid_requests_may_be_left_out_of_times() {
    let scene = scene();
    scene.backend.set_accounting(Accounting::Exact);
    let rule = Rule::fail(libc::EIO).after(Duration::from_millis(5));
    let fail = || scene.write_by(rule.clone()).unwrap_err();
    fail();
    let stats = scene.statistics.snapshot();
    assert_eq!((stats.write.failed, stats.write.total_time_ns), (1, 5 * MS));
    assert_eq!((stats.account_failed, stats.account_invalid), (true, true));
    scene.statistics.set_account(false, false);
    fail();
    let stats = scene.statistics.snapshot();
    assert_eq!((stats.write.failed, stats.write.total_time_ns), (2, 5 * MS));
    assert_eq!((stats.account_failed, stats.account_invalid), (false, false));
    scene.write(5).unwrap();
    assert_eq!(scene.statistics.snapshot().write.total_time_ns, 10 * MS);
}

#[test]
fn a_monitor_finds_the_backends_of_other_contexts_by_their_node() {
    let thread = IoThread::new("io").unwrap();
    let disk = BlockNode::new("disk", Null::new(1 << 20));
    let (raw, node) = (Raw::part(disk.clone(), 4096, None).unwrap(), "raw");
    let node = BlockNode::new(node, raw);
    let on_thread = node.clone();
    let opened = thread
        .handle()
        .spawn("open", move |co| BlockBackend::new(co.context(), "export", on_thread).remote());
    let remote = opened.wait().unwrap();
    let found = node.backends();
    assert_eq!(found.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["export"]);
    assert!(disk.backends().is_empty(), "an edge is none");
    let statistics = &found[0].statistics;
    let all = Some(vec![1]);
    statistics.set_latency_boundaries(&LatencyBoundaries { all, ..Default::default() }).unwrap();
    for at in [0, 8192, 512] {
        remote.pwritev(at, vec![0; 512], WriteFlags::empty()).wait().unwrap().0.unwrap();
    }
    remote.pwrite_zeroes(0, 1024, ZeroFlags::empty()).wait().unwrap().unwrap();
    remote.pwritev(1 << 20, vec![0; 512], WriteFlags::empty()).wait().unwrap().0.unwrap_err();
    let stats = statistics.snapshot();
    assert_eq!((stats.write.operations, stats.write.invalid), (4, 1));
    assert_eq!(bins(stats.write_latencies).iter().sum::<u64>(), 4);
    assert_eq!(node.describe().highest_write, 8192 + 512);
    assert_eq!(disk.describe().highest_write, 4096 + 8192 + 512);
    assert_eq!(statistics.of(RequestKind::Write).operations, 3);
}

/// Names may be given twice, and nodes be replaced: a device is found by itself.
#[test]
fn a_device_is_told_from_others_of_its_name_wherever_it_is() {
    let ctx = AioContext::for_test().unwrap();
    let null = |name: &str| BlockNode::new(name, Null::new(1 << 20));
    let (first, second) = (null("first"), null("second"));
    let options = BackendOptions::new("drive").share_rw(true);
    let (mine, device) = (options.open(&ctx, Arc::clone(&first)).unwrap(), options.device());
    let namesake = BackendOptions::new("drive").share_rw(true);
    let other = namesake.open(&ctx, Arc::clone(&first)).unwrap();
    let write = |backend: &BlockBackend| {
        let source = IoVector::from(&[7; 512][..]);
        backend.pwritev(&ctx, 0, &source, WriteFlags::empty()).unwrap();
    };
    write(&mine);
    write(&other);
    write(&other);
    let counted = || {
        let counts = |it: BackendInfo| it.statistics.of(RequestKind::Write).operations;
        device.backends().into_iter().map(counts).collect::<Vec<_>>()
    };
    assert_eq!((counted(), device.node().unwrap().name()), (vec![1], "first"));
    first.replace(&ctx, &second).unwrap();
    write(&mine);
    assert_eq!((counted(), device.node().unwrap().name()), (vec![2], "second"));
    // One more of its contexts.
    let thread = IoThread::new("io").unwrap();
    let remote = options.open_remote(thread.handle(), Arc::clone(&second)).wait().unwrap().unwrap();
    assert_eq!(counted(), [2, 0]);
    drop((mine, remote));
    // What has left is no longer there when the thread has come round.
    while !device.backends().is_empty() {
        thread.handle().spawn("turn", |_| ()).wait().unwrap();
    }
    assert!(device.node().is_none());
}
