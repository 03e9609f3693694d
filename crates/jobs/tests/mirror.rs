//! Mirrors: copies, and how they end.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use coblk_block::{BackendOptions, BlockLimits, BlockNode, IoStatus};
use coblk_jobs::{JobOptions, JobStatus, Mirror, MirrorError, OnError, SyncMode};
use util::disk::{Disk, OnDisk, Op, Verdict};
use util::stage::{GRANULE, LENGTH, stage, stage_of};
use util::{take, until};

fn op_is_write(op: Op) -> bool {
    matches!(op, Op::Write(..))
}

#[test]
fn j50_j56_j61_all_is_copied_and_the_users_turn() {
    let stage = stage();
    stage.source.fill(7);
    stage.target.fill(1);
    let job = stage.start(stage.mirror());
    stage.until(&job, JobStatus::Ready);
    assert_eq!(take(&stage.told), ["created", "running", "ready", "READY"]);
    assert!(stage.target.data() == stage.source.data());
    assert!(stage.target.durable() == stage.source.data(), "ready before the target is durable");
    assert!(stage.guest_is_on().starts_with("#block"));
    stage.write(3, 9, 70_000);
    stage.jobs.complete("j").unwrap();
    stage.until(&job, JobStatus::Null);
    assert_eq!(take(&stage.told), ["waiting", "pending", "COMPLETED", "concluded", "null"]);
    assert_eq!(stage.guest_is_on(), "target");
    assert!(stage.target.durable() == stage.source.data());
    assert!(stage.is_free());
    stage.write(0, 5, 512);
    assert_eq!((stage.target.data()[0], stage.source.data()[0]), (5, 7));
}

#[test]
fn j61_a_soft_cancellation_leaves_the_users_and_an_equal_target() {
    let stage = stage();
    stage.source.fill(7);
    let job = stage.start(stage.mirror());
    stage.until(&job, JobStatus::Ready);
    stage.write(100, 9, 100);
    stage.cancel(false);
    stage.until(&job, JobStatus::Null);
    assert!(take(&stage.told).contains(&"COMPLETED".to_owned()));
    assert_eq!((stage.guest_is_on().as_str(), stage.is_free()), ("source", true));
    assert!(stage.target.durable() == stage.source.data());
}

#[test]
fn j36_nothing_to_do_is_none_of_none() {
    let stage = stage();
    let job = stage.start(stage.mirror().sync(SyncMode::None));
    stage.until(&job, JobStatus::Ready);
    let info = stage.jobs.all().remove(0);
    assert_eq!((info.current_progress, info.total_progress), (0, 0));
    // What is written counts.
    stage.write(GRANULE - 1, 1, 2);
    until(&stage.ctx, || stage.jobs.all()[0].current_progress == 2 * GRANULE);
    assert_eq!(stage.jobs.all()[0].total_progress, 2 * GRANULE);
    assert!(stage.target.data()[GRANULE as usize] == 1);
}

#[test]
fn j37_the_rest_of_a_mirror_is_what_is_marked_and_under_way_and_a_repetition_counts_once() {
    let stage = stage();
    stage.source.fill(7);
    let mut failures = 3;
    stage.target.judge(move |op| match op {
        Op::Write(..) if failures > 0 => {
            failures -= 1;
            Verdict::Fail(libc::EIO)
        }
        Op::Write(..) => Verdict::Hold,
        _ => Verdict::Go,
    });
    let job = stage.start(stage.mirror().granularity(GRANULE).on_target_error(OnError::Ignore));
    let progress = || {
        let info = stage.jobs.all().remove(0);
        (info.current_progress, info.total_progress)
    };
    // All are under way, or wait for their turn.
    until(&stage.ctx, || stage.target.held() > 0);
    assert_eq!(progress(), (0, LENGTH));
    let finished = |done: &dyn Fn() -> bool| {
        until(&stage.ctx, || {
            stage.target.release();
            done()
        });
    };
    finished(&|| job.status() == JobStatus::Ready);
    assert_eq!(progress(), (LENGTH, LENGTH), "what has failed counts once");
    // What guests write raises the total when it is marked, and is done when it was copied.
    stage.write(GRANULE - 1, 1, 2);
    assert_eq!(progress(), (LENGTH, LENGTH + 2 * GRANULE));
    until(&stage.ctx, || stage.target.held() > 0);
    stage.write(GRANULE - 1, 2, 1);
    assert_eq!(progress(), (LENGTH, LENGTH + 3 * GRANULE), "one is to be copied once more");
    finished(&|| stage.jobs.all()[0].current_progress > LENGTH && progress().0 == progress().1);
    assert_eq!(progress(), (LENGTH + 3 * GRANULE, LENGTH + 3 * GRANULE));
}

