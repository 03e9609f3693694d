//! `compare qcow2`: our driver beside a raw image and beside QEMU's driver.
//!
//! The images are made by qemu-img. For the look-up alone, the image has its data in another file, and that
//! is a null device: all that a request does is to find out where its data would be.

mod images;

use std::io;
use std::path::Path;
use std::sync::Arc;

use coblk::options::NodeOptions;
use coblk::{AioContext, BlockBackend, BlockNode, Blockdevs};
use serde_json::{Value, json};

use super::args::{self, CommonArgs};
use super::{DEPTH, OurBench};
use crate::engine::Engine;
use crate::measure::{Contest, Plan, lap};
use crate::peers::qemu_img::{self, QemuImg};
use crate::progress::Progress;
use crate::report::{At, Report, Row};
use crate::stats::median;
use crate::workload::{Generator, Job, Until, threads};
use crate::works::Unit;
use images::{Images, NULL_BYTES};

/// Length of a small request, and that of a cluster.
const SMALL: usize = 4096;
const CLUSTER: usize = 64 << 10;
/// Bytes of the image that is compressed: more than decompressed clusters are kept of.
const TEXT_BYTES: u64 = 128 << 20;
/// Requests of a context before it is measured.
const WARM_UP: u64 = 1000;

/// What is read.
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
struct Work {
    content: Content,
    engine: Engine,
    block_bytes: usize,
    depth: usize,
    /// On two contexts; the row says how many times as many as on one.
    on_two: bool,
}

impl Work {
    fn all() -> Vec<Work> {
        use Content::{Deflate, Null, Overlay, Plain};
        let work = |content, engine, depth| {
            Work { content, engine, block_bytes: SMALL, depth, on_two: false } //
        };
        let mut works = vec![work(Null, Engine::IoUring, DEPTH), work(Null, Engine::IoUring, 1)];
        for content in [Plain, Overlay] {
            for engine in Engine::ALL {
                works.extend([1, DEPTH].map(|depth| work(content, engine, depth)));
            }
        }
        works.push(work(Deflate, Engine::IoUring, 1));
        let whole = Work { block_bytes: CLUSTER, ..work(Deflate, Engine::IoUring, DEPTH) };
        works.push(whole);
        for content in [Null, Plain] {
            works.push(Work { on_two: true, ..work(content, Engine::IoUring, DEPTH) });
        }
        works
    }

    fn name(self) -> String {
        let content = match self.content {
            Content::Null => "look-up".to_owned(),
            Content::Plain => format!("page cache {}", self.engine.name()),
            Content::Overlay => format!("overlay {}", self.engine.name()),
            Content::Deflate if self.block_bytes == CLUSTER => "deflate 64k".to_owned(),
            Content::Deflate => "deflate".to_owned(),
        };
        let two = if self.on_two { ", two contexts" } else { "" };
        format!("qcow2 {content} QD{}{two}", self.depth)
    }

    fn job(self) -> Job {
        Job { block_bytes: self.block_bytes, ..Job::sequential_reads(self.depth, u64::MAX) }
    }

