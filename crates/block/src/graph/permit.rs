//! Permissions: what each user of a node holds and shares must fit what the others do.
//!
//! A backend holds and shares what it was opened with; an edge what its driver passes on of what
//! the users of the parent hold and share. So a change at one node is planned for all that it leads to,
//! from the top down, and takes effect only if it fits everywhere, and every driver agrees.
//!
//! # Drivers are told without the lock of the graph
//!
//! A driver takes locks on its image, and the file system may take any time for that. So a change goes in
//! three steps, under the lock of permissions throughout, which lets one change at a time through:
//!
//! ```text
//! plan     under the lock of the graph: what each user wants, and that they agree
//! tell     without it: drivers take and give up their locks, in the order of `tell_drivers`
//! enter    under it again: the plan is what is granted; or nothing, if a driver has refused
//! ```
//!
//! What the plan was made of stays as it is meanwhile: whatever holds something, or keeps others from
//! something, comes, goes and turns under the lock of permissions. What may come in between without it
//! wants nothing: new nodes, new edges, and backends that ask for nothing. Coroutines have a worker do it
//! (`PoolShare::once`), so that no loop waits; only destructors, set-up code outside of coroutines, and
//! changes of a length do it themselves.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use coblk_aio::{Co, PoolShare};

use super::{Graph, GraphError, GraphGuard, Kind, NodeId, User, UserId, lock, lock_permits};
use crate::driver::permissions::{PermissionError, Permissions};
use crate::graph::life::Activity;
use crate::graph::node::BlockNode;

/// The permissions that a user holds, and those that it lets other users hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) held: Permissions,
    pub(crate) shared: Permissions,
}

impl Use {
    /// Nothing is asked.
    pub(crate) const NONE: Use = Use { held: Permissions::empty(), shared: Permissions::all() };

    /// The permissions of two users together.
    fn and(self, other: Use) -> Use {
        Use { held: self.held | other.held, shared: self.shared & other.shared }
    }
}

/// Backends of the same device, one on each context, do not exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceId(pub(super) u64);

/// The permissions to be, of the users and nodes that were looked at.
#[derive(Default)]
struct Plan {
    users: BTreeMap<UserId, Use>,
    /// From the top down.
    nodes: Vec<(NodeId, Use)>,
}

impl Graph {
    /// A device that backends belong to.
    pub(crate) fn new_device(&mut self) -> DeviceId {
        DeviceId(self.next_id())
    }

    fn plan(&mut self, nodes: &[NodeId]) -> Result<Plan, PermissionError> {
        let mut todo: Vec<NodeId> = Vec::new();
        for node in nodes {
            let below = self.closure(*node, Graph::children);
            todo.extend(below);
        }
        todo.sort_unstable();
        todo.dedup();
        // A parent is higher than its children: the highest first, so that parents are planned already.
        todo.sort_by_key(|node| Reverse(self.nodes.get(node).map_or(0, |entry| entry.height)));
        let mut plan = Plan::default();
        for node in todo {
            let together = self.plan_node(node, &mut plan)?;
            plan.nodes.push((node, together));
        }
        Ok(plan)
    }

    /// Plans the permissions that the users of a node want, and checks that they agree.
    fn plan_node(&mut self, node: NodeId, plan: &mut Plan) -> Result<Use, PermissionError> {
        if self.is_inactive(node) {
            return Ok(Use::NONE);
        }
        let ids = self.nodes.get(&node).map_or(Vec::new(), |entry| entry.users.clone());
        let mut together = Use::NONE;
        let force_share = self.node(node).is_some_and(|node| node.is_force_share());
        for (index, id) in ids.iter().enumerate() {
            let mut wants = self.wants(*id, plan);
            if force_share {
                wants.shared = Permissions::all();
            }
            plan.users.insert(*id, wants);
            together = together.and(wants);
            for other in &ids[..index] {
                self.check(node, (*id, wants), (*other, plan.users[other]))?;
                self.check(node, (*other, plan.users[other]), (*id, wants))?;
            }
        }
        Ok(together)
    }

    /// Whether its users hold nothing, whatever they want.
    fn is_inactive(&mut self, id: NodeId) -> bool {
        self.node(id).is_some_and(|node| node.life.activity() == Activity::Inactive)
    }

    /// The permissions that a user wants, if all goes by `plan`.
    fn wants(&mut self, id: UserId, plan: &Plan) -> Use {
        let Some(user) = self.users.get(&id) else { return Use::NONE };
        let (parent, info) = match &user.kind {
            // An edge of a driver that is being made wants what the driver has asked for.
            Kind::Backend { .. } | Kind::User { .. } | Kind::Edge { parent: None, .. } => {
                return user.wants;
            }
            Kind::Edge { parent: Some(parent), info, .. } => (*parent, *info),
        };
        if self.is_inactive(parent) {
            return Use::NONE;
        }
        let planned = plan.nodes.iter().find(|(node, _)| *node == parent).map(|(_, it)| *it);
        let granted = self.nodes.get(&parent).map_or(Use::NONE, |entry| entry.granted);
        let above = planned.unwrap_or(granted);
        // A node that is going wants nothing of its children.
        let Some(parent) = self.node(parent) else { return Use::NONE };
        let (held, shared) = parent.driver().child_permissions(&info, above.held, above.shared);
        Use { held, shared }
    }

