//! Bitmaps of backups: what is copied by them, and what becomes of them.

mod util;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::Co;
use coblk_block::{BitmapUse, DirtyBitmap, NewBitmap};
use coblk_jobs::{Backup, BackupSync, BitmapMode, JobGroup, JobOptions, JobStatus};
use util::disk::{Op, Verdict};
use util::stage::{GRANULE, LENGTH, Stage, stage};
use util::{take, until};

const MODES: [BitmapMode; 3] = [BitmapMode::OnSuccess, BitmapMode::Never, BitmapMode::Always];

impl Stage {
    fn backup(&self) -> Backup {
        Backup::new(Arc::clone(&self.source_node), Arc::clone(&self.target_node))
    }

    fn add_bitmap(&self, granularity: u64) -> Arc<DirtyBitmap> {
        let new = NewBitmap::new("b".to_owned(), granularity);
        self.ctx.run(|co| self.source_node.co_add_bitmap(co, new)).unwrap()
    }

    /// The first bytes of granules that are dirty in the bitmap of today.
    fn dirty(&self) -> Vec<u64> {
        let bitmap = self.source_node.bitmaps().find("b").unwrap();
        let ranges = bitmap.bits().dirty_ranges(0..LENGTH);
        ranges.flat_map(|range| range.start / GRANULE..range.end.div_ceil(GRANULE)).collect()
    }

    /// Granules of the target that have what guests write here.
    fn copied(&self) -> Vec<u64> {
        let data = self.target.data();
        (0..LENGTH / GRANULE).filter(|it| data[(it * GRANULE) as usize] != 0).collect()
    }

    fn write_granules(&self, granules: &[u64]) {
        granules.iter().for_each(|granule| self.write(granule * GRANULE, 2, 1));
    }

    fn refused(&self, backup: Backup) -> String {
        let options = JobOptions::new("j", "backup");
        let start = |co: &Co<'_>| backup.co_start(co, &self.jobs, options, &self.blockdevs);
        self.ctx.run(start).unwrap_err().to_string()
    }

    fn run(&self, backup: Backup) {
        let options = JobOptions::new("j", "backup");
        let start =
            |co: &Co<'_>| backup.co_start(co, &self.jobs, options, &self.blockdevs).unwrap();
        let job = self.ctx.run(start);
        self.until(&job, JobStatus::Null);
    }
}

#[test]
fn j72_bitmaps_that_cannot_be_used_are_refused() {
    let stage = stage();
    let sync = |sync| stage.backup().sync(sync);
    let text = "must provide a valid bitmap name for 'bitmap' sync mode";
    assert_eq!(stage.refused(sync(BackupSync::Bitmap)), text);
    assert_eq!(stage.refused(stage.backup().incremental("b")), "Bitmap 'b' could not be found");
    let bitmap = stage.add_bitmap(GRANULE);
    let never = |mode| stage.refused(sync(mode).bitmap("b", BitmapMode::Never));
    for (mode, name) in [(BackupSync::Full, "full"), (BackupSync::Top, "top")] {
        let text = format!(
            "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '{name}'"
        );
        assert_eq!(never(mode), text);
    }
    let text = "sync mode 'none' does not produce meaningful bitmap outputs";
    assert_eq!(never(BackupSync::None), text);
    bitmap.set_read_only(true);
    let text = "Bitmap 'b' is readonly and cannot be modified";
    assert_eq!(stage.refused(stage.backup().incremental("b")), text);
    bitmap.bits().mark(GRANULE..GRANULE + 1);
    stage.source.fill(3);
    stage.run(sync(BackupSync::Bitmap).bitmap("b", BitmapMode::Never));
    assert_eq!((stage.copied(), stage.dirty()), (vec![1], vec![1]));
    bitmap.set_read_only(false);
    let busy = bitmap.acquire(BitmapUse::Read).unwrap();
    let text = "Bitmap 'b' is currently in use by another operation and cannot be used";
    assert_eq!(stage.refused(stage.backup().incremental("b")), text);
    drop(busy);
    bitmap.set_inconsistent();
    let text = "Bitmap 'b' is inconsistent and cannot be used";
    assert_eq!(stage.refused(stage.backup().incremental("b")), text);
    assert!(stage.is_free());
}

#[test]
fn j73_a_bitmap_begins_anew_after_a_success_or_not_as_its_mode_says() {
    for mode in MODES {
        let stage = stage();
        stage.add_bitmap(GRANULE);
        stage.write_granules(&[1, 2, 9]);
        let options = JobOptions::new("j", "backup").auto_finalize(false);
        let backup = stage.backup().sync(BackupSync::Bitmap).bitmap("b", mode);
        let start = |co: &Co<'_>| backup.co_start(co, &stage.jobs, options, &stage.blockdevs);
        let job = stage.ctx.run(start).unwrap();
        stage.until(&job, JobStatus::Pending);
        assert_eq!(stage.copied(), [1, 2, 9]);
        stage.write_granules(&[2, 5]);
        let bitmap = stage.source_node.bitmaps().find("b").unwrap();
        assert!(bitmap.info().is_busy && bitmap.info().is_recording);
        stage.ctx.run(|co| stage.jobs.co_finalize(co, "j")).unwrap();
        stage.until(&job, JobStatus::Null);
        let anew = mode != BitmapMode::Never;
        let expected: &[u64] = if anew { &[2, 5] } else { &[1, 2, 5, 9] };
        assert_eq!(stage.dirty(), expected, "{mode:?}");
        let infos: Vec<_> = stage.source_node.bitmaps().list().iter().map(|it| it.info()).collect();
        assert!(matches!(&infos[..], [it] if it.is_recording && !it.is_busy));
        stage.write_granules(&[7]);
        assert!(stage.dirty().contains(&7));
    }
}

