//! fio's engine `rbd`, in a child process.
//!
//! Its clock leaves out its start. Its CPU time is that of the child less that of a child that makes one
//! request.

use std::io;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::measure::Lap;
use crate::sys;

/// The Debian package that brings it.
pub const PACKAGE: &str = "fio";

/// It tells milliseconds: a shorter run says nothing.
const SHORTEST_S: f64 = 0.02;

/// One kind of run.
#[derive(Clone, Debug)]
pub struct FioRbd {
    /// Configuration of Ceph.
    pub conf: String,
    /// The pool.
    pub pool: String,
    /// The image.
    pub image: String,
    /// Writes instead of reads.
    pub write: bool,
    /// Requests in flight.
    pub depth: usize,
    /// Length of each.
    pub block_bytes: usize,
    /// CPU time of a run that makes one request; measured once.
    pub base_cpu: Option<Duration>,
}

/// Whether it is installed, with this engine.
pub fn is_installed() -> bool {
    let asked = Command::new("fio").arg("--enghelp=rbd").output();
    asked.is_ok_and(|it| it.status.success() && !it.stdout.is_empty())
}

impl FioRbd {
    /// Makes `ops` requests, one block after the other; more if they are too few for its clock.
    ///
    /// # Errors
    /// If it cannot be started or says that it failed; with what it says.
    pub fn run(&mut self, ops: u64) -> io::Result<Lap> {
        let base = match self.base_cpu {
            Some(base) => base,
            None => *self.base_cpu.insert(self.child(1)?.1),
        };
        let mut ops = ops.max(1);
        let (mut seconds, mut cpu) = self.child(ops)?;
        while seconds < SHORTEST_S {
            ops *= if seconds < SHORTEST_S / 8.0 { 8 } else { 2 };
            (seconds, cpu) = self.child(ops)?;
        }
        Ok(Lap {
            ops,
            wall_ns: seconds * 1e9,
            cpu_ns: Some(cpu.saturating_sub(base).as_nanos() as f64),
            allocs: None,
            latency: None,
        })
    }

    fn child(&self, ops: u64) -> io::Result<(f64, Duration)> {
        let mut command = Command::new("fio");
        command.env("CEPH_CONF", &self.conf).args([
            "--name=bench",
            "--ioengine=rbd",
            "--clientname=admin",
            "--thread",
            "--gtod_reduce=1",
            "--output-format=json",
        ]);
        command.arg(format!("--pool={}", self.pool)).arg(format!("--rbdname={}", self.image));
        command.arg(if self.write { "--rw=write" } else { "--rw=read" });
        command.arg(format!("--bs={}", self.block_bytes)).arg(format!("--iodepth={}", self.depth));
        command.arg(format!("--io_size={}", ops * self.block_bytes as u64));
        let before = sys::children_cpu();
        let output = command.output()?;
        let cpu = sys::children_cpu() - before;
        let said = String::from_utf8_lossy(&output.stdout);
        let found = said.find('{').and_then(|at| serde_json::from_str(&said[at..]).ok());
        let kind = if self.write { "write" } else { "read" };
        let job = |value: &Value, name: &str| value["jobs"][0][kind][name].as_f64();
        let milliseconds = found.as_ref().and_then(|value| job(value, "runtime"));
        let made = found.as_ref().and_then(|value| job(value, "total_ios"));
        match (output.status.success(), milliseconds, made) {
            (true, Some(milliseconds), Some(made)) if made == ops as f64 => {
                Ok((milliseconds / 1e3, cpu))
            }
            _ => {
                let why = String::from_utf8_lossy(&output.stderr);
                Err(io::Error::other(format!("fio failed: {} {}", said.trim(), why.trim())))
            }
        }
    }
}
