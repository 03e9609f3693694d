//! `compare qcow2`: our driver beside a raw image and beside QEMU's driver.
//!
//! The images are made by qemu-img. Each family of rows has a file:
//!
//! ```text
//! mapped   requests to bytes that have a place, by one context and by two
//! first    writes that allocate: a cluster each, a table each, with a copy from a backing file
//! flush    how many syncs a flush makes
//! large    images of 100 GiB and more: cache misses, opening, the first allocation, checks, snapshots
//! ```

mod first;
mod flush;
mod images;
mod large;
mod mapped;
mod node;

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::args::{self, CommonArgs};
use crate::engine::Engine;
use crate::measure::{Contest, Lap, Plan};
use crate::peers::qemu_img;
use crate::progress::Progress;
use crate::report::{At, Report, Row};
use images::Images;

/// Length of a small request, and that of a cluster.
const SMALL: usize = 4096;
const CLUSTER: usize = 64 << 10;
/// What rows call QEMU's driver, and ours on a raw image.
const QEMU: &str = "qemu qcow2";
const RAW: &str = "coblk raw";

/// What all rows are measured with.
struct Stage<'a> {
    images: Images<'a>,
    /// Operations of a lap, if the command line says so.
    count: Option<u64>,
    plan: &'a Plan,
    progress: &'a Progress,
}

impl Stage<'_> {
    /// Runs a contest of laps with so many operations, or with as many as take long enough.
    fn run(&self, contest: Contest<'_>, ops: Option<u64>, depth: usize) -> io::Result<Row> {
        let contest = match self.count.or(ops) {
            Some(ops) => contest.ops(ops),
            None => contest,
        };
        let mut row = contest.run(self.plan, || self.progress.tick())?;
        row.at = Some(At::Depth(depth));
        Ok(row)
    }
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Mapped(mapped::Work),
    First(first::Work),
    Flush(flush::Work),
    Large(large::Work),
}

impl Work {
    fn all() -> Vec<Work> {
        let mut works: Vec<Work> = mapped::Work::all().into_iter().map(Work::Mapped).collect();
        works.extend(first::Work::all().into_iter().map(Work::First));
        works.extend(flush::Work::ALL.map(Work::Flush));
        works.extend(large::Work::ALL.map(Work::Large));
        works
    }

    fn name(self) -> String {
        match self {
            Work::Mapped(work) => work.name(),
            Work::First(work) => work.name(),
            Work::Flush(work) => work.name(),
            Work::Large(work) => work.name().to_owned(),
        }
    }

    fn measure(self, stage: &Stage<'_>) -> io::Result<Row> {
        match self {
            Work::Mapped(work) => work.measure(stage),
            Work::First(work) => work.measure(stage),
            Work::Flush(work) => work.measure(stage),
            Work::Large(work) => work.measure(stage),
        }
    }
}

/// Options of a file's node.
fn file(path: &Path, engine: Engine) -> Value {
    json!({"driver": "file", "filename": path, "aio": engine.name(), "locking": "off"})
}

/// Adds a peer that is a program of QEMU's, if that is installed.
fn add_qemu<'a>(
    contest: Contest<'a>,
    bench: impl FnMut(u64) -> io::Result<Lap> + 'a,
) -> Contest<'a> {
    if qemu_img::is_installed() {
        contest.peer(QEMU, bench)
    } else {
        contest.missing(QEMU, qemu_img::PACKAGE)
    }
}

/// Measures the rows.
///
/// # Errors
/// If no row is wanted, there is no qemu-img to make images, or a request fails.
pub fn run(arguments: &CommonArgs, plan: &Plan, report: &mut Report) -> io::Result<()> {
    let works = args::wanted(Work::all(), &arguments.only, |work| work.name())?;
    Engine::IoUring.check()?;
    let progress = Progress::new(works.len());
    let images = Images::new(plan.quick, || arguments.image(plan))?;
    let stage = Stage { images, count: arguments.count, plan, progress: &progress };
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

/// Runs our part of a row and nothing else, for a tool that watches this process.
///
/// # Errors
/// If the row cannot be run alone, or fails.
pub fn run_alone(name: &str, ops: u64) -> io::Result<()> {
    let none = || Err(io::Error::other(format!("'{name}' is not run alone")));
    let images = Images::new(true, || Err(io::Error::other("no image to read")))?;
    match Work::all().into_iter().find(|work| work.name() == name) {
        Some(Work::First(work)) if !work.copies() => work.ours(&images)?(ops).map(drop),
        Some(Work::Flush(work)) => work.ours(&images)?(ops).map(drop),
        _ => none(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names = names();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Work::all().len());
    }

    #[test]
    fn every_row_is_measured() {
        if !qemu_img::is_installed() {
            return;
        }
        let images = Images::new(true, || {
            crate::image::Image::open_or_make(None, 8 << 20, || ()) //
        });
        let plan = Plan { lap: Duration::from_millis(1), ..Plan::new(true, None) };
        let progress = Progress::new(1);
        let stage =
            Stage { images: images.unwrap(), count: None, plan: &plan, progress: &progress };
        for work in Work::all() {
            let row = work.measure(&stage).unwrap();
            assert!(row.ours.is_some(), "{row:?}");
            assert!(row.peers.iter().all(|peer| peer.value > 0.0), "{row:?}");
            let notes: Vec<_> = row.notes.iter().filter(|it| it.contains("failed")).collect();
            assert!(notes.is_empty(), "{row:?}");
        }
    }
}
