//! Rows of writes that allocate: each lap begins with an image that has nothing.
//!
//! CPU time is that of the writes and of closing the image, as it is of qemu-img; the time that passes is that
//! of the writes alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::images::Images;
use super::node::Opened;
use super::{CLUSTER, RAW, SMALL, Stage, add_qemu, file};
use crate::compare::works::DEPTH;
use crate::engine::Engine;
use crate::measure::{Bench, Contest, Lap, lap};
use crate::peers::qemu_img::{self, QemuImg};
use crate::report::Row;
use crate::sys;
use crate::syscalls;
use crate::workload::{Generator, Job, Until};
use crate::works::Unit;

/// What one L2 table maps.
const TABLE_BYTES: u64 = (CLUSTER as u64 / 8) * CLUSTER as u64;

/// What the writes meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meets {
    /// Nothing.
    Empty,
    /// An L2 table that is not there.
    NoTable,
    /// A backing file with data all around.
    Backing,
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    meets: Meets,
    engine: Engine,
}

impl Work {
    /// All of them.
    pub fn all() -> Vec<Work> {
        let both = |meets| Engine::ALL.map(|engine| Work { meets, engine });
        let mut works = both(Meets::Empty).to_vec();
        works.push(Work { meets: Meets::NoTable, engine: Engine::Threads });
        works.extend(both(Meets::Backing));
        works
    }

    /// Its name.
    pub fn name(self) -> String {
        let what = match self.meets {
            Meets::Empty => "first write",
            Meets::NoTable => "first write a table",
            Meets::Backing => "overlay first write",
        };
        format!("qcow2 {what} {} QD{DEPTH}", self.engine.name())
    }

    /// Whether it copies data from a backing file.
    pub fn copies(self) -> bool {
        self.meets == Meets::Backing
    }

    fn step(self) -> u64 {
        match self.meets {
            Meets::NoTable => TABLE_BYTES,
            Meets::Empty | Meets::Backing => CLUSTER as u64,
        }
    }

    /// Writes of a lap: none comes twice, and each is the first of its cluster, or table.
    fn ops(self, images: &Images<'_>) -> u64 {
        match self.meets {
            _ if images.is_quick => 64,
            Meets::NoTable => 1000,
            Meets::Empty | Meets::Backing => 8192,
        }
    }

    /// The image that laps begin with.
    fn template(self, images: &Images<'_>) -> io::Result<PathBuf> {
        match self.meets {
            Meets::Backing => images.overlay(),
            Meets::Empty | Meets::NoTable => images.empty(),
        }
    }

    fn node(self, path: &Path, images: &Images<'_>) -> io::Result<Value> {
        let mut node = json!({"driver": "qcow2", "file": file(path, self.engine)});
        if self.copies() {
            let plain = file(&images.plain()?, self.engine);
            node["backing"] = json!({"driver": "qcow2", "read-only": true, "file": plain});
        }
        Ok(node)
    }

    /// Our part.
    ///
    /// # Errors
    /// If an image cannot be made.
    pub fn ours<'a>(self, images: &'a Images<'_>) -> io::Result<Bench<'a>> {
        let template = self.template(images)?;
        Ok(Box::new(move |ops| {
            let path = images.copy(&template, "ours.qcow2")?;
            self.lap(&self.node(&path, images)?, ops)
        }))
    }

    fn raw<'a>(self, images: &'a Images<'_>) -> io::Result<Bench<'a>> {
        let template = images.sparse()?;
        Ok(Box::new(move |ops| {
            let path = images.copy(&template, "ours.raw")?;
            self.lap(&json!({"driver": "raw", "file": file(&path, self.engine)}), ops)
        }))
    }

