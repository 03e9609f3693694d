//! Each step of the order of writes is needed: without it an image is lost at some moment.

use coblk_tests::load::{Kind, Mix};
use coblk_tests::survey::Survey;

use crate::util::shape::{LEAST_CACHE, SHAPES, Shape, shape};
use crate::{Done, Run, simulated};

const SURVEY: Survey = Survey { moments: 60, single: 4, random: 2, leaks: 400, further: u64::MAX };
/// Runs of each shape before a step counts as not needed.
const SEEDS: u64 = 12;

/// A disk of several refcount blocks, each of which counts 64 clusters.
const MANY_BLOCKS: Shape = shape("cluster_size=512,refcount_bits=64", 1, 600);

/// Finds a run that fails without a step: its shape, its seed, and what is wrong then.
fn find(
    rule: &'static str,
    shapes: &[Shape],
    mix: fn(usize) -> Mix,
    survey: Option<Survey>,
) -> Option<String> {
    find_run(rule, shapes, |shape, seed| Run::new(shape, seed, mix(shape.cluster), survey))
}

/// [`find`], among runs of any kind.
fn find_run(
    rule: &'static str,
    shapes: &[Shape],
    run: impl Fn(Shape, u64) -> Run,
) -> Option<String> {
    for seed in 0..SEEDS {
        for shape in shapes.iter().copied() {
            let mut run = run(shape, seed);
            run.format.omit = Some(rule);
            if let Err(fault) = run.play(&simulated(seed), &mut Done::new()) {
                let fault = fault.lines().next().unwrap_or_default();
                let Shape { options, backing, .. } = shape;
                return Some(format!("{options}, {backing:?}, seed {seed}: {fault}"));
            }
        }
    }
    None
}

/// A crash shows that a step is left out.
#[track_caller]
fn is_needed(rule: &'static str) {
    let found = find(rule, &SHAPES, Mix::all, Some(SURVEY));
    println!("{rule}: {}", found.unwrap_or_else(|| panic!("{rule} is not missed")));
}

#[test]
fn q192_refcounts_are_durable_before_entries() {
    is_needed("flush-after-refcounts");
}

#[test]
fn q122_a_data_file_is_durable_before_entries() {
    is_needed("flush-after-data");
}

#[test]
fn q192_a_new_table_is_there_before_its_entry() {
    // A table that is empty at first reads as what was there before it. One that takes the place of another, which
    // a snapshot has, does not.
    let run = |shape: Shape, seed| {
        let run = Run::new(shape, seed, Mix::all(shape.cluster), Some(SURVEY));
        Run { has_snapshot: true, ..run }
    };
    let found = find_run("new-table-before-l1", &SHAPES[..1], run);
    println!("new-table-before-l1: {}", found.expect("a table without what it had"));
}

#[test]
fn q166_what_is_given_up_is_counted_until_that_is_durable() {
    is_needed("quarantine-until-durable");
}

#[test]
fn q188_what_is_given_up_is_not_used_while_requests_reach_it() {
    let found = find("grace", &SHAPES, Mix::churn, None);
    println!("grace: {}", found.expect("a request that meets another owner"));
}

#[test]
fn q168_what_is_new_around_a_write_is_zero() {
    is_needed("zero-fill");
}

/// Requests all over the disk, none of which asks for a sync: what a flush adds to a commit hides that this has not
/// synced.
fn without_flushes(cluster: usize) -> Mix {
    let mix = Mix { hot: usize::MAX, ..Mix::churn(cluster) };
    mix.without(&[Kind::Flush, Kind::Durable])
}

#[test]
fn q192_a_commit_is_durable_before_what_it_has_unlinked_is_counted_less() {
    let survey = Survey { moments: 300, single: 12, ..SURVEY };
    let found = find("flush-at-end", &[LEAST_CACHE], without_flushes, Some(survey));
    println!("flush-at-end: {}", found.expect("a count that falls before its reference is gone"));
}

#[test]
fn q233_a_block_is_durable_before_its_entry() {
    // Blocks are made ahead, so a commit needs a new one only if it is of many clusters.
    let found = find("block-before-entry", &[MANY_BLOCKS], Mix::fill, Some(SURVEY));
    println!("block-before-entry: {}", found.expect("entries that no durable block counts"));
}
