//! [`Backup`]: what is backed up, and how.

use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioHandle, Co};
use coblk_block::{BlockNode, Blockdevs};

use super::check::BackupError;
use super::task::{BackupTask, co_set_up};
use crate::snapshot::OnCbwError;
use crate::{Job, JobGroup, JobOptions, Jobs, OnError};

/// Which parts of the source are copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupSync {
    /// All of it.
    #[default]
    Full,
    /// What its top layer has; all of it without a backing file.
    Top,
    /// What guests write over, and nothing else. Such a job ends by being cancelled.
    None,
    /// What is dirty in the [bitmap](Backup::bitmap).
    Bitmap,
}

/// What becomes of the bitmap of a backup when that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapMode {
    /// After a success it has what was written since the backup began; else also what it had before.
    OnSuccess,
    /// It has what it had, and what was written since.
    Never,
    /// It has what was written since the backup began, and after a failure also what was not copied.
    Always,
}

/// Most copies at a time.
const MAX_WORKERS: u64 = 64;
/// As many as are enough for a disk, and for a target that is not far away. A guest that waits for a slow target waits
/// for what these have under way there, too.
const WORKERS: u64 = 16;

/// A copy of the bytes that a node has at one instant, to another node. Guests go on meanwhile: what they are about to
/// write over is copied first.
///
/// ```no_run
/// # use std::{rc::Rc, sync::Arc};
/// # use coblk_aio::Co;
/// # use coblk_block::{BlockNode, Blockdevs};
/// # use coblk_jobs::{Backup, JobOptions, Jobs};
/// # fn run(co: &Co<'_>, disk: Arc<BlockNode>, image: Arc<BlockNode>, jobs: &Rc<Jobs>, blockdevs: &Blockdevs) {
/// // What was written since the last one; the bitmap begins anew when this one has succeeded.
/// let backup = Backup::new(disk, image).incremental("since-last-backup");
/// backup.co_start(co, jobs, JobOptions::new("monday", "backup"), blockdevs).unwrap();
/// # }
/// ```
pub struct Backup {
    pub(super) source: Arc<BlockNode>,
    pub(super) target: Arc<BlockNode>,
    pub(super) sync: BackupSync,
    pub(super) bitmap: Option<(String, BitmapMode)>,
    pub(super) compress: bool,
    pub(super) discard_source: bool,
    pub(super) on_source_error: OnError,
    pub(super) on_target_error: OnError,
    pub(super) on_cbw_error: OnCbwError,
    pub(super) max_workers: u64,
    pub(super) max_chunk: Option<u64>,
    pub(super) min_cluster: u64,
    pub(super) hold: u64,
    pub(super) filter_name: Option<String>,
    pub(super) contexts: Vec<AioHandle>,
    pub(super) spill: Option<Arc<BlockNode>>,
    pub(super) verify: bool,
    pub(super) manifest: Option<PathBuf>,
    pub(super) guest_latency: Option<Duration>,
}

impl Backup {
    /// Copies all of `source` to `target`, which has the same length.
    pub fn new(source: Arc<BlockNode>, target: Arc<BlockNode>) -> Backup {
        Backup {
            source,
            target,
            sync: BackupSync::Full,
            bitmap: None,
            compress: false,
            discard_source: false,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
            on_cbw_error: OnCbwError::BreakGuestWrite,
            max_workers: WORKERS,
            max_chunk: None,
            min_cluster: 0,
            hold: 0,
            filter_name: None,
            contexts: Vec::new(),
            spill: None,
            verify: false,
            manifest: None,
            guest_latency: None,
        }
    }

    /// Which parts are copied.
    #[must_use]
    pub fn sync(self, sync: BackupSync) -> Backup {
        Backup { sync, ..self }
    }

    /// A bitmap of the source, and what becomes of it. With [`BackupSync::Bitmap`] it also says what is copied.
    #[must_use]
    pub fn bitmap(self, name: impl Into<String>, mode: BitmapMode) -> Backup {
        Backup { bitmap: Some((name.into(), mode)), ..self }
    }

    /// Copies what is dirty in a bitmap of the source, which begins anew when that has succeeded.
    #[must_use]
    pub fn incremental(self, bitmap: impl Into<String>) -> Backup {
        self.sync(BackupSync::Bitmap).bitmap(bitmap, BitmapMode::OnSuccess)
    }

    /// Whether the target stores what it gets compressed.
    #[must_use]
    pub fn compress(self, compress: bool) -> Backup {
        Backup { compress, ..self }
    }

    /// Whether what was copied is discarded at the source, to which nothing else may write then: for one that has the
    /// bytes of an instant.
    #[must_use]
    pub fn discard_source(self, discard_source: bool) -> Backup {
        Backup { discard_source, ..self }
    }

    /// What is done when a request of the job to the source fails.
    #[must_use]
    pub fn on_source_error(self, on_error: OnError) -> Backup {
        Backup { on_source_error: on_error, ..self }
    }

    /// What is done when a request of the job to the target fails.
    #[must_use]
    pub fn on_target_error(self, on_error: OnError) -> Backup {
        Backup { on_target_error: on_error, ..self }
    }

