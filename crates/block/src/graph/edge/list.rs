//! [`ChildList`]: children that come and go, under one name and numbers.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::{Child, Held, Parts};
use crate::driver::edge::{EdgeId, EdgeInfo, ListId};
use crate::driver::role::ChildRole;
use crate::graph::lock;
use crate::graph::node::BlockNode;

/// Children of a driver that all have the same role, such as the copies of a mirror. They are
/// [added](BlockNode::co_add_child) and [removed](BlockNode::co_remove_child) while the driver's node is
/// drained, if the [driver allows that](crate::BlockDriver::check_child). Any thread.
pub struct ChildList {
    list: Arc<List>,
}

/// The list as its driver, and the node of that driver, have it.
pub(crate) struct List {
    id: ListId,
    name: &'static str,
    role: ChildRole,
    children: ArcSwap<Vec<Arc<Child>>>,
}

impl ChildList {
    /// Edges to these nodes, which are called `children.0` and so on if `name` is `children`.
    pub fn new(name: &'static str, role: ChildRole, nodes: Vec<Arc<BlockNode>>) -> ChildList {
        let children = nodes.into_iter().zip(0..).map(|(node, index)| {
            let (index, node) = (Some(index), Some(node));
            let held = Held::new(Parts { name, index, role, is_slot: false, node });
            Arc::new(Child { held })
        });
        let children = ArcSwap::from_pointee(children.collect());
        let mut graph = lock();
        let id = ListId(graph.new_user_id().number());
        let list = Arc::new(List { id, name, role, children });
        graph.lists.insert(id, Arc::downgrade(&list));
        ChildList { list }
    }

    /// The id of the list, for its driver to [return](crate::BlockDriver::child_list).
    pub fn id(&self) -> ListId {
        self.list.id
    }

    /// The children, by their numbers. During a request they stay the same. To be held for a request at
    /// most.
    #[inline]
    pub fn load(&self) -> Children {
        self.list.load()
    }
}

impl Drop for ChildList {
    fn drop(&mut self) {
        lock().lists.remove(&self.list.id);
    }
}

impl List {
    #[inline]
    pub(in crate::graph) fn load(&self) -> Children {
        Children(self.children.load())
    }

    /// The next child, by this id.
    pub(in crate::graph) fn next_info(&self, id: EdgeId) -> EdgeInfo {
        let last = self.load().last().and_then(|child| child.info().index());
        EdgeInfo::new(id, self.name, Some(last.map_or(0, |last| last + 1)), self.role)
    }

    /// Adds an edge to `node`, which the graph does not know to lead there yet. The owner is drained.
    pub(in crate::graph) fn push(
        &self,
        info: EdgeInfo,
        owner: &Arc<BlockNode>,
        node: &Arc<BlockNode>,
    ) -> Arc<Child> {
        let child = Arc::new(Child { held: Held::pending(info, owner, node) });
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
        let place = children.partition_point(|it| it.info().index() < child.info().index());
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
