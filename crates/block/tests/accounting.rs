//! What backends count, through all doors.

use std::io;
use std::time::Duration;

use coblk_aio::{AioContext, IoThread, IoVector, IoVectorMut, SimulationOptions};
use coblk_block::accounting::{Average, KindStatistics, LatencyPercentiles};
use coblk_block::drivers::Null;
use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{
    Accounting, BlockBackend, BlockNode, RemoteBackend, RequestKind, Statistics, WriteFlags,
    ZeroFlags,
};

const DISK_BYTES: u64 = 1 << 20;

struct Scene {
    ctx: AioContext,
    rules: Rules,
    backend: BlockBackend,
    statistics: Statistics,
}

fn scene() -> Scene {
    let options = SimulationOptions::new(1);
    let ctx = AioContext::test_builder().simulated(options).build().expect("a context");
    let rules = Rules::new(1);
    let disk = BlockNode::new("disk", Null::new(DISK_BYTES));
    let node = BlockNode::new("debug", BlkDebug::new(disk, rules.clone()));
    let backend = BlockBackend::new(&ctx, "drive", node);
    let statistics = backend.statistics();
    Scene { ctx, rules, backend, statistics }
}

fn delayed(ms: u64) -> Rule {
    Rule::delay(Duration::from_millis(ms))
}

impl Scene {
    fn write(&self, offset: u64) -> io::Result<()> {
        let source = IoVector::from(&[0; 512][..]);
        self.backend.pwritev(&self.ctx, offset, &source, WriteFlags::empty())
    }

    fn of(&self, kind: RequestKind) -> KindStatistics {
        self.statistics.of(kind)
    }
}

#[test]
fn every_kind_is_counted_by_itself() {
    let scene = scene();
    let (ctx, backend) = (&scene.ctx, &scene.backend);
    scene.write(0).expect("a write");
    scene.write(512).expect("a write");
    let mut buffer = [0; 4096];
    backend.preadv(ctx, 0, &mut IoVectorMut::from(&mut buffer[..])).expect("a read");
    backend.flush(ctx).expect("a flush");
    backend.pdiscard(ctx, 0, 8192).expect("a discard");
    backend.pwrite_zeroes(ctx, 0, 65536, ZeroFlags::empty()).expect("zeroes");
    let counts = RequestKind::ALL.map(|kind| (scene.of(kind).operations, scene.of(kind).bytes));
    assert_eq!(counts, [(1, 4096), (2, 1024), (1, 0), (1, 8192), (1, 65536)]);
    assert!(RequestKind::ALL.into_iter().all(|kind| scene.of(kind).failed == 0));
    let names = RequestKind::ALL.map(RequestKind::qmp_name);
    assert_eq!(names, ["rd", "wr", "flush", "unmap", "wr"]);
}

#[test]
fn c87_a_failed_request_is_in_the_latencies_and_not_in_operations() {
    let scene = scene();
    scene.backend.set_accounting(Accounting::Turns);
    scene
        .backend
        .set_latency_bins(RequestKind::Write, Some(&[1_000_000, 5_000_000]))
        .expect("bins");
    scene.backend.set_percentiles(RequestKind::Write, true);
    scene.backend.add_interval(&scene.ctx, Duration::from_secs(1));
    scene.write(0).expect("a write");
    scene.rules.add(Rule::fail(libc::EIO).after(Duration::from_millis(7)).once());
    scene.write(0).expect_err("a write that fails");
    let writes = scene.of(RequestKind::Write);
    let expected = KindStatistics { operations: 1, bytes: 512, failed: 1, ..writes };
    assert_eq!((writes, writes.invalid), (expected, 0));
    let latencies = scene.statistics.latencies(RequestKind::Write).expect("bins");
    assert_eq!(latencies.bins, [1, 0, 1]);
    assert_eq!(writes.total_time_ns, 7_000_000);
    let percentiles = scene.statistics.percentiles(RequestKind::Write).expect("percentiles");
    assert_eq!((percentiles.count, percentiles.max_ns), (2, 7_000_000));
    let averages = scene.statistics.averages(RequestKind::Write);
    let expected = Average { min: 0, avg: 3_500_000, max: 7_000_000, count: 2 };
    assert_eq!(averages, [(Duration::from_secs(1), expected)]);
    assert!(scene.statistics.latencies(RequestKind::Read).is_none());
    scene.backend.set_latency_bins(RequestKind::Write, None).expect("no bins");
    assert!(scene.statistics.latencies(RequestKind::Write).is_none());
}

