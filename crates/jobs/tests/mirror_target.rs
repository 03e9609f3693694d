//! What mirrors do with different targets.

mod util;

use std::rc::Rc;
use std::sync::Arc;

use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockNode};
use coblk_jobs::{CopyMode, JobOptions, JobStatus, Mirror, MirrorError, SyncMode};
use util::disk::{Disk, OnDisk, Op, Verdict};
use util::mapped::Mapped;
use util::stage::{GRANULE, Stage, stage, stage_of, stage_with};
use util::{take, until};

/// What the target was asked to change, in order of places.
fn changes(stage: &Stage) -> Vec<(char, u64, u64)> {
    let mut changes: Vec<_> = stage.target.take_ops().into_iter().filter_map(change).collect();
    changes.sort_by_key(|it| it.1);
    changes
}

fn change(op: Op) -> Option<(char, u64, u64)> {
    let (kind, offset, bytes) = match op {
        Op::Write(offset, bytes, _) => ('w', offset, bytes),
        Op::Zeroes(offset, bytes, _) => ('z', offset, bytes),
        Op::Discard(offset, bytes) => ('d', offset, bytes),
        _ => return None,
    };
    Some((kind, offset / GRANULE, bytes / GRANULE))
}

#[test]
fn j54_bytes_go_by_block_status_and_parts_of_clusters_as_data() {
    let make = |cluster| {
        move |name: &str, disk: &Arc<Disk>| match name {
            "source" => Mapped::node(name, disk, ("dzzz--d", GRANULE), 1, None),
            _ => Mapped::node(name, disk, ("d", GRANULE), cluster, None),
        }
    };
    for (cluster, expected) in [(GRANULE, "wzzzzzww"), (2 * GRANULE, "wwzzzzww")] {
        let stage = stage_with(8 * GRANULE, make(cluster));
        let mirror = stage.mirror().granularity(GRANULE).buffer(16 * 8 * GRANULE);
        let job = stage.start(mirror);
        stage.until(&job, JobStatus::Ready);
        let each = |(kind, _, count): (char, u64, u64)| std::iter::repeat_n(kind, count as usize);
        let by_granule: String = changes(&stage).into_iter().flat_map(each).collect();
        assert_eq!(by_granule, expected, "clusters of {cluster} bytes");
    }
}

#[test]
fn j53_no_guest_waits_for_a_copy_in_the_background() {
    let stage = stage_of(8 * GRANULE);
    stage.source.fill(1);
    stage.target.judge(|op| if matches!(op, Op::Write(..)) { Verdict::Hold } else { Verdict::Go });
    let _job = stage.start(stage.mirror());
    until(&stage.ctx, || stage.target.held() > 0);
    let took = stage.takes(|| (0..8).for_each(|it| stage.write(it * GRANULE, 2, GRANULE)));
    assert!(took < std::time::Duration::from_secs(1), "{took:?}");
}

/// A target whose header names a backing file that is not there, with clusters of four granules.
fn absent_backing(backing: Option<&'static str>) -> Stage {
    stage_with(16 * GRANULE, move |name, disk| match name {
        "source" => BlockNode::new(name, OnDisk(Arc::clone(disk))),
        _ => Mapped::node(name, disk, ("d", GRANULE), 4 * GRANULE, backing),
    })
}

#[test]
fn j55_clusters_are_written_as_a_whole_where_a_backing_file_is_absent() {
    for (backing, bytes) in [(Some("base"), 4 * GRANULE), (None, GRANULE)] {
        let stage = absent_backing(backing);
        let mirror = stage.mirror().sync(SyncMode::None).granularity(GRANULE);
        let job = stage.start(mirror);
        stage.until(&job, JobStatus::Ready);
        stage.write(5 * GRANULE + 100, 7, 200);
        until(&stage.ctx, || stage.target.data()[5 * GRANULE as usize + 100] == 7);
        let first = 5 * GRANULE / bytes * bytes;
        let expected = vec![('w', first / GRANULE, bytes / GRANULE)];
        assert_eq!(changes(&stage), expected, "{backing:?}");
    }
}

#[test]
fn j55_guests_write_no_part_of_a_cluster_first_where_a_backing_file_is_absent() {
    let stage = absent_backing(Some("base"));
    stage.source.fill(3);
    let mirror = stage.mirror().sync(SyncMode::None).copy_mode(CopyMode::WriteBlocking);
    let job = stage.start(mirror);
    stage.until(&job, JobStatus::Ready);
    until(&stage.ctx, || stage.jobs.all()[0].actively_synced == Some(true));
    let synced = |stage: &Stage| {
        until(&stage.ctx, || stage.jobs.all()[0].actively_synced == Some(true));
        changes(stage)
    };
    // Parts of two clusters, and all of the one between: the copier writes the parts with the rest.
    stage.write(3 * GRANULE, 7, 6 * GRANULE);
    assert_eq!(synced(&stage), [('w', 0, 4), ('w', 4, 4), ('w', 8, 4)]);
    // All of these are there.
    stage.write(3 * GRANULE, 8, 6 * GRANULE);
    assert_eq!(changes(&stage), [('w', 3, 6)]);
    let end = 12 * GRANULE as usize;
    assert!(stage.target.data()[..end] == stage.source.data()[..end]);
}

