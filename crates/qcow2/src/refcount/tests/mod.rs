//! Tests of refcounts: each part alone, and a model with crashes.

mod disk;
mod model;
mod parts;

use super::*;
use model::Model;

fn run(seed: u64, order: u32, end: u64, limit: Option<u64>, steps: u32) -> Model {
    let mut model = Model::new(seed, order, end, limit);
    println!("seed {seed}: refcounts of {} bits, {end} clusters", 1 << order);
    for _ in 0..steps {
        if model.random.u32(..100) == 0 {
            model.failures = model.random.u32(..4);
        }
        model.step();
    }
    model
}

/// Every width, short files and long ones, commits that fail and a crash at each step of each commit.
#[test]
fn q212_q219_references_are_counted_at_every_crash_point() {
    for seed in coblk_tests::random::seeds(42) {
        // The table of one cluster ends with cluster 4096 where refcounts have 64 bits.
        let end = [3, 4000, 4090, 100_000][seed as usize % 4];
        run(seed, seed as u32 % 7, end, None, 300).close();
    }
}

#[test]
fn q217_q238_a_file_that_cannot_grow_is_used_to_its_last_cluster() {
    for seed in coblk_tests::random::seeds(20) {
        let mut model = run(seed, 4 + seed as u32 % 3, 700, Some(700), 400);
        model.failures = 0;
        let mut all = Vec::new();
        while let Some(host) = model.until(|it| it.allocate(5, None)) {
            all.push(host);
        }
        let (free, end) =
            ((0..700).filter(|it| model.refcounts.count(it * 512) == Ok(0)), 700 * 512);
        assert!(all.iter().all(|host| host.end <= end));
        assert_eq!(free.count(), 0);
        all.into_iter().for_each(|host| model.refcounts.give_back(host));
        model.close();
    }
}
