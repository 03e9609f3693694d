//! The lengths of chains. Requests, and questions such as for the length, recurse through a chain, so its
//! length is bounded.
//!
//! Each node's height is kept. When edges turn it is found anew for the parents, step by step,
//! before an edge leads elsewhere; a change that would make one too high is refused. So nothing that
//! goes down a chain ever goes deeper, on any stack.

use super::{Graph, NodeId};
use crate::graph::node::BlockNode;

/// The most levels of children that a node may have.
pub(crate) const MAX_HEIGHT: usize = 256;

impl Graph {
    /// How many levels of children a node has, on the longest way down.
    pub(crate) fn height(&self, node: &BlockNode) -> usize {
        self.nodes.get(&node.id()).map_or(0, |entry| entry.height)
    }

    /// The height of a node with these children.
    pub(super) fn height_above(&self, children: &[NodeId]) -> usize {
        let entries = children.iter().filter_map(|id| self.nodes.get(id));
        entries.map(|entry| entry.height + 1).max().unwrap_or(0)
    }

    /// Finds the heights of these nodes, of their parents and theirs, anew. There are no cycles. Returns a
    /// node that is too high, if there is one.
    pub(super) fn measure(&mut self, nodes: Vec<NodeId>) -> Option<NodeId> {
        let mut too_high = None;
        let mut todo = nodes;
        while let Some(id) = todo.pop() {
            let height = self.height_above(&self.children(id));
            let Some(entry) = self.nodes.get_mut(&id) else { continue };
            if std::mem::replace(&mut entry.height, height) == height {
                continue;
            }
            if height > MAX_HEIGHT {
                too_high.get_or_insert(id);
            }
            todo.extend(self.parents(id));
        }
        too_high
    }
}
