//! The suites that look for lost writes, proved by a small format that can be made wrong.
//!
//! Random requests run on files in memory, of which every state is known that a loss of power may leave
//! at any moment. The format that is right passes; each way in which it is wrong is found.

mod linear;

use std::sync::Arc;

use coblk::aio::SimulationOptions;
use coblk::{AioContext, BlockNode, IoThread};
use coblk_tests::load::{Kind, Mix, Shared};
use coblk_tests::pairs::{Pair, Request};
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::{Behaviour, RecordedFile, Recorder, SECTOR};
use coblk_tests::register::{Registers, print_of};
use coblk_tests::survey::{Seen, Subject, Survey, read_all};
use linear::{BUGS, Bug, CLUSTER, CLUSTERS, Linear};

struct Format(Option<Bug>);

impl Subject for Format {
    fn open(
        &self,
        ctx: &AioContext,
        files: &[RecordedFile],
        _read_only: bool,
    ) -> Result<Arc<BlockNode>, String> {
        let file = BlockNode::new("file", files[0].clone());
        let driver = ctx.run(|co| Linear::open(co, &file, self.0))?;
        Ok(BlockNode::new("linear", driver))
    }

    fn close(&self, ctx: &AioContext, node: Arc<BlockNode>) -> Result<(), String> {
        ctx.run(|co| node.co_close(co)).map_err(|error| error.to_string())
    }

    fn check(&self, _ctx: &AioContext, files: &[RecordedFile]) -> Result<u64, String> {
        linear::parse(&files[0].content(), self.0 == Some(Bug::TornRoot))?;
        Ok(0)
    }
}

fn simulated(seed: u64) -> AioContext {
    AioContext::test_builder().simulated(SimulationOptions::new(seed)).build().expect("a context")
}

const SURVEY: Survey = Survey { moments: 150, single: 6, random: 2, leaks: 0, further: u64::MAX };

/// One run on an image; and a look at what a loss of power may leave of it, if there is a survey.
fn run(
    ctx: &AioContext,
    bug: Option<Bug>,
    seed: u64,
    (mix, survey): (Mix, Option<Survey>),
    two: bool,
) -> Result<Seen, String> {
    let recorder = Recorder::new(Behaviour { seed, ..Behaviour::default() });
    let files = [recorder.add_file(linear::empty_image(seed.is_multiple_of(2)))];
    let subject = Format(bug);
    let node = subject.open(ctx, &files, false)?;
    let registers = Registers::new(&vec![0; CLUSTERS * CLUSTER * SECTOR]);
    let shared = Shared::new(ctx, &recorder, registers, seed, mix);
    let other = two.then(|| IoThread::new("other").expect("a thread"));
    let others: Vec<_> = other.iter().map(|it| it.handle()).collect();
    shared.play(ctx, &node, &others);
    subject.close(ctx, node)?;
    if let Some(fault) = shared.fault() {
        return Err(fault);
    }
    let content = read_all(&subject, ctx, &files)?;
    let now = recorder.tick();
    for (at, sector) in content.chunks(SECTOR).enumerate() {
        shared.registers().check_read(at, print_of(sector), now, now)?;
    }
    survey.map_or(Ok(Seen::default()), |survey| {
        survey.run(&subject, (&recorder, &shared), 1, &mut Random::new(seed))
    })
}

/// Many requests, and then fewer of them with a survey.
fn ways() -> [(Mix, Option<Survey>); 2] {
    [(Mix::churn(CLUSTER), None), (Mix::all(CLUSTER), Some(SURVEY))]
}

#[test]
fn a_format_that_is_right_passes() {
    let mut images = 0;
    for seed in seeds(4) {
        for way in ways() {
            let seen = run(&simulated(seed), None, seed, way, false);
            images += seen.unwrap_or_else(|fault| panic!("seed {seed}: {fault}")).images;
        }
    }
    println!("{images} images");
}

#[test]
fn a_format_that_is_right_passes_on_two_contexts() {
    for seed in seeds(1) {
        for way in ways() {
            let ctx = AioContext::for_test().expect("a context");
            run(&ctx, None, seed, way, true).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        }
    }
}

#[test]
fn each_way_to_be_wrong_is_found() {
    for bug in BUGS {
        let find =
            |way, seed| Some((seed, run(&simulated(seed), Some(bug), seed, way, false).err()?));
        let found = ways().into_iter().find_map(|way| (0..30).find_map(|seed| find(way, seed)));
        let (seed, fault) = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?}: seed {seed}: {}", fault.lines().next().unwrap_or_default());
    }
}

#[test]
fn one_seed_is_one_run() {
    let digest = |seed| {
        let ctx = simulated(seed);
        run(&ctx, None, seed, (Mix::churn(CLUSTER), None), false).expect("a run");
        ctx.simulation().expect("a simulated context").digest()
    };
    assert_eq!(digest(3), digest(3));
    assert_ne!(digest(3), digest(4));
}

/// Two requests to the same cluster, or to one beside it, while the first is held.
fn pairs(bug: Option<Bug>) -> Result<u64, String> {
    let kinds = [Kind::Write, Kind::Read, Kind::Discard, Kind::ZeroOnly, Kind::Flush];
    let (images, content) = ([linear::empty_image(true)], vec![0; CLUSTERS * CLUSTER * SECTOR]);
    let before: [Request; 4] =
        [(Kind::Write, 0..8), (Kind::Flush, 0..0), (Kind::Discard, 0..4), (Kind::Write, 40..44)];
    let others: [Request; 4] =
        [(Kind::Flush, 0..0), (Kind::Write, 60..64), (Kind::Write, 72..76), (Kind::Read, 0..16)];
    let mut points = 0;
    for first in kinds {
        for second in kinds {
            for range in [4..8, 8..12, 5..7] {
                let (first, second) = ((first, 4..8), (second, range));
                let what = format!("{first:?}, {second:?}");
                let pair = Pair {
                    images: &images,
                    content: &content,
                    cluster: CLUSTER,
                    before: &before,
                    first,
                    second,
                    others: &others,
                    survey: None,
                };
                let run = pair.run(&Format(bug), 1).map_err(|fault| format!("{what}: {fault}"));
                points += run?;
            }
        }
    }
    Ok(points)
}

#[test]
fn a_request_that_is_held_meets_no_other() {
    let points = pairs(None).unwrap_or_else(|fault| panic!("{fault}"));
    println!("{points} points");
    let fault = pairs(Some(Bug::NoGrace)).expect_err("a read that meets another owner");
    assert!(fault.contains("to sector"), "{fault}");
}
