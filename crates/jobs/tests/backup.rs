//! Backups: what is copied, what guests wait for, and how they end.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coblk_block::{BackendOptions, BlockLimits, BlockNode, Permissions, ZeroFlags};
use coblk_jobs::{
    Backup, BackupError, BackupSync, Job, JobOptions, JobStatus, OnCbwError, OnError,
};
use util::disk::{DISCARDED, Disk, OnDisk, Op, Verdict};
use util::stage::{GRANULE, LENGTH, Stage, stage, stage_of};
use util::{take, until};

impl Stage {
    fn backup(&self) -> Backup {
        let nodes = (Arc::clone(&self.source_node), Arc::clone(&self.target_node));
        Backup::new(nodes.0, nodes.1).min_cluster_size(GRANULE)
    }

    fn try_back_up(&self, backup: Backup, options: JobOptions) -> Result<Rc<Job>, BackupError> {
        self.ctx.run(|co| backup.co_start(co, &self.jobs, options, &self.blockdevs))
    }

    fn back_up(&self, backup: Backup) -> Rc<Job> {
        self.try_back_up(backup, JobOptions::new("j", "backup")).unwrap()
    }

    /// A write that is not waited for, and its end.
    fn begin_write(&self, offset: u64, byte: u8, bytes: usize) -> Rc<Cell<Option<bool>>> {
        let (guest, done) = (self.guest.clone(), Rc::<Cell<Option<bool>>>::default());
        let own = Rc::clone(&done);
        self.ctx.spawn("guest", move |co| {
            own.set(Some(guest.co_write(co, offset, &vec![byte; bytes]).is_ok()));
        });
        done
    }

    /// A job that copies what guests write over, and nothing by itself.
    fn stand_by(&self, backup: Backup) -> Rc<Job> {
        self.source.fill(1);
        let job = self.back_up(backup.sync(BackupSync::None));
        self.settle();
        job
    }

    fn refused(&self, backup: Backup) -> String {
        let refused = self.try_back_up(backup, JobOptions::new("j", "backup"));
        assert!(self.is_free() && self.guest_is_on() == "source");
        refused.unwrap_err().to_string()
    }
}

fn on_writes(verdict: impl Fn() -> Verdict + Send + 'static) -> impl FnMut(Op) -> Verdict + Send {
    move |op| if matches!(op, Op::Write(..) | Op::Zeroes(..)) { verdict() } else { Verdict::Go }
}

#[test]
fn j26_j69_the_copy_is_the_source_at_the_instant_of_its_start() {
    let stage = stage();
    stage.source.fill(7);
    stage.target.fill(1);
    let instant = stage.source.data();
    let job = stage.back_up(stage.backup());
    assert!(stage.guest_is_on().starts_with("#block"));
    for at in [0, LENGTH - 1, LENGTH / 2 - 1] {
        stage.write(at, 9, (LENGTH - at).min(2));
    }
    stage.until(&job, JobStatus::Null);
    let expected = ["created", "running", "waiting", "pending", "COMPLETED", "concluded", "null"];
    assert_eq!(take(&stage.told), expected);
    assert!(stage.target.durable() == instant, "another instant");
    assert!(stage.source.data() != instant);
    assert_eq!((stage.guest_is_on().as_str(), stage.is_free()), ("source", true));
}

#[test]
fn j35_j36_j37_what_guests_have_copied_counts_as_well() {
    let stage = stage();
    let job = stage.stand_by(stage.backup());
    let progress = || {
        let info = stage.jobs.all().remove(0);
        (info.current_progress, info.total_progress)
    };
    assert_eq!(progress(), (0, LENGTH));
    stage.write(GRANULE - 1, 3, 2);
    assert_eq!(progress(), (2 * GRANULE, LENGTH));
    stage.write(GRANULE, 4, 2);
    assert_eq!(progress(), (2 * GRANULE, LENGTH));
    stage.cancel(true);
    stage.until(&job, JobStatus::Null);
}

