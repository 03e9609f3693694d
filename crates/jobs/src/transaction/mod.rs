//! [`Transaction`]: actions that all take effect, or none of them, at one instant.
//!
//! ```text
//! action    Action: what a transaction is made of
//! bitmaps   actions on dirty bitmaps
//! filters   filters that come and go
//! snapshots snapshots inside of images
//! start     jobs that begin with a transaction
//! ```
//!
//! What holds:
//!
//! 1. No other change of the graph comes between the first `prepare` and the last `clean`.
//! 2. The nodes of all actions are drained from before the first `prepare` to behind the last `clean`, those that
//!    were there at the beginning: a request is before all actions or after all of them. A node that an action
//!    makes above one of them is quiesced with it.
//! 3. Of actions whose `prepare` has succeeded either all commit, or all abort, whichever panics. If the coroutine is
//!    unwound before, as its context ends, each takes back what needs no wait: bits, names, jobs.

mod action;
mod bitmaps;
mod filters;
mod snapshots;
mod start;

use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{BlockNode, GraphError, JointChange};

use crate::JobGroup;
pub use action::{AbortAction, Action, ActionError, FindNode, Preparing};
pub use bitmaps::{AddBitmap, BitmapAt, ClearBitmap, MergeBitmaps, RecordBitmap, RemoveBitmap};
pub use filters::{InsertFilter, RemoveFilter};
pub use snapshots::{CreateSnapshot, SnapshotError, co_create_snapshot};
pub use start::StartJob;

/// How the jobs that a transaction starts end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompletionMode {
    /// Each for itself.
    #[default]
    Individual,
    /// Together: they take effect when all have done their work, and if one fails all are given up.
    Grouped,
}

impl CompletionMode {
    /// As QAPI calls it.
    pub fn name(self) -> &'static str {
        match self {
            CompletionMode::Individual => "individual",
            CompletionMode::Grouped => "grouped",
        }
    }
}

/// Why a transaction has no effect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// An action starts no job that could end with others. Nothing was begun.
    #[error("Action '{action}' does not support transaction property completion-mode = {mode}")]
    CompletionMode {
        /// The name of the action.
        action: &'static str,
        /// The mode.
        mode: &'static str,
    },
    /// Requests of a node, or another change, do not end.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// An action cannot take effect. Those before it were taken back.
    #[error("{source}")]
    Action {
        /// Which, counted from 0.
        place: usize,
        /// Why.
        source: ActionError,
    },
}

/// Actions in the making of one step. All of them take effect, or none: but what a job does that one of them
/// starts, and files that were created, are not taken back.
///
/// ```
/// use std::sync::Arc;
///
/// use coblk_aio::AioContext;
/// use coblk_block::{BlockNode, NewBitmap, drivers::Null};
/// use coblk_jobs::{AddBitmap, BitmapAt, RecordBitmap, Transaction};
///
/// # let options = coblk_block::drivers::NullOptions::default();
/// let ctx = AioContext::new()?;
/// let disk = BlockNode::new("disk", Null::new(1 << 30));
/// ctx.run(|co| {
///     disk.co_add_bitmap(co, NewBitmap::new("monday".to_owned(), 65536))?;
///     // A write is in the one bitmap or in the other.
///     Transaction::new()
///         .action(RecordBitmap::new(BitmapAt::new(Arc::clone(&disk), "monday"), false))
///         .action(AddBitmap::new(Arc::clone(&disk), NewBitmap::new("tuesday".to_owned(), 65536)))
///         .co_run(co)?;
///     Ok::<_, Box<dyn std::error::Error>>(())
/// })?;
/// assert_eq!(disk.bitmaps().list().len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct Transaction {
    actions: Vec<Box<dyn Action>>,
    mode: CompletionMode,
}

impl Transaction {
    /// One without actions.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// How its jobs end.
    #[must_use]
    pub fn completion_mode(self, mode: CompletionMode) -> Transaction {
        Transaction { mode, ..self }
    }

