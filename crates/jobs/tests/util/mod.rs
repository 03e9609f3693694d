//! Helpers of the tests of jobs.
#![allow(dead_code)] // Each test file uses some of them.

pub mod chain;
#[path = "../../../block/tests/util/disk.rs"]
pub mod disk;
pub mod mapped;
pub mod scripted;
pub mod sim;
pub mod stage;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::{AioContext, SimulationOptions, Timer};
use coblk_block::{ErrorAction, RequestKind};
use coblk_jobs::{JobEvent, Jobs};

/// Turns of a loop in which anything happens.
const MAX_TURNS: u64 = 300_000;

/// A simulated context.
pub fn simulated(seed: u64) -> AioContext {
    AioContext::test_builder().simulated(SimulationOptions::new(seed)).build().unwrap()
}

/// What jobs have told, in short.
pub type Told = Rc<RefCell<Vec<String>>>;

/// Jobs whose events are kept.
pub fn jobs() -> (Rc<Jobs>, Told) {
    let told = Told::default();
    let own = Rc::clone(&told);
    let jobs = Jobs::new(move |_, event| own.borrow_mut().push(text(event)));
    (jobs, told)
}

fn text(event: &JobEvent) -> String {
    match event {
        JobEvent::Status(change) => format!("{} {}", change.id, change.status.name()),
        JobEvent::Completed { job, error: None } => format!("{} COMPLETED", job.id),
        JobEvent::Completed { job, error: Some(error) } => format!("{} COMPLETED {error}", job.id),
        JobEvent::Cancelled(job) => format!("{} CANCELLED", job.id),
        JobEvent::Ready(job) => format!("{} READY", job.id),
        JobEvent::Pending { id, .. } => format!("{id} PENDING"),
        JobEvent::Error { id, operation, action } => {
            let operation = if *operation == RequestKind::Read { "read" } else { "write" };
            let action = match action {
                ErrorAction::Report => "report",
                ErrorAction::Ignore => "ignore",
                ErrorAction::Stop => "stop",
            };
            format!("{id} ERROR {operation} {action}")
        }
        other => format!("{other:?}"),
    }
}

/// What was told since the last call, without the name of the job `j`.
pub fn take(told: &Told) -> Vec<String> {
    let told = told.take();
    told.into_iter().map(|it| it.strip_prefix("j ").map(str::to_owned).unwrap_or(it)).collect()
}

/// Without pauses that drains have made.
pub fn without_pauses(told: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for event in told {
        match (kept.last().map(String::as_str), event.as_str()) {
            (Some("paused"), "running") | (Some("standby"), "ready") => drop(kept.pop()),
            _ => kept.push(event),
        }
    }
    kept
}

/// What ends a test that hangs, when so much time has passed on the context's clock.
pub fn watchdog(ctx: &AioContext, patience: Duration) -> Timer {
    let watchdog = ctx.timer(|ctx| {
        let all = ctx.coroutines();
        let waiting: Vec<_> = all.iter().map(|it| (it.name, it.waits_for)).collect();
        panic!("it hangs: {waiting:?}");
    });
    watchdog.arm_after(patience);
    watchdog
}

/// Lets the loop run until `done`.
#[track_caller]
pub fn until(ctx: &AioContext, mut done: impl FnMut() -> bool) {
    // A simulated context is never idle for long; what takes more turns hangs.
    let mut turns = 0;
    ctx.run_until(|| {
        turns += 1;
        if turns > MAX_TURNS {
            let waiting = ctx.coroutines().into_iter();
            let waiting: Vec<_> = waiting.map(|it| (it.name, it.waits_for)).collect();
            panic!("it does not come: {waiting:?}");
        }
        done()
    });
}
