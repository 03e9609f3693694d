//! [`Mirror`]: what is mirrored, and how.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioHandle, Co};
use coblk_block::{BlockNode, BlockdevError, Blockdevs, GraphError, PermissionError};

use super::task::{MirrorTask, co_set_up};
use crate::{Job, JobError, JobOptions, Jobs, OnError};

/// Which parts of the source are copied at first. What is written later is copied in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// All of it.
    #[default]
    Full,
    /// What is allocated above the first backing file; all of it without one.
    Top,
    /// None of it.
    None,
}

/// What guests' writes wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// For the source alone: the target follows.
    #[default]
    Background,
    /// For both, from the end of the first scan on.
    WriteBlocking,
}

const DEFAULT_GRANULARITY: u64 = 64 << 10;
const DEFAULT_BUFFER: u64 = 16 << 20;
const GRANULARITIES: std::ops::RangeInclusive<u64> = 512..=64 << 20;

/// A copy of a node to another node, which is kept equal until it takes the place of the first.
///
/// It is ready when both are equal for the first time. [Completed](Jobs::complete), it turns all users of the
/// source to the target; a [soft cancellation](Jobs::co_cancel) leaves them where they are. Guests write to the
/// source meanwhile, and wait for no copy unless the [mode](Mirror::copy_mode) says so.
pub struct Mirror {
    pub(super) source: Arc<BlockNode>,
    pub(super) target: Arc<BlockNode>,
    pub(super) sync: SyncMode,
    pub(super) granularity: Option<u64>,
    pub(super) buffer: u64,
    pub(super) on_source_error: OnError,
    pub(super) on_target_error: OnError,
    pub(super) filter_name: Option<String>,
    pub(super) copy_mode: CopyMode,
    /// The target is a backing file of the source.
    pub(super) is_commit: bool,
    pub(super) contexts: Vec<AioHandle>,
    pub(super) guest_latency: Option<Duration>,
}