#[test]
fn a_request_that_cannot_be_is_invalid() {
    let scene = scene();
    scene.write(DISK_BYTES).expect_err("past the end");
    let far = scene.backend.pdiscard(&scene.ctx, u64::MAX, 1);
    far.expect_err("past the end");
    let read_only =
        BlockBackend::read_only(&scene.ctx, "read-only", scene.backend.node().expect("a medium"));
    let empty = BlockBackend::empty(&scene.ctx, "empty");
    read_only.pwrite_zeroes(&scene.ctx, 0, 512, ZeroFlags::empty()).expect_err("read-only");
    empty.flush(&scene.ctx).expect_err("no medium");
    scene.backend.count_invalid(RequestKind::Write);
    let invalid = |backend: &BlockBackend, kind| {
        let counts = backend.statistics().of(kind);
        (counts.invalid, counts.failed, counts.operations)
    };
    assert_eq!(invalid(&scene.backend, RequestKind::Write), (2, 0, 0));
    assert_eq!(invalid(&scene.backend, RequestKind::Discard), (1, 0, 0));
    assert_eq!(invalid(&read_only, RequestKind::WriteZeroes), (1, 0, 0));
    assert_eq!(invalid(&empty, RequestKind::Flush), (1, 0, 0));
    scene.backend.count_merged(RequestKind::Write, 3);
    assert_eq!(scene.of(RequestKind::Write).merged, 3);
}

#[test]
fn time_is_that_of_the_contexts_clock() {
    for accounting in [Accounting::Turns, Accounting::Exact] {
        let scene = scene();
        scene.backend.set_accounting(accounting);
        scene.rules.add(delayed(30));
        for _ in 0..4 {
            scene.backend.aio_flush(&scene.ctx, |_, result| result.expect("a flush"));
        }
        assert_eq!(scene.statistics.queue_depth(), 4);
        drop(scene.backend.drain(&scene.ctx));
        assert_eq!((scene.statistics.queue_depth(), scene.statistics.max_queue_depth()), (0, 4));
        scene.backend.reset_max_queue_depth();
        assert_eq!(scene.statistics.max_queue_depth(), 0);
        let flushes = scene.of(RequestKind::Flush);
        assert_eq!((flushes.operations, flushes.total_time_ns), (4, 120_000_000));
    }
}

#[test]
fn c88_averages_over_an_interval_and_zero_after_a_rest() {
    let scene = scene();
    scene.backend.set_accounting(Accounting::Turns);
    let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    scene.backend.add_interval(&scene.ctx, second);
    scene.backend.add_interval(&scene.ctx, minute);
    for ms in [1, 5, 2, 4, 3] {
        scene.rules.add(delayed(ms).once());
        scene.write(0).expect("a write");
    }
    scene.write(DISK_BYTES).expect_err("past the end");
    let ms = |min: u64, avg: u64, max: u64| {
        let [min, avg, max] = [min, avg, max].map(|ms| ms * 1_000_000);
        Average { min, avg, max, count: 5 }
    };
    let now_ns = scene.ctx.now_ns();
    let at = |ns| scene.statistics.averages_at(RequestKind::Write, ns);
    assert_eq!(at(now_ns), [(second, ms(1, 3, 5)), (minute, ms(1, 3, 5))]);
    assert_eq!(scene.statistics.averages(RequestKind::Write), at(now_ns));
    let rested = now_ns + 2_000_000_000;
    assert_eq!(at(rested), [(second, Average::default()), (minute, ms(1, 3, 5))]);
    let rested = now_ns + 100_000_000_000;
    assert!(at(rested).iter().all(|(_, average)| *average == Average::default()));
    assert_eq!(scene.statistics.averages(RequestKind::Read)[0].1, Average::default());
}