    /// The options of the node that is read.
    fn node(self, images: &Images) -> io::Result<Value> {
        let file = |path: &Path| {
            json!({
                "driver": "file", "filename": path, "aio": self.engine.name(), "locking": "off",
            })
        };
        let image = match self.content {
            Content::Null => images.mapped()?,
            Content::Plain => images.plain()?,
            Content::Overlay => images.overlay()?,
            Content::Deflate => images.compressed()?,
        };
        let mut node = json!({"driver": "qcow2", "read-only": true, "file": file(&image)});
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
    fn raw(self, images: &Images) -> Option<Value> {
        let file = match self.content {
            Content::Null => null(),
            Content::Plain | Content::Overlay => json!({
                "driver": "file", "filename": images.raw(), "aio": self.engine.name(),
                "locking": "off",
            }),
            Content::Deflate => return None,
        };
        Some(json!({"driver": "raw", "read-only": true, "file": file}))
    }
}

fn null() -> Value {
    json!({"driver": "null-co", "size": NULL_BYTES, "read-zeroes": false})
}

/// Measures the rows.
///
/// # Errors
/// If no row is wanted, there is no qemu-img to make images, or a request fails.
pub fn run(arguments: &CommonArgs, plan: &Plan, report: &mut Report) -> io::Result<()> {
    let works = args::wanted(Work::all(), &arguments.only, |work| work.name())?;
    Engine::IoUring.check()?;
    let image = arguments.image(plan)?;
    let images = Images::new(image.path(), if plan.quick { 16 << 20 } else { TEXT_BYTES })?;
    let progress = Progress::new(works.len());
    for work in works {
        progress.now(&work.name());
        let row = if work.on_two {
            two_contexts(work, &images, plan, &progress)?
        } else {
            measure(work, &images, arguments, plan, &progress)?
        };
        report.add(row)?;
        progress.step();
    }
    Ok(())
}

/// The names of the rows.
pub fn names() -> Vec<String> {
    Work::all().into_iter().map(Work::name).collect()
}

fn measure(
    work: Work,
    images: &Images,
    arguments: &CommonArgs,
    plan: &Plan,
    progress: &Progress,
) -> io::Result<Row> {
    let node = work.node(images)?;
    let mut contest = Contest::new(work.name(), Unit::NsPerOp, bench(node.clone(), work)?);
    if let Some(raw) = work.raw(images) {
        contest = contest.peer("coblk raw", bench(raw, work)?);
    }
    let mut qemu = QemuImg::node(&node.to_string(), work.depth, work.block_bytes);
    contest = if qemu_img::is_installed() {
        contest.peer("qemu qcow2", move |ops| qemu.run(ops))
    } else {
        contest.missing("qemu qcow2", qemu_img::PACKAGE)
    };
    if let Some(count) = arguments.count {
        contest = contest.ops(count);
    }
    let mut row = contest.run(plan, || progress.tick())?;
    row.at = Some(At::Depth(work.depth));
    Ok(row)
}

fn open(ctx: &AioContext, node: Value) -> io::Result<Arc<BlockNode>> {
    let options = NodeOptions::from_value(node).map_err(io::Error::other)?;
    Blockdevs::new(coblk::drivers()).open(ctx, options).map_err(io::Error::other)
}

fn bench(node: Value, work: Work) -> io::Result<OurBench> {
    let ctx = AioContext::test_builder().name("bench").build()?;
    let backend = BlockBackend::new(&ctx, "bench", open(&ctx, node)?);
    let generator = Generator::new(backend, &work.job())?;
    Ok(Box::new(move |ops| {
        let mut result = Ok(0);
        let lap = lap(ops, || result = generator.run(&ctx, Until::Count(ops)));
        result.map(|_| lap)
    }))
}

/// The throughput of two contexts on one node as a multiple of that of one.
fn two_contexts(work: Work, images: &Images, plan: &Plan, progress: &Progress) -> io::Result<Row> {
    let ctx = AioContext::test_builder().name("bench").build()?;
    let node = open(&ctx, work.node(images)?)?;
    let (job, time) = (work.job(), Until::Elapsed(plan.lap));
    let (mut ratios, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let of = |contexts| threads::run(&node, &job, contexts, time, WARM_UP);
        let [one, two] = [of(1)?.lap, of(2)?.lap];
        let per_ns = [one, two].map(|lap| lap.ops as f64 / lap.wall_ns);
        ratios.push(per_ns[1] / per_ns[0]);
        cpu.extend(two.cpu_ns.map(|cpu_ns| cpu_ns / two.ops as f64));
        progress.tick();
    }
    let mut row = Row::new(work.name(), Unit::TimesOne);
    (row.ours, row.cpu_ns_per_op) = (median(&ratios), median(&cpu));
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names = names();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Work::all().len());
    }

    #[test]
    fn every_row_reads_what_qemu_img_has_made() {
        if !qemu_img::is_installed() {
            return;
        }
        let raw = crate::image::Image::open_or_make(None, 1 << 20, || ()).unwrap();
        let images = Images::new(raw.path(), 1 << 20).unwrap();
        let text = std::fs::metadata(images.compressed().unwrap()).unwrap().len();
        assert!(text < 800 << 10, "it is compressed: {text} bytes");
        for work in Work::all() {
            let node = work.node(&images).unwrap();
            let mut qemu = QemuImg::node(&node.to_string(), work.depth, work.block_bytes);
            assert!(qemu.run(64).is_ok(), "{}", work.name());
            for node in [Some(node), work.raw(&images)].into_iter().flatten() {
                bench(node, work).unwrap()(64).unwrap();
            }
        }
    }
}
