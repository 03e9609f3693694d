//! [`ChildList`]: children that come and go, under one name and numbers.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::{Child, Edge, EdgeInfo, Held};
use crate::driver::role::ChildRole;
use crate::graph::node::BlockNode;

/// Children of a driver that all have the same role, such as the copies of a mirror. They are
/// [added](BlockNode::co_add_child) and [removed](BlockNode::co_remove_child) while the driver's node is
/// drained, if the [driver allows that](crate::BlockDriver::check_child). Any thread.
pub struct ChildList {
    name: &'static str,
    role: ChildRole,
    children: ArcSwap<Vec<Arc<Child>>>,
}

impl ChildList {
    /// Edges to these nodes, which are called `children.0` and so on if `name` is `children`.
    pub fn new(name: &'static str, role: ChildRole, nodes: Vec<Arc<BlockNode>>) -> ChildList {
        let children = nodes.into_iter().zip(0..).map(|(node, index)| {
            let (id, info) = (node.id(), EdgeInfo { name, index: Some(index), role });
            let held = Held::new(info, Edge::new(Some(node), false), Some(id), None);
            Arc::new(Child { held })
        });
        ChildList { name, role, children: ArcSwap::from_pointee(children.collect()) }
    }

    /// The children, by their numbers. During a request they stay the same. To be held for a request at
    /// most.
    #[inline]
    pub fn load(&self) -> Children {
        Children(self.children.load())
    }

    /// The name and role of the next child.
    pub(in crate::graph) fn next_info(&self) -> EdgeInfo {
        let last = self.load().last().and_then(|child| child.info().index);
        EdgeInfo { name: self.name, index: Some(last.map_or(0, |last| last + 1)), role: self.role }
    }

    /// Adds an edge to `node`, which the graph does not know to lead there yet. The owner is drained.
    pub(in crate::graph) fn push(
        &self,
        owner: &Arc<BlockNode>,
        node: &Arc<BlockNode>,
    ) -> Arc<Child> {
        let edge = Edge::new(Some(Arc::clone(node)), false);
        edge.set_owner(owner);
        let held = Held::new(self.next_info(), edge, None, Some(owner.id()));
        let child = Arc::new(Child { held });
        self.put_back(Arc::clone(&child));
        child
    }

    /// Takes a child out. The owner is drained.
    pub(in crate::graph) fn take(&self, child: &Child) -> Option<Arc<Child>> {
        let mut children = Vec::clone(&self.children.load());
        let place = children.iter().position(|it| it.id() == child.id())?;
        let taken = children.remove(place);
        self.children.store(Arc::new(children));
        Some(taken)
    }

    /// Puts a child in its place. The owner is drained.
    pub(in crate::graph) fn put_back(&self, child: Arc<Child>) {
        let mut children = Vec::clone(&self.children.load());
        let place = children.partition_point(|it| it.info().index < child.info().index);
        children.insert(place, child);
        self.children.store(Arc::new(children));
    }
}

/// The children of a [`ChildList`] at a moment.
pub struct Children(Guard<Arc<Vec<Arc<Child>>>>);

impl Deref for Children {
    type Target = [Arc<Child>];

    #[inline]
    fn deref(&self) -> &[Arc<Child>] {
        &self.0
    }
}
