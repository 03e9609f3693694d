//! `micro`: what each part of the machinery costs, beside other libraries that do the same.

mod coroutine;
mod events;
mod idle;
mod null;
mod suspended;
mod wake;
mod worker;

use std::io;
use std::time::Duration;

use crate::measure::{Contest, Plan};
use crate::progress::Progress;
use crate::report::{Report, Row};
use crate::syscalls;
use crate::works::Work;

pub use suspended::child as suspended_child;

/// What the command line asks of `micro`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Works to measure.
    pub works: Vec<Work>,
    /// How many coroutines to suspend.
    pub suspended: u64,
    /// How long to watch an idle context.
    pub idle: Duration,
}

/// Measures the works, in their order.
///
/// # Errors
/// If one of ours fails.
pub fn run(options: &Options, plan: &Plan, report: &mut Report) -> io::Result<()> {
    let progress = Progress::new(options.works.len());
    let mut shared_rows: Vec<Row> = Vec::new();
    for work in &options.works {
        progress.now(work.name());
        let row = match work {
            Work::SuspendedTime | Work::SuspendedMemory | Work::SuspendedMappings => {
                one_of(*work, &mut shared_rows, || suspended::rows(options.suspended, plan))?
            }
            Work::IdleWakeUps | Work::IdleCpu => {
                one_of(*work, &mut shared_rows, || idle::rows(options.idle))?
            }
            Work::TwoContexts => null::two_contexts(plan, || progress.tick())?,
            _ => in_laps(*work, plan, &progress)?,
        };
        report.add(row)?;
        progress.step();
    }
    Ok(())
}

/// Several works come out of one measurement; it is made when the first of them is asked for.
fn one_of(
    work: Work,
    rows: &mut Vec<Row>,
    measure: impl FnOnce() -> io::Result<Vec<Row>>,
) -> io::Result<Row> {
    let find = |rows: &[Row]| rows.iter().find(|row| row.work == work.name()).cloned();
    if find(rows).is_none() {
        rows.extend(measure()?);
    }
    find(rows).ok_or_else(|| io::Error::other(format!("'{}' gave no row", work.name())))
}

fn in_laps(work: Work, plan: &Plan, progress: &Progress) -> io::Result<Row> {
    let mut row = contest(work)?.run(plan, || progress.tick())?;
    if work.counts_syscalls() {
        match syscalls::per_op(work, plan) {
            Ok(counts) => counts.add_to(&mut row),
            Err(reason) => row.notes.push(format!("system calls not measured: {reason}")),
        }
    }
    Ok(row)
}

/// A work that is measured in laps, with its peers.
fn contest(work: Work) -> io::Result<Contest<'static>> {
    match work {
        Work::ResumeSuspend | Work::CreateRunEnd | Work::Nesting => Ok(coroutine::contest(work)),
        Work::BhLocal | Work::BhLocalBatch | Work::BhRemote | Work::Timer => events::contest(work),
        Work::WakeQd1 => wake::contest(work, 1),
        Work::WakeQd64 => wake::contest(work, 64),
        Work::WorkerQd1 | Work::WorkerOneCpu | Work::WorkerTaken => worker::contest(work, 1),
        Work::WorkerQd64 => worker::contest(work, 64),
        Work::NullQd1 | Work::NullAioQd1 => null::contest(work, 1),
        Work::NullQd64 | Work::NullAioQd64 => null::contest(work, 64),
        Work::ChainQd64 | Work::ChainAioQd64 => null::chain(work, 64),
        _ => Err(io::Error::other(format!("'{}' is not measured in laps", work.name()))),
    }
}

/// Runs one work of ours and nothing else, for a tool that watches this process.
///
/// # Errors
/// If the work fails or is not measured in laps.
pub fn run_alone(work: Work, ops: u64) -> io::Result<()> {
    contest(work)?.run_ours(ops).map(|_| ())
}
