//! Mirrors that have done their work, and wait for the command that makes it take effect.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use coblk_jobs::{Job, JobOptions, JobStatus, OnError};
use util::disk::{Op, Verdict};
use util::stage::{GRANULE, Stage, stage_of};
use util::{take, until};

/// A mirror that is pending, of eight granules.
fn pending(on_error: OnError) -> (Stage, Rc<Job>) {
    let stage = stage_of(8 * GRANULE);
    stage.source.fill(1);
    let options = JobOptions::new("j", "mirror").auto_finalize(false);
    let job = stage.try_start(stage.mirror().on_target_error(on_error), options).unwrap();
    stage.until(&job, JobStatus::Ready);
    stage.jobs.complete("j").unwrap();
    stage.until(&job, JobStatus::Pending);
    take(&stage.told);
    (stage, job)
}

impl Stage {
    fn is_synced(&self) -> bool {
        self.jobs.all()[0].actively_synced == Some(true)
    }

    fn finalize(&self) {
        self.ctx.run(|co| self.jobs.co_finalize(co, "j")).unwrap();
    }

    fn fail_writes(&self) {
        self.target.judge(|op| match op {
            Op::Write(..) => Verdict::Fail(libc::EIO),
            _ => Verdict::Go,
        });
    }
}

#[test]
fn j60_a_pending_mirror_is_write_blocking_and_copies_before_it_is_finalized() {
    let (stage, job) = pending(OnError::Report);
    until(&stage.ctx, || stage.is_synced());
    stage.write(GRANULE / 2, 3, 2 * GRANULE);
    assert!(stage.target.data() == stage.source.data(), "the target does not have it at once");
    assert_eq!((job.status(), take(&stage.told)), (JobStatus::Pending, vec![]));
    stage.finalize();
    assert_eq!((job.status(), stage.guest_is_on().as_str()), (JobStatus::Null, "target"));
    assert!(stage.target.durable() == stage.source.data());
    assert!(stage.is_free());
}

/// Writes after which a mirror that is being finalized hangs. Changes of the graph wait for those of other tests of
/// this process, so how many there are until it has turned is not known.
const MAX_WRITES: u64 = 5_000_000;

#[test]
fn j60_a_mirror_is_finalized_under_guests_that_write_without_rest() {
    let (stage, job) = pending(OnError::Report);
    let written = Rc::new(Cell::new(0));
    let (stop, has_stopped) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (guest, own) = (stage.guest.clone(), (Rc::clone(&written), Rc::clone(&stop)));
    let ended = Rc::clone(&has_stopped);
    stage.ctx.spawn("guest", move |co| {
        let (written, stop) = own;
        while !stop.get() {
            let round = written.get() + 1;
            assert!(round < MAX_WRITES, "it is not finalized");
            guest.co_write(co, round % 8 * GRANULE, &[round as u8; 512]).unwrap();
            written.set(round);
        }
        ended.set(true);
    });
    until(&stage.ctx, || written.get() > 20);
    stage.finalize();
    assert_eq!((job.status(), stage.guest_is_on().as_str()), (JobStatus::Null, "target"));
    assert!(!has_stopped.get(), "the guest has rested");
    let turned = written.get();
    until(&stage.ctx, || written.get() > turned + 20);
    stop.set(true);
    until(&stage.ctx, || has_stopped.get());
    let last = written.get();
    for round in last - 7..=last {
        assert_eq!(stage.target.data()[(round % 8 * GRANULE) as usize], round as u8);
    }
}

#[test]
fn j60_an_error_that_would_stop_a_pending_mirror_ends_it() {
    for policy in [OnError::Report, OnError::Stop] {
        let (stage, job) = pending(policy);
        until(&stage.ctx, || stage.is_synced());
        stage.fail_writes();
        stage.write(0, 3, 512);
        stage.until(&job, JobStatus::Null);
        let text = "COMPLETED Input/output error";
        let told = ["ERROR write report", "aborting", text, "concluded", "null"];
        assert_eq!(take(&stage.told), told);
        assert_eq!((stage.guest_is_on().as_str(), stage.is_free()), ("source", true));
        stage.write(GRANULE, 4, 512);
    }
}

#[test]
fn j60_an_error_that_is_ignored_leaves_a_mirror_pending() {
    let (stage, job) = pending(OnError::Ignore);
    until(&stage.ctx, || stage.is_synced());
    stage.fail_writes();
    stage.write(0, 3, 512);
    stage.ctx.run(|co| co.sleep(Duration::from_secs(5)));
    assert_eq!(job.status(), JobStatus::Pending);
    stage.target.judge(|_| Verdict::Go);
    until(&stage.ctx, || stage.is_synced());
    assert!(stage.target.data() == stage.source.data());
    stage.finalize();
    assert_eq!(stage.guest_is_on(), "target");
}

#[test]
fn j22_j44_j60_a_pending_mirror_with_a_dead_target_is_cancelled_within_a_second() {
    let (stage, job) = pending(OnError::Report);
    until(&stage.ctx, || stage.is_synced());
    stage.target.judge(|op| if matches!(op, Op::Write(..)) { Verdict::Hold } else { Verdict::Go });
    let (guest, done) = (stage.guest.clone(), Rc::new(Cell::new(false)));
    let own = Rc::clone(&done);
    stage.ctx.spawn("guest", move |co| {
        guest.co_write(co, 0, &[5; 512]).unwrap();
        own.set(true);
    });
    until(&stage.ctx, || stage.target.held() == 1);
    let took = stage.takes(|| stage.cancel(true));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(job.status(), JobStatus::Null, "the command returns before it has worked");
    until(&stage.ctx, || done.get());
    assert_eq!((stage.guest_is_on().as_str(), stage.source.data()[0]), ("source", 5));
    // What may still be written keeps the target in use.
    assert!(!stage.target_node.parents().is_empty());
    assert!(stage.target.release());
    until(&stage.ctx, || stage.is_free());
}

#[test]
fn j18_j60_the_end_of_all_jobs_ends_a_pending_one() {
    let (stage, job) = pending(OnError::Report);
    stage.ctx.run(|co| stage.jobs.co_end(co));
    assert_eq!((job.status(), stage.guest_is_on().as_str()), (JobStatus::Null, "source"));
    assert!(stage.is_free());
}

#[test]
fn j29_j60_drains_of_a_pending_mirror_end_and_its_state_stays() {
    let (stage, job) = pending(OnError::Report);
    for round in 0..20 {
        let target = stage.target_node.drain(&stage.ctx);
        let source = stage.source_node.drain(&stage.ctx);
        stage.settle();
        drop((target, source));
        stage.write(round % 8 * GRANULE, 9, 512);
    }
    assert_eq!((job.status(), take(&stage.told)), (JobStatus::Pending, vec![]));
    stage.finalize();
    assert_eq!(stage.guest_is_on(), "target");
    assert!(stage.target.data() == stage.source.data());
}
