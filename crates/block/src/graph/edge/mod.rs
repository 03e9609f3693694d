//! Edges: how a driver holds its children.
//!
//! An edge has a name and a role, and leads to a node. [`Child`] always does; a [`ChildSlot`] may be
//! empty; a [`ChildList`] gets and loses children. A driver lists them in
//! [`BlockDriver::children`](crate::BlockDriver::children), [`slots`](crate::BlockDriver::slots) and
//! [`child_list`](crate::BlockDriver::child_list), so that a drain of a child reaches the parent, and
//! so that an edge can turn to another node while the parent is drained.
//!
//! A request that goes down an edge pays for one `arc-swap` load. What that loads is held for the
//! whole request: an edge does not turn while a request is inside.

mod list;
mod requests;
mod slot;

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::{ArcSwapOption, Guard};

use super::{Kind, NodeId, UserId, lock};
use crate::driver::role::ChildRole;
use crate::graph::node::BlockNode;
pub use list::{ChildList, Children};
pub use slot::{ChildRef, ChildSlot};

/// What an edge is called, and what its child is for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeInfo {
    name: &'static str,
    index: Option<u32>,
    role: ChildRole,
}

impl EdgeInfo {
    /// The name of the option that says which node the child is, such as `file`. The children of a list
    /// share one.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The number in a list.
    pub fn index(&self) -> Option<u32> {
        self.index
    }

    /// What the child is for the driver.
    pub fn role(&self) -> ChildRole {
        self.role
    }

    /// The name by which commands and messages know the edge: `file`, or `children.0` in a list.
    pub fn label(&self) -> Cow<'static, str> {
        match self.index {
            None => self.name.into(),
            Some(index) => format!("{}.{index}", self.name).into(),
        }
    }
}

impl fmt::Display for EdgeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label())
    }
}

/// The end of an edge that a driver holds. It changes only while the parent is drained.
pub(crate) struct Edge {
    node: ArcSwapOption<BlockNode>,
    is_slot: bool,
    /// The node whose driver holds it, as soon as there is one.
    owner: OnceLock<Weak<BlockNode>>,
}

impl Edge {
    fn new(node: Option<Arc<BlockNode>>, is_slot: bool) -> Arc<Edge> {
        let owner = OnceLock::new();
        Arc::new(Edge { node: ArcSwapOption::new(node), is_slot, owner })
    }

    /// Whether it may be empty.
    pub(super) fn is_slot(&self) -> bool {
        self.is_slot
    }

    pub(super) fn leads_to(&self) -> Option<NodeId> {
        self.node.load().as_ref().map(|node| node.id())
    }

    /// Turns the edge to `node`; returns where it led. Only a slot becomes empty: other edges that are
    /// to lead nowhere are dropped by their driver, and lead where they did until then.
    pub(super) fn swap(&self, node: Option<Arc<BlockNode>>) -> Option<Arc<BlockNode>> {
        match node {
            None if !self.is_slot => self.node.load_full(),
            node => self.node.swap(node),
        }
    }

    /// The driver that holds it is this node's.
    pub(super) fn set_owner(&self, owner: &Arc<BlockNode>) {
        // It has one owner for its life.
        let _ = self.owner.set(Arc::downgrade(owner));
    }
}

/// An edge that is in the graph until this is dropped.
struct Held {
    info: EdgeInfo,
    edge: Arc<Edge>,
    id: UserId,
}

impl Held {
    /// An edge that uses `node`, and is that of a node's driver if `parent` says so.
    fn new(info: EdgeInfo, edge: Arc<Edge>, node: Option<NodeId>, parent: Option<NodeId>) -> Held {
        let kind = Kind::Edge { info, edge: Arc::downgrade(&edge), parent, frozen: None };
        let id = lock().add_edge(node, kind);
        Held { info, edge, id }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        super::remove_user(self.id);
    }
}

/// An edge from a driver to a node, which it always has; the node may become another one. Requests go
/// down an edge as they do to the node itself, with the same errors. Any thread.
pub struct Child {
    held: Held,
}

impl Child {
    /// An edge to `node`, which has this role for the driver. Its name is that of the option that says
    /// which node it is, such as `file`.
    pub fn new(name: &'static str, role: ChildRole, node: Arc<BlockNode>) -> Child {
        let (id, info) = (node.id(), EdgeInfo { name, index: None, role });
        Child { held: Held::new(info, Edge::new(Some(node), false), Some(id), None) }
    }

    /// The name of the option that says which node it is, such as `file`.
    pub fn name(&self) -> &'static str {
        self.held.info.name
    }

    /// What the node is for the driver.
    pub fn role(&self) -> ChildRole {
        self.held.info.role
    }

    /// Name and role.
    pub fn info(&self) -> &EdgeInfo {
        &self.held.info
    }

    pub(crate) fn id(&self) -> UserId {
        self.held.id
    }

    /// The node, at this moment.
    pub fn node(&self) -> Arc<BlockNode> {
        Arc::clone(self.load().arc())
    }

    /// The node whose driver holds this edge; while that driver is being made, the child.
    pub(crate) fn owner(&self) -> Arc<BlockNode> {
        let owner = self.held.edge.owner.get().and_then(Weak::upgrade);
        owner.unwrap_or_else(|| self.node())
    }

    #[inline]
    fn load(&self) -> Loaded {
        Loaded(self.held.edge.node.load())
    }
}

/// The node that an edge leads to, for as long as this lives.
struct Loaded(Guard<Option<Arc<BlockNode>>>);

impl Loaded {
    #[inline]
    fn arc(&self) -> &Arc<BlockNode> {
        self.0.as_ref().expect("an edge that is no slot leads to a node")
    }
}

impl Deref for Loaded {
    type Target = BlockNode;

    #[inline]
    fn deref(&self) -> &BlockNode {
        self.arc()
    }
}
