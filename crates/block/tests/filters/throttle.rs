//! Throttle groups: pace, order, turns, drains; on simulated clocks, but for threads.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, IoThread, IoVector};
use coblk_block::filters::throttle::{Rate, Throttle, ThrottleGroup, ThrottleLimits};
use coblk_block::{BlockBackend, BlockNode, RemoteBackend, WriteFlags, ZeroFlags};

use crate::memory::{Memory, simulated};

const MS: i64 = 1_000_000;

fn iops(rate: Rate) -> ThrottleLimits {
    ThrottleLimits { iops_total: rate, ..ThrottleLimits::default() }
}

/// What completed, by the name of its backend and its number, and when.
type Log = Rc<RefCell<Vec<(String, usize, i64)>>>;

fn node(group: &ThrottleGroup) -> Arc<BlockNode> {
    BlockNode::new("throttled", Throttle::new(Memory::new(1 << 20).node("disk"), group))
}

fn backend(ctx: &AioContext, name: &str, group: &ThrottleGroup) -> BlockBackend {
    BlockBackend::new(ctx, name, node(group))
}

fn submit_writes(ctx: &AioContext, backend: &BlockBackend, count: usize, log: &Log) {
    for number in 0..count {
        let (name, log) = (backend.name().to_owned(), Rc::clone(log));
        let done = move |ctx: &AioContext, result: std::io::Result<()>, _| {
            result.expect("a write");
            log.borrow_mut().push((name, number, ctx.now_ns()));
        };
        backend.aio_pwritev(ctx, 0, vec![0; 512], WriteFlags::empty(), done);
    }
}

fn names(log: &Log) -> String {
    log.borrow().iter().map(|(name, ..)| name.as_str()).collect()
}

fn numbers_of(log: &Log, name: &str) -> Vec<usize> {
    let log = log.borrow();
    log.iter().filter(|(by, ..)| by == name).map(|(_, number, _)| *number).collect()
}

#[test]
fn requests_pass_at_the_pace_of_the_group_and_in_order() {
    let ctx = simulated(1);
    let group = ThrottleGroup::new("group", iops(Rate::new(100))).expect("limits");
    let (drive, log) = (backend(&ctx, "a", &group), Log::default());
    submit_writes(&ctx, &drive, 30, &log);
    assert_eq!(group.waiting(), 19, "a tenth of a second's worth, and one, pass at once");
    ctx.run_until(|| log.borrow().len() == 30);
    assert_eq!(numbers_of(&log, "a"), (0..30).collect::<Vec<_>>());
    for (_, number, at_ns) in log.borrow().iter() {
        let due_ns = (*number as i64 - 10).max(0) * 10 * MS;
        assert_eq!(*at_ns, due_ns, "write {number}");
    }
    assert_eq!(group.waiting(), 0);
}

#[test]
fn c89_once_the_burst_is_spent_the_first_waiter_waits() {
    let ctx = simulated(1);
    let group = ThrottleGroup::new("group", iops(Rate::new(10).burst(200, 2))).expect("limits");
    let (drive, log) = (backend(&ctx, "a", &group), Log::default());
    submit_writes(&ctx, &drive, 500, &log);
    ctx.run_until(|| log.borrow().len() == 500);
    let log = log.borrow();
    let at = |number: usize| log[number].2;
    // 20 and one at once, 200 a second until the bucket of 400 is full, then 10 a second.
    assert_eq!((at(20), at(21), at(221)), (0, 5 * MS, 1005 * MS));
    let paces: Vec<i64> = (21..500).map(|number| at(number) - at(number - 1)).collect();
    let spent = paces.iter().position(|pace| *pace > 5 * MS).expect("the burst ends") + 21;
    assert!((415..430).contains(&spent), "after {spent}");
    assert!(paces[spent - 20..].iter().all(|pace| *pace == 100 * MS));
}

#[test]
fn members_take_turns_and_stay_in_order() {
    let ctx = simulated(1);
    let group = ThrottleGroup::new("group", iops(Rate::new(10))).expect("limits");
    let log = Log::default();
    let [a, b, c] = ["a", "b", "c"].map(|name| backend(&ctx, name, &group));
    submit_writes(&ctx, &a, 8, &log);
    submit_writes(&ctx, &b, 2, &log);
    submit_writes(&ctx, &c, 3, &log);
    ctx.run_until(|| log.borrow().len() == 13);
    // Two of the first pass at once.
    assert_eq!(names(&log), "aaabcabcacaaa");
    for (name, count) in [("a", 8), ("b", 2), ("c", 3)] {
        assert_eq!(numbers_of(&log, name), (0..count).collect::<Vec<_>>());
    }
}

#[test]
fn reads_do_not_wait_for_writes_without_a_total() {
    let ctx = simulated(1);
    let limits = ThrottleLimits { bps_write: Rate::new(512), ..ThrottleLimits::default() };
    let group = ThrottleGroup::new("group", limits).expect("limits");
    let (drive, log) = (backend(&ctx, "a", &group), Log::default());
    submit_writes(&ctx, &drive, 3, &log);
    let mut buffer = [0u8; 4096];
    drive.preadv(&ctx, 0, &mut coblk_aio::IoVectorMut::from(&mut buffer[..])).expect("a read");
    drive.flush(&ctx).expect("a flush");
    assert!(ctx.now_ns() == 0 && group.waiting() == 2);
    ctx.run_until(|| log.borrow().len() == 3);
    assert_eq!(ctx.now_ns(), 1900 * MS);
}

