//! Edges: how a driver holds its children.
//!
//! An edge has a name and a role, and leads to a node. [`Child`] always does; a [`ChildSlot`] may be
//! empty; a [`ChildList`] gets and loses children. A driver lists them in
//! [`BlockDriver::children`](crate::BlockDriver::children) and
//! [`child_list`](crate::BlockDriver::child_list), so that a drain of a child reaches the parent, and
//! so that an edge can turn to another node while the parent is drained.
//!
//! A request that goes down an edge pays for one `arc-swap` load. What that loads is held for the
//! whole request: an edge does not turn while a request is inside.

mod list;
mod requests;
mod slot;

use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::{ArcSwapOption, Guard};
use coblk_aio::{Co, IoVectorMut};

use super::{NodeId, UserId, lock};
use crate::driver::debug_event::DebugEvent;
use crate::driver::edge::{EdgeId, EdgeInfo};
use crate::driver::flags::ReadFlags;
use crate::driver::role::ChildRole;
use crate::graph::node::BlockNode;
use crate::io as request_path;
pub use list::{ChildList, Children};
pub(crate) use list::{List, MAX_CHILDREN};
pub use slot::{ChildRef, ChildSlot};

/// An edge as its driver, and the node of that driver, have it. It changes only while that node is drained.
pub(crate) struct Edge {
    info: EdgeInfo,
    node: ArcSwapOption<BlockNode>,
    is_slot: bool,
    /// The child is told of steps of requests. To load the child for each step would cost more.
    wants_debug_events: AtomicBool,
    /// The node whose driver holds it, as soon as there is one.
    owner: OnceLock<Weak<BlockNode>>,
}

impl Edge {
    fn new(info: EdgeInfo, node: Option<Arc<BlockNode>>, is_slot: bool) -> Edge {
        Edge {
            info,
            is_slot,
            wants_debug_events: wants_debug_events(node.as_ref()).into(),
            node: ArcSwapOption::new(node),
            owner: OnceLock::new(),
        }
    }

    #[inline]
    pub(crate) fn info(&self) -> &EdgeInfo {
        &self.info
    }

    /// Its id among users.
    pub(crate) fn user(&self) -> UserId {
        self.info.id().into()
    }

    /// Whether it may be empty.
    pub(crate) fn is_slot(&self) -> bool {
        self.is_slot
    }

    /// The node that it leads to, at this moment.
    pub(crate) fn node(&self) -> Option<Arc<BlockNode>> {
        self.node.load_full()
    }

    pub(super) fn leads_to(&self) -> Option<NodeId> {
        self.node.load().as_ref().map(|node| node.id())
    }

    /// [`Child::debug_event`].
    #[inline]
    fn debug_event(&self, event: DebugEvent) {
        if self.wants_debug_events.load(Ordering::Relaxed) {
            self.tell_debug_event(event);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_debug_event(&self, event: DebugEvent) {
        if let Some(node) = &*self.node.load() {
            node.path.debug_event(event);
        }
    }

    /// [`Child::co_preadv_blocks`].
    #[inline]
    pub(super) fn co_preadv_blocks(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        match &*self.node.load() {
            Some(node) => request_path::co_preadv_blocks(&node.path, co, offset, target, flags),
            None => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    /// Turns the edge to `node`; returns where it led. Only a slot becomes empty: other edges that are
    /// to lead nowhere are dropped by their driver, and lead where they did until then.
    pub(super) fn swap(&self, node: Option<Arc<BlockNode>>) -> Option<Arc<BlockNode>> {
        match node {
            None if !self.is_slot => self.node.load_full(),
            node => {
                self.wants_debug_events.store(wants_debug_events(node.as_ref()), Ordering::Relaxed);
                self.node.swap(node)
            }
        }
    }

    /// The driver that holds it is this node's.
    pub(super) fn set_owner(&self, owner: &Arc<BlockNode>) {
        // It has one owner for its life.
        let _ = self.owner.set(Arc::downgrade(owner));
    }

    /// The node whose driver holds it, if there is one.
    pub(super) fn owner(&self) -> Option<Arc<BlockNode>> {
        self.owner.get().and_then(Weak::upgrade)
    }
}

fn wants_debug_events(node: Option<&Arc<BlockNode>>) -> bool {
    node.is_some_and(|node| node.path.wants_debug_events())
}

impl From<EdgeId> for UserId {
    fn from(edge: EdgeId) -> UserId {
        UserId(edge.0)
    }
}

/// An edge of a driver: a [`Child`], or a [`ChildSlot`] that may be empty.
#[derive(Clone, Copy)]
pub struct EdgeRef<'a>(pub(in crate::graph) &'a Edge);

/// An edge that is in the graph until this is dropped.
struct Held(Arc<Edge>);

/// Of a new edge.
struct Parts {
    name: &'static str,
    index: Option<u32>,
    role: ChildRole,
    is_slot: bool,
    /// The node that it leads to.
    node: Option<Arc<BlockNode>>,
}

impl Held {
    fn new(parts: Parts) -> Held {
        let mut graph = lock();
        let id = graph.new_edge_id();
        let node = parts.node.as_ref().map(|node| node.id());
        let info = EdgeInfo::new(id, parts.name, parts.index, parts.role);
        let edge = Arc::new(Edge::new(info, parts.node, parts.is_slot));
        graph.add_edge(&edge, node, None);
        Held(edge)
    }

    /// An edge of the driver of `owner` that leads nowhere yet.
    fn pending(info: EdgeInfo, owner: &Arc<BlockNode>) -> Held {
        let edge = Arc::new(Edge::new(info, None, false));
        edge.set_owner(owner);
        lock().add_edge(&edge, None, Some(owner.id()));
        Held(edge)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        super::remove_user(self.0.user());
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
        Child::make(name, None, role, node)
    }

    /// [`new`](Self::new), with a number in a list.
    pub(crate) fn make(
        name: &'static str,
        index: Option<u32>,
        role: ChildRole,
        node: Arc<BlockNode>,
    ) -> Child {
        let node = Some(node);
        Child { held: Held::new(Parts { name, index, role, is_slot: false, node }) }
    }

    /// The id of the edge, for its driver to [list](crate::BlockDriver::children).
    #[inline]
    pub fn id(&self) -> EdgeId {
        self.held.0.info.id()
    }

    /// The name of the option that says which node the child is, such as `file`.
    pub fn name(&self) -> &'static str {
        self.held.0.info.name()
    }

    /// The role of the child for the driver.
    pub fn role(&self) -> ChildRole {
        self.held.0.info.role()
    }

    /// Name and role.
    pub fn info(&self) -> &EdgeInfo {
        &self.held.0.info
    }

    /// The edge, for [`co_read_mapped`](crate::co_read_mapped).
    #[inline]
    pub fn edge(&self) -> EdgeRef<'_> {
        EdgeRef(&self.held.0)
    }

    /// The driver has reached a step of a request, and the child may be one that disturbs it
    /// (`blkdebug`).
    #[inline]
    pub fn debug_event(&self, event: DebugEvent) {
        self.held.0.debug_event(event);
    }

    pub(crate) fn shared_edge(&self) -> Arc<Edge> {
        Arc::clone(&self.held.0)
    }

    /// The node, at this moment.
    pub fn node(&self) -> Arc<BlockNode> {
        Arc::clone(self.load().arc())
    }

    /// The node whose driver holds this edge; while that driver is being made, the child.
    pub(crate) fn owner(&self) -> Arc<BlockNode> {
        self.held.0.owner().unwrap_or_else(|| self.node())
    }

    #[inline]
    fn load(&self) -> Loaded {
        Loaded(self.held.0.node.load())
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