    /// Adds an action behind the others.
    #[must_use]
    pub fn action(mut self, action: impl Action + 'static) -> Transaction {
        self.actions.push(Box::new(action));
        self
    }

    /// [`action`](Self::action), of a type that only its maker knows.
    #[must_use]
    pub fn boxed(mut self, action: Box<dyn Action>) -> Transaction {
        self.actions.push(action);
        self
    }

    /// Carries the actions out. Each sees what those before it have done. Must not be called from a request's own
    /// callback, as requests are waited for; all contexts with backends on the nodes must be polling.
    ///
    /// # Errors
    /// If an action cannot be grouped, or prepared; if other changes, or requests of the nodes, have not ended
    /// within [`WAIT_LIMIT`](coblk_block::WAIT_LIMIT). Nothing has changed then.
    pub fn co_run(self, co: &Co<'_>) -> Result<(), TransactionError> {
        let Transaction { actions, mode } = self;
        if mode == CompletionMode::Grouped {
            let alone = actions.iter().find(|action| !action.starts_job());
            alone.map_or(Ok(()), |action| {
                let (action, mode) = (action.name(), mode.name());
                Err(TransactionError::CompletionMode { action, mode })
            })?;
        }
        if actions.is_empty() {
            return Ok(());
        }
        let joint = JointChange::co_begin(co, &nodes(&actions))?;
        let group = (mode == CompletionMode::Grouped).then(JobGroup::new);
        let mut prepared = Prepared { actions, count: 0 };
        let failed = prepared.co_prepare(co, &Preparing::new(group));
        prepared.co_end(co, failed.is_none());
        joint.co_end(co);
        failed.map_or(Ok(()), |(place, source)| Err(TransactionError::Action { place, source }))
    }
}

/// The nodes that are there, each once.
fn nodes(actions: &[Box<dyn Action>]) -> Vec<Arc<BlockNode>> {
    let mut nodes: Vec<Arc<BlockNode>> = Vec::new();
    for node in actions.iter().flat_map(|action| action.nodes()) {
        if !nodes.iter().any(|known| Arc::ptr_eq(known, &node)) {
            nodes.push(node);
        }
    }
    nodes
}

/// The actions, of which the first so many are prepared, and have not ended.
struct Prepared {
    actions: Vec<Box<dyn Action>>,
    count: usize,
}

impl Prepared {
    /// Returns which action has failed, and why.
    fn co_prepare(&mut self, co: &Co<'_>, preparing: &Preparing) -> Option<(usize, ActionError)> {
        for (place, action) in self.actions.iter_mut().enumerate() {
            // Those before it are taken back in any case; the panic has been reported.
            let prepared = co.catch_unwind(|| action.co_prepare(co, preparing));
            match prepared.unwrap_or_else(|_| Err("the action panicked".into())) {
                Ok(()) => self.count = place + 1,
                Err(error) => return Some((place, error)),
            }
        }
        None
    }

    /// Commits those that are prepared, or aborts them, and cleans them.
    fn co_end(mut self, co: &Co<'_>, commits: bool) {
        let prepared = self.count;
        for action in self.actions[..prepared].iter_mut().rev() {
            // The hook of panics has reported it, and the others are to end as well.
            let _ = co
                .catch_unwind(|| if commits { action.co_commit(co) } else { action.co_abort(co) });
            self.count -= 1;
        }
        for action in self.actions[..prepared].iter_mut().rev() {
            let _ = co.catch_unwind(|| action.co_clean(co));
        }
    }
}

/// Of a coroutine that is unwound: what has not ended is taken back.
impl Drop for Prepared {
    fn drop(&mut self) {
        self.actions[..self.count].iter_mut().rev().for_each(|action| action.unwind());
    }
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.actions.iter().map(|action| action.name()).collect();
        f.debug_struct("Transaction").field("actions", &names).field("mode", &self.mode).finish()
    }
}
