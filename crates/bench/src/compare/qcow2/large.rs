//! Rows of large images, all of them mapped: what does not get slower with the length of the disk, and what
//! has to.
//!
//! QEMU's part of some is a program that starts, does its work and ends; what it takes without the work is
//! measured too, and left out.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use coblk::aio::sync::TaskPool;
use coblk::block::Repair;
use serde_json::json;

use super::node::Opened;
use super::{CLUSTER, SMALL, Stage, add_qemu, file};
use crate::compare::works::DEPTH;
use crate::engine::Engine;
use crate::measure::{Bench, Contest, Lap, lap};
use crate::peers::qemu_img::QemuImg;
use crate::peers::qemu_img::run as qemu_img;
use crate::peers::qmp::{self, StorageDaemon};
use crate::report::Row;
use crate::sys;
use crate::workload::{Generator, Job, Until};
use crate::works::Unit;

/// Memory for tables of the row of misses: less than a tenth of them fit.
const CACHE_BYTES: u64 = 1 << 20;
/// From one request of that row to the next, in bytes, as far as qemu-img can go: no slice comes twice before
/// far more have come than fit.
const FAR_BYTES: u64 = (2047 << 20) + SMALL as u64;
const GIB: u64 = 1 << 30;

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Reads all over 100 GiB, with a cache for 8 GiB.
    Misses,
    /// The first write to a cluster after an image with 256 GiB in use was opened.
    FirstAllocation,
    /// Opening 1 TiB for writes.
    Open,
    /// Checking 256 GiB.
    Check,
    /// A snapshot of 256 GiB: how long a guest's write takes meanwhile.
    Snapshot,
}

