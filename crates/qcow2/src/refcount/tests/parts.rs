//! Parts alone: where clusters are allocated, what is refused, and what takes memory.

use std::sync::Arc;

use super::*;

const CLUSTER: u64 = 512;

/// Refcounts of 16 bits of a file of `end` clusters; the table has these entries, in clusters.
fn refcounts(table: &[(usize, u64)], end: u64) -> Refcounts {
    let mut words = vec![0; 64];
    table.iter().for_each(|(index, cluster)| words[*index] = cluster * CLUSTER);
    let metadata = Arc::new(MetadataSet::new(9));
    metadata.insert(0..CLUSTER, Metadata::MAIN_HEADER);
    Refcounts::new(RefcountParts {
        geometry: Geometry::new(9, false).unwrap(),
        width: RefcountWidth::new(4).unwrap(),
        unit: 512,
        table_offset: CLUSTER,
        table_clusters: 1,
        table: words,
        file_end: end * CLUSTER,
        limit: None,
        cache_bytes: 0,
        metadata,
    })
}

/// A block in which these clusters, from its first on, have refcount 1.
fn block(used: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let mut bytes = vec![0; CLUSTER as usize];
    used.into_iter().for_each(|at| bytes[2 * at + 1] = 1);
    bytes
}

/// Those of a file whose first clusters are in use.
fn used(clusters: u64) -> Refcounts {
    let mut refcounts = refcounts(&[(0, 2)], clusters);
    refcounts.loaded(0, &block(0..clusters as usize)).unwrap();
    refcounts
}

fn host(clusters: Range<u64>) -> Range<u64> {
    clusters.start * CLUSTER..clusters.end * CLUSTER
}

fn commit(refcounts: &mut Refcounts) {
    let plan = refcounts.begin_commit();
    refcounts.end_commit(plan, true);
}

/// Does a call again and again, while new blocks want their space.
fn with_space<T>(
    refcounts: &mut Refcounts,
    call: impl Fn(&mut Refcounts) -> Result<T, Need>,
) -> Result<T, Need> {
    loop {
        match call(refcounts) {
            Err(Need::HostSpace { index, .. }) => refcounts.has_host_space(index),
            result => return result,
        }
    }
}

fn free(refcounts: &mut Refcounts, clusters: Range<u64>) {
    refcounts.give_up(host(clusters), Discard::Keep);
    commit(refcounts);
    (0..2).for_each(|_| drop(refcounts.pass_grace(|_| ())));
}

#[test]
fn q191_the_first_allocation_reads_one_block() {
    // A file of 40 blocks: the last of them says where it ends.
    let table: Vec<(usize, u64)> = (0..40).map(|at| (at, 2 + at as u64)).collect();
    let mut refcounts = refcounts(&table, 40 * 256);
    let need = Need::Block { index: 39, offset: 41 * CLUSTER };
    assert_eq!(refcounts.allocate(3, None), Err(need));
    refcounts.loaded(39, &block(0..100)).unwrap();
    let first = 39 * 256 + 100;
    assert_eq!(refcounts.allocate(3, None), Ok(host(first..first + 3)));
    assert_eq!(refcounts.allocate(3, None), Ok(host(first + 3..first + 6)));
}

#[test]
fn q191_blocks_that_are_read_in_the_background_show_their_gaps() {
    let table: Vec<(usize, u64)> = (0..40).map(|at| (at, 2 + at as u64)).collect();
    let mut refcounts = refcounts(&table, 40 * 256);
    refcounts.loaded(39, &block(0..100)).unwrap();
    let mut seen = Vec::new();
    while let Some(Need::Block { index, offset }) = refcounts.next_unread() {
        assert_eq!(offset, (2 + index) * CLUSTER);
        seen.push(index);
        // One has a gap, and one cannot be read.
        let free = if index == 7 { 6 } else { 0 };
        refcounts.surveyed(index, (index != 9).then_some(free));
    }
    assert_eq!(seen, (0..39).collect::<Vec<_>>());
    assert!(!refcounts.has_unread());
    let need = Need::Block { index: 7, offset: 9 * CLUSTER };
    assert_eq!(refcounts.allocate(4, None), Err(need));
    refcounts.loaded(7, &block(0..250)).unwrap();
    let first = 7 * 256 + 250;
    assert_eq!(refcounts.allocate(4, None), Ok(host(first..first + 4)));
}

