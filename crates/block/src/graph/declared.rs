//! That drivers list no edges but those that the graph has as theirs.
//!
//! Drains, permissions and the refusal of cycles go by the edges that a driver lists when its node is made. A
//! driver that comes by another one later would send requests past all of these; if that edge leads to the
//! driver's own node, they recurse without end. So a node, and all that it leads to, is looked at before it gets
//! a user that holds permissions, or a parent. Requests pay nothing for it.
//!
//! An edge that its driver does not list at all is like that of a driver that is being made: it cannot be found.

use std::sync::{Arc, Weak};

use super::edge::{Edge, List};
use super::lock;
use crate::driver::edge::EdgeId;
use crate::driver::permissions::PermissionError;
use crate::graph::node::BlockNode;

impl BlockNode {
    /// That its driver, and those of all nodes that it leads to, have no edges that came after their nodes.
    /// Asks drivers, so it is not to be called under the lock of the graph.
    ///
    /// # Errors
    /// Which node has such an edge.
    pub(crate) fn check_declared(&self) -> Result<(), PermissionError> {
        self.check_own_declared()?;
        // In a statement of its own: the lock must be free while drivers are asked.
        let below = lock().nodes_below(self);
        below.iter().try_for_each(|node| node.check_own_declared())
    }

    /// [`check_declared`](Self::check_declared) of the children that a node is to be made with.
    pub(super) fn check_children_declared(
        edges: &[Arc<Edge>],
        list: &Weak<List>,
    ) -> Result<(), PermissionError> {
        let mut single = edges.iter().filter_map(|edge| edge.node());
        single.try_for_each(|child| child.check_declared())?;
        let Some(list) = list.upgrade() else { return Ok(()) };
        list.load().iter().try_for_each(|child| child.node().check_declared())
    }

    /// [`check_declared`](Self::check_declared), of its own driver alone.
    pub(crate) fn check_own_declared(&self) -> Result<(), PermissionError> {
        let is_known = |id: &EdgeId| self.edges().iter().any(|edge| edge.info().id() == *id);
        let late = self.driver().children().into_iter().find(|id| !is_known(id));
        let child = match (late, self.driver().child_list()) {
            (Some(id), _) => lock().edges(&[id]).first().map(|edge| edge.info().label()),
            (None, Some(list)) if !self.has_list(list) => {
                lock().list(list).upgrade().map(|list| list.name().into())
            }
            _ => None,
        };
        match child {
            // One that has gone leads nowhere.
            None => Ok(()),
            Some(child) => {
                let (node, child) = (self.name().to_owned(), child.into_owned());
                Err(PermissionError::Undeclared { node, child })
            }
        }
    }
}
