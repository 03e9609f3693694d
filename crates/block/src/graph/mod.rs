//! The block graph: nodes, their children and users, and which nodes are quiesced.
//!
//! A node's *users* are the backends on it, the edges from its parents, and jobs. A node is *quiesced*, its gate
//! closed, while it, or a node that it leads to, is drained: so no request comes down to a drained node. Which nodes
//! are quiesced follows from the graph and from the drains that are open, and is settled anew when one changes.
//!
//! ```text
//! mod.rs     users, nodes, and which nodes are quiesced
//! backends.rs backends as the graph knows them
//! edge/      how a driver holds its children: always, in a slot, in a list
//! attach.rs, freeze.rs  changes of one edge; chains that do not change while a job works on them
//! height.rs, declared.rs  the lengths of chains; that drivers list the edges that the graph has
//! drain.rs   drained sections, of a node and of all
//! permit.rs  what the users of a node hold and share
//! change.rs, hand_over.rs  replace, insert and remove nodes while requests run
//! overlay.rs, insert.rs, joint.rs  overlays and filters that come above nodes; several changes as one
//! error.rs   why a change is refused
//! user.rs, turn.rs  users that are neither node nor backend; users that turn to another node, or back
//! activity/, life/  nodes whose storage is another process's; the end of nodes
//! mapped.rs  reads of formats that only say where bytes are
//! homes.rs   contexts: where drivers work by themselves, and which use a node
//! listing.rs children and parents of nodes, as monitors show them
//! check.rs   everything that follows from the graph, found again from nothing, for tests
//! ```
//!
//! All of it is under one lock, which is held for moments only: never while a coroutine suspends or wakes, nor while a
//! node goes, nor while a driver makes a system call. The lock of a gate may be taken under it, not the other way
//! round. Changes of permissions have a lock of their own besides, taken before it (`permit.rs`).

mod activity;
pub(crate) mod after_write;
mod attach;
pub(crate) mod backends;
mod background;
pub(crate) mod bitmaps;
pub(crate) mod chain;
pub(crate) mod change;
mod check;
mod declared;
mod drain;
mod edge;
mod error;
pub(crate) mod filter;
mod freeze;
pub(crate) mod gate;
mod guard;
pub(crate) mod hand_over;
mod height;
pub(crate) mod homes;
pub(crate) mod image;
pub(crate) mod insert;
pub(crate) mod joint;
pub(crate) mod life;
mod listing;
pub(crate) mod mapped;
pub(crate) mod node;
pub(crate) mod node_info;
pub(crate) mod overlay;
pub(crate) mod own_io;
mod permit;
pub(crate) mod range_lock;
mod turn;
mod user;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, Weak};

use coblk_aio::CoWaker;

use crate::accounting::Statistics;
use crate::driver::edge::{EdgeId, EdgeInfo, ListId};
use crate::driver::permissions::PermissionError;
use crate::graph::node::BlockNode;
pub use activity::Woken;
pub(crate) use activity::co_set_active;
pub(crate) use attach::{Left, ask_driver, ask_for_one_more};
use backends::{BackendHome, Claim};
pub(crate) use change::{co_drain_for_change, co_look_at_node, has_no_limit, lock_changes};
pub use drain::{DrainedAllSection, DrainedSection, drain_all};
pub(crate) use edge::Edge;
pub use edge::{Child, ChildList, ChildRef, ChildSlot, Children, EdgeRef};
pub(crate) use edge::{List, MAX_CHILDREN};
pub use error::GraphError;
pub use freeze::FrozenChain;
pub(crate) use guard::{GraphGuard, lock, lock_permits};
pub(crate) use height::MAX_HEIGHT;
pub use listing::{BackendInfo, Device, Parent, nodes_in_flight};
pub(crate) use permit::{
    DeviceId, Use, add_backend, change_use, forget_at_once, permit_new, remove_user,
};
pub(crate) use turn::{Turn, Turned};
use user::Blocked;
pub use user::{NodeUse, NodeUser, Operation};

