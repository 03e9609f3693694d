//! Backups that keep old bytes on a node nearby at first.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_block::{BlockLimits, BlockNode};
use coblk_jobs::{Backup, BackupSync, Job, JobOptions, JobStatus, OnCbwError};
use util::disk::{DISCARDED, Disk, OnDisk, Op, Verdict};
use util::stage::{GRANULE, LENGTH, Stage, stage};
use util::{take, until};

/// A stage, and the node for old bytes.
struct Spilling {
    stage: Stage,
    spill: Arc<Disk>,
    spill_node: Arc<BlockNode>,
}

fn spilling() -> Spilling {
    let stage = stage();
    let spill = Disk::new(LENGTH, BlockLimits::default());
    let spill_node = BlockNode::new("spill", OnDisk(Arc::clone(&spill)));
    spill_node.set_discard_enabled(true);
    stage.source.fill(1);
    Spilling { stage, spill, spill_node }
}

impl Spilling {
    fn backup(&self) -> Backup {
        let (source, target) = (&self.stage.source_node, &self.stage.target_node);
        Backup::new(Arc::clone(source), Arc::clone(target)).spill(Arc::clone(&self.spill_node))
    }

    /// A job whose workers wait for the target.
    fn start(&self) -> Rc<Job> {
        let is_write = |op: &Op| matches!(op, Op::Write(..) | Op::Zeroes(..));
        self.stage.target.judge(move |op| if is_write(&op) { Verdict::Hold } else { Verdict::Go });
        let options = JobOptions::new("j", "backup");
        let Stage { ctx, jobs, blockdevs, .. } = &self.stage;
        // One worker, so that most of the disk is left to guests.
        let backup = self.backup().max_workers(1).max_chunk(GRANULE);
        let job = ctx.run(|co| backup.co_start(co, jobs, options, blockdevs)).unwrap();
        until(ctx, || self.stage.target.held() == 1);
        job
    }

    fn release(&self) {
        self.stage.target.judge(|_| Verdict::Go);
        while self.stage.target.release() {}
    }

    fn begin_write(&self, offset: u64) -> Rc<Cell<Option<bool>>> {
        let (guest, done) = (self.stage.guest.clone(), Rc::<Cell<Option<bool>>>::default());
        let own = Rc::clone(&done);
        self.stage.ctx.spawn("guest", move |co| {
            own.set(Some(guest.co_write(co, offset, &[2; 512]).is_ok()));
        });
        done
    }

    fn refused(&self, backup: Backup) -> String {
        let options = JobOptions::new("j", "backup");
        let Stage { ctx, jobs, blockdevs, .. } = &self.stage;
        let refused = ctx.run(|co| backup.co_start(co, jobs, options, blockdevs));
        assert!(self.stage.is_free() && self.spill_node.parents().is_empty());
        refused.unwrap_err().to_string()
    }
}

#[test]
fn j131_guests_wait_for_the_spill_and_not_for_the_target() {
    let spilling = spilling();
    let Spilling { stage, spill, spill_node } = &spilling;
    let job = spilling.start();
    let place = 20 * GRANULE + 512;
    stage.write(place, 2, 512);
    // Written again, it is not copied again.
    stage.write(place, 3, 512);
    let writes = spill.take_ops().into_iter().filter(|op| matches!(op, Op::Write(..)));
    assert_eq!(writes.count(), 1);
    let old = |disk: &Disk, at: u64| disk.data()[at as usize];
    // The request, rounded to 4 KiB.
    let from = 20 * GRANULE;
    assert_eq!([from - 1, from, from + 4095, from + 4096].map(|at| old(spill, at)), [0, 1, 1, 0]);
    assert_eq!(old(&stage.source, place), 3);
    spilling.release();
    stage.until(&job, JobStatus::Null);
    assert!(stage.target.durable().iter().all(|byte| *byte == 1), "another instant");
    // It was moved on.
    until(&stage.ctx, || old(spill, from) == DISCARDED);
    assert!(stage.is_free() && spill_node.parents().is_empty());
}

/// A guest's copy does not take what another one has copied before it, and was written over since.
#[test]
fn j131_what_is_in_the_spill_is_not_copied_there_again() {
    let spilling = spilling();
    let Spilling { stage, spill, .. } = &spilling;
    let job = spilling.start();
    let place = 20 * GRANULE;
    stage.write(place + 4096, 2, 4096);
    stage.write(place + 3 * 4096, 2, 512);
    stage.write(place, 3, 5 * 4096);
    let data = spill.data();
    assert!(data[place as usize..][..5 * 4096].iter().all(|byte| *byte == 1), "newer bytes");
    spilling.release();
    stage.until(&job, JobStatus::Null);
    assert!(stage.target.durable().iter().all(|byte| *byte == 1), "another instant");
}

