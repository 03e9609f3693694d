//! Backups that read their target again, and note what they have copied.

mod util;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{BlockDriver, ReadFlags, WriteFlags};
use coblk_jobs::{Backup, BackupSync, Job, JobOptions, JobStatus};
use util::disk::{Disk, OnDisk, Op, Verdict};
use util::stage::{GRANULE, LENGTH, Stage, stage, stage_of, stage_with};
use util::{take, until};

fn backup(stage: &Stage) -> Backup {
    Backup::new(Arc::clone(&stage.source_node), Arc::clone(&stage.target_node))
}

fn start(stage: &Stage, backup: Backup) -> Rc<Job> {
    let options = JobOptions::new("j", "backup");
    stage.ctx.run(|co| backup.co_start(co, &stage.jobs, options, &stage.blockdevs)).unwrap()
}

/// A storage with a cache: what it has stored is seen when that is dropped.
struct Cached {
    cache: OnDisk,
    storage: Arc<Disk>,
    is_dropped: AtomicBool,
}

impl BlockDriver for Cached {
    fn format_name(&self) -> &'static str {
        "cached"
    }

    fn length(&self) -> u64 {
        self.cache.length()
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        match self.is_dropped.load(Ordering::SeqCst) {
            true => OnDisk(Arc::clone(&self.storage)).co_preadv(co, offset, target, flags),
            false => self.cache.co_preadv(co, offset, target, flags),
        }
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        OnDisk(Arc::clone(&self.storage)).co_pwritev(co, offset, source, flags)?;
        self.cache.co_pwritev(co, offset, source, flags)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.cache.co_flush(co)
    }

    fn co_drop_cache(&self, _: &Co<'_>) -> io::Result<()> {
        self.is_dropped.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// A target that stores another byte than it says, and the backup's end.
fn damaged(place: usize) -> Vec<String> {
    let storage = Disk::new(LENGTH, Default::default());
    let own = Arc::clone(&storage);
    let stage = stage_with(LENGTH, move |name, disk| {
        let cache = OnDisk(Arc::clone(disk));
        match name {
            "target" => coblk_block::BlockNode::new(
                name,
                Cached { cache, storage: Arc::clone(&own), is_dropped: AtomicBool::default() },
            ),
            _ => coblk_block::BlockNode::new(name, cache),
        }
    });
    stage.source.fill(1);
    let stored = Arc::clone(&storage);
    // The flush is the end of the copies.
    stage.target.judge(move |op| {
        if op == Op::Flush {
            let mut data = stored.data();
            data[place] ^= 4;
            stored.set(&data);
        }
        Verdict::Go
    });
    let job = start(&stage, backup(&stage).verify(true));
    stage.until(&job, JobStatus::Null);
    take(&stage.told)
}

#[test]
fn j132_what_the_storage_has_not_stored_fails_the_job() {
    for place in [0, 5 * GRANULE as usize + 9, LENGTH as usize - 1] {
        let told = damaged(place);
        let granule = place as u64 / GRANULE * GRANULE;
        let text =
            format!("COMPLETED Node 'target' has other bytes at {granule} than were copied there");
        assert!(told.contains(&text), "{told:?}");
    }
}

#[test]
fn j132_an_equal_copy_is_verified_whatever_guests_write() {
    let stage = stage();
    stage.source.fill(1);
    stage.source.set(&[0; 3 * GRANULE as usize]);
    let instant = stage.source.data();
    let job = start(&stage, backup(&stage).verify(true));
    for at in [0, GRANULE - 1, LENGTH - 512] {
        stage.write(at, 9, 512);
    }
    stage.until(&job, JobStatus::Null);
    assert!(take(&stage.told).contains(&"COMPLETED".to_owned()));
    assert!(stage.target.durable() == instant);
    let read = stage.target.take_ops().into_iter().map(|op| match op {
        Op::Read(_, bytes) => bytes,
        _ => 0,
    });
    assert_eq!(read.sum::<u64>(), LENGTH);
}

#[test]
fn j132_a_target_that_cannot_be_read_fails_the_job_and_a_silent_one_is_left_behind() {
    let stage = stage();
    stage.source.fill(1);
    stage.target.judge(|op| match op {
        Op::Read(..) => Verdict::Fail(libc::EIO),
        _ => Verdict::Go,
    });
    let job = start(&stage, backup(&stage).verify(true));
    stage.until(&job, JobStatus::Null);
    assert!(take(&stage.told).contains(&"COMPLETED Input/output error".to_owned()));
    stage.target.judge(|op| if matches!(op, Op::Read(..)) { Verdict::Hold } else { Verdict::Go });
    let job = start(&stage, backup(&stage).verify(true));
    until(&stage.ctx, || stage.target.held() > 0);
    let took = stage.takes(|| {
        stage.cancel(true);
        stage.until(&job, JobStatus::Null);
    });
    assert!(took < std::time::Duration::from_secs(1), "{took:?}");
    stage.target.judge(|_| Verdict::Go);
    until(&stage.ctx, || {
        stage.target.release();
        stage.is_free()
    });
}

#[test]
fn j28_j132_a_verification_rests_while_the_job_is_paused() {
    let stage = stage();
    stage.source.fill(1);
    stage.target.judge(|op| if matches!(op, Op::Read(..)) { Verdict::Hold } else { Verdict::Go });
    let job = start(&stage, backup(&stage).verify(true));
    until(&stage.ctx, || stage.target.held() > 0);
    stage.jobs.pause("j").unwrap();
    while stage.target.release() {
        stage.settle();
    }
    stage.until(&job, JobStatus::Paused);
    stage.target.take_ops();
    stage.ctx.run(|co| co.sleep(std::time::Duration::from_secs(1)));
    assert_eq!(stage.target.take_ops(), []);
    stage.target.judge(|_| Verdict::Go);
    stage.jobs.resume("j").unwrap();
    stage.until(&job, JobStatus::Null);
    assert!(take(&stage.told).contains(&"COMPLETED".to_owned()));
}

#[test]
fn j132_a_manifest_has_the_sums_of_what_was_copied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sums");
    let stage = stage();
    stage.source.fill(1);
    stage.source.set(&[0; 2 * GRANULE as usize]);
    let job = start(&stage, backup(&stage).manifest(&path));
    stage.until(&job, JobStatus::Null);
    let data = stage.source.data();
    let sum = |at: u64| crc32c::crc32c(&data[at as usize..(at + GRANULE) as usize]);
    let expected = format!(
        "coblk-manifest 1\nlength {LENGTH}\ngranularity {GRANULE}\ncrc32c\n0 2 {:08x}\n{} 30 {:08x}\n",
        sum(0),
        2 * GRANULE,
        sum(2 * GRANULE),
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    // Of a job that fails the old one stays, and nothing else.
    stage.target.judge(|op| if op == Op::Flush { Verdict::Fail(libc::EIO) } else { Verdict::Go });
    let job = start(&stage, backup(&stage).manifest(&path));
    stage.until(&job, JobStatus::Null);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Two jobs with one path, of which the second begins and ends while the first is at work.
#[test]
fn j132_a_manifest_is_that_of_the_job_that_ended_last() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sums");
    let first = stage();
    first.source.fill(1);
    first.target.judge(|op| if op == Op::Flush { Verdict::Hold } else { Verdict::Go });
    let job = start(&first, backup(&first).manifest(&path));
    until(&first.ctx, || first.target.held() == 1);
    let second = stage_of(4 * GRANULE);
    let options = JobOptions::new("k", "backup");
    let of_second = |co: &Co<'_>| {
        backup(&second).manifest(&path).co_start(co, &second.jobs, options, &second.blockdevs)
    };
    let other = second.ctx.run(of_second).unwrap();
    second.until(&other, JobStatus::Null);
    let length = || std::fs::read_to_string(&path).unwrap().lines().nth(1).unwrap().to_owned();
    assert_eq!(length(), format!("length {}", 4 * GRANULE));
    first.target.judge(|_| Verdict::Go);
    first.target.release();
    first.until(&job, JobStatus::Null);
    assert!(take(&first.told).contains(&"COMPLETED".to_owned()));
    assert_eq!(length(), format!("length {LENGTH}"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn j132_large_granules_are_read_again_one_at_a_time() {
    let stage = stage_of(16 << 20);
    stage.source.fill(1);
    stage.target.judge(|op| if matches!(op, Op::Read(..)) { Verdict::Hold } else { Verdict::Go });
    let job = start(&stage, backup(&stage).min_cluster_size(4 << 20).verify(true));
    until(&stage.ctx, || stage.target.held() > 0);
    stage.settle();
    assert_eq!(stage.target.held(), 1, "more memory than for four of a MiB");
    stage.target.judge(|_| Verdict::Go);
    stage.target.release();
    stage.until(&job, JobStatus::Null);
    assert!(take(&stage.told).contains(&"COMPLETED".to_owned()));
}

#[test]
fn j132_a_manifest_that_cannot_be_written_is_refused_at_once() {
    let stage = stage();
    let refused = |backup: Backup| {
        let options = JobOptions::new("j", "backup");
        let start = |co: &Co<'_>| backup.co_start(co, &stage.jobs, options, &stage.blockdevs);
        stage.ctx.run(start).unwrap_err().to_string()
    };
    let why = refused(backup(&stage).manifest("/nowhere/at/all"));
    assert!(why.contains("Could not create '/nowhere/at/all.j.new'"), "{why}");
    let why = refused(backup(&stage).sync(BackupSync::None).verify(true));
    assert!(why.contains("do not go with sync mode 'none'"), "{why}");
    assert!(stage.is_free());
}
