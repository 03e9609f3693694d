//! Users of a node's changes come and go.

use std::sync::Arc;

use super::DrainedSection;
use crate::graph::node::BlockNode;
use crate::io::after_write::AfterWrite;

/// A user of a node's changes is told until this is dropped; requests in flight then may still tell it
/// once.
#[must_use = "it is told of changes while this lives"]
pub struct AfterWriteHook {
    node: Arc<BlockNode>,
    hook: Arc<dyn AfterWrite>,
}

impl BlockNode {
    /// `hook` is told of every change that begins after the drained section has ended. Any thread.
    ///
    /// # Panics
    /// If the section is not of this node or one below.
    pub fn add_after_write(
        self: &Arc<Self>,
        drained: &DrainedSection,
        hook: Arc<dyn AfterWrite>,
    ) -> AfterWriteHook {
        drained.demand(self);
        self.path.state.add_after_write(&hook);
        AfterWriteHook { node: Arc::clone(self), hook }
    }
}

impl Drop for AfterWriteHook {
    fn drop(&mut self) {
        self.node.path.state.remove_after_write(&self.hook);
    }
}