#[test]
fn a_drain_lets_waiting_requests_through() {
    let ctx = simulated(1);
    let group = ThrottleGroup::new("group", iops(Rate::new(1))).expect("limits");
    let log = Log::default();
    let [a, b] = ["a", "b"].map(|name| backend(&ctx, name, &group));
    submit_writes(&ctx, &a, 5, &log);
    submit_writes(&ctx, &b, 2, &log);
    let section = a.drain(&ctx).expect("a medium");
    assert_eq!(ctx.now_ns(), 0, "the drain did not wait for the pace");
    assert_eq!((names(&log).as_str(), group.waiting()), ("aaaaa", 2));
    // The other member keeps the pace, and pays for what has passed.
    ctx.run_until(|| log.borrow().len() == 6);
    assert_eq!(ctx.now_ns(), 4900 * MS);
    submit_writes(&ctx, &a, 1, &log);
    ctx.try_poll();
    drop(section);
    ctx.run_until(|| log.borrow().len() == 8);
    assert_eq!(names(&log), "aaaaabba", "what was held by the drain waits again, behind");
    assert_eq!(ctx.now_ns(), 6900 * MS);
}

#[test]
fn new_limits_hold_for_those_who_wait() {
    let ctx = simulated(1);
    let group = ThrottleGroup::new("group", iops(Rate::new(1))).expect("limits");
    let (drive, log) = (backend(&ctx, "a", &group), Log::default());
    submit_writes(&ctx, &drive, 10, &log);
    assert!(group.set_limits(iops(Rate::new(1).burst(0, 0))).is_err());
    group.set_limits(iops(Rate::new(1000))).expect("limits");
    ctx.run_until(|| log.borrow().len() == 10);
    assert_eq!((group.limits(), ctx.now_ns()), (iops(Rate::new(1000)), 0));
    group.set_limits(ThrottleLimits::default()).expect("no limits");
    submit_writes(&ctx, &drive, 1000, &log);
    assert_eq!(group.waiting(), 0);
    ctx.run_until(|| log.borrow().len() == 1010);
}

#[test]
fn a_context_that_ends_takes_its_waiters_along() {
    let group = ThrottleGroup::new("group", iops(Rate::new(1000))).expect("limits");
    let (ctx, other) = (simulated(1), simulated(2));
    let log = Log::default();
    let (a, b) = (backend(&ctx, "a", &group), backend(&other, "b", &group));
    submit_writes(&ctx, &a, 200, &log);
    submit_writes(&other, &b, 10, &log);
    assert_eq!(group.waiting(), 109);
    drop(a);
    drop(ctx);
    // One of the others leads now.
    other.run_until(|| numbers_of(&log, "b").len() == 10);
    assert_eq!(group.waiting(), 0);
}

#[test]
fn contexts_on_several_threads_share_a_group() {
    let rate = Rate::new(20_000);
    let group = ThrottleGroup::new("group", iops(rate)).expect("limits");
    let threads: Vec<IoThread> = (0..3).map(|_| IoThread::new("io").expect("a thread")).collect();
    // Two threads on one node, the third on a node of its own.
    let (shared, own) = (node(&group), node(&group));
    let drives: Vec<RemoteBackend> = [&shared, &shared, &own]
        .into_iter()
        .zip(&threads)
        .map(|(node, thread)| RemoteBackend::open(thread.handle(), "drive", Arc::clone(node)))
        .map(|opened| opened.wait().expect("a backend"))
        .collect();
    let start = std::time::Instant::now();
    let writes: Vec<_> = (0..1000)
        .flat_map(|_| &drives)
        .map(|drive| drive.pwritev(0, vec![0u8; 512], WriteFlags::empty()))
        .collect();
    for write in writes {
        write.wait().expect("a thread").0.expect("a write");
    }
    // 3000, less the tenth of a second that passes at once, at 20,000 a second.
    assert!(start.elapsed() >= std::time::Duration::from_micros(49_900));
    assert_eq!(group.waiting(), 0);
}

/// A discard costs what a write of so many bytes costs, and so do zeroes; a flush costs nothing.
#[test]
fn discards_and_zeroes_count_byte_for_byte() {
    const PIECE: u64 = 64 << 10;
    let limits = ThrottleLimits { bps_total: Rate::new(1 << 20), ..ThrottleLimits::default() };
    type Ask = fn(&BlockBackend, &coblk_aio::Co<'_>, u64) -> std::io::Result<()>;
    let kinds: [Ask; 3] = [
        |backend, co, at| {
            let data = vec![7; PIECE as usize];
            backend.co_pwritev(co, at, &IoVector::from(&data[..]), WriteFlags::empty())
        },
        |backend, co, at| backend.co_pdiscard(co, at, PIECE),
        |backend, co, at| backend.co_pwrite_zeroes(co, at, PIECE, ZeroFlags::MAY_UNMAP),
    ];
    let took = kinds.map(|ask| {
        let ctx = simulated(1);
        let group = ThrottleGroup::new("group", limits).expect("limits");
        let drive = backend(&ctx, "a", &group);
        let begun_ns = ctx.now_ns();
        ctx.run(|co| {
            for number in 0..16 {
                ask(&drive, co, number * PIECE).expect("a request");
                drive.co_flush(co).expect("a flush");
            }
        });
        ctx.now_ns() - begun_ns
    });
    // A MiB, of which a tenth of a second's worth passes at once.
    assert!(took[0] > 800 * MS, "{took:?}");
    assert_eq!(took, [took[0]; 3]);
}