    /// Holds so many old bytes in memory, whose guests do not wait for the target: for
    /// [`OnCbwError::BreakSnapshot`] alone, as a copy that fails then cannot fail a guest's write any more. 0 by
    /// default.
    #[must_use]
    pub fn hold(self, bytes: u64) -> Backup {
        Backup { hold: bytes, ..self }
    }

    /// Has old bytes that guests are about to write over go to `node` at first, which is fast, and as long as the
    /// source at least. The job moves them on to the target, and discards them there. A guest waits for the target only
    /// if `node` fails.
    #[must_use]
    pub fn spill(self, node: Arc<BlockNode>) -> Backup {
        Backup { spill: Some(node), ..self }
    }

    /// Whether the target is read when all is copied, past what the host caches of it, and compared with checksums of
    /// what was read from the source. The job fails if they differ.
    #[must_use]
    pub fn verify(self, verify: bool) -> Backup {
        Backup { verify, ..self }
    }

    /// Has the checksums of what was copied written to a file when the job ends well: a line `OFFSET COUNT SUM`
    /// for each row of granules with one CRC-32C, below a head that says the length and the granularity.
    #[must_use]
    pub fn manifest(self, path: impl Into<PathBuf>) -> Backup {
        Backup { manifest: Some(path.into()), ..self }
    }

    /// Copies less at once while more than one of twenty requests of guests takes longer than this: fewer copies, then
    /// shorter ones, then with pauses between them. By default it copies as fast as it can.
    #[must_use]
    pub fn guest_latency(self, limit: Duration) -> Backup {
        Backup { guest_latency: Some(limit), ..self }
    }

    /// What becomes of a guest's write whose old bytes cannot be copied.
    #[must_use]
    pub fn on_cbw_error(self, on_error: OnCbwError) -> Backup {
        Backup { on_cbw_error: on_error, ..self }
    }

    /// How many copies are under way at most, besides those that guests wait for: 1 to 64; by default 16.
    #[must_use]
    pub fn max_workers(self, workers: u64) -> Backup {
        Backup { max_workers: workers.min(MAX_WORKERS), ..self }
    }

    /// The longest copy, in bytes: a cluster at least, and 1 MiB at most, unless a cluster is longer. 0 is that.
    #[must_use]
    pub fn max_chunk(self, bytes: u64) -> Backup {
        Backup { max_chunk: Some(bytes).filter(|bytes| *bytes > 0), ..self }
    }

    /// How much is copied together at least, in bytes: a power of two. In any case 64 KiB, and a cluster of the target.
    #[must_use]
    pub fn min_cluster_size(self, bytes: u64) -> Backup {
        Backup { min_cluster: bytes, ..self }
    }

    /// The name of the filter that is above the source while the job is there. By default one that no option can
    /// have.
    #[must_use]
    pub fn filter_name(self, name: impl Into<String>) -> Backup {
        Backup { filter_name: Some(name.into()), ..self }
    }

    /// Has it copy in these contexts, too, which must be polling: while its speed is not limited, and when there is
    /// more to copy than the job's context does at once. Not with [`discard_source`](Self::discard_source).
    #[must_use]
    pub fn contexts(self, contexts: impl IntoIterator<Item = AioHandle>) -> Backup {
        Backup { contexts: contexts.into_iter().collect(), ..self }
    }

    /// Starts it as a job. What the source has when this returns, or had a moment before, is copied. The filter is a
    /// node of `blockdevs` that belongs to the job.
    ///
    /// # Errors
    /// If the options are wrong, the id is none or is taken, or other users of the nodes do not agree.
    pub fn co_start(
        self,
        co: &Co<'_>,
        jobs: &Rc<Jobs>,
        options: JobOptions,
        blockdevs: &Blockdevs,
    ) -> Result<Rc<Job>, BackupError> {
        let job = self.co_make(co, (jobs, &JobGroup::new()), options, blockdevs)?;
        job.start(co.context());
        Ok(job)
    }

    /// Makes the job of a group, and does not start it. The instant is that of this call: from now on guests' writes
    /// wait for copies. It is [started](Job::start), [discarded](Job::discard) or cancelled next.
    ///
    /// # Errors
    /// As of [`co_start`](Self::co_start).
    pub fn co_make(
        self,
        co: &Co<'_>,
        (jobs, group): (&Rc<Jobs>, &Rc<JobGroup>),
        options: JobOptions,
        blockdevs: &Blockdevs,
    ) -> Result<Rc<Job>, BackupError> {
        self.check()?;
        jobs.check_id(&options.id)?;
        if let Some(name) = &self.filter_name {
            blockdevs.check_name(name)?;
        }
        let task = BackupTask::new(self);
        let own = task.clone();
        let set_up = |co: &Co<'_>, job: &Rc<Job>| co_set_up(co, &own, job, blockdevs);
        jobs.co_make(co, options, group, task, set_up)
    }
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup")
            .field("source", &self.source.name())
            .field("target", &self.target.name())
            .field("sync", &self.sync)
            .field("bitmap", &self.bitmap)
            .finish_non_exhaustive()
    }
}
