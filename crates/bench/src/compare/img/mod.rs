//! `compare img`: commands of coblk-img beside the same of qemu-img, on the same images, and beside a plain loop.
//!
//! ```text
//! images  what is read: one disk, of which every second MiB is words and the rest a hole
//! ```
//!
//! An operation is a MiB of the disk, from the start of the program to its end. Where it says `in memory`, images are
//! in a file system in memory, and options are the defaults; else on a disk, with `-t none -T none`, without the page
//! cache. Images of qcow2 are made by qemu-img, where that is installed.

mod images;

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Instant;

use clap::Args;

use super::args;
use super::jobs::side::{Medium, PIECE, stored};
use crate::fio;
use crate::measure::{Bench, Contest, Lap, Plan};
use crate::peers::programs::beside;
use crate::peers::qemu_img;
use crate::progress::Progress;
use crate::report::{Report, Row};
use crate::sys;
use crate::works::Unit;
use images::Images;

/// What rows call QEMU's.
const QEMU: &str = "qemu-img";
/// What rows call the loops.
const COPY_LOOP: &str = "copy loop";
const READ_LOOP: &str = "read loop";
/// Length of the image that is checked.
const CHECKED_GIB: u64 = 256;

/// Arguments of `compare img`.
#[derive(Args, Clone, Debug)]
pub struct ImgArgs {
    /// Measure only rows whose name contains this; may be given again.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Length of the disk. Half of it is data.
    #[arg(long, value_parser = fio::size)]
    size: Option<u64>,
    /// Our program. Without this, the one that lies beside this program.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow2,
    /// qcow2 with compressed clusters.
    Compressed,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Compressed => "compressed qcow2",
        }
    }

    /// What programs call it.
    fn word(self) -> &'static str {
        if self == Format::Raw { "raw" } else { "qcow2" }
    }
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Convert(Format, Format),
    /// The raw image and that of qcow2, which are equal.
    Compare,
    Check,
}

/// A row.
type Work = (Task, Medium);

fn all() -> Vec<Work> {
    use Format::{Compressed, Qcow2, Raw};
    let conversions = [(Raw, Qcow2), (Qcow2, Raw), (Qcow2, Qcow2), (Qcow2, Compressed)];
    let conversions = conversions.into_iter().chain([(Compressed, Raw)]);
    let tasks = conversions.map(|(from, to)| Task::Convert(from, to));
    let tasks: Vec<Task> = tasks.chain([Task::Compare, Task::Check]).collect();
    let of = |medium| tasks.iter().map(move |task| (*task, medium));
    [Medium::Memory, Medium::Direct].into_iter().flat_map(of).collect()
}

fn name((task, medium): Work) -> String {
    let medium = if medium == Medium::Memory { "in memory" } else { "O_DIRECT" };
    match task {
        Task::Convert(from, to) => {
            format!("img convert {} to {}, {medium}", from.name(), to.name())
        }
        Task::Compare => format!("img compare raw and qcow2, {medium}"),
        Task::Check => format!("img check {CHECKED_GIB} GiB, {medium}"),
    }
}

/// Measures the rows.
///
/// # Errors
/// If no row is wanted, there is no program of ours, or a command fails.
pub fn run(arguments: &ImgArgs, plan: &Plan, report: &mut Report) -> io::Result<()> {
    let works = args::wanted(all(), &arguments.only, |work| name(*work))?;
    let ours = match &arguments.program {
        Some(path) => path.clone(),
        None => beside("coblk-img", "name it with --program")?,
    };
    let default = if plan.quick { 16 << 20 } else { 4 << 30 };
    let length = arguments.size.unwrap_or(default).next_multiple_of(PIECE as u64);
    let progress = Progress::new(works.len());
    let maker = if qemu_img::is_installed() { Path::new(QEMU) } else { &*ours };
    for medium in [Medium::Memory, Medium::Direct] {
        // Those of the other one are gone by now.
        let images = Images::new(medium, length, maker)?;
        for work in works.iter().filter(|work| work.1 == medium) {
            progress.now(&name(*work));
            let commands = Commands { task: work.0, images: &images, is_quick: plan.quick };
            report.add(commands.measure(&ours, plan, &progress)?)?;
            progress.step();
        }
    }
    Ok(())
}

/// The names of the rows.
pub fn names() -> Vec<String> {
    all().into_iter().map(name).collect()
}

