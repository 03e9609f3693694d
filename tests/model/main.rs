//! Random operations, many at a time, against a model: what the device should hold, in a vector.
//!
//! Operations that overlap are ordered by a lock of the model's own, so every read has one right
//! answer. A seed replays a run on a simulated context, with its timing and its faults.

mod changes;
mod run;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use changes::Changes;
use coblk::aio::SimulationOptions;
use coblk::aio::sys::faults::Faults;
use coblk::drivers::{Engine, File, FileOptions, Null};
use coblk::nbd::NbdOptions;
use coblk::{AioContext, BlockNode, IoThread};
use coblk_tests::ceph::Image;
use coblk_tests::guest::every_way;
use coblk_tests::image_dir;
use coblk_tests::images::sparse_image;
use coblk_tests::nbd::Served;
use coblk_tests::probe::Probe;
use coblk_tests::random::seeds;
use coblk_tests::stacks::{Ground, STACKS, Stack};
use run::{Plan, SIZE};

const ENGINES: [Engine; 2] = [Engine::Threads, Engine::IoUring];
/// Calls fall short.
fn short() -> Faults {
    Faults::default().short_per_mille(300).interrupted_per_mille(200)
}

/// Calls fail.
fn errors() -> Faults {
    Faults::default()
        .short_per_mille(100)
        .interrupted_per_mille(100)
        .error_per_mille(30)
        .no_space_per_mille(30)
}

fn context() -> AioContext {
    AioContext::for_test().expect("a context")
}

/// A simulated context whose system calls go wrong like this.
fn simulated(seed: u64, faults: Faults) -> AioContext {
    let max_delay = Duration::from_micros(50);
    let options = SimulationOptions::new(seed).faults(faults).max_delay(max_delay);
    AioContext::test_builder().simulated(options).build().expect("a context")
}

fn open(image: &Path, options: FileOptions) -> Arc<BlockNode> {
    BlockNode::new("disk", options.open(image).expect("an image"))
}

fn file(dir: &Path, options: FileOptions) -> Arc<BlockNode> {
    open(&sparse_image(dir, "disk.img", SIZE as u64), options)
}

/// A node on a new image, and another one on the same.
fn twins(dir: &Path, options: FileOptions) -> (Arc<BlockNode>, Option<Changes>) {
    let image = sparse_image(dir, "disk.img", SIZE as u64);
    (open(&image, options), Some(Changes { twin: open(&image, options) }))
}

#[test]
fn files_hold_what_the_model_holds() {
    let dir = image_dir!();
    for (way, options) in every_way() {
        for seed in seeds(4) {
            let plan = Plan::new(format!("{way}, seed {seed}"), seed, 80);
            plan.play(&context(), &file(dir.path(), options), &[]);
        }
    }
}

/// Needs what `tests/ceph/up` brings up.
#[test]
fn ceph_rbd_images_hold_what_the_model_holds() {
    let other = IoThread::new("other").expect("a thread");
    for seed in seeds(2) {
        for others in [&[][..], &[other.handle()]] {
            let image = Image::new("rbd", SIZE as u64, &["--object-size", "64K"]);
            let ctx = context();
            let what = format!("rbd, {} other contexts, seed {seed}", others.len());
            Plan::new(what, seed, 60).play(&ctx, &image.open(&ctx, ""), others);
        }
    }
}

#[test]
fn stacks_hold_what_the_model_holds() {
    let dir = image_dir!();
    for seed in seeds(1) {
        for (number, Stack { name, build, .. }) in STACKS.iter().enumerate() {
            // Each stack in two ways, and another two with the next seed.
            for step in 0..2 {
                let (way, options) = every_way()[(number + 2 * seed as usize + step) % 5];
                let ctx = context();
                let bytes = SIZE as u64;
                let node = build(&Ground { ctx: &ctx, dir: dir.path(), options, bytes });
                let plan = Plan::new(format!("{name} on file ({way}), seed {seed}"), seed, 40);
                plan.play(&ctx, &node, &[]);
            }
        }
    }
}

#[test]
fn exports_of_nbd_servers_hold_what_the_model_holds() {
    let dir = image_dir!();
    let other = IoThread::new("other").expect("a thread");
    for (contexts, others) in [(0, &[][..]), (2, &[other.handle()][..])] {
        for seed in seeds(1) {
            let node = file(dir.path(), FileOptions::default());
            let parent = coblk_tests::tools::text(dir.path());
            let served = Served::on_contexts(parent, NbdOptions::default(), contexts, |_| node);
            let ctx = context();
            let plan = Plan::new(format!("nbd, {contexts} contexts, seed {seed}"), seed, 60);
            plan.play(&ctx, &served.open(&ctx, false), others);
        }
    }
}