#[test]
fn j73_a_failure_leaves_what_was_not_copied() {
    for mode in MODES {
        let stage = stage();
        stage.add_bitmap(GRANULE);
        stage.write_granules(&[1, 2, 9]);
        stage.target.judge(|op| match op {
            Op::Write(at, ..) if at >= 9 * GRANULE => Verdict::Fail(libc::EIO),
            _ => Verdict::Go,
        });
        let backup = stage.backup().sync(BackupSync::Bitmap).bitmap("b", mode).max_workers(1);
        stage.run(backup);
        assert!(take(&stage.told).contains(&"COMPLETED Input/output error".to_owned()));
        assert_eq!(stage.copied(), [1, 2]);
        let expected: &[u64] = if mode == BitmapMode::Always { &[9] } else { &[1, 2, 9] };
        assert_eq!(stage.dirty(), expected, "{mode:?}");
    }
}

#[test]
fn j71_j73_granules_of_a_bitmap_may_be_finer_or_coarser_than_clusters() {
    for (granularity, expected) in [(512, vec![3]), (4 * GRANULE, vec![0, 1, 2, 3])] {
        let stage = stage();
        stage.add_bitmap(granularity);
        stage.source.fill(3);
        stage.write(3 * GRANULE + 700, 2, 1);
        stage.run(stage.backup().incremental("b"));
        assert_eq!(stage.copied(), expected);
        assert!(stage.dirty().is_empty());
    }
}

#[test]
fn j69_j111_a_write_under_way_at_the_start_is_in_the_copy() {
    let stage = stage();
    stage.add_bitmap(GRANULE);
    stage.source.judge(|op| match op {
        Op::Write(..) => Verdict::Hold,
        _ => Verdict::Go,
    });
    let guest = stage.guest.clone();
    stage.ctx.spawn("guest", move |co| guest.co_write(co, 3 * GRANULE, &[2; 512]).unwrap());
    until(&stage.ctx, || stage.source.held() == 1);
    let (jobs, source) = (Rc::clone(&stage.jobs), Arc::clone(&stage.source));
    stage.ctx.spawn("a while later", move |co| {
        co.sleep(Duration::from_secs(1));
        assert!(jobs.all().iter().all(|job| job.status == JobStatus::Created));
        source.release();
    });
    stage.run(stage.backup().incremental("b"));
    assert_eq!((stage.copied(), stage.dirty()), (vec![3], vec![]));
}

#[test]
fn j15_j73_the_success_of_a_bitmap_is_that_of_its_group() {
    let stage = stage();
    stage.add_bitmap(GRANULE);
    stage.write_granules(&[4]);
    let group = JobGroup::new();
    let options = |id: &str| JobOptions::new(id, "backup");
    let other = util::disk::Disk::new(LENGTH, coblk_block::BlockLimits::default());
    let other = coblk_block::BlockNode::new("other", util::disk::OnDisk(other));
    let second = Backup::new(Arc::clone(&stage.source_node), other).sync(BackupSync::None);
    let (jobs, blockdevs) = ((&stage.jobs, &group), &stage.blockdevs);
    let (first, second) = stage.ctx.run(|co| {
        let first = stage.backup().incremental("b");
        let first = first.co_make(co, jobs, options("j"), blockdevs).unwrap();
        (first, second.co_make(co, jobs, options("k"), blockdevs).unwrap())
    });
    assert_eq!(take(&stage.told), ["created", "k created"]);
    // Writes after the instant and before the start.
    stage.write_granules(&[6]);
    first.start(&stage.ctx);
    second.start(&stage.ctx);
    stage.until(&first, JobStatus::Waiting);
    assert_eq!(stage.copied(), [4]);
    stage.ctx.run(|co| stage.jobs.co_cancel(co, "k", true)).unwrap();
    stage.until(&first, JobStatus::Null);
    assert_eq!(stage.dirty(), [4, 6]);
    drop((first, second));
    assert!(stage.is_free());
}

#[test]
fn j23_j122_a_job_that_was_made_and_does_not_start_leaves_all_as_it_was() {
    for cancels in [false, true] {
        let stage = stage();
        stage.add_bitmap(GRANULE);
        stage.write_granules(&[4]);
        let (jobs, group) = (&stage.jobs, JobGroup::new());
        let job = stage.ctx.run(|co| {
            let backup = stage.backup().incremental("b");
            let options = JobOptions::new("j", "backup");
            backup.co_make(co, (jobs, &group), options, &stage.blockdevs).unwrap()
        });
        stage.write_granules(&[6]);
        stage.ctx.run(|co| match cancels {
            true => jobs.co_cancel(co, "j", true).unwrap(),
            false => job.discard(co),
        });
        assert_eq!(stage.dirty(), [4, 6]);
        let told = take(&stage.told);
        match cancels {
            true => assert_eq!(told, ["created", "aborting", "concluded", "null"]),
            false => assert_eq!(told, ["created", "null"]),
        }
        assert!(stage.is_free() && stage.guest_is_on() == "source");
    }
}