#[test]
fn j45_a_node_is_not_mirrored_to_itself_nor_to_another_length() {
    let stage = stage();
    let itself = Mirror::new(Arc::clone(&stage.source_node), Arc::clone(&stage.source_node));
    let refused = stage.try_start(itself, JobOptions::new("j", "mirror")).unwrap_err();
    assert_eq!(refused.to_string(), "Can't mirror node into itself");
    let short = BlockNode::new("short", OnDisk(Disk::new(GRANULE, BlockLimits::default())));
    let job = stage.start(Mirror::new(Arc::clone(&stage.source_node), short));
    stage.until(&job, JobStatus::Null);
    let failed = "COMPLETED Source and target image have different sizes".to_owned();
    assert!(take(&stage.told).contains(&failed));
    assert!(stage.is_free());
    let empty = stage_of(0);
    let job = empty.start(empty.mirror());
    empty.until(&job, JobStatus::Ready);
}

#[test]
fn j45_granularities_are_checked() {
    let stage = stage();
    let refused = |granularity| {
        let mirror = stage.mirror().granularity(granularity);
        stage.try_start(mirror, JobOptions::new("j", "mirror")).unwrap_err().to_string()
    };
    assert_eq!(refused(1025), "Parameter 'granularity' expects a power of 2");
    for wrong in [256, 128 << 20] {
        let text = "Parameter 'granularity' expects a value in range [512B, 64MB]";
        assert_eq!(refused(wrong), text);
    }
    assert!(take(&stage.told).is_empty(), "there was a job");
}

#[test]
fn j46_j48_others_write_neither_to_the_target_nor_below_the_filter() {
    let stage = stage();
    let job = stage.start(stage.mirror());
    stage.until(&job, JobStatus::Ready);
    let open = |node: &Arc<BlockNode>, read_only| {
        let options = BackendOptions::new("other").share_rw(true).read_only(read_only);
        options.open(&stage.ctx, Arc::clone(node)).map(drop).map_err(|error| error.to_string())
    };
    assert!(open(&stage.source_node, false).is_err());
    open(&stage.source_node, true).unwrap();
    assert!(open(&stage.target_node, false).is_err());
    assert!(open(&stage.target_node, true).is_err(), "a target is read before it is equal");
    stage.cancel(true);
    stage.until(&job, JobStatus::Null);
    open(&stage.target_node, true).unwrap();
}

#[test]
fn j46_a_target_that_is_in_use_is_refused_and_all_is_as_before() {
    let stage = stage();
    let options = BackendOptions::new("other").read_only(true);
    let other = options.open(&stage.ctx, Arc::clone(&stage.target_node)).unwrap();
    let refused = stage.try_start(stage.mirror(), JobOptions::new("j", "mirror"));
    assert!(matches!(refused, Err(MirrorError::Permission(_))));
    assert_eq!(take(&stage.told), ["created", "null"]);
    drop(other);
    assert!(stage.is_free());
    let refused = stage.mirror().filter_name("1x");
    let refused = stage.try_start(refused, JobOptions::new("j", "mirror"));
    assert!(matches!(refused, Err(MirrorError::Blockdev(_))));
    assert!(stage.is_free());
}

