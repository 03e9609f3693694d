//! Mirrors in write-blocking mode.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coblk_block::ZeroFlags;
use coblk_jobs::{CopyMode, JobChange, JobStatus, OnError};
use util::disk::{Op, Verdict};
use util::stage::{GRANULE, Stage, stage_of};
use util::{take, until};

/// A mirror in this mode that is ready, of so many granules.
fn ready(granules: u64) -> (Stage, Rc<coblk_jobs::Job>) {
    let stage = stage_of(granules * GRANULE);
    let mirror = stage.mirror().copy_mode(CopyMode::WriteBlocking);
    let job = stage.start(mirror.on_target_error(OnError::Ignore));
    stage.until(&job, JobStatus::Ready);
    until(&stage.ctx, || stage.jobs.all()[0].actively_synced == Some(true));
    (stage, job)
}

impl Stage {
    fn is_synced(&self) -> bool {
        self.jobs.all()[0].actively_synced == Some(true)
    }

    /// A write that is not waited for, and whether it is complete.
    fn begin_write(&self, offset: u64, byte: u8, bytes: usize) -> Rc<Cell<bool>> {
        let (guest, done) = (self.guest.clone(), Rc::<Cell<bool>>::default());
        let own = Rc::clone(&done);
        self.ctx.spawn("guest", move |co| {
            guest.co_write(co, offset, &vec![byte; bytes]).unwrap();
            own.set(true);
        });
        done
    }
}

#[test]
fn j62_a_write_is_in_both_when_its_guest_is_told() {
    let (stage, _job) = ready(4);
    for (at, bytes) in [(0, 1), (100, GRANULE), (GRANULE - 1, 2), (2 * GRANULE, 2 * GRANULE)] {
        stage.write(at, 7, bytes);
        assert!(stage.target.data() == stage.source.data(), "{at}+{bytes}");
    }
    stage.ctx.run(|co| {
        stage.guest.co_pwrite_zeroes(co, 10, GRANULE, ZeroFlags::MAY_UNMAP).unwrap();
        assert!(stage.target.data() == stage.source.data());
        stage.guest.co_pdiscard(co, 2 * GRANULE, GRANULE).unwrap();
        assert!(stage.target.data() == stage.source.data());
    });
    assert!(stage.is_synced());
}

#[test]
fn j62_a_failed_write_to_the_target_is_not_the_guest_s() {
    let (stage, _job) = ready(2);
    let tries = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&tries);
    stage.target.judge(move |op| match op {
        Op::Write(..) if own.fetch_add(1, Ordering::SeqCst) < 3 => Verdict::Fail(libc::EIO),
        _ => Verdict::Go,
    });
    take(&stage.told);
    stage.write(0, 7, 512);
    assert!(!stage.is_synced());
    until(&stage.ctx, || stage.is_synced());
    assert!(stage.target.data() == stage.source.data());
    assert_eq!(take(&stage.told), ["ERROR write ignore"; 3]);
}

#[test]
fn j63_a_granule_that_is_to_be_copied_and_covered_in_part_is_left_to_the_copier() {
    let (stage, job) = ready(4);
    stage.target.judge(|op| {
        if matches!(op, Op::Write(..)) { Verdict::Fail(libc::EIO) } else { Verdict::Go }
    });
    stage.jobs.pause("j").unwrap();
    stage.write(0, 1, GRANULE);
    stage.target.judge(|_| Verdict::Go);
    stage.target.take_ops();
    // Its end is clean, and its beginning is not.
    stage.write(GRANULE / 2, 2, GRANULE);
    let writes: Vec<Op> = stage.target.take_ops();
    assert!(
        matches!(writes[..], [Op::Write(at, bytes, _)] if at == GRANULE && bytes == GRANULE / 2)
    );
    stage.jobs.resume("j").unwrap();
    until(&stage.ctx, || stage.is_synced());
    assert!(stage.target.data() == stage.source.data());
    assert_eq!(job.status(), JobStatus::Ready);
}