#[test]
fn two_contexts_on_one_node_hold_what_the_model_holds() {
    let dir = image_dir!();
    for seed in seeds(1) {
        let other = IoThread::new("other").expect("a thread");
        for (way, options) in every_way() {
            let plan = Plan::new(format!("two contexts, {way}, seed {seed}"), seed, 60);
            plan.play(&context(), &file(dir.path(), options), &[other.handle()]);
        }
        for (number, Stack { name, build, .. }) in STACKS.iter().enumerate() {
            let (way, options) = every_way()[(number + seed as usize) % 5];
            let ctx = context();
            let node = build(&Ground { ctx: &ctx, dir: dir.path(), options, bytes: SIZE as u64 });
            let what = format!("two contexts, {name} on file ({way}), seed {seed}");
            Plan::new(what, seed, 30).play(&ctx, &node, &[other.handle()]);
        }
    }
}

#[test]
fn the_graph_changes_and_files_hold_what_the_model_holds() {
    let dir = image_dir!();
    for seed in seeds(2) {
        for (way, options) in every_way() {
            let (node, changes) = twins(dir.path(), options);
            let plan = Plan::new(format!("changes, {way}, seed {seed}"), seed, 60);
            Plan { changes, ..plan }.play(&context(), &node, &[]);
        }
    }
}

#[test]
fn the_graph_changes_under_two_contexts() {
    let dir = image_dir!();
    for seed in seeds(2) {
        let other = IoThread::new("other").expect("a thread");
        for (way, options) in every_way() {
            let (node, changes) = twins(dir.path(), options);
            let plan = Plan::new(format!("changes, two contexts, {way}, seed {seed}"), seed, 60);
            Plan { changes, ..plan }.play(&context(), &node, &[other.handle()]);
        }
        let probe = Probe::new(SIZE);
        let (node, twin) = (BlockNode::new("probe", probe.clone()), BlockNode::new("twin", probe));
        let plan = Plan::new(format!("changes, two contexts, probe, seed {seed}"), seed, 60);
        let changes = Some(Changes { twin });
        Plan { changes, ..plan }.play(&context(), &node, &[other.handle()]);
    }
}

#[test]
fn a_driver_in_memory_holds_what_the_model_holds() {
    for seed in seeds(6) {
        let node = BlockNode::new("probe", Probe::new(SIZE));
        Plan::new(format!("probe, seed {seed}"), seed, 80).play(&context(), &node, &[]);
    }
}

#[test]
fn the_null_driver_reads_zeroes_whatever_was_written() {
    for deferred in [false, true] {
        let null = Null::new(SIZE as u64).read_zeroes(true).deferred(deferred);
        let plan = Plan::new(format!("null, deferred: {deferred}"), 1, 300);
        Plan { stores: false, ..plan }.play(&context(), &BlockNode::new("null", null), &[]);
    }
}

#[test]
fn simulated_files_hold_what_the_model_holds() {
    let dir = image_dir!();
    for engine in ENGINES {
        for seed in seeds(12) {
            let plan = Plan::new(format!("simulated, {engine:?}, seed {seed}"), seed, 40);
            let node = file(dir.path(), File::options().engine(engine));
            plan.play(&simulated(seed, short()), &node, &[]);
        }
    }
}

#[test]
fn simulated_files_lose_nothing_but_what_failed() {
    let dir = image_dir!();
    for engine in ENGINES {
        for seed in seeds(12) {
            let what = format!("simulated with errors, {engine:?}, seed {seed}");
            let plan = Plan { may_fail: true, ..Plan::new(what, seed, 40) };
            let node = file(dir.path(), File::options().engine(engine));
            plan.play(&simulated(seed, errors()), &node, &[]);
        }
    }
}

#[test]
fn simulated_stacks_hold_what_the_model_holds() {
    let dir = image_dir!();
    for seed in seeds(2) {
        for Stack { name, build, .. } in STACKS {
            for engine in ENGINES {
                let ctx = simulated(seed, short());
                let options = File::options().engine(engine);
                let bytes = SIZE as u64;
                let node = build(&Ground { ctx: &ctx, dir: dir.path(), options, bytes });
                let what = format!("simulated {name}, {engine:?}, seed {seed}");
                Plan::new(what, seed, 40).play(&ctx, &node, &[]);
            }
        }
    }
}

#[test]
fn the_graph_changes_and_only_what_failed_is_lost() {
    let dir = image_dir!();
    for engine in ENGINES {
        for seed in seeds(6) {
            let (node, changes) = twins(dir.path(), File::options().engine(engine));
            let what = format!("simulated with errors and changes, {engine:?}, seed {seed}");
            let plan = Plan { may_fail: true, changes, ..Plan::new(what, seed, 40) };
            plan.play(&simulated(seed, errors()), &node, &[]);
        }
    }
}

#[test]
fn one_seed_is_one_run() {
    let dir = image_dir!();
    let faults = Faults::default().short_per_mille(300).error_per_mille(30);
    let digest = |seed| {
        let ctx = simulated(seed, faults);
        let (node, changes) = twins(dir.path(), File::options());
        let plan = Plan::new(format!("seed {seed}"), seed, 20);
        Plan { may_fail: true, changes, ..plan }.play(&ctx, &node, &[]);
        ctx.simulation().expect("a simulated context").digest()
    };
    assert_eq!(digest(5), digest(5));
    assert_ne!(digest(5), digest(6));
}
