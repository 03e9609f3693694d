//! Backups to a target whose backing file is the source: its readers see the instant.

mod util;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{
    BackendOptions, BlockDriver, BlockNode, Child, ChildRole, EdgeId, ReadFlags, WriteFlags,
};
use coblk_jobs::{Backup, BackupSync, JobOptions, JobStatus};
use util::disk::{Op, Verdict};
use util::stage::{GRANULE, LENGTH, stage};
use util::until;

/// Has what was written to it, in whole granules, and reads the rest from another node.
struct Overlay {
    backing: Child,
    written: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl BlockDriver for Overlay {
    fn format_name(&self) -> &'static str {
        "overlay"
    }

    fn length(&self) -> u64 {
        LENGTH
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.backing.id()]
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        assert!(target.len() as u64 <= GRANULE - offset % GRANULE, "one granule at a time");
        let written = self.written.lock().unwrap().get(&(offset / GRANULE)).cloned();
        match written {
            Some(data) => {
                target.copy_from(0, &data[(offset % GRANULE) as usize..][..target.len()]);
                Ok(())
            }
            None => self.backing.co_preadv(co, offset, target, flags),
        }
    }

    fn co_pwritev(
        &self,
        _: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _: WriteFlags,
    ) -> io::Result<()> {
        let mut data = vec![0; source.len()];
        source.copy_to(0, &mut data);
        let granules = (offset / GRANULE..).zip(data.chunks(GRANULE as usize));
        self.written.lock().unwrap().extend(granules.map(|(at, data)| (at, data.to_vec())));
        Ok(())
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn j80_j83_a_reader_of_the_target_that_looks_at_the_source_is_not_overtaken() {
    let stage = stage();
    stage.source.fill(1);
    let backing = Child::new("backing", ChildRole::COW, Arc::clone(&stage.source_node));
    let overlay = BlockNode::new("overlay", Overlay { backing, written: Mutex::default() });
    let backup = Backup::new(Arc::clone(&stage.source_node), Arc::clone(&overlay));
    let options = JobOptions::new("j", "backup");
    let job = stage.ctx.run(|co| {
        let backup = backup.sync(BackupSync::None).min_cluster_size(GRANULE);
        backup.co_start(co, &stage.jobs, options, &stage.blockdevs).unwrap()
    });
    let reader = BackendOptions::new("reader").read_only(true).share_rw(true);
    let reader = reader.open(&stage.ctx, Arc::clone(&overlay)).unwrap();
    // A reader has seen that the target has nothing there.
    stage.source.judge(|op| match op {
        Op::Read(_, bytes) if bytes < GRANULE => Verdict::Hold,
        _ => Verdict::Go,
    });
    let read = Rc::<Cell<Option<u8>>>::default();
    let (told, own) = (Rc::clone(&read), reader.clone());
    stage.ctx.spawn("reader", move |co| {
        let mut byte = [0];
        own.co_read(co, 5, &mut byte).unwrap();
        told.set(Some(byte[0]));
    });
    until(&stage.ctx, || stage.source.held() == 1);
    let written = Rc::<Cell<bool>>::default();
    let (told, guest) = (Rc::clone(&written), stage.guest.clone());
    stage.ctx.spawn("guest", move |co| {
        guest.co_write(co, 0, &[2; 4096]).unwrap();
        told.set(true);
    });
    stage.ctx.run(|co| co.sleep(Duration::from_secs(10)));
    assert!(!written.get() && read.get().is_none());
    stage.source.judge(|_| Verdict::Go);
    stage.source.release();
    until(&stage.ctx, || written.get());
    assert_eq!(read.get(), Some(1), "a write has overtaken a reader");
    let mut byte = [0];
    stage.ctx.run(|co| reader.co_read(co, 5, &mut byte)).unwrap();
    assert_eq!((byte, stage.source.data()[5]), ([1], 2));
    drop(reader);
    stage.cancel(true);
    stage.until(&job, JobStatus::Null);
    // The source is read where nothing was kept, and by readers of today.
    drop(overlay);
    assert!(stage.is_free());
}

/// A backup turns what reads below its source, such as the target of another backup that is to come. The filter of that
/// one cannot come above the source then: writers would be below it.
#[test]
fn j69_j105_a_backup_whose_filter_writers_would_pass_by_is_refused() {
    let stage = stage();
    stage.source.fill(1);
    let overlay = || {
        let backing = Child::new("backing", ChildRole::COW, Arc::clone(&stage.source_node));
        BlockNode::new("overlay", Overlay { backing, written: Mutex::default() })
    };
    let start = |id: &str, backup: Backup| {
        let options = JobOptions::new(id, "backup");
        let backup = backup.sync(BackupSync::None).min_cluster_size(GRANULE);
        stage.ctx.run(|co| backup.co_start(co, &stage.jobs, options, &stage.blockdevs))
    };
    let full = || Backup::new(Arc::clone(&stage.source_node), Arc::clone(&stage.target_node));
    let pull = |overlay| Backup::new(Arc::clone(&stage.source_node), overlay);
    let end = |id: &str| stage.ctx.run(|co| stage.jobs.co_cancel(co, id, true)).unwrap();
    let first = overlay();
    start("full", full()).unwrap();
    let refused = start("pull", pull(Arc::clone(&first))).unwrap_err().to_string();
    assert!(refused.contains("write"), "{refused}");
    drop(first);
    stage.write(0, 2, GRANULE);
    assert_eq!(stage.target.data()[0], 1);
    end("full");
    until(&stage.ctx, || stage.is_free());
    // In the other order both have the instant.
    stage.source.fill(1);
    stage.target.fill(0);
    let second = overlay();
    start("pull", pull(Arc::clone(&second))).unwrap();
    start("full", full()).unwrap();
    let reader = BackendOptions::new("reader").read_only(true).share_rw(true);
    let reader = reader.open(&stage.ctx, Arc::clone(&second)).unwrap();
    stage.write(0, 2, GRANULE);
    let mut byte = [0];
    stage.ctx.run(|co| reader.co_read(co, 5, &mut byte)).unwrap();
    assert_eq!((byte, stage.target.data()[5], stage.source.data()[5]), ([1], 1, 2));
    drop((reader, second));
    end("full");
    end("pull");
    until(&stage.ctx, || stage.is_free());
}