    fn check(
        &mut self,
        node: NodeId,
        (user, wants): (UserId, Use),
        (other, others): (UserId, Use),
    ) -> Result<(), PermissionError> {
        let refused = wants.held - others.shared;
        let device = |id: &UserId| self.users.get(id).and_then(User::device);
        if refused.is_empty() || device(&user).is_some_and(|it| Some(it) == device(&other)) {
            return Ok(());
        }
        Err(PermissionError::Conflict {
            node: self.node_name(node),
            user: self.user_name(user),
            permission: refused,
            other: self.user_name(other),
        })
    }

    pub(super) fn node_name(&mut self, node: NodeId) -> String {
        self.node(node).map_or_else(String::new, |node| node.name().to_owned())
    }

    /// A user as messages call it.
    pub(super) fn user_name(&mut self, id: UserId) -> String {
        match self.users.get(&id).map(|user| user.kind.clone()) {
            Some(Kind::Backend { name, .. }) => format!("backend '{name}'"),
            Some(Kind::User { user, .. }) => user.name(),
            Some(Kind::Edge { parent: Some(parent), .. }) => {
                format!("node '{}'", self.node_name(parent))
            }
            _ => "a node that is being made".to_owned(),
        }
    }

    /// Whether edges of a node's driver hold anything, or keep others from it.
    fn holds_any(&self, node: NodeId) -> bool {
        let edges = self.nodes.get(&node).map_or(&[][..], |entry| &entry.children);
        let wants = |edge: &UserId| self.users.get(edge).is_some_and(|it| it.wants != Use::NONE);
        edges.iter().any(wants)
    }

    /// Notes what backends wanted `before`.
    fn want_anew(
        &mut self,
        nodes: &[NodeId],
        become_readers: bool,
        before: &mut Vec<(UserId, Use)>,
    ) -> Result<(), GraphError> {
        for id in nodes {
            let Some(node) = self.node(*id) else { continue };
            for user in self.entry(*id).users.clone() {
                let Some(User { kind: Kind::Backend { claim, .. }, wants, .. }) =
                    self.users.get_mut(&user)
                else {
                    continue;
                };
                let mut wanted = claim.on(!node.is_read_only());
                wanted.held |= wants.held & Permissions::RESIZE;
                let loses = wants.held - wanted.held;
                before.push((user, std::mem::replace(wants, wanted)));
                if !loses.is_empty() && !become_readers {
                    let (node, user) = (node.name().to_owned(), self.user_name(user));
                    return Err(GraphError::Writer { node, user });
                }
            }
        }
        Ok(())
    }
}

impl GraphGuard {
    /// Has `nodes`, and those that they lead to, go by what their users hold and share now.
    ///
    /// # Errors
    /// If two users exclude each other, or a driver refuses. Nothing has changed then but what
    /// the caller did to the users before.
    pub(super) fn permit(&mut self, nodes: &[NodeId]) -> Result<(), PermissionError> {
        let plan = self.plan(nodes)?;
        let mut changes = Vec::new();
        for (id, new) in &plan.nodes {
            let old = self.nodes.get(id).map_or(Use::NONE, |entry| entry.granted);
            if let Some(node) = self.node(*id).filter(|_| old != *new) {
                changes.push(Change { node, old, new: *new });
            }
        }
        if !changes.is_empty() {
            let told = self.unlocked(|| tell_drivers(&changes));
            // They may be the last to hold a node, which goes when no lock is held.
            self.kept.extend(changes.into_iter().map(|change| change.node));
            told?;
        }
        for (id, granted) in plan.nodes {
            if let Some(entry) = self.nodes.get_mut(&id) {
                entry.granted = granted;
            }
        }
        for (id, wanted) in plan.users {
            if let Some(user) = self.users.get_mut(&id) {
                user.wants = wanted;
            }
        }
        Ok(())
    }

    /// [`permit`](Self::permit) after users went or want less, which no user can refuse.
    fn permit_less(&mut self, node: NodeId) {
        if let Err(error) = self.permit(&[node]) {
            tracing::error!(%error, "permissions that are not needed any more are kept");
        }
    }

