//! [`Side`]: a daemon of a contest, its disks, and how a job is run there.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::measure::Lap;
use crate::peers::programs::Program;
use crate::peers::qmp::StorageDaemon;

/// Bytes of a piece of a disk: one that is half zero has every second one.
pub const PIECE: usize = 1 << 20;
/// For how long a node may be in use.
const PATIENCE: Duration = Duration::from_secs(10);
/// File systems in memory.
const MEMORY: &str = "/dev/shm";

/// Where disks are, and how they are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// In memory.
    Memory,
    /// On a disk, without the page cache.
    Direct,
}

/// What a disk has at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    Data,
    /// A hole at every second piece.
    HalfZero,
    /// Every third piece, beginning with this one; else holes.
    Third(u64),
    /// A hole.
    Empty,
}

impl Contents {
    fn has(self, piece: u64) -> bool {
        match self {
            Contents::Data => true,
            Contents::HalfZero => piece.is_multiple_of(2),
            Contents::Third(first) => piece % 3 == first,
            Contents::Empty => false,
        }
    }
}

/// A daemon, and a directory for its disks.
pub struct Side {
    pub daemon: StorageDaemon,
    pub length: u64,
    memory: TempDir,
    disk: TempDir,
}

impl Side {
    pub fn new(program: &Program, length: u64) -> io::Result<Side> {
        let (memory, disk) = (directory(Medium::Memory)?, directory(Medium::Direct)?);
        let daemon = StorageDaemon::start(program.path())?;
        Ok(Side { daemon, length, memory, disk })
    }

    pub fn path(&self, name: &str, medium: Medium) -> PathBuf {
        let directory = if medium == Medium::Memory { &self.memory } else { &self.disk };
        directory.path().join(name)
    }

    /// Makes a disk.
    pub fn make(&self, name: &str, medium: Medium, contents: Contents) -> io::Result<PathBuf> {
        let path = self.path(name, medium);
        make(&path, self.length, contents)?;
        Ok(path)
    }

    /// Adds a node of a disk.
    pub fn add(&mut self, name: &str, medium: Medium) -> io::Result<()> {
        let path = self.path(name, medium);
        let is_direct = medium == Medium::Direct;
        self.daemon.execute(
            "blockdev-add",
            json!({
                "driver": "file", "node-name": name, "filename": path,
                "aio": if is_direct { "io_uring" } else { "threads" },
                "cache": {"direct": is_direct}, "discard": "unmap",
            }),
        )?;
        Ok(())
    }

    /// Removes nodes. A target may be in use for a moment by requests that a cancelled job has left behind.
    pub fn remove(&mut self, names: &[&str]) -> io::Result<()> {
        for name in names {
            let until = Instant::now() + PATIENCE;
            let mut removed = self.delete(name);
            while removed.is_err() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
                removed = self.delete(name);
            }
            removed?;
        }
        Ok(())
    }

    fn delete(&mut self, name: &str) -> io::Result<()> {
        self.daemon.execute("blockdev-del", json!({"node-name": name})).map(drop)
    }

    /// Starts a mirror from the node `source` to the node `target`.
    pub fn mirror(&mut self, more: &[(&str, Value)]) -> io::Result<()> {
        self.start("blockdev-mirror", more)
    }

    /// Starts a backup of the node `source` to the node `target`.
    pub fn backup(&mut self, more: &[(&str, Value)]) -> io::Result<()> {
        self.start("blockdev-backup", more)
    }

    fn start(&mut self, command: &str, more: &[(&str, Value)]) -> io::Result<()> {
        let mut arguments =
            json!({"job-id": "j", "device": "source", "target": "target", "sync": "full"});
        for (name, value) in more {
            arguments[*name] = value.clone();
        }
        self.daemon.execute(command, arguments).map(drop)
    }

    /// Ends the job, without a pivot, and waits for that.
    pub fn cancel(&mut self) -> io::Result<()> {
        self.daemon.execute("block-job-cancel", json!({"device": "j", "force": true}))?;
        self.until_gone()
    }

    pub fn until_gone(&mut self) -> io::Result<()> {
        self.daemon.until(|event| {
            event["event"] == "JOB_STATUS_CHANGE" && event["data"]["status"] == "null"
        })
    }

    pub fn until_ready(&mut self) -> io::Result<()> {
        self.daemon.until(|event| {
            event["event"] == "BLOCK_JOB_READY" || event["event"] == "BLOCK_JOB_COMPLETED"
        })
    }

    /// Measures the time of something, and the daemon's CPU time.
    pub fn lap(
        &mut self,
        ops: u64,
        work: impl FnOnce(&mut Side) -> io::Result<()>,
    ) -> io::Result<Lap> {
        let (cpu_ns, start) = (self.daemon.cpu_ns()?, Instant::now());
        work(self)?;
        let wall_ns = start.elapsed().as_nanos() as f64;
        let cpu_ns = Some((self.daemon.cpu_ns()? - cpu_ns) as f64);
        Ok(Lap { ops, wall_ns, cpu_ns, ..Lap::default() })
    }
}

/// A directory for disks.
pub fn directory(medium: Medium) -> io::Result<TempDir> {
    let mut named = tempfile::Builder::new();
    named.prefix("coblk-bench-");
    match medium {
        Medium::Memory if Path::new(MEMORY).is_dir() => named.tempdir_in(MEMORY),
        _ => named.tempdir(),
    }
}

/// Makes a file.
pub fn make(path: &Path, length: u64, contents: Contents) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_len(length)?;
    let piece: Vec<u8> = (0..PIECE).map(|index| ((index * 31) >> 7) as u8 | 1).collect();
    for number in 0..length / PIECE as u64 {
        if contents.has(number) {
            file.write_all_at(&piece, number * PIECE as u64)?;
        }
    }
    file.flush()?;
    file.sync_all()
}

/// Bytes that a file takes.
pub fn stored(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.blocks() * 512)
}