/// Allocates and commits; returns whether refcounts were written.
fn allocate_and_commit(refcounts: &mut Refcounts) -> bool {
    refcounts.allocate(1, None).unwrap();
    let plan = refcounts.begin_commit();
    let is_written = !plan.stage1.is_empty();
    refcounts.end_commit(plan, true);
    is_written
}

#[test]
fn q190_q194_a_commit_counts_clusters_that_later_ones_need_not_count() {
    let mut refcounts = used(50);
    let written: Vec<bool> = (0..60).map(|_| allocate_and_commit(&mut refcounts)).collect();
    let times: Vec<usize> = (0..60).filter(|at| written[*at]).collect();
    // Each run is twice as long as the one before.
    assert_eq!(times, [0, 9, 26, 59]);
    assert_eq!(refcounts.count(130 * CLUSTER), Ok(1));
    // What is left of it is free, and at the end of the file.
    refcounts.end_run();
    assert_eq!(refcounts.allocate(1, None), Ok(host(110..111)));
    assert_eq!(refcounts.count(111 * CLUSTER), Ok(0));
}

#[test]
fn q190_an_allocation_goes_on_behind_the_run() {
    let mut refcounts = used(50);
    allocate_and_commit(&mut refcounts);
    assert_eq!(refcounts.allocate(20, None), Ok(host(51..71)));
    assert_eq!(refcounts.run(), 59..59);
    assert_eq!(refcounts.count(70 * CLUSTER), Ok(1));
}

#[test]
fn q238_a_file_that_the_host_has_no_space_for_has_an_end_until_that_is_lifted() {
    let mut refcounts = used(50);
    free(&mut refcounts, 10..12);
    let first = refcounts.allocate(4, None).unwrap();
    assert_eq!(first, host(50..54));
    refcounts.give_back(first);
    refcounts.limit_to(50 * CLUSTER);
    assert_eq!(refcounts.allocate(4, None), Ok(host(10..12)));
    assert_eq!(refcounts.allocate(4, None), Err(Need::Space));
    assert!(refcounts.lift_limit() && !refcounts.lift_limit());
    assert_eq!(refcounts.allocate(4, None), Ok(host(50..54)));
}

#[test]
fn q238_a_new_block_has_its_space_before_it_counts_anything() {
    let mut refcounts = used(190);
    refcounts.allocate(20, None).unwrap();
    // The next block was made ahead, at cluster 256.
    let need = Need::HostSpace { index: 1, offset: 256 * CLUSTER };
    assert_eq!(refcounts.allocate(1, None), Err(need.clone()));
    let plan = refcounts.begin_commit();
    assert!(plan.entries.is_empty() && plan.stage1.iter().all(|(at, _)| *at < 256 * CLUSTER));
    refcounts.end_commit(plan, true);
    // Without it, what it does not count is allocated.
    refcounts.limit_to(256 * CLUSTER);
    assert_eq!(refcounts.allocate(60, None), Ok(host(210..256)));
    refcounts.lift_limit();
    assert_eq!(refcounts.allocate(1, None), Err(need));
    refcounts.has_host_space(1);
    assert_eq!(refcounts.allocate(1, None), Ok(host(257..258)));
    let plan = refcounts.begin_commit();
    assert!(plan.entries_are_needed && plan.stage1.iter().any(|(at, _)| *at == 256 * CLUSTER));
    refcounts.end_commit(plan, true);
}