#[test]
fn j70_a_job_that_copies_nothing_by_itself_ends_by_being_cancelled() {
    let stage = stage();
    let job = stage.stand_by(stage.backup());
    stage.write(GRANULE + 5, 9, 1);
    stage.ctx.run(|co| co.sleep(Duration::from_secs(100)));
    let copied = stage.target.data();
    assert!(copied[..GRANULE as usize].iter().all(|byte| *byte == 0));
    assert!(copied[GRANULE as usize..2 * GRANULE as usize].iter().all(|byte| *byte == 1));
    assert!(copied[2 * GRANULE as usize..].iter().all(|byte| *byte == 0));
    take(&stage.told);
    stage.cancel(false);
    stage.until(&job, JobStatus::Null);
    assert_eq!(take(&stage.told), ["aborting", "CANCELLED", "concluded", "null"]);
    assert_eq!((stage.guest_is_on().as_str(), stage.is_free()), ("source", true));
}

#[test]
fn j76_no_write_reaches_the_source_before_the_old_bytes_are_in_the_target() {
    let stage = stage();
    let _job = stage.stand_by(stage.backup());
    stage.target.judge(on_writes(|| Verdict::Hold));
    let mut writes = vec![stage.begin_write(GRANULE - 1, 2, 2)];
    for flags in [ZeroFlags::empty(), ZeroFlags::MAY_UNMAP] {
        let (guest, done) = (stage.guest.clone(), Rc::<Cell<Option<bool>>>::default());
        writes.push(Rc::clone(&done));
        stage.ctx.spawn("guest", move |co| {
            let zeroed = guest.co_pwrite_zeroes(co, 4 * GRANULE, GRANULE, flags);
            done.set(Some(zeroed.is_ok()));
        });
    }
    let (guest, done) = (stage.guest.clone(), Rc::<Cell<Option<bool>>>::default());
    writes.push(Rc::clone(&done));
    stage.source_node.set_discard_enabled(true);
    stage.ctx.spawn("guest", move |co| {
        done.set(Some(guest.co_pdiscard(co, 8 * GRANULE, GRANULE).is_ok()));
    });
    stage.ctx.run(|co| co.sleep(Duration::from_secs(30)));
    assert!(writes.iter().all(|done| done.get().is_none()));
    assert!(stage.source.data().iter().all(|byte| *byte == 1));
    // Reads and flushes pass.
    stage.ctx.run(|co| {
        stage.guest.co_read(co, 0, &mut [0; 512]).unwrap();
        stage.guest.co_flush(co).unwrap();
    });
    stage.target.judge(|_| Verdict::Go);
    while stage.target.release() {}
    until(&stage.ctx, || writes.iter().all(|done| done.get() == Some(true)));
    let copied = stage.target.data();
    for granule in [0, 1, 4, 8] {
        assert_eq!(copied[(granule * GRANULE) as usize], 1, "granule {granule}");
    }
}

#[test]
fn j78_a_guest_waits_for_a_copy_under_way_and_tries_itself_if_that_fails() {
    let stage = stage();
    let _job = stage.stand_by(stage.backup());
    stage.target.judge(on_writes(|| Verdict::Hold));
    let first = stage.begin_write(0, 2, 512);
    until(&stage.ctx, || stage.target.held() == 1);
    let second = stage.begin_write(4096, 3, 512);
    stage.ctx.run(|co| co.sleep(Duration::from_secs(1)));
    assert_eq!(stage.target.held(), 1, "a granule is copied once");
    stage.target.judge(|_| Verdict::Go);
    stage.target.fail_held(libc::EIO);
    stage.target.release();
    until(&stage.ctx, || first.get().is_some() && second.get().is_some());
    // Each error is that of one's own copy.
    assert_eq!((first.get(), second.get()), (Some(false), Some(true)));
    assert_eq!(stage.source.data()[0], 1, "a write that has failed has written");
    assert_eq!(stage.target.data()[0], 1);
}

