//! Rows of requests to bytes that have a place.
//!
//! For the look-up alone, the image has its data in another file, and that is a null device: all that a
//! request does is to find out where its data would be.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::images::{Images, NULL_BYTES};
use super::node::Opened;
use super::{CLUSTER, RAW, SMALL, Stage, add_qemu, file};
use crate::compare::add_ring;
use crate::compare::works::DEPTH;
use crate::engine::Engine;
use crate::measure::{Bench, Contest, lap};
use crate::peers::bare::{self, Call};
use crate::peers::qemu_img::QemuImg;
use crate::peers::uring::Ring;
use crate::report::{Peer, Row};
use crate::stats::median;
use crate::workload::{Generator, Job, Until, threads};
use crate::works::Unit;

/// Requests of a context before it is measured.
const WARM_UP: u64 = 1000;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Nothing, of an image that maps all of a null device.
    Null,
    /// Clusters that the page cache has.
    Plain,
    /// The same, through an empty overlay.
    Overlay,
    /// Compressed clusters.
    Deflate,
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    content: Content,
    engine: Engine,
    writes: bool,
    block_bytes: usize,
    depth: usize,
    /// On two contexts; the row says how many times as many as on one.
    on_two: bool,
}

impl Work {
    /// All of them.
    pub fn all() -> Vec<Work> {
        use Content::{Deflate, Null, Overlay, Plain};
        let read = |content, engine, depth| {
            let (writes, on_two) = (false, false);
            Work { content, engine, writes, block_bytes: SMALL, depth, on_two }
        };
        let write = |content, engine, depth| Work { writes: true, ..read(content, engine, depth) };
        let mut works = vec![
            read(Null, Engine::IoUring, DEPTH),
            read(Null, Engine::IoUring, 1),
            write(Null, Engine::IoUring, DEPTH),
        ];
        for content in [Plain, Overlay] {
            for engine in Engine::ALL {
                works.extend([1, DEPTH].map(|depth| read(content, engine, depth)));
            }
        }
        for engine in Engine::ALL {
            works.extend([1, DEPTH].map(|depth| write(Plain, engine, depth)));
        }
        works.push(read(Deflate, Engine::IoUring, 1));
        let whole = Work { block_bytes: CLUSTER, ..read(Deflate, Engine::IoUring, DEPTH) };
        works.push(whole);
        for content in [Null, Plain] {
            let one = read(content, Engine::IoUring, DEPTH);
            works.extend([false, true].map(|writes| Work { writes, on_two: true, ..one }));
        }
        works
    }

    /// Its name.
    pub fn name(self) -> String {
        let write = if self.writes { " write" } else { "" };
        let content = match self.content {
            Content::Null => format!("look-up{write}"),
            Content::Plain => format!("page cache{write} {}", self.engine.name()),
            Content::Overlay => format!("overlay {}", self.engine.name()),
            Content::Deflate if self.block_bytes == CLUSTER => "deflate 64k".to_owned(),
            Content::Deflate => "deflate".to_owned(),
        };
        let two = if self.on_two { ", two contexts" } else { "" };
        format!("qcow2 {content} QD{}{two}", self.depth)
    }

    fn job(self) -> Job {
        let job = match self.writes {
            true => Job::sequential_writes(self.depth, u64::MAX),
            false => Job::sequential_reads(self.depth, u64::MAX),
        };
        Job { block_bytes: self.block_bytes, ..job }
    }

    /// The options of the node.
    fn node(self, images: &Images<'_>) -> io::Result<Value> {
        let file = |path: &Path| file(path, self.engine);
        let image = match self.content {
            Content::Null => images.mapped(NULL_BYTES)?,
            Content::Plain => images.plain()?,
            Content::Overlay => images.overlay()?,
            Content::Deflate => images.compressed()?,
        };
        let is_read_only = !self.writes;
        let mut node = json!({"driver": "qcow2", "read-only": is_read_only, "file": file(&image)});
        match self.content {
            Content::Null => node["data-file"] = null(),
            Content::Overlay => {
                node["backing"] = json!({"driver": "qcow2", "file": file(&images.plain()?)});
            }
            Content::Plain | Content::Deflate => {}
        }
        Ok(node)
    }

