//! [`Action`]: a part of a transaction.

use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::BlockNode;

use crate::JobGroup;

/// Why an action cannot take effect.
pub type ActionError = Box<dyn Error + Send + Sync>;

/// A part of a transaction. Its methods are called on the transaction's thread, in this order:
///
/// ```text
/// nodes     of all actions, then these nodes are drained
/// prepare   of each in turn, until one fails
/// commit    of all, the last first; or abort, of those that are prepared
/// clean     of those that are prepared, the last first
/// ```
///
/// A panic of one of them does not keep the others from theirs. From `prepare` to `clean` no other change of the graph
/// is made, and no request is under way at the nodes. The action's own changes of the graph, such as
/// [`BlockNode::co_insert_filter`], and its own I/O, such as that of [`BlockNode::co_image`], go on, if they are made
/// by the coroutine that calls it.
pub trait Action {
    /// Its name, for messages: that of the command that does the same.
    fn name(&self) -> &'static str;

    /// The nodes that are to be drained, of those that are there before anything is prepared.
    fn nodes(&self) -> Vec<Arc<BlockNode>>;

    /// Whether it starts a job, which can be in a group.
    fn starts_job(&self) -> bool {
        false
    }

    /// Does what may fail, and can be undone. One that fails has changed nothing.
    ///
    /// # Errors
    /// Whatever keeps it from taking effect.
    fn co_prepare(&mut self, co: &Co<'_>, cx: &Preparing) -> Result<(), ActionError>;

    /// Makes it take effect. Cannot fail.
    fn co_commit(&mut self, _co: &Co<'_>) {}

    /// Undoes what was prepared.
    fn co_abort(&mut self, _co: &Co<'_>) {}

    /// The end, after a commit or an abort.
    fn co_clean(&mut self, _co: &Co<'_>) {}

    /// The coroutine is unwound, as its context ends, and what was prepared is neither committed nor aborted: undoes
    /// what can be undone without a wait.
    fn unwind(&mut self) {}
}

/// What actions are told when they are prepared.
pub struct Preparing {
    group: Option<Rc<JobGroup>>,
}

impl Preparing {
    pub(super) fn new(group: Option<Rc<JobGroup>>) -> Preparing {
        Preparing { group }
    }

    /// The group of a job that the action makes: one for all, or one of its own.
    pub fn group(&self) -> Rc<JobGroup> {
        self.group.clone().unwrap_or_default()
    }
}

/// Finds the node of an action: a node, or a function that looks for it. An action looks when it is prepared, as
/// one before it may have made the node.
pub trait FindNode {
    /// The node.
    ///
    /// # Errors
    /// If there is none.
    fn find(&self) -> Result<Arc<BlockNode>, ActionError>;
}

impl FindNode for Arc<BlockNode> {
    fn find(&self) -> Result<Arc<BlockNode>, ActionError> {
        Ok(Arc::clone(self))
    }
}

impl<F: Fn() -> Result<Arc<BlockNode>, ActionError>> FindNode for F {
    fn find(&self) -> Result<Arc<BlockNode>, ActionError> {
        self()
    }
}

/// Fails: for tests of what is taken back.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct AbortAction;

impl AbortAction {
    /// One.
    pub fn new() -> AbortAction {
        AbortAction
    }
}

impl Action for AbortAction {
    fn name(&self) -> &'static str {
        "abort"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        Vec::new()
    }

    fn co_prepare(&mut self, _: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        Err("Transaction aborted using Abort action".into())
    }
}