#[test]
fn percentiles_are_kept_of_kinds_on_demand() {
    let scene = scene();
    let (writes, reads) = (RequestKind::Write, RequestKind::Read);
    scene.backend.set_accounting(Accounting::Exact);
    scene.write(0).expect("a write");
    assert_eq!(scene.statistics.percentiles(writes), None);
    scene.backend.set_percentiles(writes, true);
    for ms in 1..=100 {
        scene.rules.add(delayed(ms).once());
        scene.write(0).expect("a write");
    }
    scene.write(DISK_BYTES).expect_err("past the end");
    let read = scene.statistics.percentiles(writes).expect("percentiles");
    assert_eq!((read.count, read.max_ns), (100, 100_000_000));
    for (found, ms) in [(read.p50_ns, 50), (read.p90_ns, 90), (read.p99_ns, 99)] {
        let exact = ms * 1_000_000;
        assert!((exact..=exact + exact / 100).contains(&found), "{found} for {ms} ms");
    }
    assert_eq!(read.p999_ns, read.max_ns);
    assert_eq!(scene.statistics.percentiles(reads), None);
    // From another thread too.
    let statistics = scene.statistics.clone();
    let seen = std::thread::spawn(move || statistics.percentiles(RequestKind::Write)).join();
    assert_eq!(seen.expect("a thread"), Some(read));
    // They begin anew, and see to a clock.
    scene.backend.set_percentiles(writes, true);
    scene.backend.set_accounting(Accounting::Counts);
    assert_eq!(scene.statistics.percentiles(writes), Some(LatencyPercentiles::default()));
    scene.rules.add(delayed(3).once());
    scene.write(0).expect("a write");
    assert_eq!(scene.statistics.percentiles(writes).map(|it| it.max_ns), Some(3_000_000));
    scene.backend.set_percentiles(writes, false);
    assert_eq!(scene.statistics.percentiles(writes), None);
}

#[test]
fn the_average_queue_depth_is_time_by_time() {
    let scene = scene();
    scene.backend.set_accounting(Accounting::Turns);
    let second = Duration::from_secs(1);
    scene.backend.add_interval(&scene.ctx, second);
    let begin_ns = scene.ctx.now_ns();
    scene.rules.add(delayed(100));
    for _ in 0..4 {
        scene.backend.aio_flush(&scene.ctx, |_, result| result.expect("a flush"));
    }
    drop(scene.backend.drain(&scene.ctx));
    let at = |ms: i64| {
        let now_ns = begin_ns + ms * 1_000_000;
        scene.statistics.average_queue_depths_at(RequestKind::Flush, now_ns)
    };
    assert_eq!(at(100), [(second, 4.0)]);
    assert_eq!(scene.statistics.average_queue_depths(RequestKind::Flush), at(100));
    assert_eq!(at(400), [(second, 1.0)]);
    assert_eq!(at(5000), [(second, 0.0)]);
    assert_eq!(scene.statistics.average_queue_depths(RequestKind::Read), [(second, 0.0)]);
}

#[test]
fn accounting_can_be_switched_off() {
    let scene = scene();
    scene.rules.add(delayed(10));
    scene.backend.set_accounting(Accounting::Off);
    scene.write(0).expect("a write");
    scene.write(DISK_BYTES).expect_err("past the end");
    scene.backend.count_merged(RequestKind::Write, 1);
    scene.backend.count_invalid(RequestKind::Write);
    assert_eq!(scene.of(RequestKind::Write), KindStatistics::default());
    // A request in flight keeps what it began with.
    scene.backend.aio_flush(&scene.ctx, |_, _| ());
    scene.backend.set_accounting(Accounting::Counts);
    drop(scene.backend.drain(&scene.ctx));
    assert_eq!(scene.statistics.queue_depth(), 0);
    scene.write(0).expect("a write");
    let expected = KindStatistics { operations: 1, bytes: 512, ..KindStatistics::default() };
    assert_eq!(scene.of(RequestKind::Write), expected, "no time");
}

#[test]
fn a_request_that_ends_with_its_context_leaves_the_queue() {
    let Scene { ctx, rules, backend, statistics } = scene();
    rules.add(delayed(1000));
    backend.aio_flush(&ctx, |_, _| ());
    assert_eq!(statistics.queue_depth(), 1);
    drop(backend);
    drop(ctx);
    assert_eq!(statistics.queue_depth(), 0);
    assert_eq!(statistics.of(RequestKind::Flush).failed, 1);
}

#[test]
fn requests_from_other_threads_are_counted_and_seen_there() {
    let thread = IoThread::new("io").expect("a thread");
    let node = BlockNode::new("disk", Null::new(DISK_BYTES));
    let opened = thread.handle().spawn("open", move |co| {
        let backend = BlockBackend::new(co.context(), "drive", node);
        (backend.remote(), backend.statistics())
    });
    let (remote, statistics): (RemoteBackend, Statistics) = opened.wait().expect("a backend");
    for _ in 0..100 {
        remote.preadv(0, vec![0u8; 512]).wait().expect("a thread").0.expect("a read");
    }
    let reads = statistics.of(RequestKind::Read);
    assert_eq!((reads.operations, reads.bytes, statistics.queue_depth()), (100, 51200, 0));
    assert!(statistics.idle_time() < Duration::from_secs(3600));
}
