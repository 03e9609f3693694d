//! All pairs of requests to one cluster, or to clusters side by side, the first of them held at each of
//! its suspension points.

use coblk_tests::load::Kind;
use coblk_tests::pairs::{Pair, Request};
use coblk_tests::random::{Random, seeds};
use coblk_tests::survey::Survey;

use crate::util::shape::{Format, SHAPES, Shape};

const KINDS: [Kind; 7] = [
    Kind::Write,
    Kind::Read,
    Kind::Discard,
    Kind::Zero,
    Kind::ZeroUnmap,
    Kind::Compressed,
    Kind::Flush,
];
/// A few images after each.
const SURVEY: Survey = Survey { moments: 3, single: 1, random: 1, leaks: 400, further: u64::MAX };
/// The cluster that the first request is about.
const AT: usize = 5;

/// The sectors of a part of some clusters.
fn part(shape: &Shape, clusters: std::ops::Range<usize>, is_whole: bool) -> std::ops::Range<usize> {
    let (start, end) = (clusters.start * shape.cluster, clusters.end * shape.cluster);
    match is_whole || end - start < 4 {
        true => start..end,
        false => start + 1..end - 2,
    }
}

/// A pair of requests of these kinds, in surroundings that are drawn.
fn run(shape: Shape, kinds: (Kind, Kind), random: &mut Random, seed: u64) -> u64 {
    let images = shape.create(seed);
    let content = shape.content(&images);
    let cluster = |at: usize| at * shape.cluster..(at + 1) * shape.cluster;
    // What is there before: nothing, data, zeroes that have space, a compressed cluster.
    let mut before: Vec<Request> = vec![(Kind::Write, cluster(1))];
    for at in AT - 1..AT + 2 {
        match random.below(4) {
            0 => {}
            1 => before.push((Kind::Compressed, cluster(at))),
            2 => before.extend([(Kind::Write, cluster(at)), (Kind::Zero, cluster(at))]),
            _ => before.push((Kind::Write, cluster(at))),
        }
    }
    // Some of it is flushed.
    before.insert(random.below(before.len() as u64 + 1) as usize, (Kind::Flush, 0..0));
    let is_whole = |kind: Kind, random: &mut Random| {
        !matches!(kind, Kind::Write | Kind::Read) || random.below(2) == 0
    };
    let first = (kinds.0, part(&shape, AT..AT + 1, is_whole(kinds.0, random)));
    let clusters = match random.below(4) {
        0 => AT - 1..AT,
        1 => AT..AT + 2,
        _ => AT..AT + 1,
    };
    // A compressed write is of one cluster.
    let clusters = if kinds.1 == Kind::Compressed { AT..AT + 1 } else { clusters };
    let second = (kinds.1, part(&shape, clusters, is_whole(kinds.1, random)));
    // Space that is given up is used again, if it may be.
    let others = [
        (Kind::Write, cluster(9)),
        (Kind::Flush, 0..0),
        (Kind::Write, cluster(10)),
        (Kind::Compressed, cluster(12)),
        (Kind::Write, cluster(13)),
        (Kind::Flush, 0..0),
        (Kind::Write, cluster(14)),
        (Kind::Read, cluster(AT)),
    ];
    let what = format!("{shape:?}, seed {seed}, {before:?}, {first:?}, {second:?}");
    let pair = Pair {
        images: &images,
        content: &content,
        cluster: shape.cluster,
        before: &before,
        first,
        second,
        others: &others,
        survey: Some(SURVEY),
    };
    pair.run(&Format::new(shape), seed).unwrap_or_else(|fault| panic!("{what}: {fault}"))
}

#[test]
fn q165_a_request_that_is_held_meets_no_other() {
    let mut points = 0;
    for seed in seeds(1) {
        let mut random = Random::new(seed);
        for first in KINDS {
            for second in KINDS {
                let shape = SHAPES[random.below(SHAPES.len() as u64) as usize];
                points += run(shape, (first, second), &mut random, seed);
            }
        }
    }
    println!("{points} suspension points");
}