#[test]
fn j79_a_guest_s_write_fails_with_its_copy_and_the_job_goes_on() {
    let stage = stage();
    stage.source.fill(1);
    let backup = stage.backup().sync(BackupSync::None).on_target_error(OnError::Report);
    let job = stage.back_up(backup);
    stage.target.judge(on_writes(|| Verdict::Fail(libc::ENOSPC)));
    let failed = stage.ctx.run(|co| stage.guest.co_write(co, 10, &[2; 10]));
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(stage.source.data()[10], 1);
    stage.target.judge(|_| Verdict::Go);
    stage.write(10, 2, 10);
    assert_eq!((job.status(), stage.target.data()[10]), (JobStatus::Running, 1));
}

#[test]
fn j79_a_broken_snapshot_fails_the_job_and_not_the_guest() {
    for sync in [BackupSync::None, BackupSync::Full] {
        let stage = stage();
        stage.source.fill(1);
        // All is the policy's but this.
        let backup = stage.backup().sync(sync).on_target_error(OnError::Ignore);
        stage.target.judge(on_writes(|| Verdict::Fail(libc::ENOSPC)));
        let job = stage.back_up(backup.on_cbw_error(OnCbwError::BreakSnapshot));
        stage.write(10, 2, 10);
        assert_eq!(stage.source.data()[10], 2);
        stage.until(&job, JobStatus::Null);
        let failed = "COMPLETED No space left on device".to_owned();
        assert!(take(&stage.told).contains(&failed), "{sync:?}");
        assert!(stage.is_free());
    }
}

#[test]
fn j130_a_job_is_not_over_before_held_bytes_are_in_the_target() {
    let stage = stage_of(4 * GRANULE);
    stage.source.fill(1);
    stage.source.judge(|op| match op {
        Op::Read(at, ..) if at > 0 => Verdict::Hold,
        _ => Verdict::Go,
    });
    let backup = stage.backup().on_cbw_error(OnCbwError::BreakSnapshot).max_workers(1);
    let backup = backup.max_chunk(GRANULE).hold(64 << 20);
    let job = stage.back_up(backup);
    until(&stage.ctx, || stage.source.held() == 1);
    stage.target.judge(on_writes(|| Verdict::Hold));
    stage.source.judge(|_| Verdict::Go);
    stage.write(3 * GRANULE, 2, 1);
    until(&stage.ctx, || stage.target.held() == 1);
    stage.target.judge(|_| Verdict::Go);
    while stage.source.release() {}
    stage.ctx.run(|co| co.sleep(Duration::from_secs(10)));
    let info = stage.jobs.all().remove(0);
    assert_eq!((info.current_progress, info.total_progress), (3 * GRANULE, 4 * GRANULE));
    assert_eq!(job.status(), JobStatus::Running);
    stage.target.release();
    stage.until(&job, JobStatus::Null);
    assert!(stage.target.durable().iter().all(|byte| *byte == 1));
}

#[test]
fn j22_j145_guests_are_let_go_when_a_job_with_a_dead_target_is_cancelled() {
    for sync in [BackupSync::None, BackupSync::Full] {
        let stage = stage();
        stage.source.fill(1);
        let job = stage.back_up(stage.backup().sync(sync));
        stage.target.judge(on_writes(|| Verdict::Hold));
        let writes = [stage.begin_write(0, 2, 512), stage.begin_write(LENGTH - 512, 2, 512)];
        stage.ctx.run(|co| co.sleep(Duration::from_secs(30)));
        assert!(writes.iter().all(|done| done.get().is_none()));
        let took = stage.takes(|| {
            stage.cancel(true);
            until(&stage.ctx, || writes.iter().all(|done| done.get() == Some(true)));
            stage.until(&job, JobStatus::Null);
        });
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!((stage.guest_is_on().as_str(), stage.source.data()[0]), ("source", 2));
        assert!(!stage.is_free(), "the target is free while it is written");
        while stage.target.release() {}
        until(&stage.ctx, || stage.is_free());
    }
}