    /// [`permit`](Self::permit) after it may have changed which nodes can be written: backends
    /// that lead to these nodes hold the permission to write if their node can be.
    ///
    /// # Errors
    /// As of [`permit`](Self::permit); and if a backend that writes no longer can, unless it may
    /// `become_readers`.
    pub(super) fn permit_anew(
        &mut self,
        nodes: &[NodeId],
        become_readers: bool,
    ) -> Result<(), GraphError> {
        let above: Vec<NodeId> =
            nodes.iter().flat_map(|node| self.closure(*node, Graph::parents)).collect();
        let mut before = Vec::new();
        let result = self.want_anew(&above, become_readers, &mut before);
        let result = result.and_then(|()| Ok(self.permit(&above)?));
        if result.is_err() {
            for (id, wants) in before.into_iter().rev() {
                if let Some(user) = self.users.get_mut(&id) {
                    user.wants = wants;
                }
            }
        }
        result
    }
}

/// A backend, or another user that is no edge, begins to use `node`. May wait for system calls, unless
/// it `wants` nothing.
///
/// # Errors
/// If what it wants does not fit what others hold and share; if a driver has come by an edge of which the graph
/// does not know.
pub(crate) fn add_backend(
    node: &BlockNode,
    backend: Kind,
    wants: Use,
) -> Result<UserId, PermissionError> {
    let closed = || PermissionError::Closed { node: node.name().to_owned() };
    if wants == Use::NONE {
        let mut graph = lock();
        // Requests of a backend are refused.
        if node.life.is_closed() && matches!(backend, Kind::User { .. }) {
            return Err(closed());
        }
        return Ok(graph.add_user(node.id(), backend, wants));
    }
    node.check_declared()?;
    let mut graph = lock_permits();
    if node.life.is_closed() {
        return Err(closed());
    }
    let id = graph.add_user(node.id(), backend, wants);
    let permitted = graph.check_needs_active(id);
    permitted.and_then(|()| graph.permit(&[node.id()])).map(|()| id).inspect_err(|_| {
        graph.forget_user(id);
    })
}

/// A user goes. May wait for system calls, unless it wants nothing.
pub(crate) fn remove_user(id: UserId) {
    if forget_at_once(id) {
        return;
    }
    let mut graph = lock_permits();
    if let Some(node) = graph.forget_user(id) {
        graph.permit_less(node);
    }
}

/// [`remove_user`], if that waits for nothing. Returns whether it is done.
pub(crate) fn forget_at_once(id: UserId) -> bool {
    let mut graph = lock();
    let wants_nothing = graph.wants_nothing(id);
    if wants_nothing {
        graph.forget_user(id);
    }
    wants_nothing
}

/// A backend, or an edge of a driver that is being made, wants something else than before. May wait for system
/// calls.
///
/// # Errors
/// If that does not fit what others hold and share. It wants what it did before then.
pub(crate) fn change_use(id: UserId, wants: Use) -> Result<(), PermissionError> {
    let mut graph = lock_permits();
    let Some(user) = graph.users.get_mut(&id) else { return Ok(()) };
    let (node, old) = (user.node, std::mem::replace(&mut user.wants, wants));
    let permitted = graph.check_needs_active(id);
    permitted.and_then(|()| graph.permit(node.as_slice())).inspect_err(|_| {
        if let Some(user) = graph.users.get_mut(&id) {
            user.wants = old;
        }
    })
}

/// A node was opened, and has no users yet: its driver holds and shares what it needs on its children all the
/// same. May wait for system calls.
///
/// # Errors
/// If that does not fit what others hold and share. Nothing has changed then.
pub(crate) fn permit_new(node: &BlockNode) -> Result<(), PermissionError> {
    lock_permits().permit(&[node.id()])
}

/// A closed node, which may be held for a while yet, gives back what its driver holds on its children.
pub(super) fn co_give_back(co: &Co<'_>, node: &BlockNode) {
    // In a statement of its own: the lock must be free while system calls are waited for.
    let holds = lock().holds_any(node.id());
    if holds {
        PoolShare::once(co, || lock_permits().permit_less(node.id()));
    }
}

/// A change of the permissions that the users of a node want together.
struct Change {
    node: Arc<BlockNode>,
    old: Use,
    new: Use,
}

impl Change {
    fn reserve(&self, wants: Use) {
        self.node.driver().reserve_permissions(wants.held, wants.shared);
    }

    fn set(&self, wants: Use) -> Result<(), PermissionError> {
        self.node.driver().set_permissions(wants.held, wants.shared)
    }
}

/// Tells the drivers, all or none. Those that want less come first, for two nodes may be of the same
/// image, and one of them may take over from the other.
fn tell_drivers(changes: &[Change]) -> Result<(), PermissionError> {
    let is_less = |it: &&Change| it.old.and(it.new) == it.old;
    let (less, more): (Vec<_>, Vec<_>) = changes.iter().partition(is_less);
    if !less.is_empty() {
        more.iter().for_each(|change| change.reserve(change.new));
    }
    let told = less.iter().chain(&more).try_for_each(|change| change.set(change.new));
    if told.is_err() {
        // Back in the same way.
        less.iter().for_each(|change| change.reserve(change.old));
        for change in more.iter().chain(&less) {
            if let Err(error) = change.set(change.old) {
                let node = change.node.name();
                tracing::error!(node, %error, "permissions cannot be given back");
            }
        }
    }
    told
}
