//! [`Commit`]: which images go to which backing file.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{BlockNode, BlockdevError, Blockdevs, GraphError, PermissionError, Permissions};

use super::active::ActiveTask;
use super::intermediate::CommitTask;
use crate::chain::{Naming, busy_node};
use crate::mirror::MirrorError;
use crate::{Job, JobError, JobOptions, Jobs, OnError};

/// A copy of what the images of a chain have, from one down to above a base, to the base, which takes their place.
///
/// If the first of them is what guests write to, the commit is *active*: it is ready when both are equal, and the base
/// takes the place when it is [completed](Jobs::complete). Else it ends by itself. The images that are left out stay
/// open if they were opened by themselves; from the begin on they are valid through the first of them alone.
pub struct Commit {
    pub(super) top: Arc<BlockNode>,
    pub(super) base: Arc<BlockNode>,
    pub(super) is_active: bool,
    pub(super) naming: Naming,
    pub(super) on_error: OnError,
    pub(super) filter_name: Option<String>,
}

/// Why a commit does not begin. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// Both are one node.
    #[error("cannot commit an image into itself")]
    Itself,
    /// The base is not below the top.
    #[error("'{0}' is not in this backing file chain")]
    NotInChain(String),
    /// No header changes that could name the base.
    #[error("'backing-file' specified, but 'top' is the active layer")]
    Active,
    /// A header cannot name the base.
    #[error("{0}: a name for headers has to be given")]
    NoName(String),
    /// Another job has a node of the chain.
    #[error("Node '{node}' is busy: {reason}")]
    Busy {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// The job cannot be made.
    #[error(transparent)]
    Job(#[from] JobError),
    /// An active commit is a mirror to the base.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// Other users of a node do not agree.
    #[error(transparent)]
    Permission(#[from] PermissionError),
    /// A node cannot be made writable, or the name of the filter cannot be given.
    #[error(transparent)]
    Blockdev(#[from] BlockdevError),
    /// The filter cannot be inserted.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// There is no memory to keep track of so many granules.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Commit {
    /// Copies what is in `top`, and in its backing files above `base`, to `base`. It is active if something holds the
    /// permission to write to `top`, or nothing has it as its backing file.
    ///
    /// # Errors
    /// If the base is not below the top.
    pub fn new(top: Arc<BlockNode>, base: Arc<BlockNode>) -> Result<Commit, CommitError> {
        if Arc::ptr_eq(&top, &base) {
            return Err(CommitError::Itself);
        }
        if !top.chain().iter().any(|node| Arc::ptr_eq(node, &base)) {
            return Err(CommitError::NotInChain(base.name().to_owned()));
        }
        let is_written = top.held_permissions().contains(Permissions::WRITE);
        let is_active = is_written || top.overlays().is_empty();
        let (naming, on_error) = Default::default();
        Ok(Commit { top, base, is_active, naming, on_error, filter_name: None })
    }

    /// Whether it has to be completed.
    pub fn is_active(&self) -> bool {
        self.is_active
    }

    /// What the headers of images above call the base; by default the name of its file.
    #[must_use]
    pub fn backing_file(mut self, name: impl Into<String>) -> Commit {
        self.naming.file = Some(name.into());
        self
    }

    /// Whether headers call the format of a base `raw` that is a protocol, such as `file`.
    #[must_use]
    pub fn mask_protocol(mut self, masks: bool) -> Commit {
        self.naming.masks_protocol = masks;
        self
    }

    /// What is done when a copy fails.
    #[must_use]
    pub fn on_error(self, on_error: OnError) -> Commit {
        Commit { on_error, ..self }
    }

    /// The name of the filter that is above the top while the job is there. By default one that no option can have.
    #[must_use]
    pub fn filter_name(self, name: impl Into<String>) -> Commit {
        Commit { filter_name: Some(name.into()), ..self }
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
    ) -> Result<Rc<Job>, CommitError> {
        if let Some((node, reason)) =
            busy_node(self.between().iter().chain([&self.top, &self.base]))
        {
            return Err(CommitError::Busy { node, reason });
        }
        jobs.check_id(&options.id)?;
        if self.is_active {
            if let Some(name) = &self.filter_name {
                blockdevs.check_name(name)?;
            }
            if self.naming.file.is_some() {
                return Err(CommitError::Active);
            }
            let task = ActiveTask::new(self, blockdevs);
            let own = task.clone();
            return jobs.co_start(co, options, task, |co, job| own.co_set_up(co, job, blockdevs));
        }
        self.naming.of(&self.base).map_err(CommitError::NoName)?;
        let task = CommitTask::new(self, blockdevs);
        let own = task.clone();
        jobs.co_start(co, options, task, |co, job| own.co_set_up(co, job, blockdevs))
    }

    /// The nodes between the top and the base.
    pub(super) fn between(&self) -> Vec<Arc<BlockNode>> {
        let mut chain = self.top.chain();
        let base = chain.iter().position(|node| Arc::ptr_eq(node, &self.base));
        chain.truncate(base.unwrap_or(0));
        chain.drain(..1.min(chain.len()));
        chain
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commit")
            .field("top", &self.top.name())
            .field("base", &self.base.name())
            .field("is_active", &self.is_active)
            .finish_non_exhaustive()
    }
}
