//! Jobs as such: ids, states and events in their order, verbs, groups.

mod util;

use std::rc::Rc;

use coblk_aio::Co;
use coblk_jobs::{Job, JobError, JobGroup, JobOptions};
use util::scripted::{End, Script, Scripted, Stage, options, stage};
use util::take;

#[test]
fn j1_ids_are_checked() {
    let stage = stage();
    let make = |id: &str| {
        let task = Scripted(Rc::default());
        let options = JobOptions::new(id, "copy");
        stage.jobs.make(&stage.ctx, options, &JobGroup::new(), task).map(drop)
    };
    for id in ["", "1j", "-j", "a b", "a_\u{e9}"] {
        stage.refused(make(id), &format!("Invalid job ID '{id}'"));
    }
    make("j-1._x").unwrap();
}

#[test]
fn j2_an_id_is_taken_until_its_job_is_gone_and_lists_begin_with_the_newest() {
    let stage = stage();
    let (job, script) = stage.start(options().auto_dismiss(false));
    stage.end(&job, &script, End::Well);
    stage.refused(stage.jobs.check_id("j"), "Job ID 'j' already in use");
    let (other, _) = stage.start(JobOptions::new("k", "copy"));
    let ids = || stage.jobs.all().into_iter().map(|job| job.id).collect::<Vec<_>>();
    assert_eq!(ids(), ["k", "j"]);
    stage.jobs.dismiss(&stage.ctx, "j").unwrap();
    stage.jobs.check_id("j").unwrap();
    assert_eq!(ids(), ["k"]);
    drop(other);
}

#[test]
fn j26_a_job_that_succeeds_tells_this() {
    let stage = stage();
    let (job, script) = stage.start(options());
    assert_eq!(stage.take(), ["created", "running"]);
    stage.end(&job, &script, End::Well);
    assert_eq!(stage.take(), ["waiting", "pending", "COMPLETED", "concluded", "null"]);
    assert_eq!(script.calls.take(), ["run", "prepare", "commit", "clean"]);
    assert!(stage.jobs.all().is_empty());
}

#[test]
fn j26_a_job_that_is_ready_tells_this() {
    let stage = stage();
    let (job, script) = stage.start(options().auto_finalize(false).auto_dismiss(false));
    stage.refused(
        stage.jobs.complete("j"),
        "Job 'j' in state 'running' cannot accept command verb 'complete'",
    );
    script.becomes_ready.set(true);
    job.kick();
    assert_eq!(stage.take(), ["created", "running", "ready", "READY"]);
    stage.jobs.complete("j").unwrap();
    assert_eq!(stage.take(), ["waiting", "pending", "PENDING"]);
    stage.finalize("j").unwrap();
    assert_eq!(stage.take(), ["COMPLETED", "concluded"]);
    stage.jobs.dismiss(&stage.ctx, "j").unwrap();
    assert_eq!(stage.take(), ["null"]);
}

#[test]
fn j7_a_job_is_running_when_the_command_that_starts_it_has_returned() {
    let stage = stage();
    let task = Scripted(Rc::default());
    let start =
        |co: &Co<'_>| stage.jobs.co_start::<_, JobError>(co, options(), task, |_, _| Ok(()));
    let told = stage.ctx.run(|co| start(co).map(|_| take(&stage.told)));
    assert_eq!(told.unwrap(), ["created", "running"]);
}

#[test]
fn j8_a_command_that_is_refused_after_its_job_was_made_leaves_nothing() {
    let stage = stage();
    let start = |options: JobOptions, set_up: Result<(), JobError>| {
        let script = Rc::<Script>::default();
        let task = Scripted(Rc::clone(&script));
        let started = stage.ctx.run(|co| stage.jobs.co_start(co, options, task, |_, _| set_up));
        (started.map(drop), script.calls.take())
    };
    let (refused, calls) = start(options().speed(-1), Ok(()));
    stage.refused(refused, "Parameter 'speed' expects a non-negative value");
    assert_eq!((stage.take(), calls), (vec!["created".into(), "null".into()], vec!["clean"]));
    let (refused, calls) = start(options(), Err(JobError::Refused("no".to_owned())));
    stage.refused(refused, "no");
    assert_eq!((stage.take(), calls), (vec!["created".into(), "null".into()], vec!["clean"]));
    assert!(stage.jobs.all().is_empty());
}