#[test]
fn q173_gaps_stay_known_beside_long_allocations() {
    let mut refcounts = used(100);
    for cluster in [10, 20, 21, 30] {
        free(&mut refcounts, cluster..cluster + 1);
    }
    // None of the gaps is long enough.
    assert_eq!(refcounts.allocate(8, None), Ok(host(100..108)));
    assert_eq!(refcounts.allocate(2, None), Ok(host(20..22)));
    let ones: Vec<_> =
        (0..3).map(|_| refcounts.allocate(1, None).unwrap().start / CLUSTER).collect();
    assert_eq!(ones, [30, 10, 108]);
}

#[test]
fn q91_clusters_follow_their_goal() {
    let mut refcounts = used(50);
    free(&mut refcounts, 10..20);
    assert_eq!(refcounts.allocate(4, Some(50 * CLUSTER)), Ok(host(50..54)));
    assert_eq!(refcounts.allocate(4, Some(18 * CLUSTER)), Ok(host(18..20)));
    // A goal in use is none; what is far behind the end is a goal as well.
    assert_eq!(refcounts.allocate(4, Some(5 * CLUSTER)), Ok(host(10..14)));
    assert_eq!(refcounts.allocate(4, Some(60 * CLUSTER)), Ok(host(60..64)));
    assert_eq!(refcounts.allocate(6, None), Ok(host(54..60)));
}

#[test]
fn q197_space_that_was_never_used_reads_as_zeroes() {
    let mut refcounts = used(50);
    free(&mut refcounts, 10..20);
    assert_eq!(refcounts.allocate(10, None), Ok(host(10..20)));
    assert!(!refcounts.is_virgin(10 * CLUSTER));
    let fresh = refcounts.allocate(2, None).unwrap();
    assert!(refcounts.is_virgin(fresh.start) && refcounts.is_virgin(fresh.end - CLUSTER));
    // A write that failed may have left anything.
    refcounts.give_back(fresh.clone());
    assert_eq!(refcounts.allocate(2, None), Ok(fresh.clone()));
    assert!(!refcounts.is_virgin(fresh.start));
}

#[test]
fn q196_what_a_failed_commit_gave_up_is_still_owed() {
    let mut refcounts = used(50);
    refcounts.give_up(host(10..12), Discard::Keep);
    let plan = refcounts.begin_commit();
    refcounts.give_up(host(12..13), Discard::Keep);
    refcounts.end_commit(plan, false);
    assert_eq!([10, 12].map(|it| refcounts.count(it * CLUSTER)), [Ok(1), Ok(1)]);
    commit(&mut refcounts);
    assert_eq!([10, 12].map(|it| refcounts.count(it * CLUSTER)), [Ok(0), Ok(0)]);
    // A count that has gone back to what was on file is written again: a failed commit may have changed it.
    commit(&mut refcounts);
    let clusters = refcounts.allocate(1, Some(40 * 512)).unwrap();
    let plan = refcounts.begin_commit();
    refcounts.give_back(clusters);
    refcounts.end_commit(plan, false);
    let plan = refcounts.begin_commit();
    assert_eq!(plan.stage1.len(), 1);
    refcounts.end_commit(plan, true);
    assert!(refcounts.is_clean());
}

#[test]
fn q188_freed_clusters_come_back_after_two_epochs() {
    let mut refcounts = used(50);
    refcounts.give_up(host(10..11), Discard::Punch);
    assert_eq!(refcounts.allocate(1, Some(10 * CLUSTER)), Ok(host(50..51)));
    commit(&mut refcounts);
    assert_eq!(refcounts.pass_grace(|_| ()), []);
    assert_eq!(refcounts.allocate(1, Some(10 * CLUSTER)), Ok(host(51..52)));
    assert_eq!(refcounts.pass_grace(|_| ()), [host(10..11)]);
    // It is being punched.
    assert_eq!(refcounts.allocate(1, Some(10 * CLUSTER)), Ok(host(52..53)));
    refcounts.freed(host(10..11));
    assert_eq!(refcounts.allocate(1, None), Ok(host(10..11)));
}

