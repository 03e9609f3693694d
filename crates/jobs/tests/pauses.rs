//! Pauses, drains, errors and speed of jobs; what is told of them; and the end of all.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::Co;
use coblk_block::RequestKind;
use coblk_jobs::{Job, JobChange, JobFailure, JobGroup, JobOptions, OnError, Task};
use util::scripted::{End, options, stage};
use util::until;

#[test]
fn j6_pausing_twice_and_resuming_what_runs_are_errors() {
    let stage = stage();
    let (job, script) = stage.start(options().auto_dismiss(false));
    stage.refused(stage.jobs.resume("j"), "Can't resume a job that was not paused");
    stage.jobs.pause("j").unwrap();
    stage.refused(stage.jobs.pause("j"), "Job is already paused");
    stage.jobs.resume("j").unwrap();
    stage.end(&job, &script, End::Well);
    // The state would not allow it either.
    stage.refused(stage.jobs.resume("j"), "Can't resume a job that was not paused");
    stage.refused(
        stage.jobs.pause("j"),
        "Job 'j' in state 'concluded' cannot accept command verb 'pause'",
    );
}

#[test]
fn j4_j32_a_pause_that_ends_before_the_job_has_stopped_tells_nothing() {
    let stage = stage();
    let (_job, _script) = stage.start(options());
    stage.take();
    stage.jobs.pause("j").unwrap();
    stage.jobs.resume("j").unwrap();
    assert!(stage.take().is_empty());
}

#[test]
fn j28_j29_drains_of_the_nodes_of_a_job_stop_it() {
    let stage = stage();
    let (job, script) = stage.start(options());
    let node = stage.node();
    stage.uses(&job, &script, &node);
    stage.take();
    let section = node.drain(&stage.ctx);
    assert_eq!(stage.take(), ["paused"]);
    assert!(stage.jobs.all()[0].is_paused);
    stage.jobs.pause("j").unwrap();
    drop(section);
    assert!(stage.take().is_empty(), "the user's pause is left");
    stage.jobs.resume("j").unwrap();
    assert_eq!(stage.take(), ["running"]);
    // The end of a use is the end of its drains.
    let section = node.drain(&stage.ctx);
    assert_eq!(stage.take(), ["paused"]);
    script.uses.take();
    assert_eq!(stage.take(), ["running"]);
    drop(section);
    assert!(!stage.jobs.all()[0].is_paused);
}

#[test]
fn j27_a_drain_is_told_as_a_pause_if_the_job_has_stopped() {
    let stage = stage();
    let (job, script) = stage.start(options());
    let node = stage.node();
    stage.uses(&job, &script, &node);
    stage.take();
    for (running, stopped) in [("running", "paused"), ("ready", "standby")] {
        // One that is over before the job looks.
        drop(node.drain(&stage.ctx));
        assert!(stage.take().is_empty(), "{running}");
        let sections = [node.drain(&stage.ctx), node.drain(&stage.ctx)];
        assert_eq!(stage.take(), [stopped]);
        drop(sections);
        assert_eq!(stage.take(), [running]);
        script.becomes_ready.set(true);
        job.kick();
        stage.take();
    }
}

#[test]
fn j22_j29_a_job_ends_though_its_node_is_drained() {
    let stage = stage();
    let (job, script) = stage.start(options());
    let node = stage.node();
    stage.uses(&job, &script, &node);
    let _section = node.drain(&stage.ctx);
    stage.take();
    stage.cancel("j", true).unwrap();
    assert_eq!(stage.take(), ["running", "aborting", "CANCELLED", "concluded", "null"]);
}