#[test]
fn j10_j14_a_failed_job_is_never_pending_and_stays_if_it_is_to() {
    let stage = stage();
    let (job, script) = stage.start(options().auto_finalize(false).auto_dismiss(false));
    stage.take();
    stage.end(&job, &script, End::Errno(libc::ENOSPC));
    assert_eq!(stage.take(), ["aborting", "COMPLETED No space left on device", "concluded"]);
    assert_eq!(script.calls.take(), ["run", "abort", "clean"]);
    let error = stage.jobs.all()[0].error.clone();
    assert_eq!(error.as_deref(), Some("No space left on device"));
    stage.refused(
        stage.finalize("j"),
        "Job 'j' in state 'concluded' cannot accept command verb 'finalize'",
    );
}

#[test]
fn j17_a_job_tells_its_own_error() {
    let stage = stage();
    let (job, script) = stage.start(options());
    stage.end(&job, &script, End::Text("the moon is full"));
    assert!(stage.take().contains(&"COMPLETED the moon is full".to_owned()));
}

#[test]
fn j13_a_step_that_fails_at_the_end_undoes_the_job() {
    let stage = stage();
    let (job, script) = stage.start(options());
    stage.take();
    script.prepare.replace(Some(End::Text("no pivot")));
    stage.end(&job, &script, End::Well);
    let expected = ["waiting", "pending", "aborting", "COMPLETED no pivot", "concluded", "null"];
    assert_eq!(stage.take(), expected);
    assert_eq!(script.calls.take(), ["run", "prepare", "abort", "clean"]);
}

/// Two jobs of one group, the second one with `auto_finalize`.
fn grouped(stage: &Stage, auto_finalize: bool) -> [(Rc<Job>, Rc<Script>); 2] {
    let group = JobGroup::new();
    let made = ["a", "b"].map(|id| {
        let auto_finalize = id == "a" || auto_finalize;
        stage.make(JobOptions::new(id, "copy").auto_finalize(auto_finalize), &group)
    });
    made.iter().for_each(|(job, _)| job.start(&stage.ctx));
    stage.take();
    made
}

#[test]
fn j11_j12_a_group_ends_together_the_newest_first() {
    let stage = stage();
    let [(a, of_a), (b, of_b)] = grouped(&stage, true);
    stage.end(&a, &of_a, End::Well);
    assert_eq!(stage.take(), ["a waiting"]);
    stage.end(&b, &of_b, End::Well);
    let expected = [
        "b waiting",
        "b pending",
        "a pending",
        "b COMPLETED",
        "b concluded",
        "b null",
        "a COMPLETED",
        "a concluded",
        "a null",
    ];
    assert_eq!(stage.take(), expected);
}

#[test]
fn j11_one_member_that_waits_for_a_command_holds_up_all() {
    let stage = stage();
    let [(a, of_a), (b, of_b)] = grouped(&stage, false);
    stage.end(&b, &of_b, End::Well);
    stage.end(&a, &of_a, End::Well);
    let expected = ["b waiting", "a waiting", "b pending", "a pending", "b PENDING"];
    assert_eq!(stage.take(), expected);
    // Any member will do.
    stage.finalize("a").unwrap();
    assert_eq!(stage.take().len(), 6);
    assert!(stage.jobs.all().is_empty());
}

#[test]
fn j15_one_member_that_fails_ends_all() {
    let stage = stage();
    let [(a, of_a), (b, of_b)] = grouped(&stage, true);
    stage.end(&b, &of_b, End::Well);
    stage.end(&a, &of_a, End::Errno(libc::EIO));
    let expected = [
        "b waiting",
        "a aborting",
        "b aborting",
        "b CANCELLED",
        "b concluded",
        "b null",
        "a COMPLETED Input/output error",
        "a concluded",
        "a null",
    ];
    assert_eq!(stage.take(), expected);
    assert_eq!(of_b.calls.take(), ["run", "abort", "clean"]);
}