/// Names a node, also after it has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(u64);

/// Names a user of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UserId(u64);

/// A user of a node.
#[derive(Clone)]
pub(crate) enum Kind {
    /// A backend, at home in this context.
    Backend { name: String, home: BackendHome, claim: Claim, statistics: Statistics },
    /// An edge, from this node as soon as its driver has one. A job may have frozen it, for a reason.
    Edge { info: EdgeInfo, edge: Weak<Edge>, parent: Option<NodeId>, frozen: Option<Arc<str>> },
    /// Something else, with what it has blocked.
    User { user: Arc<dyn NodeUser>, blocked: Blocked },
}

struct User {
    kind: Kind,
    /// The node that it uses; an empty slot uses none.
    node: Option<NodeId>,
    /// How. What an edge wants follows from the users of its parent, as soon as it has one.
    wants: Use,
}

impl User {
    fn device(&self) -> Option<DeviceId> {
        match self.kind {
            Kind::Backend { claim, .. } => Some(claim.device),
            Kind::Edge { .. } | Kind::User { .. } => None,
        }
    }

    fn edge_info(&self) -> Option<EdgeInfo> {
        match self.kind {
            Kind::Edge { info, .. } => Some(info),
            Kind::Backend { .. } | Kind::User { .. } => None,
        }
    }

    /// The parent, if this is the edge of one.
    fn parent(&self) -> Option<NodeId> {
        match self.kind {
            Kind::Edge { parent, .. } => parent,
            Kind::Backend { .. } | Kind::User { .. } => None,
        }
    }
}

struct Entry {
    node: Weak<BlockNode>,
    /// Sections that drain this node itself.
    drains: usize,
    quiesced: bool,
    /// Levels of children, on the longest way down.
    height: usize,
    /// The permissions that its users want together, as its driver was told.
    granted: Use,
    users: Vec<UserId>,
    /// The edges of its driver.
    children: Vec<UserId>,
}

pub(crate) struct Graph {
    nodes: BTreeMap<NodeId, Entry>,
    users: BTreeMap<UserId, User>,
    /// Lists of children.
    lists: BTreeMap<ListId, Weak<List>>,
    last_id: u64,
    drains_of_all: usize,
    /// Requests that may go on, as soon as the lock is free.
    wakes: VecDeque<CoWaker>,
    /// What must not go under the lock, as it takes the lock to go.
    kept: Vec<Arc<BlockNode>>,
}

static GRAPH: Mutex<Graph> = Mutex::new(Graph {
    nodes: BTreeMap::new(),
    users: BTreeMap::new(),
    lists: BTreeMap::new(),
    last_id: 0,
    drains_of_all: 0,
    wakes: VecDeque::new(),
    kept: Vec::new(),
});

impl UserId {
    #[inline]
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    pub(crate) fn from_number(number: u64) -> UserId {
        UserId(number)
    }
}

impl Graph {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// An id for a node that is about to be made.
    pub(crate) fn new_node_id(&mut self) -> NodeId {
        NodeId(self.next_id())
    }

    /// Takes in a node that was just made, under edges that were made before it. It starts
    /// quiesced if one of its children is (contract: C77).
    ///
    /// # Errors
    /// If it would be too high, or its edges are not its own. It is not in the graph then.
    pub(crate) fn add_node(&mut self, node: &Arc<BlockNode>) -> Result<(), GraphError> {
        let edges = node.all_edges();
        let children: Vec<UserId> = edges.iter().map(|edge| edge.user()).collect();
        self.check_edges(node, &children)?;
        let below = children.iter().filter_map(|edge| self.users.get(edge)?.node);
        let below: Vec<NodeId> = below.collect();
        let height = self.height_above(&below);
        if height > MAX_HEIGHT {
            return Err(GraphError::too_high(node.name()));
        }
        below.iter().try_for_each(|id| self.check_open(*id))?;
        for id in below.iter().filter(|_| node.life.is_active()) {
            if let Some(child) = self.node(*id).filter(|child| !child.life.is_active()) {
                let (node, user) = (child.name().to_owned(), format!("node '{}'", node.name()));
                return Err(PermissionError::Inactive { node, user }.into());
            }
        }
        for child in &children {
            if let Some(User { kind: Kind::Edge { parent, .. }, .. }) = self.users.get_mut(child) {
                *parent = Some(node.id());
            }
        }
        edges.iter().for_each(|edge| edge.set_owner(node));
        let entry = Entry {
            node: Arc::downgrade(node),
            drains: 0,
            quiesced: false,
            height,
            granted: Use::NONE,
            users: Vec::new(),
            children,
        };
        if let Some(background) = node.driver().background() {
            let weak = Arc::downgrade(node);
            background.set_node(weak);
        }
        self.nodes.insert(node.id(), entry);
        self.settle(node.id());
        if !node.life.is_active() {
            self.shut(node);
        }
        Ok(())
    }

