//! `qemu-img bench`, in a child process.
//!
//! It prints how long its requests took, which leaves out its start. Its CPU time is that of the
//! child less that of a child that makes one request.

use std::io;
use std::process::Command;
use std::time::Duration;

use crate::measure::Lap;
use crate::sys;

/// The Debian package that brings it.
pub const PACKAGE: &str = "qemu-utils";

/// It tells milliseconds: a shorter run says nothing.
const SHORTEST_S: f64 = 0.02;

/// Whether it is installed.
pub fn is_installed() -> bool {
    Command::new("qemu-img").arg("--version").output().is_ok()
}

/// One kind of run.
#[derive(Clone, Debug)]
pub struct QemuImg {
    depth: usize,
    block_bytes: usize,
    write: bool,
    /// Further options of the command.
    more: Vec<String>,
    image: Vec<String>,
    /// CPU time of a run that makes one request; measured once.
    base_cpu: Option<Duration>,
}

impl QemuImg {
    /// Reads from `null-co` or `null-aio`.
    pub fn null(driver: &str, depth: usize) -> QemuImg {
        let options = format!("driver={driver},size=1G,read-zeroes=off");
        QemuImg::new(depth, vec!["--image-opts".to_owned(), options])
    }

    /// Requests to a raw image, with `-i aio` and `-t cache`.
    pub fn file(path: &str, aio: &str, cache: &str, depth: usize, write: bool) -> QemuImg {
        let image = ["-i", aio, "-t", cache, "-f", "raw", path].map(str::to_owned).to_vec();
        QemuImg { write, ..QemuImg::new(depth, image) }
    }

    /// The same to a node with options as JSON, of `block_bytes` each.
    pub fn node(options: &str, depth: usize, block_bytes: usize) -> QemuImg {
        let image = ["-t", "writeback", &format!("json:{options}")].map(str::to_owned).to_vec();
        QemuImg { block_bytes, ..QemuImg::new(depth, image) }
    }

    fn new(depth: usize, image: Vec<String>) -> QemuImg {
        QemuImg { depth, block_bytes: 4096, write: false, more: Vec::new(), image, base_cpu: None }
    }

    /// Writes instead of reads.
    pub fn writing(mut self) -> QemuImg {
        self.write = true;
        self
    }

    /// Requests begin so many bytes apart.
    pub fn step(self, bytes: u64) -> QemuImg {
        self.with("-S", bytes)
    }

    /// The first begins there.
    pub fn from(self, offset: u64) -> QemuImg {
        self.with("-o", offset)
    }

    /// Flushes after so many writes, not fewer than are in flight, when they have ended.
    pub fn flush_every(mut self, writes: u64) -> QemuImg {
        self.more.push(format!("--flush-interval={writes}"));
        self
    }

    fn with(mut self, option: &str, value: u64) -> QemuImg {
        self.more.extend([option.to_owned(), value.to_string()]);
        self
    }

    /// Makes `ops` requests, one block after the other; more if they are too few for its clock.
    ///
    /// # Errors
    /// If it cannot be started or says that it failed; with what it says.
    pub fn run(&mut self, ops: u64) -> io::Result<Lap> {
        self.run_after(ops, || Ok(()))
    }

    /// The same, with `prepare` before each time that it is started.
    ///
    /// # Errors
    /// As of that, and those of `prepare`.
    pub fn run_after(
        &mut self,
        ops: u64,
        mut prepare: impl FnMut() -> io::Result<()>,
    ) -> io::Result<Lap> {
        let mut child = |it: &QemuImg, ops| {
            prepare()?;
            it.child(ops)
        };
        let base = match self.base_cpu {
            Some(base) => base,
            None => *self.base_cpu.insert(child(self, 1)?.1),
        };
        let mut ops = ops.max(1);
        let (mut seconds, mut cpu) = child(self, ops)?;
        while seconds < SHORTEST_S {
            ops *= if seconds < SHORTEST_S / 8.0 { 8 } else { 2 };
            (seconds, cpu) = child(self, ops)?;
        }
        Ok(Lap {
            ops,
            wall_ns: seconds * 1e9,
            cpu_ns: Some(cpu.saturating_sub(base).as_nanos() as f64),
            allocs: None,
            latency: None,
        })
    }

    /// The command that makes `ops` requests.
    pub fn command(&self, ops: u64) -> Command {
        let mut command = Command::new("qemu-img");
        command.args(["bench", "-c", &ops.to_string(), "-d", &self.depth.to_string()]);
        command.args(["-s", &self.block_bytes.to_string()]);
        if self.write {
            command.arg("-w");
        }
        command.args(&self.more).args(&self.image);
        command
    }

    /// Seconds by its own clock, which tells milliseconds, and CPU time of the process.
    ///
    /// # Errors
    /// As of [`run`](Self::run).
    pub fn child(&self, ops: u64) -> io::Result<(f64, Duration)> {
        let before = sys::children_cpu();
        let output = self.command(ops).output()?;
        let cpu = sys::children_cpu() - before;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("qemu-img bench failed: {}", said.trim())));
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let seconds = seconds_of(&said).ok_or_else(|| {
            io::Error::other(format!("qemu-img bench says no time: {}", said.trim()))
        })?;
        Ok((seconds, cpu))
    }
}

/// The time in "Run completed in 1.234 seconds.".
fn seconds_of(output: &str) -> Option<f64> {
    let line = output.lines().find(|line| line.starts_with("Run completed in "))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Runs a command of qemu-img.
///
/// # Errors
/// If it cannot be started or fails, with what it says.
pub fn run(words: &[&str]) -> io::Result<()> {
    let output = Command::new("qemu-img").args(words).output().map_err(|error| {
        io::Error::new(error.kind(), format!("qemu-img (Debian package {PACKAGE}): {error}"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("qemu-img {} failed: {}", words.join(" "), said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_time() {
        let output = "Sending 1000 read requests\nRun completed in 0.012 seconds.\n";
        assert_eq!(seconds_of(output), Some(0.012));
        assert_eq!(seconds_of("nothing"), None);
    }

    #[test]
    fn runs_where_it_is_installed() {
        if is_installed() {
            let lap = QemuImg::null("null-co", 8).run(1000).unwrap();
            assert!(lap.ops >= 1000 && lap.wall_ns >= SHORTEST_S * 1e9);
            assert!(QemuImg::file("/nowhere", "threads", "none", 1, false).run(1).is_err());
        }
    }
}