#[test]
fn j15_a_cancelled_member_takes_a_pending_one_and_one_that_works_along() {
    let stage = stage();
    let [(a, of_a), _] = grouped(&stage, true);
    stage.end(&a, &of_a, End::Well);
    stage.take();
    stage.cancel("b", true).unwrap();
    let ends = |told: &[String], id: &str| {
        let wanted = ["aborting", "CANCELLED", "concluded", "null"].map(|it| format!("{id} {it}"));
        told.iter().filter(|it| it.starts_with(id)).eq(&wanted)
    };
    let told = stage.take();
    assert!(ends(&told, "a") && ends(&told, "b"), "{told:?}");
}

#[test]
fn j23_a_job_that_is_cancelled_before_it_ran_has_no_event_of_its_end() {
    let stage = stage();
    let (_job, script) = stage.make(options(), &JobGroup::new());
    stage.cancel("j", true).unwrap();
    assert_eq!(stage.take(), ["created", "aborting", "concluded", "null"]);
    assert_eq!(script.calls.take(), ["abort", "clean"]);
}

#[test]
fn j19_a_soft_cancellation_ends_well_what_is_ready_and_is_forced_elsewhere() {
    let stage = stage();
    let (job, script) = stage.start(options());
    stage.cancel("j", false).unwrap();
    let forced = ["created", "running", "aborting", "CANCELLED", "concluded", "null"];
    assert_eq!(stage.take(), forced);
    drop((job, script));
    let (job, script) = stage.start(options());
    script.becomes_ready.set(true);
    job.kick();
    stage.take();
    stage.cancel("j", false).unwrap();
    assert_eq!(stage.take(), ["waiting", "pending", "COMPLETED", "concluded", "null"]);
}

#[test]
fn j19_j44_a_pending_job_has_been_cancelled_when_the_command_returns() {
    let stage = stage();
    let (job, script) = stage.start(options().auto_finalize(false));
    stage.end(&job, &script, End::Well);
    stage.take();
    let told = stage.ctx.run(|co| {
        stage.jobs.co_cancel(co, "j", false).unwrap();
        take(&stage.told)
    });
    assert_eq!(told, ["aborting", "CANCELLED", "concluded", "null"]);
}

#[test]
fn j20_a_forced_cancellation_resumes_a_paused_job_first() {
    let stage = stage();
    let (_job, script) = stage.start(options());
    script.becomes_ready.set(true);
    stage.jobs.pause("j").unwrap();
    assert_eq!(stage.take(), ["created", "running", "paused"]);
    stage.refused(stage.cancel("j", false), "The block job for device 'j' is currently paused");
    stage.cancel("j", true).unwrap();
    assert_eq!(stage.take(), ["running", "aborting", "CANCELLED", "concluded", "null"]);
}

#[test]
fn j21_j24_after_a_soft_cancellation_a_job_cannot_be_completed() {
    let stage = stage();
    let (job, script) = stage.start(options());
    script.becomes_ready.set(true);
    job.kick();
    stage.take();
    stage.ctx.run(|co| {
        stage.jobs.co_cancel(co, "j", false).unwrap();
        stage.refused(stage.jobs.complete("j"), "The active block job 'j' cannot be completed");
        stage.jobs.co_cancel(co, "j", true).unwrap();
    });
    assert_eq!(stage.take(), ["aborting", "CANCELLED", "concluded", "null"]);
    let (job, script) = stage.start(options());
    script.becomes_ready.set(true);
    job.kick();
    stage.settle();
    stage.jobs.pause("j").unwrap();
    stage.settle();
    stage.jobs.complete("j").unwrap();
    assert_eq!(stage.take(), ["created", "running", "ready", "READY", "standby"]);
    stage.jobs.resume("j").unwrap();
    assert_eq!(stage.take(), ["ready", "waiting", "pending", "COMPLETED", "concluded", "null"]);
}
