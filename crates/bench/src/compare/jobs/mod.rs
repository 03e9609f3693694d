//! `compare jobs`: jobs of our daemon beside those of qemu-storage-daemon, which are told the same over QMP, and
//! beside a plain loop.
//!
//! ```text
//! side     a daemon, its disks, and how a job is run there
//! chains   chains of images
//! copies   whole disks: a MiB of the disk is an operation
//! guests   writes of a client of the source's NBD export while a job works: a write is an operation
//! moments  a command: cancellations, pivots; and a job that has nothing to do
//! ```
//!
//! The disks of rows that are not `direct` are in memory, where there is a file system for that: else the time
//! is that of the disk's flushes.

mod chains;
mod copies;
mod guests;
mod moments;
pub mod side;

use std::io;
use std::path::PathBuf;

use clap::Args;

use super::args::{self, CommonArgs};
use crate::measure::{Contest, Lap, Plan};
use crate::peers::programs::{Program, Protocol};
use crate::progress::Progress;
use crate::report::{Report, Row};
use crate::works::Unit;
use side::Side;

/// What rows call QEMU's.
const QEMU: &str = "qemu-storage-daemon";
/// What rows call the loop.
const LOOP: &str = "copy loop";

/// Arguments of `compare jobs`.
#[derive(Args, Clone, Debug)]
pub struct JobsArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Our daemon. Without this, the one that lies beside this program.
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
}

/// What all rows are measured with.
struct Stage<'a> {
    ours: &'a Program,
    /// Length of the disks, in bytes.
    length: u64,
    plan: &'a Plan,
    progress: &'a Progress,
}

impl Stage<'_> {
    /// Measures laps of both daemons in turn, of `ops` operations.
    fn contest<'a>(
        &self,
        name: String,
        unit: Unit,
        ops: u64,
        laps: impl Fn(Side) -> Box<dyn FnMut(u64) -> io::Result<Lap> + 'a>,
    ) -> io::Result<Contest<'a>> {
        let contest = Contest::new(name, unit, laps(Side::new(self.ours, self.length)?));
        let qemu = Program::QemuStorageDaemon;
        let contest = match qemu.is_installed() {
            true => contest.peer(QEMU, laps(Side::new(&qemu, self.length)?)),
            false => contest.missing(QEMU, qemu.name().1),
        };
        Ok(contest.ops(ops))
    }

    fn run(&self, contest: Contest<'_>) -> io::Result<Row> {
        contest.run(self.plan, || self.progress.tick())
    }
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Copy(copies::Work),
    Chain(chains::Work),
    Guest(guests::Work),
    Moment(moments::Work),
}

impl Work {
    fn all() -> Vec<Work> {
        let mut works: Vec<Work> = copies::Work::all().into_iter().map(Work::Copy).collect();
        works.extend(chains::Work::ALL.map(Work::Chain));
        works.extend(guests::Work::all().into_iter().map(Work::Guest));
        works.extend(moments::Work::ALL.map(Work::Moment));
        works
    }

    fn name(self) -> String {
        match self {
            Work::Copy(work) => work.name(),
            Work::Chain(work) => work.name().to_owned(),
            Work::Guest(work) => work.name(),
            Work::Moment(work) => work.name().to_owned(),
        }
    }

    fn measure(self, stage: &Stage<'_>) -> io::Result<Row> {
        match self {
            Work::Copy(work) => work.measure(stage),
            Work::Chain(work) => work.measure(stage),
            Work::Guest(work) => work.measure(stage),
            Work::Moment(work) => work.measure(stage),
        }
    }
}

/// Measures the rows.
///
/// # Errors
/// If no row is wanted, there is no daemon of ours, or a job fails.
pub fn run(arguments: &JobsArgs, plan: &Plan, report: &mut Report) -> io::Result<()> {
    let works = args::wanted(Work::all(), &arguments.common.only, |work| work.name())?;
    let ours = Program::ours(arguments.server.as_deref(), Protocol::Nbd)?;
    let default = if plan.quick { 16 << 20 } else { 512 << 20 };
    let length = arguments.common.size.unwrap_or(default);
    let progress = Progress::new(works.len());
    let stage = Stage { ours: &ours, length, plan, progress: &progress };
    for work in works {
        progress.now(&work.name());
        report.add(work.measure(&stage)?)?;
        progress.step();
    }
    Ok(())
}

/// The names of the rows.
pub fn names() -> Vec<String> {
    Work::all().into_iter().map(Work::name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names = names();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Work::all().len());
    }
}
