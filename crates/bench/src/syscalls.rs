//! System calls an operation, counted from outside.
//!
//! The work runs alone in a child that `perf stat` watches through the kernel's trace points, or
//! `strace` where perf may not. It runs twice, with different numbers of operations; the difference
//! leaves out all that is not steady state. perf disturbs little; strace stops the child at each
//! call, so that more threads fall asleep than otherwise. What a ring is told to do is no call: syncs are
//! counted where threads make them.

use std::fs;
use std::io;
use std::process::Command;

use crate::measure::Plan;
use crate::report::Row;
use crate::works::Work;

/// Calls a child made, or calls an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    all: f64,
    futex: f64,
    write: f64,
    /// fsync and fdatasync.
    syncs: f64,
    by_strace: bool,
}

impl Counts {
    /// Puts the figures into a row.
    pub fn add_to(&self, row: &mut Row) {
        row.syscalls_per_op = Some(self.all);
        if self.all >= 0.0005 {
            // Nothing but the event loops' eventfds is written to.
            row.more.push(("eventfd_writes_per_op", self.write));
            row.more.push(("futex_calls_per_op", self.futex));
            if self.by_strace {
                row.notes.push("system calls counted by strace, which adds sleeps".to_owned());
            }
        }
    }

    /// All calls an operation.
    pub fn all(&self) -> f64 {
        self.all
    }

    /// Syncs of files an operation.
    pub fn syncs(&self) -> f64 {
        self.syncs
    }

    fn steady(few: Counts, many: Counts, ops: f64) -> Counts {
        let per_op = |few: f64, many: f64| ((many - few) / ops).max(0.0);
        Counts {
            all: per_op(few.all, many.all),
            futex: per_op(few.futex, many.futex),
            write: per_op(few.write, many.write),
            syncs: per_op(few.syncs, many.syncs),
            by_strace: many.by_strace,
        }
    }
}

/// Counts the calls of one operation of a work. An error says what is missing.
pub fn per_op(work: Work, plan: &Plan) -> Result<Counts, String> {
    let few = if plan.quick { 500 } else { 20_000 };
    of_programs(few, |ops| ours(work.name(), ops))
}

/// A child that does so many operations of one work of ours.
///
/// # Errors
/// If this program is not where it was.
pub fn ours(work: &str, ops: u64) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["child", work, &ops.to_string()]);
    Ok(command)
}

/// The calls of one operation of a program that does as many as are asked for: `few`, and three times as
/// many. An error says what is missing.
pub fn of_programs(
    few: u64,
    mut program: impl FnMut(u64) -> io::Result<Command>,
) -> Result<Counts, String> {
    let mut count = |ops| {
        let program = program(ops);
        program.and_then(|program| watch(&program)).map_err(|error| error.to_string())
    };
    Ok(Counts::steady(count(few)?, count(3 * few)?, 2.0 * few as f64))
}

fn watch(command: &Command) -> io::Result<Counts> {
    let (program, arguments) = (command.get_program(), || command.get_args());
    let log = tempfile::NamedTempFile::new()?;
    let perf = Command::new("perf")
        .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter"])
        .args(["-e", "syscalls:sys_enter_futex", "-e", "syscalls:sys_enter_write"])
        .args(["-e", "syscalls:sys_enter_fsync", "-e", "syscalls:sys_enter_fdatasync", "-o"])
        .arg(log.path())
        .arg("--")
        .arg(program)
        .args(arguments())
        .output();
    if perf.is_ok_and(|output| output.status.success())
        && let Some(counts) = parse_perf(&fs::read_to_string(log.path())?)
    {
        return Ok(counts);
    }
    let strace = Command::new("strace")
        .args(["-c", "-f", "-U", "calls,name", "-o"])
        .arg(log.path())
        .arg(program)
        .args(arguments())
        .output();
    match strace {
        Ok(output) if output.status.success() => parse_strace(&fs::read_to_string(log.path())?)
            .ok_or_else(|| io::Error::other("strace printed no table")),
        Ok(output) => Err(io::Error::other(format!(
            "strace failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
        Err(_) => Err(io::Error::other(
            "neither perf nor strace can be used (Debian packages linux-perf, strace)",
        )),
    }
}

/// Lines like `1234,,raw_syscalls:sys_enter,...`.
fn parse_perf(text: &str) -> Option<Counts> {
    let value = |event: &str| -> Option<f64> {
        let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let fields = lines.find(|fields| fields.get(2) == Some(&event))?;
        fields[0].parse().ok()
    };
    Some(Counts {
        all: value("raw_syscalls:sys_enter")?,
        futex: value("syscalls:sys_enter_futex")?,
        write: value("syscalls:sys_enter_write")?,
        syncs: value("syscalls:sys_enter_fsync")? + value("syscalls:sys_enter_fdatasync")?,
        by_strace: false,
    })
}

/// Lines like `  29 futex`, below a rule and above another.
fn parse_strace(text: &str) -> Option<Counts> {
    let mut counts = Counts { by_strace: true, ..Counts::default() };
    let mut any = false;
    for line in text.lines().skip_while(|line| !line.starts_with('-')).skip(1) {
        if line.starts_with('-') {
            break;
        }
        let mut words = line.split_whitespace();
        let calls: f64 = words.next()?.parse().ok()?;
        let name = words.last()?;
        any = true;
        counts.all += calls;
        match name {
            "futex" => counts.futex += calls,
            "write" => counts.write += calls,
            "fsync" | "fdatasync" => counts.syncs += calls,
            _ => {}
        }
    }
    any.then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_perf_says() {
        let text = "# started on Monday\n\n120,,raw_syscalls:sys_enter,9,100.00,,\n\
                    7,,syscalls:sys_enter_futex,9,100.00,,\n3,,syscalls:sys_enter_write,9,100.00,,\n\
                    2,,syscalls:sys_enter_fsync,9,,,\n4,,syscalls:sys_enter_fdatasync,9,,,\n";
        let counts = Counts { all: 120.0, futex: 7.0, write: 3.0, syncs: 6.0, by_strace: false };
        assert_eq!(parse_perf(text), Some(counts));
        assert_eq!(parse_perf("<not supported>,,raw_syscalls:sys_enter,0,0"), None);
    }

    #[test]
    fn reads_what_strace_says() {
        let text = "    calls syscall\n--------- ----------------\n        8 mmap\n       \
                    5 futex\n        2 write\n        1 fsync\n--------- ----------------\n       \
                    16 total\n";
        let counts = Counts { all: 16.0, futex: 5.0, write: 2.0, syncs: 1.0, by_strace: true };
        assert_eq!(parse_strace(text), Some(counts));
        assert_eq!(parse_strace(""), None);
    }

    #[test]
    fn the_difference_is_steady_state() {
        let few = Counts { all: 110.0, futex: 5.0, ..Counts::default() };
        let many = Counts { all: 310.0, futex: 5.0, ..Counts::default() };
        let steady = Counts::steady(few, many, 200.0);
        assert_eq!((steady.all, steady.futex), (1.0, 0.0));
    }
}
