//! What was flushed outlives a loss of power at any moment, and no image is ever corrupt.
//!
//! Random requests run on images whose files are in memory. A recorder knows each state of these that a
//! loss of power may leave; a check and all reads judge them. One seed is one run.

mod cut;
mod faults;
mod pairs;
mod resize;
#[cfg(feature = "test-rules")]
mod rules;
mod snapshots;
#[path = "../util/mod.rs"]
mod util;

use std::collections::BTreeMap;
use std::sync::Arc;

use coblk_aio::{AioContext, IoThread, SimulationOptions};
use coblk_block::{BackendOptions, BlockNode};
use coblk_tests::load::{KINDS, Kind, Load, Mix, Shared};
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::{Behaviour, RecordedFile, Recorder, SECTOR};
use coblk_tests::register::{Registers, print_of};
use coblk_tests::survey::{Seen, Subject, Survey, read_all};
use util::shape::{Format, SHAPES, Shape};

fn simulated(seed: u64) -> AioContext {
    AioContext::test_builder().simulated(SimulationOptions::new(seed)).build().expect("a context")
}

/// Few moments of each run; `COBLK_SEEDS_TIMES` makes it more runs.
const SURVEY: Survey = Survey { moments: 6, single: 2, random: 1, leaks: 400, further: 30 };
/// All moments.
const THOROUGH: Survey =
    Survey { moments: u64::MAX, single: 5, random: 2, leaks: 400, further: 1000 };

/// One run on a new image.
struct Run {
    format: Format,
    seed: u64,
    mix: Mix,
    survey: Option<Survey>,
    /// Whether a second context has requests, too.
    two: bool,
    /// Whether all of the disk is written first, and a snapshot has a share of it. What happens by then is not
    /// looked at.
    has_snapshot: bool,
}

/// How often each kind of request was done.
type Done = BTreeMap<String, u64>;

impl Run {
    fn new(shape: Shape, seed: u64, mix: Mix, survey: Option<Survey>) -> Run {
        Run { format: Format::new(shape), seed, mix, survey, two: false, has_snapshot: false }
    }

    fn play(&self, ctx: &AioContext, done: &mut Done) -> Result<Seen, String> {
        let Run { format, seed, mix, survey, two, has_snapshot } = self;
        let images = format.shape.create(*seed);
        let behaviour = Behaviour { seed: *seed, has_fua: seed % 3 == 0, ..Behaviour::default() };
        let behaviour = Behaviour { alignment: if seed % 4 == 1 { 512 } else { 1 }, ..behaviour };
        let recorder = Recorder::new(behaviour);
        let registers = Registers::new(&format.shape.content(&images));
        let files: Vec<RecordedFile> =
            images.into_iter().map(|image| recorder.add_file(image)).collect();
        let node = format.open(ctx, &files, false)?;
        let shared = Shared::new(ctx, &recorder, registers, *seed, *mix);
        let begun = match has_snapshot {
            true => begin_with_snapshot(ctx, &node, &shared, &recorder),
            false => 1,
        };
        let other = two.then(|| IoThread::new("other").expect("a thread"));
        let others: Vec<_> = other.iter().map(|it| it.handle()).collect();
        shared.play(ctx, &node, &others);
        format.close(ctx, node)?;
        for kind in KINDS {
            *done.entry(format!("{kind:?}")).or_default() +=
                shared.count(kind).done.load(std::sync::atomic::Ordering::Relaxed);
        }
        if let Some(fault) = shared.fault() {
            return Err(fault);
        }
        format.expect_clean(ctx, &files, "a close")?;
        let content = read_all(format, ctx, &files)?;
        let now = recorder.tick();
        for (at, sector) in content.chunks(SECTOR).enumerate() {
            shared.registers().check_read(at, print_of(sector), now, now)?;
        }
        survey.map_or(Ok(Seen::default()), |survey| {
            survey.run(format, (&recorder, &shared), begun, &mut Random::new(*seed))
        })
    }
}