    /// That these edges are free to be this node's, each once: an edge that two nodes had would be
    /// looked at for one of them only, when it turns.
    fn check_edges(&self, node: &BlockNode, edges: &[UserId]) -> Result<(), GraphError> {
        let mut known = BTreeSet::new();
        let is_free = |id| self.users.get(id).is_some_and(|user| user.parent().is_none());
        match edges.iter().all(|id| is_free(id) && known.insert(*id)) {
            true => Ok(()),
            false => Err(GraphError::NotItsChild(node.name().to_owned())),
        }
    }

    pub(crate) fn remove_node(&mut self, id: NodeId) {
        self.nodes.remove(&id);
    }

    /// A live node by its id. Not to be dropped under the lock; [`kept`](Self::kept) sees to that.
    fn node(&mut self, id: NodeId) -> Option<Arc<BlockNode>> {
        let node = self.nodes.get(&id)?.node.upgrade()?;
        self.kept.push(Arc::clone(&node));
        Some(node)
    }

    /// All live nodes, the oldest first.
    pub(crate) fn all_nodes(&mut self) -> Vec<Arc<BlockNode>> {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.node(id)).collect()
    }

    /// The edges that a driver lists.
    pub(crate) fn edges(&self, ids: &[EdgeId]) -> Vec<Arc<Edge>> {
        let edge = |id: &EdgeId| match &self.users.get(&UserId::from(*id))?.kind {
            Kind::Edge { edge, .. } => edge.upgrade(),
            Kind::Backend { .. } | Kind::User { .. } => None,
        };
        ids.iter().filter_map(edge).collect()
    }

    /// An id for a user that is about to be made.
    fn new_user_id(&mut self) -> UserId {
        UserId(self.next_id())
    }

    fn add_user(&mut self, node: NodeId, kind: Kind, wants: Use) -> UserId {
        let id = self.new_user_id();
        // It finds the node as drains have left it.
        if let Kind::User { user, .. } = &kind
            && self.entry(node).quiesced
        {
            user.drained_begin();
        }
        self.users.insert(id, User { kind, node: Some(node), wants });
        self.entry(node).users.push(id);
        id
    }

    /// Takes in an edge, of its parent's driver if it has a parent yet. It wants nothing.
    fn add_edge(&mut self, edge: &Arc<Edge>, node: Option<NodeId>, parent: Option<NodeId>) {
        let (id, info) = (edge.user(), *edge.info());
        let kind = Kind::Edge { info, edge: Arc::downgrade(edge), parent, frozen: None };
        if let Some(entry) = parent.and_then(|parent| self.nodes.get_mut(&parent)) {
            entry.children.push(id);
        }
        self.users.insert(id, User { kind, node, wants: Use::NONE });
        if let Some(node) = node {
            self.entry(node).users.push(id);
        }
    }

    /// Forgets a user. The node that it has used has one less then.
    fn forget_user(&mut self, id: UserId) -> Option<NodeId> {
        let user = self.users.remove(&id)?;
        if let Some(parent) = user.parent()
            && let Some(entry) = self.nodes.get_mut(&parent)
        {
            entry.children.retain(|it| *it != id);
            self.settle(parent);
        }
        let node = user.node?;
        let entry = self.nodes.get_mut(&node)?;
        entry.users.retain(|it| *it != id);
        Some(node)
    }

    /// Whether a user holds nothing and keeps others from nothing.
    fn wants_nothing(&self, id: UserId) -> bool {
        self.users.get(&id).is_none_or(|user| user.wants == Use::NONE)
    }

    /// The next flush of a node, and of its parents and theirs, reaches the driver.
    pub(crate) fn owe_flush_above(&mut self, node: &BlockNode) {
        for id in self.closure(node.id(), Graph::parents) {
            if let Some(node) = self.node(id) {
                node.path.state.owe_flush();
            }
        }
    }

    /// Whether a backend or an edge is on a node.
    pub(crate) fn has_users(&self, node: &BlockNode) -> bool {
        self.nodes.get(&node.id()).is_some_and(|entry| !entry.users.is_empty())
    }

    /// The backends on a node, on its parents and theirs.
    pub(crate) fn backends_above(&self, node: &BlockNode) -> Vec<(UserId, BackendHome)> {
        let nodes = self.closure(node.id(), Graph::parents);
        let users = nodes.iter().filter_map(|id| self.nodes.get(id)).flat_map(|it| &it.users);
        let backend = |id: &UserId| match &self.users.get(id)?.kind {
            Kind::Backend { home, .. } => Some((*id, home.clone())),
            Kind::Edge { .. } | Kind::User { .. } => None,
        };
        users.filter_map(backend).collect()
    }

    fn entry(&mut self, id: NodeId) -> &mut Entry {
        self.nodes.get_mut(&id).expect("a node that is held is in the graph")
    }

    /// The children of a node.
    fn children(&self, id: NodeId) -> Vec<NodeId> {
        let edges = self.nodes.get(&id).map_or(&[][..], |entry| &entry.children);
        edges.iter().filter_map(|edge| self.users.get(edge)?.node).collect()
    }

    /// The parents of a node.
    fn parents(&self, id: NodeId) -> Vec<NodeId> {
        let users = self.nodes.get(&id).map_or(&[][..], |entry| &entry.users);
        users.iter().filter_map(|user| self.users.get(user)?.parent()).collect()
    }

    /// `id`, and all nodes that lead to it by `next`, each once.
    fn closure(&self, id: NodeId, next: impl Fn(&Graph, NodeId) -> Vec<NodeId>) -> Vec<NodeId> {
        let mut found = vec![id];
        let mut known = BTreeSet::from([id]);
        let mut seen = 0;
        while let Some(node) = found.get(seen).copied() {
            seen += 1;
            found.extend(next(self, node).into_iter().filter(|other| known.insert(*other)));
        }
        found
    }

    /// Opens or closes the gate of a node, of its parents and theirs, as the drains and the graph have
    /// it now. Runs the hooks of drivers whose gate changes.
    fn settle(&mut self, id: NodeId) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let below = self.children(id);
            let is_quiesced = |child: &NodeId| self.nodes.get(child).is_some_and(|it| it.quiesced);
            let below_quiesced = below.iter().any(is_quiesced);
            let of_all = self.drains_of_all > 0;
            let Some(entry) = self.nodes.get_mut(&id) else { continue };
            let quiesced = of_all || below_quiesced || entry.drains > 0;
            if quiesced == entry.quiesced {
                continue;
            }
            entry.quiesced = quiesced;
            let users = self.node_users(id);
            // A node that is going has no users left that could send it requests.
            if let Some(node) = self.node(id) {
                if quiesced {
                    node.gate.close();
                    node.driver().drained_begin();
                    users.iter().for_each(|user| user.drained_begin());
                } else {
                    // Still closed: a request that goes on must find the driver running.
                    node.driver().drained_end();
                    users.iter().for_each(|user| user.drained_end());
                    self.wakes.extend(node.gate.open());
                }
            }
            todo.extend(self.parents(id));
        }
    }
}