#[test]
fn j51_a_write_during_a_copy_of_its_granule_is_copied_again() {
    let stage = stage_of(GRANULE);
    stage.source.fill(1);
    let reads = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&reads);
    stage.target.judge(move |op| match op {
        Op::Write(..) if own.fetch_add(1, Ordering::SeqCst) == 0 => Verdict::Hold,
        _ => Verdict::Go,
    });
    let job = stage.start(stage.mirror());
    until(&stage.ctx, || stage.target.held() == 1);
    // The copy has read, and has not written yet. The guest does not wait for it.
    stage.write(5, 2, 1);
    assert!(stage.target.release());
    stage.until(&job, JobStatus::Ready);
    assert!(stage.target.data() == stage.source.data());
    assert_eq!(reads.load(Ordering::SeqCst), 2);
}

#[test]
fn j49_a_failed_write_of_a_guest_is_copied_too() {
    let stage = stage_of(GRANULE);
    let job = stage.start(stage.mirror());
    stage.until(&job, JobStatus::Ready);
    stage.source.judge(|op| if op_is_write(op) { Verdict::Fail(libc::EIO) } else { Verdict::Go });
    let failed = stage.ctx.run(|co| stage.guest.co_write(co, 0, &[1; 512]));
    assert!(failed.is_err());
    // Part of it is there all the same.
    stage.source.fill(1);
    until(&stage.ctx, || stage.target.data() == stage.source.data());
}

#[test]
fn j38_an_error_of_a_copy_is_the_job_s() {
    for (is_source, text) in [(true, "ERROR read report"), (false, "ERROR write report")] {
        let stage = stage();
        stage.source.fill(1);
        let disk = if is_source { &stage.source } else { &stage.target };
        disk.judge(move |op| match op {
            Op::Read(at, _) | Op::Write(at, ..) if at >= 4 * GRANULE => Verdict::Fail(libc::EIO),
            _ => Verdict::Go,
        });
        let job = stage.start(stage.mirror().buffer(GRANULE));
        stage.until(&job, JobStatus::Null);
        let told = take(&stage.told);
        let expected = [text, "aborting", "COMPLETED Input/output error", "concluded", "null"];
        assert_eq!(told[2..], expected);
        assert_eq!((stage.guest_is_on().as_str(), stage.is_free()), ("source", true));
    }
}

#[test]
fn j39_a_stopped_job_tries_again_when_it_is_resumed() {
    let stage = stage();
    stage.source.fill(1);
    stage
        .target
        .judge(|op| if op_is_write(op) { Verdict::Fail(libc::ENOSPC) } else { Verdict::Go });
    let job = stage.start(stage.mirror().on_target_error(OnError::Enospc));
    stage.until(&job, JobStatus::Paused);
    let info = stage.jobs.all().remove(0);
    assert_eq!((info.io_status, info.current_progress), (IoStatus::NoSpace, 0));
    assert_eq!(info.total_progress, LENGTH);
    stage.target.judge(|_| Verdict::Go);
    stage.jobs.resume("j").unwrap();
    stage.until(&job, JobStatus::Ready);
    assert!(stage.target.data() == stage.source.data());
    assert_eq!(stage.jobs.all()[0].current_progress, LENGTH);
}

#[test]
fn j41_errors_that_are_ignored_are_tried_again_with_waits() {
    let stage = stage_of(GRANULE);
    stage.source.fill(1);
    let tries = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&tries);
    stage.target.judge(move |op| match op {
        Op::Write(..) if own.fetch_add(1, Ordering::SeqCst) < 20 => Verdict::Fail(libc::EIO),
        _ => Verdict::Go,
    });
    let job = stage.start(stage.mirror().on_target_error(OnError::Ignore));
    let took = stage.takes(|| stage.until(&job, JobStatus::Ready));
    assert!(took > Duration::from_secs(10) && took < Duration::from_secs(20), "{took:?}");
    assert_eq!((tries.load(Ordering::SeqCst), stage.target.data()[0]), (21, 1));
}

