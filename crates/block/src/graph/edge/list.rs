//! [`ChildList`]: children that come and go, under one name and numbers.

use std::ops::Deref;
use std::sync::{Arc, Weak};

use arc_swap::{ArcSwap, Guard};

use super::{Child, Held};
use crate::driver::edge::{EdgeId, EdgeInfo, ListId};
use crate::driver::role::ChildRole;
use crate::graph::node::BlockNode;
use crate::graph::{Graph, lock};

/// The most children that a list has: no longer are the lists of a command line.
pub(crate) const MAX_CHILDREN: usize = 1024;

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
        let children = nodes.into_iter().zip(0..);
        let children = children.map(|(node, index)| Child::make(name, Some(index), role, node));
        ChildList::of(name, role, children.collect())
    }

    /// These edges, which have this name, their numbers and this role.
    pub(crate) fn of(name: &'static str, role: ChildRole, children: Vec<Child>) -> ChildList {
        let children = children.into_iter().map(Arc::new).collect();
        let children = ArcSwap::from_pointee(children);
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
    pub(crate) fn load(&self) -> Children {
        Children(self.children.load())
    }

    pub(crate) fn id(&self) -> ListId {
        self.id
    }

    /// The name of the list.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The role of its children.
    pub(crate) fn role(&self) -> ChildRole {
        self.role
    }

    /// The child by this id that comes after `others` new ones.
    pub(crate) fn next_info(&self, id: EdgeId, others: u32) -> EdgeInfo {
        let last = self.load().last().and_then(|child| child.info().index());
        let index = last.map_or(0, |last| last + 1) + others;
        EdgeInfo::new(id, self.name, Some(index), self.role)
    }

    /// An edge of `owner` that leads nowhere, until it is [turned](crate::graph::Turned) to a node; it is
    /// [put](Self::put) into the list then, and not before: a driver must find no child that is above it.
    pub(crate) fn pending(info: EdgeInfo, owner: &Arc<BlockNode>) -> Arc<Child> {
        Arc::new(Child { held: Held::pending(info, owner) })
    }

    /// Takes a child out. The owner is drained.
    pub(crate) fn take(&self, child: &Child) -> Option<Arc<Child>> {
        let mut children = Vec::clone(&self.children.load());
        let place = children.iter().position(|it| it.id() == child.id())?;
        let taken = children.remove(place);
        self.children.store(Arc::new(children));
        Some(taken)
    }

    /// Puts a child in its place. The owner is drained.
    pub(crate) fn put(&self, child: Arc<Child>) {
        let mut children = Vec::clone(&self.children.load());
        let place = children.partition_point(|it| it.info().index() < child.info().index());
        children.insert(place, child);
        self.children.store(Arc::new(children));
    }
}

impl Graph {
    /// The list of a driver.
    pub(crate) fn list(&self, id: ListId) -> Weak<List> {
        self.lists.get(&id).cloned().unwrap_or_default()
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