    /// Those of a raw node on the same data.
    fn raw(self, images: &Images<'_>) -> io::Result<Option<Value>> {
        let file = match self.content {
            Content::Null => null(),
            Content::Plain | Content::Overlay => file(images.raw()?, self.engine),
            Content::Deflate => return Ok(None),
        };
        Ok(Some(json!({"driver": "raw", "read-only": !self.writes, "file": file})))
    }

    /// Measures it.
    ///
    /// # Errors
    /// If an image cannot be made, or a request fails.
    pub fn measure(self, stage: &Stage<'_>) -> io::Result<Row> {
        if self.on_two {
            return self.two_contexts(stage);
        }
        let node = self.node(&stage.images)?;
        let mut contest = Contest::new(self.name(), Unit::NsPerOp, self.bench(&node)?);
        if let Some(raw) = self.raw(&stage.images)? {
            contest = contest.peer(RAW, self.bench(&raw)?);
        }
        if self.content == Content::Plain {
            contest = self.add_floor(contest, stage.images.raw()?)?;
        }
        let mut qemu = QemuImg::node(&node.to_string(), self.depth, self.block_bytes);
        if self.writes {
            qemu = qemu.writing();
        }
        stage.run(add_qemu(contest, move |ops| qemu.run(ops)), None, self.depth)
    }

    /// Adds the smallest loop that could do the same to the raw image.
    fn add_floor<'a>(self, contest: Contest<'a>, raw: &Path) -> io::Result<Contest<'a>> {
        let Work { block_bytes, depth, writes, .. } = self;
        let call = if writes { Call::Pwrite } else { Call::Preadv2Nowait };
        let contest =
            contest.peer(call.name(), bare::sequential(raw, block_bytes, depth, false, call)?);
        Ok(match self.engine {
            Engine::Threads => contest,
            Engine::IoUring => add_ring(contest, Ring::new(raw, block_bytes, depth, false, writes)),
        })
    }

    fn bench(self, node: &Value) -> io::Result<Bench<'static>> {
        let opened = Opened::new(node)?;
        let generator = Generator::new(opened.backend(), &self.job())?;
        Ok(Box::new(move |ops| {
            let mut result = Ok(0);
            let lap = lap(ops, || result = generator.run(&opened.ctx, Until::Count(ops)));
            result.map(|_| lap)
        }))
    }

    /// The throughput of two contexts on one node as a multiple of that of one; the same of a raw node.
    fn two_contexts(self, stage: &Stage<'_>) -> io::Result<Row> {
        let time = Until::Elapsed(stage.plan.lap);
        let of = |opened: &Opened, contexts| {
            threads::run(&opened.node, &self.job(), contexts, time, WARM_UP).map(|it| it.lap)
        };
        let ours = Opened::new(&self.node(&stage.images)?)?;
        let raw = self.raw(&stage.images)?.as_ref().map(Opened::new).transpose()?;
        let mut row = Row::new(self.name(), Unit::TimesOne);
        let (mut all, mut raws, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..stage.plan.rounds {
            let times = |opened: &Opened| {
                let [one, two] = [of(opened, 1)?, of(opened, 2)?];
                let per_ns = [one, two].map(|lap| lap.ops as f64 / lap.wall_ns);
                io::Result::Ok((per_ns[1] / per_ns[0], two))
            };
            let (ratio, two) = times(&ours)?;
            all.push(ratio);
            cpu.extend(two.cpu_ns.map(|cpu_ns| cpu_ns / two.ops as f64));
            if let Some(raw) = &raw {
                raws.push(times(raw)?.0);
            }
            stage.progress.tick();
        }
        (row.ours, row.cpu_ns_per_op) = (median(&all), median(&cpu));
        if let (Some(ours), Some(raw)) = (row.ours, median(&raws)) {
            let ratio = Unit::TimesOne.ratio(ours, raw);
            row.peers.push(Peer { ratio, ..Peer::new(RAW, raw) });
        }
        row.notes.push("all requests of a node of QEMU's go through one thread".to_owned());
        Ok(row)
    }
}

fn null() -> Value {
    json!({"driver": "null-co", "size": NULL_BYTES, "read-zeroes": false})
}
