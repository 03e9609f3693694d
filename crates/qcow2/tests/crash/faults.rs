//! A request to a file fails, each in turn: nothing that was acknowledged is lost, no image is corrupt,
//! and later requests succeed.

use coblk_aio::AioContext;
use coblk_tests::load::{Mix, Shared};
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::{Behaviour, Disturbance, Kind, RecordedFile, Recorder, SECTOR};
use coblk_tests::register::{Registers, print_of};
use coblk_tests::survey::{Subject, Survey, read_all};

use crate::simulated;
use crate::util::shape::{Format, SHAPES, Shape};

const SURVEY: Survey = Survey { moments: 6, single: 1, random: 1, leaks: 400, further: u64::MAX };

/// Loads an image; a request after `skip` others of that kind fails, so many times. Returns whether one
/// has.
fn run(
    ctx: &AioContext,
    shape: Shape,
    seed: u64,
    fault: Disturbance,
    survey: Option<Survey>,
) -> Result<bool, String> {
    let format = Format::new(shape);
    let images = shape.create(seed);
    let recorder = Recorder::new(Behaviour { seed, ..Behaviour::default() });
    let registers = Registers::new(&shape.content(&images));
    let files: Vec<RecordedFile> =
        images.into_iter().map(|image| recorder.add_file(image)).collect();
    let node = format.open(ctx, &files, false)?;
    recorder.disturb(fault);
    let mix = Mix { coroutines: 3, requests: 8, may_fail: true, ..Mix::all(shape.cluster) };
    let shared = Shared::new(ctx, &recorder, registers, seed, mix);
    shared.play(ctx, &node, &[]);
    let is_met = recorder.disturbed() > 0;
    recorder.calm();
    let registers = shared.registers().clone();
    let mix = Mix { may_fail: false, ..mix };
    let after = Shared::new(ctx, &recorder, registers, seed + 1000, mix);
    if shared.fault().is_none() {
        after.play(ctx, &node, &[]);
    }
    let close = format.close(ctx, node);
    if let Some(fault) = shared.fault() {
        return Err(format!("while it failed: {fault}"));
    }
    if let Some(fault) = after.fault() {
        return Err(format!("afterwards: {fault}"));
    }
    close?;
    format.expect_clean(ctx, &files, "a close")?;
    let now = recorder.tick();
    for (at, sector) in read_all(&format, ctx, &files)?.chunks(SECTOR).enumerate() {
        after.registers().check_read(at, print_of(sector), now, now)?;
    }
    if let Some(survey) = survey {
        survey.run(&format, (&recorder, &after), 1, &mut Random::new(seed))?;
    }
    Ok(is_met)
}

/// Requests number 0, `step`, ... of one kind fail. Returns how many runs that were.
fn each(shape: Shape, seed: u64, (kind, errno): (Kind, i32), times: u64, step: u64) -> u64 {
    let mut runs = 0;
    for skip in (seed % step..).step_by(step as usize) {
        let fault = Disturbance { times, ..Disturbance::fail(errno, skip).of(kind) };
        let what = format!("{shape:?}, seed {seed}, {times} of {kind:?} from {skip} on: {errno}");
        let is_met = run(&simulated(seed), shape, seed, fault, Some(SURVEY));
        runs += 1;
        if !is_met.unwrap_or_else(|fault| panic!("{what}: {fault}")) {
            break;
        }
    }
    runs
}

#[test]
fn q223_a_failed_request_to_the_file_loses_only_what_was_not_acknowledged() {
    let mut runs = 0;
    for seed in seeds(1) {
        let mut random = Random::new(seed);
        for kind in [
            (Kind::Write, libc::EIO),
            (Kind::Write, libc::ENOSPC),
            (Kind::Flush, libc::EIO),
            (Kind::Read, libc::EIO),
            (Kind::Truncate, libc::ENOSPC),
        ] {
            for times in [1, 5] {
                let shape = SHAPES[random.below(SHAPES.len() as u64) as usize];
                runs += each(shape, seed, kind, times, 7);
            }
        }
    }
    println!("{runs} runs");
}

/// A sync that fails may have let through the entry of a new table that was written before it. What is linked from then
/// on may come to that table no sooner than to any other: data and counts first.
#[test]
fn q192_q223_a_table_that_a_failed_commit_may_have_linked_is_as_any_other() {
    let shape = SHAPES.into_iter().find(|it| it.options == "cluster_size=512" && !it.has_data_file);
    let shape = shape.expect("it is among them");
    let runs: u64 = (0..4).map(|seed| each(shape, seed, (Kind::Flush, libc::EIO), 5, 2)).sum();
    println!("{runs} runs");
}

/// The file is made longer ahead of data. What leads behind the end that it durably has waits for a sync, though the
/// data may come late and its clusters are counted already: behind the end of the file nothing can be read.
#[test]
fn q192_q197_entries_lead_to_where_the_file_durably_is() {
    let shape = SHAPES.into_iter().find(|it| it.options == "cluster_size=64k").expect("a shape");
    let fault = Disturbance::fail(libc::EIO, 18).of(Kind::Write);
    assert_eq!(run(&simulated(172), shape, 172, fault, Some(SURVEY)), Ok(true));
}
