//! Rows of flushes after first writes: their time, and how often the file is synced.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use coblk::aio::sync::TaskPool;
use serde_json::{Value, json};

use super::first::{add_counts, add_ours};
use super::images::Images;
use super::node::Opened;
use super::{CLUSTER, RAW, SMALL, Stage, add_qemu, file};
use crate::compare::works::DEPTH;
use crate::engine::Engine;
use crate::measure::{Bench, Contest, Lap, lap};
use crate::peers::qemu_img::QemuImg;
use crate::report::Row;
use crate::syscalls;
use crate::workload::{Generator, Job, Until};
use crate::works::Unit;

/// Clients that share syncs.
const CLIENTS: u64 = 8;

/// A row. An operation is a flush, with the writes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// After so many first writes, one a cluster.
    After(u64),
    /// Clients that each write a cluster and flush, again and again.
    Shared,
}

impl Work {
    /// All of them.
    pub const ALL: [Work; 3] = [Work::After(1), Work::After(1000), Work::Shared];

    /// Its name.
    pub fn name(self) -> String {
        match self {
            Work::After(1) => "qcow2 flush after 1 first write".to_owned(),
            Work::After(writes) => format!("qcow2 flush after {writes} first writes"),
            Work::Shared => format!("qcow2 flush shared by {CLIENTS} clients"),
        }
    }

    fn writes(self) -> u64 {
        match self {
            Work::After(writes) => writes,
            Work::Shared => 1,
        }
    }

    fn depth(self) -> usize {
        match self {
            Work::After(writes) => (writes as usize).min(DEPTH),
            Work::Shared => CLIENTS as usize,
        }
    }

    /// Our part.
    ///
    /// # Errors
    /// If an image cannot be made.
    pub fn ours<'a>(self, images: &'a Images<'_>) -> io::Result<Bench<'a>> {
        let template = images.empty()?;
        Ok(Box::new(move |ops| {
            let path = images.copy(&template, "ours.qcow2")?;
            self.lap(&json!({"driver": "qcow2", "file": file(&path, Engine::Threads)}), ops)
        }))
    }

    fn raw<'a>(self, images: &'a Images<'_>) -> io::Result<Bench<'a>> {
        let template = images.sparse()?;
        Ok(Box::new(move |ops| {
            let path = images.copy(&template, "ours.raw")?;
            self.lap(&json!({"driver": "raw", "file": file(&path, Engine::Threads)}), ops)
        }))
    }

    /// A loop of calls on a file that has nothing.
    fn floor<'a>(self, images: &'a Images<'_>) -> io::Result<Bench<'a>> {
        let template = images.sparse()?;
        Ok(Box::new(move |ops| {
            let path = images.copy(&template, "floor.raw")?;
            let (file, mut result) = (File::options().write(true).open(path)?, Ok(()));
            let write = |number: u64| file.write_all_at(&[1; SMALL], number * CLUSTER as u64);
            let round = |round: u64| {
                let first = round * self.writes();
                (first..first + self.writes()).try_for_each(write)?;
                file.sync_data()
            };
            let lap = lap(ops, || result = (0..ops).try_for_each(round));
            result.map(|()| lap)
        }))
    }

    fn lap(self, node: &Value, ops: u64) -> io::Result<Lap> {
        let opened = Opened::new(node)?;
        let mut result = Ok(());
        let lap = match self {
            Work::After(writes) => {
                let step_bytes = CLUSTER as u64;
                let job = Job { step_bytes, ..Job::sequential_writes(self.depth(), u64::MAX) };
                let generator = Generator::new(opened.backend(), &job)?;
                let flusher = opened.backend();
                let round = || {
                    generator.run(&opened.ctx, Until::Count(writes))?;
                    flusher.flush(&opened.ctx)
                };
                lap(ops, || result = (0..ops).try_for_each(|_| round()))
            }
            Work::Shared => lap(ops, || result = shared(&opened, ops)),
        };
        result?;
        opened.close()?;
        Ok(lap)
    }

    fn qemu(self, path: &Path) -> QemuImg {
        let node = json!({"driver": "qcow2", "file": file(path, Engine::Threads)}).to_string();
        let qemu = QemuImg::node(&node, self.depth(), SMALL).writing().step(CLUSTER as u64);
        qemu.flush_every(self.writes())
    }

    /// Measures it.
    ///
    /// # Errors
    /// If an image cannot be made, or a request fails.
    pub fn measure(self, stage: &Stage<'_>) -> io::Result<Row> {
        let images = &stage.images;
        let template = images.empty()?;
        let contest = Contest::new(self.name(), Unit::NsPerOp, self.ours(images)?);
        let contest = contest.peer(RAW, self.raw(images)?);
        let contest = contest.peer("bare pwrite and fdatasync", self.floor(images)?);
        let path = images.copy(&template, "qemu.qcow2")?;
        let mut qemu = self.qemu(&path);
        let contest = if self == Work::Shared {
            contest
        } else {
            add_qemu(contest, |ops| {
                let fresh = || images.copy(&template, "qemu.qcow2").map(drop);
                let lap = qemu.run_after(ops * self.writes(), fresh)?;
                Ok(Lap { ops: lap.ops / self.writes(), ..lap })
            })
        };
        let full = if self == Work::After(1000) { 8 } else { 64 };
        let ops = if images.is_quick { 4 } else { full };
        let mut row = stage.run(contest, Some(ops), self.depth())?;
        if stage.plan.quick {
            return Ok(row);
        }
        let name = self.name();
        let qemu = |ops: u64| {
            images.copy(&template, "qemu.qcow2")?;
            Ok(self.qemu(&path).command(ops * self.writes()))
        };
        // Under a tool that stops at each call.
        let few = (ops / self.writes()).max(1);
        let ours = |ops| syscalls::ours(&name, ops);
        match self {
            Work::After(_) => add_counts(&mut row, few, ours, qemu),
            Work::Shared => {
                add_ours(&mut row, few, ours);
                row.notes.push("qemu-img has no clients that flush beside each other".to_owned());
            }
        }
        Ok(row)
    }
}

/// Writes and flushes by clients that do not wait for each other.
fn shared(opened: &Opened, flushes: u64) -> io::Result<()> {
    let backend = Rc::new(opened.backend());
    let next = Rc::new(Cell::new(0));
    opened.ctx.run(|co| {
        let pool = TaskPool::<io::Error>::new(CLIENTS as usize);
        for _ in 0..CLIENTS {
            let (backend, next) = (Rc::clone(&backend), Rc::clone(&next));
            pool.start(co, "client", move |co| {
                while next.get() < flushes {
                    let cluster = next.replace(next.get() + 1);
                    backend.co_write(co, cluster * CLUSTER as u64, &[1; SMALL])?;
                    backend.co_flush(co)?;
                }
                Ok(())
            });
        }
        pool.wait_all(co)
    })
}