impl Work {
    /// All of them.
    pub const ALL: [Work; 5] =
        [Work::Misses, Work::FirstAllocation, Work::Open, Work::Check, Work::Snapshot];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Work::Misses => "qcow2 look-up 100 GiB, l2-cache-size=1M QD64",
            Work::FirstAllocation => "qcow2 first allocation, 256 GiB used",
            Work::Open => "qcow2 open 1 TiB",
            Work::Check => "qcow2 check 256 GiB",
            Work::Snapshot => "qcow2 snapshot of 256 GiB, pause",
        }
    }

    /// Measures it.
    ///
    /// # Errors
    /// If an image cannot be made, or a request fails.
    pub fn measure(self, stage: &Stage<'_>) -> io::Result<Row> {
        let gib = |full| if stage.images.is_quick { 2 } else { full };
        match self {
            Work::Misses => self.misses(stage, gib(100) * GIB),
            Work::FirstAllocation => self.first_allocation(stage, gib(256)),
            Work::Open => self.open(stage, gib(1024)),
            Work::Check => self.check(stage, gib(256)),
            Work::Snapshot => self.snapshot(stage, gib(256)),
        }
    }

    fn misses(self, stage: &Stage<'_>, bytes: u64) -> io::Result<Row> {
        let node = json!({
            "driver": "qcow2", "read-only": true, "l2-cache-size": CACHE_BYTES,
            "file": file(&stage.images.mapped(bytes)?, Engine::IoUring),
            "data-file": {"driver": "null-co", "size": bytes, "read-zeroes": false},
        });
        // Buffers, stacks and a ring, which any node has.
        let null = Opened::new(&json!({"driver": "null-aio", "size": bytes}))?;
        let job = Job::sequential_reads(DEPTH, u64::MAX);
        Generator::new(null.backend(), &job)?.run(&null.ctx, Until::Count(1000))?;
        let before = sys::status_bytes("VmRSS")?;
        let opened = Opened::new(&node)?;
        // On an image that is shorter too.
        let step_bytes = FAR_BYTES % bytes;
        let job = Job { step_bytes, ..Job::sequential_reads(DEPTH, u64::MAX) };
        let generator = Generator::new(opened.backend(), &job)?;
        let after = Rc::new(Cell::new(before));
        let resident = Rc::clone(&after);
        let ours: Bench<'_> = Box::new(move |ops| {
            let mut result = Ok(0);
            let lap = lap(ops, || result = generator.run(&opened.ctx, Until::Count(ops)));
            resident.set(sys::status_bytes("VmRSS")?);
            result.map(|_| lap)
        });
        let mut qemu = QemuImg::node(&node.to_string(), DEPTH, SMALL).step(step_bytes);
        let contest = Contest::new(self.name(), Unit::NsPerOp, ours);
        let mut row = stage.run(add_qemu(contest, move |ops| qemu.run(ops)), None, DEPTH)?;
        row.more.push(("resident_bytes", after.get().saturating_sub(before) as f64));
        Ok(row)
    }

    fn first_allocation(self, stage: &Stage<'_>, gib: u64) -> io::Result<Row> {
        let path = stage.images.preallocated(gib)?;
        let node = json!({"driver": "qcow2", "file": file(&path, Engine::Threads)});
        // Each takes another cluster, of those that are not mapped.
        let next = Cell::new(gib * GIB);
        let take = || next.replace(next.get() + CLUSTER as u64);
        let ours: Bench<'_> = Box::new(|_| {
            let opened = Opened::new(&node)?;
            let (backend, mut result) = (opened.backend(), Ok(()));
            let offset = take();
            let lap = lap(1, || {
                result = opened.ctx.run(|co| backend.co_write(co, offset, &[1; SMALL]));
            });
            drop(backend);
            result?;
            opened.close()?;
            Ok(lap)
        });
        let qemu = |_| {
            let qemu = QemuImg::node(&node.to_string(), 1, SMALL).writing().from(take());
            let (seconds, cpu) = qemu.child(1)?;
            // It tells milliseconds.
            let (wall_ns, cpu_ns) = (seconds.max(0.0005) * 1e9, Some(cpu.as_nanos() as f64));
            Ok(Lap { ops: 1, wall_ns, cpu_ns, ..Lap::default() })
        };
        let contest = add_qemu(Contest::new(self.name(), Unit::NsPerOp, ours), qemu);
        let mut row = stage.run(contest, Some(1), 1)?;
        row.notes.push("QEMU's CPU time is that of opening and closing the image, too".to_owned());
        Ok(row)
    }

    fn open(self, stage: &Stage<'_>, gib: u64) -> io::Result<Row> {
        let path = stage.images.preallocated(gib)?;
        let node = json!({"driver": "qcow2", "file": file(&path, Engine::Threads)});
        let ours: Bench<'_> = Box::new(|_| {
            let mut result = None;
            let lap = lap(1, || result = Some(Opened::new(&node)));
            if let Some(opened) = result {
                opened?.close()?;
            }
            Ok(lap)
        });
        let contest = Contest::new(self.name(), Unit::NsPerOp, ours);
        let mut add = node.clone();
        add["node-name"] = json!("bench");
        let contest = match StorageDaemon::start(qmp::QEMU) {
            Ok(mut daemon) => contest.peer(super::QEMU, move |_| {
                let (start, cpu_ns) = (Instant::now(), daemon.cpu_ns()?);
                daemon.execute("blockdev-add", add.clone())?;
                let wall_ns = start.elapsed().as_nanos() as f64;
                let cpu_ns = Some((daemon.cpu_ns()? - cpu_ns) as f64);
                daemon.execute("blockdev-del", json!({"node-name": "bench"}))?;
                Ok(Lap { ops: 1, wall_ns, cpu_ns, ..Lap::default() })
            }),
            Err(_) => contest.missing(super::QEMU, "qemu-system-common"),
        };
        stage.run(contest, Some(1), 1)
    }

    fn check(self, stage: &Stage<'_>, gib: u64) -> io::Result<Row> {
        let path = stage.images.preallocated(gib)?;
        let node = json!({
            "driver": "qcow2", "read-only": true, "file": file(&path, Engine::Threads),
        });
        let opened = Opened::new(&node)?;
        let ours: Bench<'_> = Box::new(|_| {
            let mut result = Ok(());
            let lap = lap(1, || {
                result = opened.ctx.run(|co| {
                    let report = opened.node.co_image(co)?.co_check(co, Repair::None)?;
                    match report.corruptions {
                        0 => Ok(()),
                        _ => Err(io::Error::other("the image is corrupt")),
                    }
                });
            });
            result.map(|()| lap)
        });
        let check =
            |path: &Path| qemu_img(&["check", "-q", "-f", "qcow2", &path.to_string_lossy()]);
        let empty = stage.images.empty()?;
        let qemu = |_| beside(|| check(&empty), || check(&path));
        let contest = add_qemu(Contest::new(self.name(), Unit::NsPerOp, ours), qemu);
        stage.run(contest, Some(1), 1)
    }

    fn snapshot(self, stage: &Stage<'_>, gib: u64) -> io::Result<Row> {
        let path = stage.images.preallocated(gib)?;
        let node = json!({"driver": "qcow2", "file": file(&path, Engine::Threads)});
        let totals = Rc::new(Cell::new(0.0));
        let total = Rc::clone(&totals);
        let ours: Bench<'_> = Box::new(|_| {
            let opened = Opened::new(&node)?;
            let mut result = Ok(0.0);
            let lap = lap(1, || result = pause(&opened));
            total.set(lap.wall_ns);
            let wall_ns = result?;
            opened.close()?;
            Ok(Lap { wall_ns, ..lap })
        });
        let path = path.to_string_lossy();
        let qemu = |_| {
            let list = || qemu_img(&["snapshot", "-l", &path]);
            let lap = beside(list, || qemu_img(&["snapshot", "-c", "one", &path]))?;
            qemu_img(&["snapshot", "-d", "one", &path])?;
            Ok(lap)
        };
        let contest = add_qemu(Contest::new(self.name(), Unit::NsPerOp, ours), qemu);
        let mut row = stage.run(contest, Some(1), 1)?;
        row.more.push(("whole_snapshot_ns", totals.get()));
        Ok(row)
    }
}

