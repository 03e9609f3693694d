//! The nodes around one in a chain of images: below filters, in backing files, and in overlays.

use std::sync::Arc;

use crate::driver::permissions::Permissions;
use crate::driver::role::ChildRole;
use crate::graph::node::BlockNode;
use crate::graph::{Edge, Graph, Kind, lock};

/// The graph as it is at this moment. Any thread.
impl BlockNode {
    /// The node below a [filter](crate::BlockDriver::is_filter).
    pub fn filter_child(&self) -> Option<Arc<BlockNode>> {
        self.filtered().filter(|_| self.driver().is_filter())
    }

    /// The node that has what the driver's own storage does not have: the backing file.
    pub fn backing_child(&self) -> Option<Arc<BlockNode>> {
        self.backing()
    }

    /// The name of the driver's slot for a backing file, if it has one, such as `backing`.
    pub fn backing_slot(&self) -> Option<&'static str> {
        let is_slot =
            |edge: &&Arc<Edge>| edge.is_slot() && edge.info().role().contains(ChildRole::COW);
        self.edges().iter().find(is_slot).map(|edge| edge.info().name())
    }

    /// The next node of the chain: below a filter, or else the backing file.
    pub fn next_in_chain(&self) -> Option<Arc<BlockNode>> {
        self.filter_child().or_else(|| self.backing())
    }

    /// The node itself, or the one below all filters on top of it.
    pub fn skip_filters(self: &Arc<Self>) -> Arc<BlockNode> {
        let mut node = Arc::clone(self);
        while let Some(below) = node.filter_child() {
            node = below;
        }
        node
    }

    /// The node and those below it in the chain, down to the last.
    pub fn chain(self: &Arc<Self>) -> Vec<Arc<BlockNode>> {
        std::iter::successors(Some(Arc::clone(self)), |node| node.next_in_chain()).collect()
    }

    /// Whether another node is this one, or below it.
    pub(crate) fn leads_to(&self, other: &BlockNode) -> bool {
        lock().closure(self.id(), Graph::children).contains(&other.id())
    }

    /// The nodes that have this one as their backing file, themselves or through filters.
    pub fn overlays(&self) -> Vec<Arc<BlockNode>> {
        let mut graph = lock();
        let (mut todo, mut found) = (vec![self.id()], Vec::new());
        while let Some(node) = todo.pop() {
            for user in graph.entry(node).users.clone() {
                let user = graph.users.get(&user).map(|user| &user.kind);
                let Some(Kind::Edge { info, parent: Some(parent), .. }) = user else { continue };
                let (role, parent) = (info.role(), *parent);
                let Some(parent) = graph.node(parent) else { continue };
                if role.contains(ChildRole::COW) {
                    found.push(parent);
                } else if parent.driver().is_filter() {
                    todo.push(parent.id());
                }
            }
        }
        found
    }

    /// Bytes that its image, or that of the node below filters, stores together; 1 where there are no clusters.
    pub fn cluster_size(self: &Arc<Self>) -> u64 {
        let node = self.skip_filters();
        let info = node.driver().image().and_then(|image| image.info().ok());
        info.and_then(|info| info.cluster_size).filter(|bytes| *bytes > 0).unwrap_or(1)
    }

    /// The permissions that the users of this node hold together.
    pub fn held_permissions(&self) -> Permissions {
        let graph: &Graph = &lock();
        graph.nodes.get(&self.id()).map_or(Permissions::empty(), |entry| entry.granted.held)
    }
}