#[test]
fn j38_j39_an_error_stops_a_job_until_it_is_resumed() {
    let stage = stage();
    let (job, script) = stage.start(options());
    let fail = |policy, errno| {
        script.fails.set(Some((RequestKind::Write, policy, errno)));
        job.kick();
        stage.take();
    };
    let status = || stage.jobs.all()[0].io_status;
    stage.take();
    script.fails.set(Some((RequestKind::Read, OnError::Stop, libc::EIO)));
    job.kick();
    assert_eq!(stage.take(), ["ERROR read stop", "paused"]);
    assert_eq!(status(), coblk_block::IoStatus::Failed);
    stage.jobs.resume("j").unwrap();
    assert_eq!(stage.take(), ["running"]);
    assert_eq!(status(), coblk_block::IoStatus::Ok);
    fail(OnError::Enospc, libc::ENOSPC);
    assert_eq!(status(), coblk_block::IoStatus::NoSpace);
    stage.jobs.resume("j").unwrap();
    stage.take();
    script.fails.set(Some((RequestKind::Write, OnError::Enospc, libc::EIO)));
    job.kick();
    let expected =
        ["ERROR write report", "aborting", "COMPLETED Input/output error", "concluded", "null"];
    assert_eq!(stage.take(), expected);
}

#[test]
fn j34_a_speed_below_zero_is_refused_and_leaves_the_old_one() {
    let stage = stage();
    let (_job, _script) = stage.start(options().speed(5));
    stage.jobs.set_speed("j", 7).unwrap();
    stage.refused(stage.jobs.set_speed("j", -1), "Parameter 'speed' expects a non-negative value");
    assert_eq!(stage.jobs.all()[0].speed, 7);
}

#[test]
fn j43_a_job_that_has_one_mode_does_not_change() {
    let stage = stage();
    let (_job, _script) = stage.start(options());
    let change = JobChange::new("mirror", "background");
    stage.refused(stage.jobs.change("j", &change), "Job type does not support change");
}

#[test]
fn j42_block_jobs_are_told_from_others() {
    let stage = stage();
    let (_job, _script) = stage.start(options());
    stage.jobs.start::<String>(&stage.ctx, ("made", "create"), |_| Ok(())).unwrap();
    stage.settle();
    stage.jobs.check_block_job("j").unwrap();
    for id in ["made", "nowhere"] {
        stage.refused(stage.jobs.check_block_job(id), &format!("Block job '{id}' not found"));
    }
    let made = stage.jobs.all().remove(0);
    assert_eq!((made.current_progress, made.total_progress), (1, 1));
    let told = stage.take();
    assert!(told.iter().all(|it| !it.starts_with("made COMPLETED")), "{told:?}");
}

#[test]
fn j18_all_jobs_end_at_the_end_the_newest_first() {
    let stage = stage();
    let ids = ["a", "b", "c"];
    let made = ids.map(|id| stage.start(JobOptions::new(id, "copy").auto_dismiss(id != "b")));
    stage.take();
    stage.ctx.run(|co| stage.jobs.co_end(co));
    let told = stage.take();
    let cancelled = ["c aborting", "b aborting", "a aborting"];
    let aborting = told.iter().filter(|it| it.ends_with("aborting"));
    assert!(aborting.eq(&cancelled), "{told:?}");
    assert_eq!(told.iter().filter(|it| it.ends_with("null")).count(), 3);
    assert!(stage.jobs.all().is_empty());
    drop(made);
}

/// Sleeps for an hour, and says when it was woken.
struct Sleeper(Rc<Cell<i64>>);

impl Task for Sleeper {
    fn co_run(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        let slept = job.co_sleep(co, Duration::from_secs(3600));
        self.0.set(co.context().now_ns());
        slept
    }
}

#[test]
fn j29_a_drain_and_a_cancellation_cut_a_sleep_short() {
    let stage = stage();
    let woken = Rc::new(Cell::new(0));
    let task = Sleeper(Rc::clone(&woken));
    let job = stage.jobs.make(&stage.ctx, options(), &JobGroup::new(), task).unwrap();
    job.start(&stage.ctx);
    stage.settle();
    stage.jobs.pause("j").unwrap();
    assert_eq!(stage.take(), ["created", "running", "paused"]);
    stage.cancel("j", true).unwrap();
    until(&stage.ctx, || stage.jobs.all().is_empty());
    assert!(woken.get() < 1_000_000_000);
}