/// Why a mirror does not begin. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    /// Source and target are one node.
    #[error("Can't mirror node into itself")]
    Itself,
    /// The node has parents, which would go on with the old one.
    #[error("Need a root block node")]
    NotRoot,
    /// The granularity is no power of two.
    #[error("Parameter 'granularity' expects a power of 2")]
    GranularityPower,
    /// The granularity is too small or too large.
    #[error("Parameter 'granularity' expects a value in range [512B, 64MB]")]
    GranularityRange,
    /// The target refuses writes.
    #[error("node '{0}' is read-only")]
    ReadOnly(String),
    /// The job cannot be made.
    #[error(transparent)]
    Job(#[from] JobError),
    /// Other users of a node do not agree.
    #[error(transparent)]
    Permission(#[from] PermissionError),
    /// The name of the filter cannot be given.
    #[error(transparent)]
    Blockdev(#[from] BlockdevError),
    /// The filter cannot be inserted.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// There is no memory to keep track of so many granules.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Mirror {
    /// Mirrors all of `source` to `target`, which has the same length.
    pub fn new(source: Arc<BlockNode>, target: Arc<BlockNode>) -> Mirror {
        Mirror {
            source,
            target,
            sync: SyncMode::Full,
            granularity: None,
            buffer: DEFAULT_BUFFER,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
            filter_name: None,
            copy_mode: CopyMode::Background,
            is_commit: false,
            contexts: Vec::new(),
            guest_latency: None,
        }
    }

    /// The target is a backing file of the source, and gets what is allocated above it. It grows if it is shorter.
    pub(crate) fn into_backing(self) -> Mirror {
        Mirror { is_commit: true, ..self }
    }

    /// Which parts are copied at first.
    #[must_use]
    pub fn sync(self, sync: SyncMode) -> Mirror {
        Mirror { sync, ..self }
    }

    /// How many bytes are marked, and copied, together: a power of two from 512 to 64 MiB. By default a cluster
    /// of the target, if that has from 4 KiB to 64 KiB; else 64 KiB.
    #[must_use]
    pub fn granularity(self, bytes: u64) -> Mirror {
        Mirror { granularity: Some(bytes), ..self }
    }

    /// How many bytes are in flight at most, if a granule is not longer. 0 is the default, 16 MiB.
    #[must_use]
    pub fn buffer(self, bytes: u64) -> Mirror {
        Mirror { buffer: if bytes == 0 { DEFAULT_BUFFER } else { bytes }, ..self }
    }

    /// What is done when a request of the job to the source fails.
    #[must_use]
    pub fn on_source_error(self, on_error: OnError) -> Mirror {
        Mirror { on_source_error: on_error, ..self }
    }

    /// What is done when a request of the job to the target fails.
    #[must_use]
    pub fn on_target_error(self, on_error: OnError) -> Mirror {
        Mirror { on_target_error: on_error, ..self }
    }

    /// What guests' writes wait for.
    #[must_use]
    pub fn copy_mode(self, copy_mode: CopyMode) -> Mirror {
        Mirror { copy_mode, ..self }
    }

    /// Has it copy in these contexts, too, which must be polling: while its speed is not limited, and when there is
    /// more to copy than the job's context does at once. By default it copies in its own context alone.
    #[must_use]
    pub fn contexts(self, contexts: impl IntoIterator<Item = AioHandle>) -> Mirror {
        Mirror { contexts: contexts.into_iter().collect(), ..self }
    }

    /// Copies less at once while more than one of twenty requests of guests takes longer than this: fewer copies, then
    /// shorter ones, then with pauses between them. By default it copies as fast as it can.
    #[must_use]
    pub fn guest_latency(self, limit: Duration) -> Mirror {
        Mirror { guest_latency: Some(limit), ..self }
    }

    /// The name of the filter that is inserted above the source while the job is there. By default one that no
    /// option can have.
    #[must_use]
    pub fn filter_name(self, name: impl Into<String>) -> Mirror {
        Mirror { filter_name: Some(name.into()), ..self }
    }

    /// Starts it as a job. The filter is a node of `blockdevs` that belongs to the job.
    ///
    /// # Errors
    /// If the options are wrong, the id is none or is taken, or other users of the nodes do not agree.
    pub fn co_start(
        self,
        co: &Co<'_>,
        jobs: &Rc<Jobs>,
        options: JobOptions,
        blockdevs: &Blockdevs,
    ) -> Result<Rc<Job>, MirrorError> {
        self.check()?;
        jobs.check_id(&options.id)?;
        if let Some(name) = &self.filter_name {
            blockdevs.check_name(name)?;
        }
        let task = MirrorTask::new(self, blockdevs.downgrade());
        let own = task.clone();
        jobs.co_start(co, options, task, |co, job| co_set_up(co, &own, job, blockdevs))
    }

    fn check(&self) -> Result<(), MirrorError> {
        if Arc::ptr_eq(&self.source, &self.target) {
            return Err(MirrorError::Itself);
        }
        let is_node = |it: &coblk_block::Parent| matches!(it, coblk_block::Parent::Node { .. });
        if !self.is_commit && self.source.parents().iter().any(is_node) {
            return Err(MirrorError::NotRoot);
        }
        let granularity = self.granule();
        if !GRANULARITIES.contains(&granularity) {
            return Err(MirrorError::GranularityRange);
        }
        if !granularity.is_power_of_two() {
            return Err(MirrorError::GranularityPower);
        }
        match self.target.is_read_only() {
            true => Err(MirrorError::ReadOnly(self.target.name().to_owned())),
            false => Ok(()),
        }
    }

    /// Bytes a granule.
    pub(super) fn granule(&self) -> u64 {
        let cluster = cluster_size(&self.target);
        let is_usual = (4 << 10..=64 << 10).contains(&cluster);
        let default = if is_usual { cluster } else { DEFAULT_GRANULARITY };
        self.granularity.filter(|bytes| *bytes != 0).unwrap_or(default)
    }

    /// Whether the header of the target names a backing file that is not attached. A part of a cluster that is
    /// written for the first time would be filled up with zeroes then, and these hide what the backing file
    /// has when it is attached: so clusters are written as a whole for the first time.
    pub(super) fn has_absent_backing(&self) -> bool {
        let info = self.target.driver().image().and_then(|image| image.info().ok());
        let is_attached = self.target.children().iter().any(|(name, _)| name == "backing");
        !is_attached && info.is_some_and(|info| info.backing.is_some())
    }
}

/// Bytes a cluster of an image; 1 where there are none.
pub(super) fn cluster_size(node: &BlockNode) -> u64 {
    let info = node.driver().image().and_then(|image| image.info().ok());
    info.and_then(|info| info.cluster_size).filter(|bytes| *bytes > 0).unwrap_or(1)
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror")
            .field("source", &self.source.name())
            .field("target", &self.target.name())
            .field("sync", &self.sync)
            .finish_non_exhaustive()
    }
}