#[test]
fn j40_policies_of_a_job_are_not_those_of_guests() {
    let fails = |op| match op {
        Op::Read(..) | Op::Write(..) => Verdict::Fail(libc::ENOSPC),
        _ => Verdict::Go,
    };
    let policies =
        [(OnError::Report, "report"), (OnError::Stop, "stop"), (OnError::Ignore, "ignore")];
    for (policy, action) in policies {
        let stage = stage_of(2 * GRANULE);
        let mirror = stage.mirror().copy_mode(CopyMode::WriteBlocking);
        let mirror = mirror.on_source_error(policy).on_target_error(policy);
        let job = stage.start(mirror);
        stage.until(&job, JobStatus::Ready);
        until(&stage.ctx, || stage.is_synced());
        take(&stage.told);
        // Of the source: the guest's own, and nothing for the job to deal with, before it reads there itself.
        stage.jobs.pause("j").unwrap();
        stage.settle();
        stage.source.judge(fails);
        let written = stage.ctx.run(|co| stage.guest.co_write(co, 0, &[1; 512]));
        let read = stage.ctx.run(|co| stage.guest.co_read(co, 0, &mut [0; 512]));
        for result in [written, read] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        }
        assert_eq!(take(&stage.told), ["standby"], "{policy:?}");
        stage.source.judge(|_| Verdict::Go);
        stage.jobs.resume("j").unwrap();
        until(&stage.ctx, || stage.is_synced());
        take(&stage.told);
        // Of the target: the job's, by its policy, and none of the guest's.
        stage.target.judge(fails);
        stage.write(0, 2, GRANULE);
        until(&stage.ctx, || !stage.told.borrow().is_empty());
        assert_eq!(take(&stage.told)[0], format!("ERROR write {action}"));
    }
}

#[test]
fn j65_a_failed_write_to_the_source_is_copied_again() {
    let (stage, _job) = ready(2);
    stage.source.judge(|op| {
        if matches!(op, Op::Write(..)) { Verdict::Fail(libc::EIO) } else { Verdict::Go }
    });
    stage.target.take_ops();
    let failed = stage.ctx.run(|co| stage.guest.co_write(co, 0, &[1; 512]));
    assert!(failed.is_err() && !stage.is_synced());
    // Part of it is there all the same.
    stage.source.fill(1);
    until(&stage.ctx, || stage.is_synced());
    assert!(stage.target.data()[..GRANULE as usize] == stage.source.data()[..GRANULE as usize]);
}

#[test]
fn j68_a_guest_waits_for_the_target_and_is_let_go_by_a_cancellation() {
    let (stage, job) = ready(4);
    stage.target.judge(|op| if matches!(op, Op::Write(..)) { Verdict::Hold } else { Verdict::Go });
    let waiting = [stage.begin_write(0, 7, 512), stage.begin_write(100, 8, 512)];
    let other = stage.begin_write(2 * GRANULE, 9, 512);
    stage.ctx.run(|co| co.sleep(Duration::from_secs(30)));
    assert!(waiting.iter().chain([&other]).all(|done| !done.get()));
    assert_eq!(stage.target.held(), 2, "writes to one granule come one after the other");
    let took = stage.takes(|| {
        stage.cancel(true);
        until(&stage.ctx, || waiting.iter().chain([&other]).all(|done| done.get()));
        stage.until(&job, JobStatus::Null);
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!((stage.guest_is_on().as_str(), stage.source.data()[200]), ("source", 8));
    // What may still be written keeps the target in use.
    assert!(!stage.target_node.parents().is_empty());
    while stage.target.release() {}
    until(&stage.ctx, || stage.is_free());
}

#[test]
fn j47_a_drain_of_the_target_holds_guests_up() {
    let (stage, _job) = ready(4);
    let section = stage.target_node.drain(&stage.ctx);
    let done = stage.begin_write(0, 7, 512);
    stage.ctx.run(|co| co.sleep(Duration::from_secs(1)));
    assert!(!done.get() && stage.source.data()[0] == 0);
    drop(section);
    until(&stage.ctx, || done.get());
}

#[test]
fn j67_a_background_mirror_becomes_write_blocking_and_never_goes_back() {
    let stage = stage_of(4 * GRANULE);
    let job = stage.start(stage.mirror());
    let change = |kind: &str, mode: &str| {
        let changed = stage.jobs.change("j", &JobChange::new(kind, mode));
        changed.map_err(|error| error.to_string())
    };
    change("mirror", "background").unwrap();
    stage.until(&job, JobStatus::Ready);
    stage.write(0, 7, 512);
    assert!(!stage.is_synced());
    assert!(change("commit", "write-blocking").is_err());
    change("mirror", "write-blocking").unwrap();
    until(&stage.ctx, || stage.is_synced());
    stage.write(GRANULE, 7, 512);
    assert!(stage.target.data() == stage.source.data());
    change("mirror", "write-blocking").unwrap();
    let back = change("mirror", "background");
    assert_eq!(back.unwrap_err(), "Change to copy mode 'background' is not implemented");
    stage.jobs.complete("j").unwrap();
    stage.until(&job, JobStatus::Null);
    assert_eq!(stage.guest_is_on(), "target");
    assert!(stage.is_free());
}