#[test]
fn j131_a_guest_waits_for_the_target_if_the_spill_fails() {
    let spilling = spilling();
    let Spilling { stage, spill, .. } = &spilling;
    let job = spilling.start();
    spill.judge(|op| match op {
        Op::Write(..) => Verdict::Fail(libc::ENOSPC),
        _ => Verdict::Go,
    });
    let written = spilling.begin_write(20 * GRANULE);
    stage.ctx.run(|co| co.sleep(Duration::from_secs(10)));
    assert!(written.get().is_none() && stage.source.data()[20 * GRANULE as usize] == 1);
    spilling.release();
    until(&stage.ctx, || written.get().is_some());
    assert_eq!(written.get(), Some(true), "the guest's write has failed");
    stage.until(&job, JobStatus::Null);
    assert!(stage.target.data().iter().all(|byte| *byte == 1), "another instant");
}

#[test]
fn j38_j131_a_spill_that_cannot_be_read_is_an_error_of_the_source() {
    let spilling = spilling();
    let Spilling { stage, spill, .. } = &spilling;
    let job = spilling.start();
    stage.write(20 * GRANULE, 2, 512);
    spill.judge(
        |op| if matches!(op, Op::Read(..)) { Verdict::Fail(libc::EIO) } else { Verdict::Go },
    );
    take(&stage.told);
    spilling.release();
    stage.until(&job, JobStatus::Null);
    let told = take(&stage.told);
    assert_eq!(told[0], "ERROR read report", "{told:?}");
    assert!(told.contains(&"COMPLETED Input/output error".to_owned()), "{told:?}");
}

#[test]
fn j22_j131_a_silent_spill_holds_up_neither_a_cancellation_nor_guests_after_it() {
    let spilling = spilling();
    let Spilling { stage, spill, spill_node } = &spilling;
    let job = spilling.start();
    spill.judge(|op| if matches!(op, Op::Write(..)) { Verdict::Hold } else { Verdict::Go });
    let written = spilling.begin_write(20 * GRANULE);
    until(&stage.ctx, || spill.held() == 1);
    assert!(written.get().is_none());
    let took = stage.takes(|| {
        stage.cancel(true);
        stage.until(&job, JobStatus::Null);
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    until(&stage.ctx, || written.get() == Some(true));
    // What is under way keeps it in use.
    assert!(!spill_node.parents().is_empty());
    spill.release();
    spilling.release();
    until(&stage.ctx, || spill_node.parents().is_empty() && stage.is_free());
}

#[test]
fn j131_a_worker_at_a_silent_spill_leaves_the_source_free() {
    let spilling = spilling();
    let Spilling { stage, spill, spill_node } = &spilling;
    let job = spilling.start();
    stage.write(20 * GRANULE, 2, 512);
    spill.judge(|op| if matches!(op, Op::Read(..)) { Verdict::Hold } else { Verdict::Go });
    spilling.release();
    until(&stage.ctx, || spill.held() == 1);
    // A drain of the source waits for no read elsewhere.
    let drained = stage.ctx.run(|co| stage.source_node.co_drain(co));
    drop(drained);
    let took = stage.takes(|| {
        stage.cancel(true);
        stage.until(&job, JobStatus::Null);
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!spill_node.parents().is_empty());
    spill.release();
    until(&stage.ctx, || spill_node.parents().is_empty() && stage.is_free());
}

#[test]
fn j131_nodes_that_cannot_be_the_spill_are_refused() {
    let spilling = spilling();
    let Spilling { stage, spill_node, .. } = &spilling;
    let backup = || spilling.backup();
    let node =
        |length: u64| BlockNode::new("other", OnDisk(Disk::new(length, BlockLimits::default())));
    let held = backup().on_cbw_error(OnCbwError::BreakSnapshot).hold(GRANULE);
    for (backup, why) in [
        (backup().spill(Arc::clone(&stage.source_node)), "is the source or the target"),
        (backup().spill(Arc::clone(&stage.target_node)), "is the source or the target"),
        (backup().spill(node(LENGTH - 512)), "is shorter than the source"),
        (held, "does not go with 'x-coblk-spill'"),
        (backup().sync(BackupSync::None), "do not go with sync mode 'none'"),
    ] {
        let refused = spilling.refused(backup);
        assert!(refused.contains(why), "{refused}");
    }
    // In use by another.
    let user = coblk_block::BackendOptions::new("user").open(&stage.ctx, Arc::clone(spill_node));
    let options = JobOptions::new("j", "backup");
    let started = |co: &coblk_aio::Co<'_>| {
        backup().co_start(co, &stage.jobs, options, &stage.blockdevs).map(drop)
    };
    assert!(stage.ctx.run(started).unwrap_err().to_string().contains("user"));
    drop(user);
    assert!(stage.is_free());
}