#[test]
fn q206_blocks_that_cannot_be_are_refused() {
    let corrupt = |mut refcounts: Refcounts| match refcounts.allocate(1, None) {
        Err(Need::Corrupt(corruption)) => corruption.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(corrupt(refcounts(&[(0, 50)], 50)).contains("behind the end"));
    let mut unaligned = refcounts(&[], 50);
    unaligned.table[0] = 0x600 | 0x1ff;
    assert_eq!(unaligned.allocate(1, None), Err(Need::Block { index: 0, offset: 0x600 }));
    let mut unaligned = refcounts(&[(0, 2)], 50);
    unaligned.geometry = Geometry::new(16, false).unwrap();
    assert!(corrupt(unaligned).contains("unaligned"));
}

#[test]
fn q207_a_block_that_calls_itself_free_or_is_two_is_refused() {
    let mut refcounts = super::parts::refcounts(&[(0, 2)], 50);
    assert!(refcounts.loaded(0, &block([0, 1])).unwrap_err().to_string().contains("cluster 2"));
    assert!(refcounts.loaded(0, &block([1, 2])).unwrap_err().to_string().contains("cluster 0"));
    for table in [[(0, 2), (1, 2)], [(0, 0), (1, 1)]] {
        let mut twice = super::parts::refcounts(&table, 50);
        assert!(matches!(twice.allocate(1, None), Err(Need::Corrupt(_))), "{table:?}");
    }
}

#[test]
fn q210_metadata_is_not_handed_out_whatever_its_refcount() {
    let mut refcounts = refcounts(&[(0, 2)], 50);
    refcounts.metadata.insert(host(20..21), Metadata::ACTIVE_L2);
    refcounts.loaded(0, &block((0..50).filter(|at| *at != 20))).unwrap();
    let Err(Need::Corrupt(corruption)) = refcounts.allocate(1, None) else { panic!() };
    assert_eq!(corruption.offset, Some(20 * CLUSTER));
    // From here on nothing is allocated at all.
    assert!(matches!(refcounts.allocate(1, Some(40 * CLUSTER)), Err(Need::Corrupt(_))));
}

#[test]
fn q210_a_reference_too_many_is_found_and_frees_nothing() {
    let mut refcounts = used(50);
    refcounts.give_up(host(10..11), Discard::Keep);
    refcounts.give_up(host(10..11), Discard::Keep);
    commit(&mut refcounts);
    assert!(matches!(refcounts.allocate(1, None), Err(Need::Corrupt(_))));
    assert!(matches!(used(50).add_reference(host(60..61)), Err(Need::Corrupt(_))));
}

#[test]
fn q45_a_refcount_at_its_maximum_is_not_raised() {
    let mut refcounts = used(50);
    let mut full = block(0..50);
    full[2 * 7] = 0xff;
    full[2 * 7 + 1] = 0xff;
    refcounts.blocks.clear();
    refcounts.loaded(0, &full).unwrap();
    assert_eq!(refcounts.add_reference(host(6..9)), Err(Need::Overflow));
    assert_eq!([6, 7, 8].map(|it| refcounts.count(it * CLUSTER)), [Ok(1), Ok(65535), Ok(1)]);
    assert_eq!(refcounts.add_reference(host(8..10)), Ok(()));
    assert_eq!([8, 9].map(|it| refcounts.count(it * CLUSTER)), [Ok(2), Ok(2)]);
}

#[test]
fn q43_offsets_and_the_table_are_bounded() {
    let max = MAX_OFFSET / CLUSTER;
    let mut refcounts = refcounts(&[(0, 2)], max - 1);
    assert_eq!(refcounts.allocate(1, None), Err(Need::Block { index: 0, offset: 1024 }));
    refcounts.loaded(0, &block(0..256)).unwrap();
    refcounts.tail = Some(max - 1);
    // A table for that many clusters would be longer than it may be.
    assert_eq!(refcounts.allocate(1, None), Err(Need::TooBig));
    // 1,048,576 entries of 256 clusters each.
    refcounts.tail = Some((1 << 28) - 16_500);
    with_space(&mut refcounts, |it| it.allocate(1, None)).unwrap();
    assert_eq!(refcounts.table.len(), 1 << 20);
    assert!(refcounts.tail > Some((1 << 28) - 16_500 + 16_384));
    commit(&mut refcounts);
    for _ in 0..200 {
        let host = with_space(&mut refcounts, |it| it.allocate(1, None));
        assert!(host.is_err() || host.is_ok_and(|host| host.end <= CLUSTER << 28));
    }
    assert_eq!(refcounts.allocate(1, None), Err(Need::TooBig));
    assert_eq!(refcounts.tail, Some(1 << 28));
}

#[test]
fn q233_a_block_lies_in_the_range_that_it_counts_and_is_made_ahead() {
    let mut refcounts = used(100);
    while refcounts.tail < Some(256 - 64 - 7) {
        refcounts.allocate(7, None).unwrap();
    }
    commit(&mut refcounts);
    with_space(&mut refcounts, |it| it.allocate(7, None)).unwrap();
    assert_eq!(block_offset(refcounts.table[1]), Some(256 * CLUSTER));
    // No link needs it yet, and it is there before one does.
    refcounts.has_host_space(1);
    let plan = refcounts.begin_commit();
    assert!(!plan.entries_are_needed && plan.entries.len() == 1);
    refcounts.end_commit(plan, true);
    while refcounts.tail <= Some(257) {
        refcounts.allocate(7, None).unwrap();
    }
    let plan = refcounts.begin_commit();
    assert!(plan.entries.is_empty());
    // One that comes too late is needed.
    refcounts.end_commit(plan, true);
    with_space(&mut refcounts, |it| it.allocate_exact(256, Metadata::ACTIVE_L1)).unwrap();
    let plan = refcounts.begin_commit();
    assert!(plan.entries_are_needed && plan.entries.len() == 1);
}

#[test]
fn q235_clusters_that_wait_for_a_grace_take_bounded_memory() {
    let mut refcounts = used(100);
    let (mut blocks, mut all) = (1, 0);
    // Every other cluster, in far more ranges than are kept.
    for start in (0..300_000).step_by(2) {
        let block = refcounts.range_of(start / 256);
        refcounts.owed.fresh.close(start..start + 1, block, Discard::Punch);
        all += 1;
        blocks = blocks.max(start / 256 + 1);
    }
    let ranges = refcounts.owed.closed().count();
    assert!(ranges < all && ranges <= 65_537, "{ranges}");
    for start in (0..300_000).step_by(2) {
        assert!(refcounts.owed.first_closed(&(start..start + 1)).is_some(), "{start}");
    }
}

#[test]
fn q199_blocks_that_did_not_change_leave_memory() {
    let table: Vec<(usize, u64)> = (0..60).map(|at| (at, 2 + at as u64)).collect();
    let mut refcounts = refcounts(&table, 60 * 256);
    for index in 0..60 {
        refcounts.loaded(index, &block(0..100)).unwrap();
        assert!(refcounts.blocks.len() <= MIN_BLOCKS);
    }
    // What is owed to others comes to them one by one.
    refcounts.give_up(host(0..60 * 256), Discard::Keep);
    commit(&mut refcounts);
    let mut loaded = 0;
    while !refcounts.owed.lowers.is_empty() {
        while let Some(Need::Block { index, .. }) = refcounts.next_owed() {
            refcounts.loaded(index, &block(0..256)).unwrap();
            loaded += 1;
        }
        assert!(refcounts.blocks.len() <= 2 * MIN_BLOCKS, "{}", refcounts.blocks.len());
        assert!(refcounts.wants_commit());
        commit(&mut refcounts);
    }
    assert!(loaded >= 56);
}

/// Commits that fail after the header may lead to a new table must not write that as a whole any more: it
/// would have entries of blocks that are not on file yet.
#[test]
fn q233_a_table_that_may_be_in_use_gets_entries_after_their_blocks() {
    let mut refcounts = refcounts(&[(0, 2)], 100);
    refcounts.loaded(0, &block(0..256)).unwrap();
    // The table of one cluster has 64 entries.
    refcounts.tail = Some(64 * 256);
    with_space(&mut refcounts, |it| it.allocate(1, None)).unwrap();
    let mut plan = refcounts.begin_commit();
    let table = plan.table.unwrap();
    let writes_table = |plan: &RefcountPlan| plan.stage1.iter().any(|(at, _)| *at == table.0);
    assert!(writes_table(&plan) && plan.entries.is_empty() && table.1 == 2);
    // It never came so far that the header was written.
    refcounts.end_commit(plan, false);
    plan = refcounts.begin_commit();
    assert!(writes_table(&plan) && plan.entries.is_empty());
    plan.stage1_is_durable = true;
    refcounts.end_commit(plan, false);
    refcounts.tail = Some(70 * 256);
    with_space(&mut refcounts, |it| it.allocate(1, None)).unwrap();
    plan = refcounts.begin_commit();
    assert!(!writes_table(&plan) && plan.entries_are_needed && plan.table == Some(table));
    // Those of block 64 and of block 70.
    assert_eq!(plan.entries.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [table.0 + 512]);
    assert_eq!(refcounts.count(CLUSTER), Ok(1));
    refcounts.end_commit(plan, true);
    // The old table is free.
    assert_eq!(refcounts.count(CLUSTER), Ok(0));
    assert!(refcounts.new_table.is_none());
}

#[test]
fn q118_the_last_blocks_go_when_they_count_nothing() {
    let mut refcounts = used(100);
    let start =
        with_space(&mut refcounts, |it| it.allocate_exact(3 * 256, Metadata::ACTIVE_L1)).unwrap();
    commit(&mut refcounts);
    refcounts.give_up(start..start + 3 * 256 * CLUSTER, Discard::Keep);
    refcounts.end_run();
    (0..2).for_each(|_| commit(&mut refcounts));
    assert!(refcounts.last_used().unwrap() < 110 * CLUSTER);
    assert_eq!(refcounts.drop_empty_blocks(), Ok(()));
    assert_eq!(refcounts.table[1..], [0; 63]);
    let plan = refcounts.begin_commit();
    assert!(!plan.entries_are_needed && plan.entries.len() == 1 && plan.stage1.is_empty());
    refcounts.end_commit(plan, true);
    (0..2).for_each(|_| commit(&mut refcounts));
    assert_eq!(refcounts.last_used(), Ok(100 * CLUSTER));
    (0..2).for_each(|_| drop(refcounts.pass_grace(|_| ())));
    // A block in its own range is not used before its entry is gone.
    let mut taken = Vec::new();
    while refcounts.tail <= Some(258) {
        taken.push(with_space(&mut refcounts, |it| it.allocate(7, None)).unwrap());
    }
    commit(&mut refcounts);
    let own = refcounts.table[1];
    assert_eq!(own, 256 * CLUSTER);
    taken.into_iter().for_each(|host| refcounts.give_back(host));
    refcounts.end_run();
    commit(&mut refcounts);
    assert_eq!(refcounts.drop_empty_blocks(), Ok(()));
    assert_eq!(refcounts.allocate_exact(156, Metadata::ACTIVE_L1), Ok(100 * CLUSTER));
    let next =
        |it: &mut Refcounts| with_space(it, |it| it.allocate(1, None)).unwrap().start / CLUSTER;
    // 257 has the next block of this range.
    assert_eq!(next(&mut refcounts), 258);
    let plan = refcounts.begin_commit();
    refcounts.end_commit(plan, false);
    assert_eq!(
        (next(&mut refcounts), refcounts.owed.first_closed(&(256..257))),
        (259, Some(256..257))
    );
    commit(&mut refcounts);
    assert_eq!(refcounts.owed.first_closed(&(256..257)), None);
    assert_eq!(refcounts.allocate(1, Some(own)), Ok(host_of(256)));
    assert!(!refcounts.is_virgin(own));
}

fn host_of(cluster: u64) -> Range<u64> {
    host(cluster..cluster + 1)
}