/// Writes all of the disk, and makes a snapshot. Returns when that was done.
fn begin_with_snapshot(
    ctx: &AioContext,
    node: &Arc<BlockNode>,
    shared: &Arc<Shared>,
    recorder: &Recorder,
) -> u64 {
    let claim = BackendOptions::new("claim").share_rw(true).open(ctx, Arc::clone(node));
    let _claim = claim.expect("a node that may be written");
    let load = Load::new(ctx, node, shared);
    ctx.run(|co| {
        let all = shared.registers().len();
        load.request(co, Kind::Write, 0..all);
        load.request(co, Kind::Flush, 0..0);
        let image = node.co_image(co).expect("a format");
        image.co_create_snapshot(co, "one").expect("a snapshot");
    });
    recorder.tick()
}

/// Runs of all shapes; panics with the seed of the first fault.
fn all_shapes(usual: u64, mix: fn(usize) -> Mix, survey: Option<Survey>, two: bool) {
    let (mut done, mut images, mut further, mut leaks) = (Done::new(), 0, 0, 0);
    for seed in seeds(usual) {
        for (number, shape) in (0..).zip(SHAPES) {
            let seed = seed + 1000 * number;
            let run = Run { two, ..Run::new(shape, seed, mix(shape.cluster), survey) };
            let ctx = if two { AioContext::for_test().unwrap() } else { simulated(seed) };
            let seen = run.play(&ctx, &mut done);
            let seen = seen.unwrap_or_else(|fault| panic!("{shape:?}, seed {seed}: {fault}"));
            images += seen.images;
            further += seen.further;
            leaks = seen.leaks.max(leaks);
        }
    }
    println!("{images} images, {further} by others too, {leaks} leaks at most; {done:?}");
    let needs = |kind: &Kind| mix(1).weights[*kind as usize] > 0;
    if seeds(usual).count() > 1 {
        for kind in KINDS.iter().filter(|kind| needs(kind)) {
            assert!(done[&format!("{kind:?}")] > 0, "no {kind:?} was done: {done:?}");
        }
    }
}

#[test]
fn q211_q217_a_crash_loses_nothing_that_was_flushed() {
    all_shapes(1, Mix::all, Some(SURVEY), false);
}

/// Tables that a snapshot has a share of are copied by the first writes.
#[test]
fn q211_q216_a_crash_loses_nothing_that_was_flushed_after_a_snapshot() {
    let mut done = Done::new();
    let can_have = |shape: &&Shape| !shape.has_data_file && !shape.options.ends_with("bits=1");
    for seed in seeds(1) {
        for (number, shape) in (0..).zip(SHAPES.iter().filter(can_have)) {
            let seed = seed + 1000 * number;
            let run = Run::new(*shape, seed, Mix::all(shape.cluster), Some(SURVEY));
            let run = Run { has_snapshot: true, ..run };
            let seen = run.play(&simulated(seed), &mut done);
            seen.unwrap_or_else(|fault| panic!("{shape:?}, seed {seed}: {fault}"));
        }
    }
}

#[test]
fn q215_requests_that_overlap_read_what_was_written() {
    all_shapes(2, Mix::churn, None, false);
}

#[test]
fn q177_two_contexts_lose_nothing() {
    all_shapes(1, Mix::churn, None, true);
    all_shapes(1, Mix::all, Some(SURVEY), true);
}

/// Every moment of a short run.
#[test]
fn q222_every_prefix_of_short_runs() {
    let mut done = Done::new();
    for seed in seeds(1) {
        for shape in [SHAPES[0], SHAPES[6]] {
            let mix = Mix { coroutines: 3, requests: 4, ..Mix::all(shape.cluster) };
            let run = Run::new(shape, seed, mix, Some(THOROUGH));
            let seen = run.play(&simulated(seed), &mut done);
            let seen = seen.unwrap_or_else(|fault| panic!("{shape:?}, seed {seed}: {fault}"));
            println!("{shape:?}: {seen:?}");
        }
    }
}

#[test]
fn q222_one_seed_is_one_run() {
    let digest = |seed| {
        let ctx = simulated(seed);
        let run = Run::new(SHAPES[3], seed, Mix::churn(8), None);
        run.play(&ctx, &mut Done::new()).expect("a run");
        ctx.simulation().expect("a simulated context").digest()
    };
    assert_eq!(digest(3), digest(3));
    assert_ne!(digest(3), digest(4));
}