/// What `work` takes more than `base`, two commands of QEMU's.
fn beside(base: impl Fn() -> io::Result<()>, work: impl Fn() -> io::Result<()>) -> io::Result<Lap> {
    let of = |command: &dyn Fn() -> io::Result<()>| {
        let (start, cpu) = (Instant::now(), sys::children_cpu());
        command()?;
        let cpu = (sys::children_cpu() - cpu).as_nanos() as f64;
        io::Result::Ok((start.elapsed().as_nanos() as f64, cpu))
    };
    let (base, work) = (of(&base)?, of(&work)?);
    // What is too short to be told is not nothing.
    let [wall_ns, cpu_ns] =
        [(work.0, base.0), (work.1, base.1)].map(|(it, base)| (it - base).max(1.0));
    Ok(Lap { ops: 1, wall_ns, cpu_ns: Some(cpu_ns), ..Lap::default() })
}

/// Makes a snapshot, and deletes it; the longest time in nanoseconds that a write took while it was made,
/// of writes one after the other to a cluster that has a place, and is shared then.
fn pause(opened: &Opened) -> io::Result<f64> {
    let backend = Rc::new(opened.backend());
    let (is_over, longest) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0_u128)));
    opened.ctx.run(|co| {
        let pool = TaskPool::<io::Error>::new(1);
        let guest = (Rc::clone(&backend), Rc::clone(&is_over), Rc::clone(&longest));
        pool.start(co, "guest", move |co| {
            let (backend, is_over, longest) = guest;
            while !is_over.get() {
                let start = Instant::now();
                backend.co_write(co, 0, &[1; SMALL])?;
                longest.set(longest.get().max(start.elapsed().as_nanos()));
            }
            Ok(())
        });
        let image = opened.node.co_image(co)?;
        let id = image.co_create_snapshot(co, "one");
        is_over.set(true);
        pool.wait_all(co)?;
        image.co_delete_snapshot(co, &id?)
    })?;
    Ok(longest.get() as f64)
}
