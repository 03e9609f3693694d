//! [`Stream`]: which node gets the bytes of which backing files.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{BlockNode, BlockdevError, Blockdevs, GraphError, PermissionError};

use super::task::{StreamTask, co_set_up};
use crate::chain::{Naming, busy_node};
use crate::{Job, JobError, JobOptions, Jobs, OnError};

/// A copy of what the backing files of a node have to the node itself. When it is done, the node has the base as its
/// backing file, or none; the nodes in between stay open if they were opened by themselves. Guests go on meanwhile.
pub struct Stream {
    pub(super) top: Arc<BlockNode>,
    /// The last node that is copied from; to the end of the chain without one.
    pub(super) bottom: Option<Arc<BlockNode>>,
    pub(super) naming: Naming,
    pub(super) on_error: OnError,
    pub(super) filter_name: Option<String>,
}

/// Why a stream does not begin. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The base is not below the node.
    #[error("Node '{base}' is not a backing image of '{node}'")]
    NotBelow {
        /// The base.
        base: String,
        /// The node.
        node: String,
    },
    /// The bottom is not below the node.
    #[error("Node '{bottom}' is not in a chain starting from '{node}'")]
    NotInChain {
        /// The bottom.
        bottom: String,
        /// The node.
        node: String,
    },
    /// The bottom is a filter.
    #[error("Node '{0}' is a filter, use a non-filter node as 'bottom'")]
    Filter(String),
    /// There will be no backing file that could have a name.
    #[error("backing file specified, but streaming the entire chain")]
    NoBacking,
    /// The header cannot name the base.
    #[error("{0}: a name for the header has to be given")]
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
    /// Other users of a node do not agree.
    #[error(transparent)]
    Permission(#[from] PermissionError),
    /// A node cannot be made writable, or the name of the filter cannot be given.
    #[error(transparent)]
    Blockdev(#[from] BlockdevError),
    /// The filter cannot be inserted.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl Stream {
    /// Copies what all backing files of a node have.
    pub fn new(top: Arc<BlockNode>) -> Stream {
        let (naming, on_error) = Default::default();
        Stream { top, bottom: None, naming, on_error, filter_name: None }
    }

    /// Copies what the backing files above `base` have, which stays.
    ///
    /// # Errors
    /// If it is not below the node.
    pub fn above(self, base: &Arc<BlockNode>) -> Result<Stream, StreamError> {
        let chain = self.top.chain();
        let place = chain.iter().position(|node| Arc::ptr_eq(node, base));
        let not_below = || StreamError::NotBelow {
            base: base.name().to_owned(),
            node: self.top.name().to_owned(),
        };
        let above = place.and_then(|place| place.checked_sub(1)).ok_or_else(not_below)?;
        Ok(Stream { bottom: Some(Arc::clone(&chain[above])), ..self })
    }

    /// Copies what the backing files down to `bottom` have, this one included.
    ///
    /// # Errors
    /// If it is not in the chain of the node, or is a filter.
    pub fn down_to(self, bottom: &Arc<BlockNode>) -> Result<Stream, StreamError> {
        if bottom.filter_child().is_some() {
            return Err(StreamError::Filter(bottom.name().to_owned()));
        }
        if !self.top.chain().iter().any(|node| Arc::ptr_eq(node, bottom)) {
            let (bottom, node) = (bottom.name().to_owned(), self.top.name().to_owned());
            return Err(StreamError::NotInChain { bottom, node });
        }
        Ok(Stream { bottom: Some(Arc::clone(bottom)), ..self })
    }

    /// What the header calls the base; by default the name of its file.
    #[must_use]
    pub fn backing_file(mut self, name: impl Into<String>) -> Stream {
        self.naming.file = Some(name.into());
        self
    }

    /// Whether the header calls the format of a base `raw` that is a protocol, such as `file`.
    #[must_use]
    pub fn mask_protocol(mut self, masks: bool) -> Stream {
        self.naming.masks_protocol = masks;
        self
    }

    /// What is done when a copy fails. What is ignored is left out, and the job fails at its end.
    #[must_use]
    pub fn on_error(self, on_error: OnError) -> Stream {
        Stream { on_error, ..self }
    }

    /// The name of the filter that is above the node while the job is there. By default one that no option can have.
    #[must_use]
    pub fn filter_name(self, name: impl Into<String>) -> Stream {
        Stream { filter_name: Some(name.into()), ..self }
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
    ) -> Result<Rc<Job>, StreamError> {
        self.check()?;
        jobs.check_id(&options.id)?;
        if let Some(name) = &self.filter_name {
            blockdevs.check_name(name)?;
        }
        let task = StreamTask::new(self, blockdevs);
        let own = task.clone();
        jobs.co_start(co, options, task, |co, job| co_set_up(co, &own, job, blockdevs))
    }

    fn check(&self) -> Result<(), StreamError> {
        if let Some((node, reason)) = busy_node(self.sources().iter().chain([&self.top])) {
            return Err(StreamError::Busy { node, reason });
        }
        match self.base() {
            None if self.naming.file.is_some() => Err(StreamError::NoBacking),
            None => Ok(()),
            Some(base) => self.naming.of(&base).map(drop).map_err(StreamError::NoName),
        }
    }

    /// The node that is the backing file at the end, as the chain is now.
    pub(super) fn base(&self) -> Option<Arc<BlockNode>> {
        self.bottom.as_ref().and_then(|bottom| bottom.next_in_chain())
    }

    /// The image that is copied to, below filters.
    pub(super) fn image(&self) -> Arc<BlockNode> {
        self.top.skip_filters()
    }

    /// The nodes that are copied from.
    pub(super) fn sources(&self) -> Vec<Arc<BlockNode>> {
        let Some(first) = self.image().backing_child() else { return Vec::new() };
        let image = self.image();
        if self.bottom.as_ref().is_some_and(|bottom| Arc::ptr_eq(bottom, &image)) {
            return Vec::new();
        }
        let mut sources = first.chain();
        if let Some(bottom) = &self.bottom {
            let last = sources.iter().position(|node| Arc::ptr_eq(node, bottom));
            sources.truncate(last.map_or(0, |last| last + 1));
        }
        sources
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("top", &self.top.name())
            .field("bottom", &self.bottom.as_ref().map(|node| node.name()))
            .finish_non_exhaustive()
    }
}
