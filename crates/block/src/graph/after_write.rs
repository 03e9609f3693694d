//! [`AfterWriteHook`]: users of a node's changes, which come and go while requests run.

use std::fmt;
use std::io;
use std::sync::Arc;

use coblk_aio::Co;

use super::has_no_limit;
use crate::graph::gate::WAIT_LIMIT;
use crate::graph::node::BlockNode;
use crate::io::after_write::{AfterWrite, Listed};

/// A user of a node's changes. It is told of them until [`co_remove`](Self::co_remove), or until
/// this is dropped; after a drop, requests in flight may still tell it.
#[must_use = "it is told of changes while this lives"]
pub struct AfterWriteHook {
    node: Arc<BlockNode>,
    listed: Listed,
}

impl BlockNode {
    /// Adds a user of changes, while requests run:
    ///
    /// * a change that begins after this has returned is told once;
    /// * one that began before is told once or not at all. A user that has to know of all changes that are
    ///   not complete now calls this in a drained section of the node.
    ///
    /// [Passes the contexts](Self::co_pass_contexts). Only the node's changes pay for its users. Any thread.
    ///
    /// # Errors
    /// ETIMEDOUT if a context does not poll. The hook is not added then.
    pub fn co_add_after_write(
        self: &Arc<Self>,
        co: &Co<'_>,
        hook: Arc<dyn AfterWrite>,
    ) -> io::Result<AfterWriteHook> {
        let listed = self.path.state.add_after_write(hook);
        let hook = AfterWriteHook { node: Arc::clone(self), listed };
        self.co_pass_contexts(co)?;
        Ok(hook)
    }
}

impl AfterWriteHook {
    /// Removes the user. When this has returned none of its calls is under way, and none will come. Must
    /// not be called by the user's own calls.
    ///
    /// # Errors
    /// ETIMEDOUT if a call has not returned after [`WAIT_LIMIT`]. There are no new ones then either.
    pub fn co_remove(self, co: &Co<'_>) -> io::Result<()> {
        let rest = self.listed.rest();
        drop(self);
        if has_no_limit(co) {
            rest.co_wait(co);
            return Ok(());
        }
        Ok(co.timeout(WAIT_LIMIT, "calls of a removed hook", move |co| rest.co_wait(co))?)
    }
}

impl Drop for AfterWriteHook {
    fn drop(&mut self) {
        self.node.path.state.remove_after_write(&self.listed);
    }
}

impl fmt::Debug for AfterWriteHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AfterWriteHook").field("node", &self.node.name()).finish_non_exhaustive()
    }
}