#[test]
fn j61_a_target_becomes_read_only_with_its_source() {
    for (read_only, softly) in [(true, false), (false, false), (true, true)] {
        let stage = stage();
        let open = |name: &str, read_only: bool| {
            let text = format!("driver=null-co,size=1048576,read-zeroes=on,node-name={name}");
            let options = NodeOptions::from_keyval(&text).unwrap().read_only(read_only);
            stage.ctx.run(|co| stage.blockdevs.co_open(co, options)).unwrap()
        };
        let (source, target) = (open("s", read_only), open("t", false));
        let reader = BackendOptions::new("reader").read_only(true);
        let guest = reader.open(&stage.ctx, Arc::clone(&source)).unwrap();
        let job = stage.start(Mirror::new(source, Arc::clone(&target)));
        stage.until(&job, JobStatus::Ready);
        match softly {
            true => stage.cancel(false),
            false => stage.jobs.complete("j").unwrap(),
        }
        stage.until(&job, JobStatus::Null);
        let is_on = guest.node().unwrap().name().to_owned();
        assert_eq!(is_on, if softly { "s" } else { "t" });
        assert_eq!(target.is_read_only(), read_only && !softly);
    }
}

#[test]
fn j64_a_guest_may_change_its_buffer_as_soon_as_it_is_told() {
    let stage = stage_of(4 * GRANULE);
    let job = stage.start(stage.mirror().copy_mode(CopyMode::WriteBlocking));
    stage.until(&job, JobStatus::Ready);
    until(&stage.ctx, || stage.jobs.all()[0].actively_synced == Some(true));
    stage.target.judge(|op| if matches!(op, Op::Write(..)) { Verdict::Hold } else { Verdict::Go });
    let (guest, jobs) = (stage.guest.clone(), Rc::clone(&stage.jobs));
    // The guest is let go while the target has not written yet, and uses its buffer again.
    stage.ctx.spawn("guest", move |co| {
        let mut data = vec![7; 512];
        guest.co_write(co, 0, &data).unwrap();
        data.fill(9);
        drop(data);
        drop(jobs);
    });
    until(&stage.ctx, || stage.target.held() == 1);
    stage.cancel(true);
    stage.until(&job, JobStatus::Null);
    assert!(stage.target.release());
    until(&stage.ctx, || stage.is_free());
    assert_eq!(stage.target.data()[..512], [7; 512]);
}

#[test]
fn j66_a_mirror_says_whether_its_target_has_all() {
    let stage = stage_of(4 * GRANULE);
    let synced = || stage.jobs.all()[0].actively_synced;
    let job = stage.start(stage.mirror());
    stage.until(&job, JobStatus::Ready);
    assert_eq!(synced(), Some(false), "in the background it never is");
    stage.cancel(true);
    stage.until(&job, JobStatus::Null);
    let options = JobOptions::new("j", "mirror");
    let mirror = stage.mirror().copy_mode(CopyMode::WriteBlocking);
    let job = stage.try_start(mirror, options).unwrap();
    assert_eq!(synced(), Some(false), "nothing is copied yet");
    stage.until(&job, JobStatus::Ready);
    until(&stage.ctx, || synced() == Some(true));
    take(&stage.told);
    stage.write(0, 1, 4 * GRANULE);
    assert_eq!(synced(), Some(true));
}

#[test]
fn j45_a_disk_of_too_many_granules_is_refused() {
    let ctx = util::simulated(1);
    let node =
        |name: &str| BlockNode::new(name, coblk_block::drivers::Null::new(coblk_block::MAX_LENGTH));
    let (jobs, told) = util::jobs();
    let blockdevs = coblk_block::Blockdevs::new(coblk_block::drivers());
    let mirror = Mirror::new(node("source"), node("target"));
    let options = JobOptions::new("j", "mirror");
    let refused = ctx.run(|co| mirror.co_start(co, &jobs, options, &blockdevs)).unwrap_err();
    assert!(
        matches!(&refused, MirrorError::Io(error) if error.raw_os_error() == Some(libc::EFBIG))
    );
    assert_eq!(take(&told), ["created", "null"]);
}
