//! [`ChildSlot`]: an edge that may be empty.

use std::sync::Arc;

use super::{EdgeRef, Held, Loaded, Parts};
use crate::driver::debug_event::DebugEvent;
use crate::driver::edge::{EdgeId, EdgeInfo};
use crate::driver::role::ChildRole;
use crate::graph::node::BlockNode;

/// A place for a child that a driver may have or not, such as a backing file. The driver asks it on each
/// request. It is [attached](BlockNode::co_attach), [detached](BlockNode::co_detach) and
/// [changed](BlockNode::co_set_child) while the driver's node is drained. Any thread.
pub struct ChildSlot {
    held: Held,
}

impl ChildSlot {
    /// A slot for a child with this role; `None` leaves it empty. Its name is that of the option that
    /// says which node is there, such as `backing`.
    pub fn new(name: &'static str, role: ChildRole, node: Option<Arc<BlockNode>>) -> ChildSlot {
        ChildSlot { held: Held::new(Parts { name, index: None, role, is_slot: true, node }) }
    }

    /// Name and role.
    pub fn info(&self) -> &EdgeInfo {
        &self.held.0.info
    }

    /// The id of the edge, for its driver to [list](crate::BlockDriver::children).
    #[inline]
    pub fn id(&self) -> EdgeId {
        self.held.0.info.id()
    }

    /// The edge, for [`co_read_mapped`](crate::co_read_mapped).
    #[inline]
    pub fn edge(&self) -> EdgeRef<'_> {
        EdgeRef(&self.held.0)
    }

    /// The child, or `None` if the slot is empty. During a request the answer stays the same. Costs
    /// one load, as a request through a [`Child`](super::Child) does; requests through the returned
    /// reference cost no other.
    #[inline]
    pub fn get(&self) -> Option<ChildRef<'_>> {
        let node = self.held.0.node.load();
        node.is_some().then(|| ChildRef { slot: self, node: Loaded(node) })
    }

    /// The node, at this moment, or `None` if the slot is empty.
    pub fn node(&self) -> Option<Arc<BlockNode>> {
        self.held.0.node.load_full()
    }
}

/// The child in a [`ChildSlot`]. To be held for a request at most.
pub struct ChildRef<'a> {
    slot: &'a ChildSlot,
    node: Loaded,
}

impl ChildRef<'_> {
    /// Name and role of the slot.
    pub fn info(&self) -> &EdgeInfo {
        &self.slot.held.0.info
    }

    /// [`Child::debug_event`](super::Child::debug_event).
    #[inline]
    pub fn debug_event(&self, event: DebugEvent) {
        self.node.path.debug_event(event);
    }

    /// The node.
    pub fn node(&self) -> Arc<BlockNode> {
        Arc::clone(self.node.arc())
    }

    #[inline]
    pub(super) fn load(&self) -> &BlockNode {
        &self.node
    }
}
