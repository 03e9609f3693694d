//! Old bytes that are held in memory, so that guests do not wait for the target.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockBackend, Drivers};
use coblk_jobs::{
    Backup, BackupSync, CopyBeforeWrite, Job, JobOptions, JobStatus, OnCbwError, SnapshotAccess,
};
use util::disk::{Op, Verdict};
use util::stage::{GRANULE, Stage, stage, stage_of};
use util::{take, until};

/// A guest's write, and whether it is complete.
fn begin_write(stage: &Stage, guest: &BlockBackend, offset: u64) -> Rc<Cell<bool>> {
    let (guest, done) = (guest.clone(), Rc::<Cell<bool>>::default());
    let own = Rc::clone(&done);
    stage.ctx.spawn("guest", move |co| {
        guest.co_write(co, offset, &[2; 512]).unwrap();
        own.set(true);
    });
    done
}

fn silence(stage: &Stage) {
    stage.target.judge(|op| match op {
        Op::Write(..) | Op::Zeroes(..) => Verdict::Hold,
        _ => Verdict::Go,
    });
}

fn release(stage: &Stage) {
    stage.target.judge(|_| Verdict::Go);
    while stage.target.release() {}
}

/// A backup that copies what guests write over, holds four clusters, and whose target is silent.
fn backup(stage: &Stage) -> Rc<Job> {
    stage.source.fill(1);
    silence(stage);
    let backup = Backup::new(Arc::clone(&stage.source_node), Arc::clone(&stage.target_node))
        .sync(BackupSync::None)
        .on_cbw_error(OnCbwError::BreakSnapshot)
        .min_cluster_size(GRANULE)
        .hold(4 * GRANULE);
    let options = JobOptions::new("j", "backup");
    stage.ctx.run(|co| backup.co_start(co, &stage.jobs, options, &stage.blockdevs)).unwrap()
}

#[test]
fn j130_guests_go_on_when_old_bytes_are_in_memory_until_it_is_full() {
    let stage = stage_of(8 * GRANULE);
    let job = backup(&stage);
    let took = stage.takes(|| {
        for cluster in 0..4 {
            stage.write(cluster * GRANULE, 2, 512);
        }
        // Those that are held are written again at once.
        stage.write(GRANULE, 3, GRANULE);
    });
    assert!(took < Duration::from_millis(200), "{took:?}");
    let fifth = begin_write(&stage, &stage.guest, 4 * GRANULE);
    stage.ctx.run(|co| co.sleep(Duration::from_secs(5)));
    assert!(!fifth.get(), "there is no place for it");
    release(&stage);
    until(&stage.ctx, || fifth.get());
    stage.cancel(true);
    stage.until(&job, JobStatus::Null);
    until(&stage.ctx, || stage.is_free());
    let end = 5 * GRANULE as usize;
    assert!(stage.target.data()[..end].iter().all(|byte| *byte == 1), "not the old bytes");
}

#[test]
fn j130_a_backup_that_holds_bytes_ends_when_the_target_has_them() {
    let stage = stage();
    stage.source.fill(1);
    silence(&stage);
    let backup = Backup::new(Arc::clone(&stage.source_node), Arc::clone(&stage.target_node))
        .on_cbw_error(OnCbwError::BreakSnapshot)
        .hold(64 << 20);
    let options = JobOptions::new("j", "backup").speed(1);
    let start =
        |co: &coblk_aio::Co<'_>| backup.co_start(co, &stage.jobs, options, &stage.blockdevs);
    let job = stage.ctx.run(start).unwrap();
    let last = stage.source.data().len() as u64 - GRANULE;
    stage.write(last, 2, 512);
    stage.jobs.set_speed("j", 0).unwrap();
    stage.ctx.run(|co| co.sleep(Duration::from_secs(2)));
    assert_eq!(job.status(), JobStatus::Running);
    release(&stage);
    stage.until(&job, JobStatus::Null);
    assert!(take(&stage.told).contains(&"COMPLETED".to_owned()));
    assert!(stage.target.durable().iter().all(|byte| *byte == 1), "not the old bytes");
}

#[test]
fn j130_a_held_copy_that_fails_ends_the_backup_and_not_the_guest() {
    let stage = stage_of(8 * GRANULE);
    let job = backup(&stage);
    stage.write(0, 2, 512);
    until(&stage.ctx, || stage.target.held() == 1);
    stage.target.fail_held(libc::EIO);
    release(&stage);
    stage.until(&job, JobStatus::Null);
    assert!(take(&stage.told).iter().any(|it| it == "COMPLETED Input/output error"));
    stage.write(0, 3, 512);
    assert_eq!((stage.guest_is_on().as_str(), stage.is_free()), ("source", true));
}

#[test]
fn j130_bytes_are_held_where_a_snapshot_may_break_alone() {
    let stage = stage();
    let backup = Backup::new(Arc::clone(&stage.source_node), Arc::clone(&stage.target_node));
    let options = JobOptions::new("j", "backup");
    let start = |co: &coblk_aio::Co<'_>| {
        backup.hold(1).co_start(co, &stage.jobs, options, &stage.blockdevs)
    };
    let refused = stage.ctx.run(start).unwrap_err().to_string();
    assert_eq!(refused, "Parameter 'x-coblk-hold' goes with 'break-snapshot' alone");
}

fn drivers() -> Drivers {
    let mut drivers = coblk_block::drivers();
    drivers.add::<CopyBeforeWrite>();
    drivers.add::<SnapshotAccess>();
    drivers
}

#[test]
fn j130_reads_of_the_instant_find_held_bytes_in_memory() {
    let stage = stage_of(8 * GRANULE);
    stage.source.fill(1);
    silence(&stage);
    drop(stage.guest.clone());
    let blockdevs = coblk_block::Blockdevs::new(drivers());
    for node in [&stage.source_node, &stage.target_node] {
        blockdevs.adopt(Arc::clone(node)).unwrap();
    }
    let guest = stage.guest.clone();
    stage.ctx.run(|co| guest.co_close(co)).unwrap();
    let open = |text: &str| {
        let options = NodeOptions::from_keyval(text).unwrap();
        blockdevs.open(&stage.ctx, options).unwrap()
    };
    let filter = open(&format!(
        "copy-before-write,node-name=cbw,file=source,target=target,on-cbw-error=break-snapshot,\
         x-coblk-hold={}",
        4 * GRANULE
    ));
    let guest = BackendOptions::new("guest").share_rw(true).open(&stage.ctx, filter).unwrap();
    let access = open("snapshot-access,node-name=access,file=cbw");
    let reader = BackendOptions::new("reader").read_only(true).share_rw(true);
    let reader = reader.open(&stage.ctx, access).unwrap();
    let read = || {
        let mut data = vec![0; 8 * GRANULE as usize];
        stage.ctx.run(|co| reader.co_read(co, 0, &mut data)).unwrap();
        data.iter().all(|byte| *byte == 1)
    };
    for offset in [GRANULE, 2 * GRANULE + 5, 6 * GRANULE] {
        let done = begin_write(&stage, &guest, offset);
        until(&stage.ctx, || done.get());
        assert!(read(), "not the bytes of the instant");
    }
    assert_eq!(stage.target.held(), 3);
    release(&stage);
    until(&stage.ctx, || stage.target.data()[6 * GRANULE as usize] == 1);
    assert!(read());
}