#[test]
fn j18_the_end_of_all_jobs_lets_guests_go_that_wait_for_a_dead_target() {
    let stage = stage();
    let _job = stage.stand_by(stage.backup());
    stage.target.judge(on_writes(|| Verdict::Hold));
    let write = stage.begin_write(0, 2, 512);
    until(&stage.ctx, || stage.target.held() == 1);
    let took = stage.takes(|| {
        stage.ctx.run(|co| stage.jobs.co_end(co));
        until(&stage.ctx, || write.get() == Some(true));
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    stage.target.release();
    until(&stage.ctx, || stage.is_free());
}

#[test]
fn j86_what_was_copied_is_discarded_at_a_source_that_nothing_else_writes() {
    let stage = stage_of(20 * GRANULE + 512);
    stage.source.fill(3);
    drop(stage.guest.remove_medium(&stage.ctx));
    stage.source_node.set_discard_enabled(true);
    let backup = stage.backup().discard_source(true).on_target_error(OnError::Ignore);
    let tries = AtomicUsize::new(0);
    stage.target.judge(move |op| match op {
        Op::Write(..) if tries.fetch_add(1, Ordering::SeqCst) < 3 => Verdict::Fail(libc::EIO),
        _ => Verdict::Go,
    });
    let job = stage.back_up(backup);
    stage.until(&job, JobStatus::Null);
    assert!(stage.target.data().iter().all(|byte| *byte == 3));
    assert!(stage.source.data().iter().all(|byte| *byte == DISCARDED));
}

#[test]
fn j30_target_and_then_source_are_drained_in_the_midst_of_copies() {
    let stage = stage();
    stage.source.fill(1);
    let job = stage.back_up(stage.backup());
    let held = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&held);
    stage.target.judge(move |op| match op {
        Op::Write(..) if own.fetch_add(1, Ordering::SeqCst) < 4 => Verdict::Hold,
        _ => Verdict::Go,
    });
    let write = stage.begin_write(LENGTH - 1, 2, 1);
    until(&stage.ctx, || stage.target.held() > 0);
    let (target, source) = (Arc::clone(&stage.target_node), Arc::clone(&stage.source_node));
    let drained = Rc::<Cell<bool>>::default();
    let told = Rc::clone(&drained);
    stage.ctx.spawn("drain", move |co| {
        let _both = (target.co_drain(co), source.co_drain(co));
        told.set(true);
    });
    until(&stage.ctx, || {
        stage.target.release();
        drained.get()
    });
    until(&stage.ctx, || write.get() == Some(true));
    stage.until(&job, JobStatus::Null);
    assert!(stage.target.data().iter().all(|byte| *byte == 1));
}

#[test]
fn j31_guests_copy_while_the_job_is_paused() {
    let stage = stage();
    stage.source.fill(1);
    stage.source.judge(|op| if matches!(op, Op::Read(..)) { Verdict::Hold } else { Verdict::Go });
    let job = stage.back_up(stage.backup());
    stage.settle();
    stage.jobs.pause("j").unwrap();
    stage.source.judge(|_| Verdict::Go);
    while stage.source.release() {}
    stage.until(&job, JobStatus::Paused);
    stage.write(0, 2, LENGTH);
    assert!(stage.target.data().iter().all(|byte| *byte == 1));
    assert_eq!(job.status(), JobStatus::Paused);
    stage.jobs.resume("j").unwrap();
    stage.until(&job, JobStatus::Null);
}

#[test]
fn j38_j39_errors_go_by_their_policies() {
    let stage = stage();
    stage.source.fill(1);
    let tries = AtomicUsize::new(0);
    stage.target.judge(move |op| match op {
        Op::Write(..) if tries.fetch_add(1, Ordering::SeqCst) < 3 => Verdict::Fail(libc::EIO),
        _ => Verdict::Go,
    });
    let tries = AtomicUsize::new(0);
    stage.source.judge(move |op| match op {
        Op::Read(..) if tries.fetch_add(1, Ordering::SeqCst) < 1 => Verdict::Fail(libc::EIO),
        _ => Verdict::Go,
    });
    let backup = stage.backup().on_target_error(OnError::Ignore).on_source_error(OnError::Stop);
    let job = stage.back_up(backup);
    stage.until(&job, JobStatus::Paused);
    stage.jobs.resume("j").unwrap();
    stage.until(&job, JobStatus::Null);
    assert!(stage.target.durable().iter().all(|byte| *byte == 1));
    let told = take(&stage.told);
    assert_eq!(told.iter().filter(|it| *it == "ERROR write ignore").count(), 3);
    assert!(told.contains(&"ERROR read stop".to_owned()));
    assert!(told.contains(&"COMPLETED".to_owned()));
}

#[test]
fn j70_only_the_top_layer_is_copied() {
    // No layer below: all of it.
    let stage = stage_of(4 * GRANULE);
    stage.source.fill(1);
    let job = stage.back_up(stage.backup().sync(BackupSync::Top));
    stage.until(&job, JobStatus::Null);
    assert!(stage.target.data().iter().all(|byte| *byte == 1));
}

#[test]
fn j71_a_cluster_is_64_kib_at_least() {
    let stage = stage();
    let job = stage.stand_by(stage.backup().min_cluster_size(4 * GRANULE));
    stage.write(5 * GRANULE, 2, 1);
    let copied: Vec<_> = stage.target.data().iter().map(|byte| *byte == 1).collect();
    let is_copied = |granule: u64| copied[(granule * GRANULE) as usize];
    assert_eq!([3, 4, 5, 7, 8].map(is_copied), [false, true, true, true, false]);
    stage.cancel(true);
    stage.until(&job, JobStatus::Null);
    let refused = stage.refused(stage.backup().min_cluster_size(3));
    assert_eq!(refused, "min-cluster-size needs to be a power of 2");
    let refused = stage.refused(stage.backup().max_chunk(4096));
    assert_eq!(refused, "Required max-chunk (4096) is less than backup cluster size (65536)");
    let refused = stage.refused(stage.backup().max_workers(0));
    assert_eq!(refused, "max-workers must be between 1 and 2147483647");
}

#[test]
fn j71_a_disk_of_too_many_clusters_is_refused() {
    let ctx = util::simulated(1);
    let node =
        |name: &str| BlockNode::new(name, coblk_block::drivers::Null::new(coblk_block::MAX_LENGTH));
    let (jobs, told) = util::jobs();
    let blockdevs = coblk_block::Blockdevs::new(coblk_block::drivers());
    let backup = Backup::new(node("source"), node("target"));
    let options = JobOptions::new("j", "backup");
    let refused = ctx.run(|co| backup.co_start(co, &jobs, options, &blockdevs)).unwrap_err();
    assert!(
        matches!(&refused, BackupError::Io(error) if error.raw_os_error() == Some(libc::EFBIG))
    );
    assert_eq!(take(&told), ["created", "null"]);
}

#[test]
fn j71_a_disk_that_is_no_whole_clusters_is_copied_to_its_end() {
    let length = 3 * GRANULE + 512;
    let stage = stage_of(length);
    let job = stage.stand_by(stage.backup());
    stage.write(length - 1, 2, 1);
    assert_eq!(stage.target.data()[3 * GRANULE as usize..], [1; 512]);
    stage.cancel(true);
    stage.until(&job, JobStatus::Null);
}

#[test]
fn j104_j105_two_backups_of_a_node_and_none_to_one_target() {
    let stage = stage();
    stage.source.fill(1);
    let job = stage.back_up(stage.backup().sync(BackupSync::None));
    let again = stage.try_back_up(stage.backup(), JobOptions::new("k", "backup")).unwrap_err();
    let busy = "Node 'target' is busy: block device is in use by block job: backup";
    assert_eq!(again.to_string(), busy);
    let other = Disk::new(LENGTH, BlockLimits::default());
    let other_node = BlockNode::new("other", OnDisk(Arc::clone(&other)));
    let backup = Backup::new(Arc::clone(&stage.source_node), Arc::clone(&other_node));
    stage.write(0, 2, 1);
    let second =
        stage.try_back_up(backup.sync(BackupSync::None), JobOptions::new("k", "backup")).unwrap();
    stage.write(0, 3, 1);
    stage.write(GRANULE, 3, 1);
    let firsts = |disk: &Disk| [disk.data()[0], disk.data()[GRANULE as usize]];
    assert_eq!((firsts(&stage.target), firsts(&other)), ([1, 1], [2, 1]));
    // The filter of the first goes from above that of the second.
    stage.cancel(true);
    stage.until(&job, JobStatus::Null);
    stage.write(2 * GRANULE, 3, 1);
    assert_eq!(other.data()[2 * GRANULE as usize], 1);
    assert_eq!(stage.target.data()[2 * GRANULE as usize], 0);
    stage.ctx.run(|co| stage.jobs.co_cancel(co, "k", true)).unwrap();
    stage.until(&second, JobStatus::Null);
    assert_eq!((stage.guest_is_on().as_str(), stage.is_free()), ("source", true));
    let free = stage.back_up(stage.backup());
    stage.until(&free, JobStatus::Null);
}

#[test]
fn j75_nothing_else_writes_below_the_filter_nor_resizes_the_nodes() {
    let stage = stage();
    let job = stage.stand_by(stage.backup());
    let open = |node: &Arc<BlockNode>, read_only| {
        let options = BackendOptions::new("other").read_only(read_only).share_rw(true);
        options.open(&stage.ctx, Arc::clone(node)).map(drop)
    };
    assert!(open(&stage.source_node, false).is_err(), "writes below the filter");
    open(&stage.source_node, true).unwrap();
    for node in [&stage.source_node, &stage.target_node] {
        let backend = BackendOptions::new("resizer");
        let resize = Permissions::RESIZE | Permissions::WRITE_UNCHANGED;
        let backend = backend.permissions(resize, Permissions::all());
        assert!(backend.open(&stage.ctx, Arc::clone(node)).is_err());
    }
    stage.cancel(true);
    stage.until(&job, JobStatus::Null);
    assert!(stage.is_free());
}

#[test]
fn j69_mistakes_are_refused_and_leave_all_as_it_was() {
    let stage = stage();
    let (source, target) = (&stage.source_node, &stage.target_node);
    let itself = Backup::new(Arc::clone(source), Arc::clone(source));
    assert_eq!(stage.refused(itself), "Source and target cannot be the same");
    let short = BlockNode::new("short", OnDisk(Disk::new(GRANULE, BlockLimits::default())));
    let longer = Backup::new(Arc::clone(source), short);
    assert_eq!(stage.refused(longer), "Source and target image have different sizes");
    let text = stage.refused(stage.backup().compress(true));
    assert_eq!(text, "Compression is not supported for this drive target");
    // Bytes that a guest writes would be discarded.
    let text = stage.refused(stage.backup().discard_source(true));
    assert!(text.contains("needs write permission"), "{text}");
    assert!(take(&stage.told).iter().all(|it| ["created", "null"].contains(&it.as_str())));
    let options = JobOptions::new("j", "backup").speed(-1);
    let refused = stage.try_back_up(stage.backup(), options).unwrap_err();
    assert_eq!(refused.to_string(), "Parameter 'speed' expects a non-negative value");
    assert_eq!(take(&stage.told), ["created", "null"]);
    let writer = BackendOptions::new("writer").open(&stage.ctx, Arc::clone(target)).unwrap();
    assert!(stage.try_back_up(stage.backup(), JobOptions::new("j", "backup")).is_err());
    drop(writer);
    let job = stage.back_up(stage.backup());
    stage.until(&job, JobStatus::Null);
}