    /// A loop of calls on a file that has nothing.
    fn floor<'a>(self, images: &'a Images<'_>) -> io::Result<Bench<'a>> {
        let template = images.sparse()?;
        Ok(Box::new(move |ops| {
            let path = images.copy(&template, "floor.raw")?;
            let (file, mut result) = (File::options().write(true).open(path)?, Ok(()));
            let write = |number: u64| file.write_all_at(&[1; SMALL], number * self.step());
            let lap = lap(ops, || result = (0..ops).try_for_each(write));
            result.map(|()| lap)
        }))
    }

    fn lap(self, node: &Value, ops: u64) -> io::Result<Lap> {
        let opened = Opened::new(node)?;
        let step_bytes = self.step();
        let job = Job { step_bytes, ..Job::sequential_writes(DEPTH, u64::MAX) };
        let generator = Generator::new(opened.backend(), &job)?;
        let (cpu_ns, mut result) = (sys::process_cpu_ns(), Ok(0));
        let lap = lap(ops, || result = generator.run(&opened.ctx, Until::Count(ops)));
        result?;
        drop(generator);
        opened.close()?;
        Ok(Lap { cpu_ns: Some((sys::process_cpu_ns() - cpu_ns) as f64), ..lap })
    }

    fn qemu(self, path: &Path, images: &Images<'_>) -> io::Result<QemuImg> {
        let node = self.node(path, images)?.to_string();
        Ok(QemuImg::node(&node, DEPTH, SMALL).writing().step(self.step()))
    }

    /// Measures it.
    ///
    /// # Errors
    /// If an image cannot be made, or a request fails.
    pub fn measure(self, stage: &Stage<'_>) -> io::Result<Row> {
        let images = &stage.images;
        let template = self.template(images)?;
        let mut contest = Contest::new(self.name(), Unit::NsPerOp, self.ours(images)?);
        if !self.copies() {
            contest = contest.peer(RAW, self.raw(images)?);
            contest = contest.peer("bare pwrite loop", self.floor(images)?);
        }
        // The same path each time.
        let path = images.copy(&template, "qemu.qcow2")?;
        let mut qemu = self.qemu(&path, images)?;
        let contest = add_qemu(contest, |ops| {
            qemu.run_after(ops, || images.copy(&template, "qemu.qcow2").map(drop)) //
        });
        let mut row = stage.run(contest, Some(self.ops(images)), DEPTH)?;
        if !self.copies() && !stage.plan.quick {
            self.count(stage, &mut row)?;
        }
        Ok(row)
    }

    /// Counts system calls of both.
    fn count(self, stage: &Stage<'_>, row: &mut Row) -> io::Result<()> {
        let few = (self.ops(&stage.images) / 8).min(256);
        let name = self.name();
        let template = self.template(&stage.images)?;
        let qemu = |ops| {
            let path = stage.images.copy(&template, "qemu.qcow2")?;
            Ok(self.qemu(&path, &stage.images)?.command(ops))
        };
        add_counts(row, few, |ops| syscalls::ours(&name, ops), qemu);
        Ok(())
    }
}

/// Adds system calls and syncs of an operation of ours, and of QEMU's if it is installed.
pub fn add_counts(
    row: &mut Row,
    few: u64,
    ours: impl FnMut(u64) -> io::Result<Command>,
    qemu: impl FnMut(u64) -> io::Result<Command>,
) {
    add_ours(row, few, ours);
    if qemu_img::is_installed()
        && let Ok(counts) = syscalls::of_programs(few, qemu)
    {
        row.more.push(("qemu_syscalls_per_op", counts.all()));
        row.more.push(("qemu_syncs_per_op", counts.syncs()));
    }
}

/// Adds those of ours alone.
pub fn add_ours(row: &mut Row, few: u64, ours: impl FnMut(u64) -> io::Result<Command>) {
    match syscalls::of_programs(few, ours) {
        Ok(counts) => {
            row.syscalls_per_op = Some(counts.all());
            row.more.push(("syncs_per_op", counts.syncs()));
        }
        Err(reason) => row.notes.push(format!("system calls not measured: {reason}")),
    }
}