#[test]
fn j41_a_soft_cancellation_fails_after_nothing_but_errors() {
    let stage = stage_of(GRANULE);
    let job = stage.start(stage.mirror().on_target_error(OnError::Ignore));
    stage.until(&job, JobStatus::Ready);
    stage.target.judge(|op| match op {
        Op::Write(..) | Op::Zeroes(..) => Verdict::Fail(libc::EIO),
        _ => Verdict::Go,
    });
    stage.write(0, 1, 512);
    stage.cancel(false);
    let took = stage.takes(|| stage.until(&job, JobStatus::Null));
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(13), "{took:?}");
    assert!(take(&stage.told).iter().any(|it| it.starts_with("COMPLETED requests")));
    assert!(stage.is_free());
}

#[test]
fn j22_j145_a_job_with_a_dead_target_is_cancelled_within_a_second() {
    let stage = stage();
    stage.source.fill(1);
    stage.target.judge(|op| if op_is_write(op) { Verdict::Hold } else { Verdict::Go });
    let job = stage.start(stage.mirror());
    until(&stage.ctx, || stage.target.held() > 0);
    // Guests go on, and so does a drain of the source.
    let took = stage.takes(|| {
        stage.write(0, 2, GRANULE);
        drop(stage.source_node.drain(&stage.ctx));
    });
    assert!(took < Duration::from_millis(100), "{took:?}");
    let took = stage.takes(|| {
        stage.cancel(true);
        stage.until(&job, JobStatus::Null);
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(stage.guest_is_on(), "source");
    assert_eq!(stage.source_node.parents().len(), 1, "the source is not free");
    // The target is in use until its requests have returned.
    assert!(!stage.target_node.parents().is_empty());
    while stage.target.release() {}
    until(&stage.ctx, || stage.target_node.parents().is_empty());
}

#[test]
fn j22_the_end_of_all_jobs_does_not_wait_for_a_dead_target() {
    let stage = stage();
    stage.target.judge(|op| if matches!(op, Op::Flush) { Verdict::Hold } else { Verdict::Go });
    let job = stage.start(stage.mirror());
    until(&stage.ctx, || stage.target.held() > 0);
    let took = stage.takes(|| stage.ctx.run(|co| stage.jobs.co_end(co)));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(job.status(), JobStatus::Null);
    stage.target.release();
    until(&stage.ctx, || stage.is_free());
}

#[test]
fn j30_target_and_then_source_are_drained_in_the_midst_of_copies() {
    let stage = stage_of(256 * GRANULE);
    stage.source.fill(1);
    let job = stage.start(stage.mirror());
    for round in 0..40 {
        let target = stage.target_node.drain(&stage.ctx);
        let source = stage.source_node.drain(&stage.ctx);
        stage.source.take_ops();
        stage.target.take_ops();
        stage.settle();
        assert!(stage.source.take_ops().is_empty() && stage.target.take_ops().is_empty());
        drop((target, source));
        stage.write(round * GRANULE, 2, 512);
    }
    stage.until(&job, JobStatus::Ready);
    until(&stage.ctx, || {
        let info = stage.jobs.all().remove(0);
        info.current_progress == info.total_progress
    });
    assert!(stage.target.data() == stage.source.data());
}

#[test]
fn j31_a_paused_job_has_nothing_under_way_and_guests_go_on() {
    let stage = stage_of(256 * GRANULE);
    stage.source.fill(1);
    let job = stage.start(stage.mirror());
    until(&stage.ctx, || stage.jobs.all()[0].current_progress > 0);
    stage.jobs.pause("j").unwrap();
    stage.until(&job, JobStatus::Paused);
    stage.target.take_ops();
    stage.write(0, 2, GRANULE);
    stage.ctx.run(|co| co.sleep(Duration::from_secs(5)));
    assert!(stage.target.take_ops().is_empty());
    stage.jobs.resume("j").unwrap();
    stage.until(&job, JobStatus::Ready);
    assert!(stage.target.data() == stage.source.data());
}

#[test]
fn j35_a_limited_mirror_keeps_to_its_speed() {
    let stage = stage_of(8 << 20);
    stage.source.fill(1);
    let options = JobOptions::new("j", "mirror").speed(1 << 20);
    let job = stage.try_start(stage.mirror(), options).unwrap();
    let begin = stage.ctx.now_ns();
    let done = || stage.jobs.all()[0].current_progress;
    for second in 1..=4_u64 {
        let end = begin + (second * 1_000_000_000).cast_signed();
        until(&stage.ctx, || stage.ctx.now_ns() >= end);
        let (done, allowed) = (done(), second << 20);
        assert!(done <= allowed + GRANULE && done * 10 >= allowed * 9, "{done} after {second} s");
    }
    stage.jobs.set_speed("j", 0).unwrap();
    let took = stage.takes(|| stage.until(&job, JobStatus::Ready));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn j57_an_idle_mirror_does_not_wake() {
    let stage = stage_of(GRANULE);
    let job = stage.start(stage.mirror());
    stage.until(&job, JobStatus::Ready);
    stage.settle();
    let (polls, own) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let over = Rc::clone(&own);
    let timer = stage.ctx.timer(move |_| over.set(true));
    timer.arm_after(Duration::from_secs(10));
    stage.ctx.run_until(|| {
        polls.set(polls.get() + 1);
        own.get()
    });
    assert!(polls.get() <= 3, "{} polls in 10 s", polls.get());
}

#[test]
fn j58_j59_writes_up_to_the_pivot_are_in_the_target() {
    for seed in 0..10 {
        let stage = stage_of(16 * GRANULE);
        let job = stage.start(stage.mirror());
        stage.until(&job, JobStatus::Ready);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (guest, own) = (stage.guest.clone(), Arc::clone(&acknowledged));
        stage.ctx.spawn("guest", move |co| {
            for round in 1..300_u64 {
                let at = (round * 7 + seed) % 16 * GRANULE;
                guest.co_write(co, at, &round.to_le_bytes()).unwrap();
                own.store(round, Ordering::SeqCst);
            }
        });
        until(&stage.ctx, || acknowledged.load(Ordering::SeqCst) > seed * 3);
        stage.jobs.complete("j").unwrap();
        stage.until(&job, JobStatus::Null);
        until(&stage.ctx, || acknowledged.load(Ordering::SeqCst) == 299);
        let data = stage.target.data();
        for round in 284..300_u64 {
            let at = ((round * 7 + seed) % 16 * GRANULE) as usize;
            assert_eq!(data[at..at + 8], round.to_le_bytes(), "seed {seed}");
        }
    }
}

#[test]
fn j13_a_pending_mirror_that_is_cancelled_leaves_the_source() {
    let stage = stage();
    let options = JobOptions::new("j", "mirror").auto_finalize(false);
    let job = stage.try_start(stage.mirror(), options).unwrap();
    stage.until(&job, JobStatus::Ready);
    stage.jobs.complete("j").unwrap();
    stage.until(&job, JobStatus::Pending);
    stage.write(0, 3, 512);
    stage.cancel(false);
    assert_eq!(job.status(), JobStatus::Null);
    assert_eq!((stage.guest_is_on().as_str(), stage.is_free()), ("source", true));
}

#[test]
fn j60_guests_of_a_pending_mirror_go_on_and_nothing_is_lost_when_it_is_finalized() {
    let stage = stage();
    let options = JobOptions::new("j", "mirror").auto_finalize(false);
    let job = stage.try_start(stage.mirror(), options).unwrap();
    stage.until(&job, JobStatus::Ready);
    stage.jobs.complete("j").unwrap();
    stage.until(&job, JobStatus::Pending);
    let took = stage.takes(|| stage.write(0, 3, 100_000));
    assert!(took < Duration::from_millis(100), "{took:?}");
    stage.ctx.run(|co| stage.jobs.co_finalize(co, "j")).unwrap();
    assert_eq!((job.status(), stage.guest_is_on().as_str()), (JobStatus::Null, "target"));
    assert!(stage.target.durable() == stage.source.data());
}
