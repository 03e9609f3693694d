//! Runs in a slice.

use super::*;
use crate::layout::{COMPRESSED, Geometry};

const CLUSTER: u64 = 65536;

fn rules(is_extended: bool) -> EntryRules {
    let geometry = Geometry::new(16, is_extended).unwrap();
    EntryRules { geometry, is_v2: false, has_data_file: false }
}

/// The run of a range, and its place, in a slice of these words that maps from 0 on.
fn find(rules: EntryRules, words: &[u64], range: Range<u64>) -> Result<Run, Corruption> {
    let words: Vec<AtomicU64> = words.iter().map(|word| AtomicU64::new(*word)).collect();
    find_in_slice(&rules, &words, range, (Look::Read, true))
}

fn run(bytes: u64, kind: SubclusterKind, host: u64) -> (u64, SubclusterKind, u64) {
    (bytes, kind, host)
}

#[track_caller]
fn check(words: &[u64], range: Range<u64>, expected: (u64, SubclusterKind, u64)) {
    let found = find(rules(false), words, range).unwrap();
    assert_eq!((found.bytes, found.kind, found.host), expected);
}

#[test]
fn q86_a_run_is_of_one_kind_and_contiguous_where_it_is_stored() {
    use SubclusterKind::*;
    let data = |host: u64| COPIED | host;
    let words = [data(0x50000), data(0x60000), 0x70000, data(0x90000), 1, 1, 0, 0];
    check(&words, 0..8 * CLUSTER, run(3 * CLUSTER, Data, 0x50000));
    check(&words, 100..200, run(100, Data, 0x50064));
    check(&words, CLUSTER + 7..8 * CLUSTER, run(2 * CLUSTER - 7, Data, 0x60007));
    check(&words, 3 * CLUSTER..8 * CLUSTER, run(CLUSTER, Data, 0x90000));
    check(&words, 4 * CLUSTER..8 * CLUSTER, run(2 * CLUSTER, Zero, 0));
    // It ends with the slice.
    check(&words, 6 * CLUSTER..100 * CLUSTER, run(2 * CLUSTER, Unallocated, 0));
    let zeroes = [data(0x50001), data(0x60001), data(0x80001)];
    check(&zeroes, 0..3 * CLUSTER, run(2 * CLUSTER, ZeroStored, 0x50000));
    let compressed = [COMPRESSED | 0x50000, COMPRESSED | 0x51000];
    check(&compressed, 9..2 * CLUSTER, run(CLUSTER - 9, Compressed, 0));
}

#[test]
fn q38_runs_of_subclusters_go_over_clusters() {
    use SubclusterKind::*;
    let all = 0xffff_ffff_u64;
    let words = [COPIED | 0x50000, all << 31 & all, COPIED | 0x60000, 1, 0, all << 32, 0, 0];
    let found = |range| {
        let found = find(rules(true), &words, range).unwrap();
        (found.bytes, found.kind, found.host)
    };
    assert_eq!(found(0..3 * CLUSTER), run(31 * 2048, UnallocatedStored, 0x50000));
    assert_eq!(found(31 * 2048..3 * CLUSTER), run(2 * 2048, Data, 0x50000 + 31 * 2048));
    assert_eq!(found(CLUSTER + 2048..3 * CLUSTER), run(31 * 2048, UnallocatedStored, 0x60800));
    assert_eq!(found(2 * CLUSTER + 1..3 * CLUSTER), run(CLUSTER - 1, Zero, 0));
}

#[test]
fn a_corrupt_entry_ends_the_run_before_it() {
    let words = [COPIED | 0x50000, COPIED | 0x60200];
    check(&words, 0..2 * CLUSTER, run(CLUSTER, SubclusterKind::Data, 0x50000));
    let error = find(rules(false), &words, CLUSTER..2 * CLUSTER).unwrap_err();
    assert_eq!(error.offset, Some(0x60200));
}