/// A row while it is measured.
#[derive(Clone, Copy)]
struct Commands<'a> {
    task: Task,
    images: &'a Images<'a>,
    is_quick: bool,
}

impl<'a> Commands<'a> {
    fn measure(self, ours: &'a Path, plan: &Plan, progress: &Progress) -> io::Result<Row> {
        let stored = [Rc::<Cell<u64>>::default(), Rc::default()];
        let row = name((self.task, self.images.medium));
        let mut contest = Contest::new(row, Unit::NsPerOp, self.laps(ours, &stored[0])?);
        contest = match qemu_img::is_installed() {
            true => contest.peer(QEMU, self.laps(Path::new(QEMU), &stored[1])?),
            false => contest.missing(QEMU, qemu_img::PACKAGE),
        };
        contest = match self.task {
            Task::Convert(Format::Compressed, _) | Task::Convert(_, Format::Compressed) => contest,
            Task::Convert(..) => contest.peer(COPY_LOOP, self.images.copy_loop()?),
            Task::Compare => contest.peer(READ_LOOP, self.images.read_loop()?),
            Task::Check => contest,
        };
        let mut row = contest.ops(self.mibs()).run(plan, || progress.tick())?;
        for (name, bytes) in ["stored_bytes", "qemu_stored_bytes"].into_iter().zip(stored) {
            if bytes.get() > 0 {
                row.more.push((name, bytes.get() as f64));
            }
        }
        Ok(row)
    }

    /// How many operations a command is.
    fn mibs(self) -> u64 {
        match self.task {
            Task::Check => self.checked_gib() << 10,
            _ => self.images.length / PIECE as u64,
        }
    }

    fn checked_gib(self) -> u64 {
        if self.is_quick { 2 } else { CHECKED_GIB }
    }

    fn image(self, format: Format) -> io::Result<PathBuf> {
        match format {
            Format::Raw => self.images.raw(),
            Format::Qcow2 => self.images.qcow2(false),
            Format::Compressed => self.images.qcow2(true),
        }
    }

    /// Laps of a program, which notes how much the image takes that it has made.
    fn laps(self, program: &'a Path, bytes: &Rc<Cell<u64>>) -> io::Result<Bench<'a>> {
        let (words, target) = (self.words()?, self.images.path("target"));
        let (mibs, bytes) = (self.mibs(), Rc::clone(bytes));
        Ok(Box::new(move |_| {
            let words: Vec<&Path> = words.iter().map(PathBuf::as_path).collect();
            let (cpu, start) = (sys::children_cpu(), Instant::now());
            run_program(program, &words)?;
            let wall_ns = start.elapsed().as_nanos() as f64;
            let cpu_ns = Some((sys::children_cpu() - cpu).as_nanos() as f64);
            if target.exists() {
                bytes.set(stored(&target)?);
                fs::remove_file(&target)?;
            }
            Ok(Lap { ops: mibs, wall_ns, cpu_ns, ..Lap::default() })
        }))
    }

    /// What both programs are told.
    fn words(self) -> io::Result<Vec<PathBuf>> {
        let is_direct = self.images.medium == Medium::Direct;
        let (mut words, mut files) = (Vec::new(), Vec::new());
        match self.task {
            Task::Convert(from, to) => {
                words.extend(["convert", "-f", from.word(), "-O", to.word()]);
                if to == Format::Compressed {
                    words.push("-c");
                }
                if is_direct {
                    words.extend(["-t", "none"]);
                }
                files.extend([self.image(from)?, self.images.path("target")]);
            }
            Task::Compare => {
                words.extend(["compare", "-f", "raw", "-F", "qcow2"]);
                files.extend([self.image(Format::Raw)?, self.image(Format::Qcow2)?]);
            }
            Task::Check => {
                words.extend(["check", "-f", "qcow2"]);
                files.push(self.images.mapped(self.checked_gib())?);
            }
        }
        if is_direct {
            words.extend(["-T", "none"]);
        }
        Ok(words.into_iter().map(PathBuf::from).chain(files).collect())
    }
}

/// Runs a program to its end.
fn run_program(program: &Path, words: &[&Path]) -> io::Result<()> {
    let shown = program.display();
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output =
        output.map_err(|error| io::Error::new(error.kind(), format!("{shown}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{shown} {words:?} failed: {}", said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names = names();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all().len());
    }
}
