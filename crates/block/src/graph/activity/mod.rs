//! Nodes that are inactive: their storage is another process's for the time being.
//!
//! An inactive node holds no permissions, so its image is locked for nothing, and its driver does no I/O.
//! Requests fail with EPERM. The children of an active node are active. Going inactive goes from the top
//! down, becoming active from the bottom up:
//!
//! ```text
//! inactive    drain; flush, and have drivers write back; give permissions back
//! waking      permissions are held; drivers read anew what they keep, and how long their storage is
//! active      requests pass
//! ```
//!
//! The rules are those of QEMU's `blockdev-set-active`: an active parent forbids it, and so does a backend
//! that writes, unless [it allows that](crate::BackendOptions::allow_inactive). Children follow if they have no other
//! active parent.

use std::cmp::Reverse;
use std::io;
use std::sync::Arc;

use coblk_aio::{Co, PoolShare};

use super::change::co_flush_in_time;
use super::{Graph, GraphError, GraphGuard, Kind, NodeId, Operation, UserId, lock, lock_permits};
use super::{co_drain_for_change, co_look_at_node, lock_changes};
use crate::driver::permissions::{PermissionError, Permissions};
use crate::graph::backends::BackendHome;
use crate::graph::life::Activity;
use crate::graph::node::BlockNode;

/// Permissions to change a node, which keep it active.
const CHANGES: Permissions =
    Permissions::WRITE.union(Permissions::WRITE_UNCHANGED).union(Permissions::RESIZE);

/// Makes nodes active, with all that they lead to; or inactive, with those of them that have no other
/// active parent. All or none.
///
/// # Errors
/// If users are in the way; if what was written cannot be made durable, or the storage cannot be read
/// anew; if other processes hold an image.
pub(crate) fn co_set_active(
    co: &Co<'_>,
    nodes: &[Arc<BlockNode>],
    active: bool,
) -> Result<(), GraphError> {
    if !active {
        return co_inactivate(co, || lock().plan_inactive(nodes));
    }
    let _change = lock_changes(co)?;
    co_activate(co, nodes).map(drop)
}

/// Makes the nodes inactive that `plan` names, which is asked again when there is no other change: as in
/// `change.rs`, they are drained before other changes are waited for.
fn co_inactivate(
    co: &Co<'_>,
    plan: impl Fn() -> Result<Vec<Arc<BlockNode>>, GraphError>,
) -> Result<(), GraphError> {
    loop {
        let nodes = plan()?;
        if nodes.is_empty() {
            return Ok(());
        }
        let drained = nodes.iter().map(|node| co_drain_for_change(co, node));
        let _drained = drained.collect::<Result<Vec<_>, _>>()?;
        // A disk that does not answer is found out before others wait for this change.
        let flush = |node| co_flush_in_time(co, node).map_err(|error| failed(node, false, error));
        nodes.iter().try_for_each(flush)?;
        let _change = lock_changes(co)?;
        let planned = plan()?;
        if planned.iter().map(|node| node.id()).eq(nodes.iter().map(|node| node.id())) {
            return co_give_up(co, &nodes);
        }
    }
}

/// Hands drained nodes over, parents first.
fn co_give_up(co: &Co<'_>, nodes: &[Arc<BlockNode>]) -> Result<(), GraphError> {
    for (index, node) in nodes.iter().enumerate() {
        if let Err(source) = co_hand_over(co, node) {
            co_take_back(co, &nodes[..index]);
            return Err(failed(node, false, source));
        }
    }
    let given = PoolShare::once(co, || lock_permits().inactivate(nodes));
    given.inspect_err(|_| co_take_back(co, nodes))
}

fn failed(node: &BlockNode, active: bool, source: io::Error) -> GraphError {
    GraphError::Activity { node: node.name().to_owned(), active, source }
}

fn co_hand_over(co: &Co<'_>, node: &Arc<BlockNode>) -> io::Result<()> {
    // What its parents have written as they were handed over.
    co_flush_in_time(co, node)?;
    let _own = node.enter_own();
    let inactive = node.driver().co_inactivate(co);
    node.look_at_bitmaps();
    inactive
}

/// The nodes have stayed active after all.
fn co_take_back(co: &Co<'_>, nodes: &[Arc<BlockNode>]) {
    for node in nodes.iter().rev() {
        let _own = node.enter_own();
        if let Err(error) = node.driver().co_activate(co) {
            tracing::error!(node = node.name(), %error, "a node that stays active fails");
        }
        node.look_at_bitmaps();
    }
}

/// Returns the nodes that were inactive, children first.
fn co_activate(co: &Co<'_>, nodes: &[Arc<BlockNode>]) -> Result<Vec<Arc<BlockNode>>, GraphError> {
    let nodes = lock().plan_active(nodes);
    PoolShare::once(co, || lock_permits().wake(&nodes))?;
    for (index, node) in nodes.iter().enumerate() {
        if let Err(source) = co_take_over(co, node) {
            // Nothing was written, so there is nothing to be flushed.
            for node in nodes[..index].iter().rev() {
                let _own = node.enter_own();
                let inactive = node.driver().co_inactivate(co);
                node.look_at_bitmaps();
                log_failure(node, inactive.map_err(|error| failed(node, false, error)));
            }
            let given = PoolShare::once(co, || lock_permits().inactivate(&nodes));
            log_failure(node, given);
            return Err(failed(node, true, source));
        }
    }
    let backends = lock().activated(&nodes);
    co_look_at_node(co, backends);
    Ok(nodes)
}

fn log_failure(node: &BlockNode, result: Result<(), GraphError>) {
    if let Err(error) = result {
        tracing::error!(node = node.name(), %error, "a node that stays inactive fails");
    }
}

fn co_take_over(co: &Co<'_>, node: &BlockNode) -> io::Result<()> {
    let _own = node.enter_own();
    let active = node.driver().co_activate(co);
    node.look_at_bitmaps();
    active?;
    node.path.state.taken_over();
    node.co_look_at_length(co).map(|_| ())
}

/// Nodes that have become active for a user to come. Dropped, they stay so.
#[must_use = "only this can make the same nodes inactive again"]
pub struct Woken {
    /// Children first.
    nodes: Vec<Arc<BlockNode>>,
    /// Those that needed them active, and found them inactive.
    waited: Vec<UserId>,
}

impl Woken {
    /// The user does not come: makes the nodes inactive again, and no others. Nodes stay active if another user
    /// that needs them has come meanwhile.
    ///
    /// # Errors
    /// As of [`BlockNode::co_set_active`].
    pub fn co_undo(self, co: &Co<'_>) -> Result<(), GraphError> {
        co_inactivate(co, || {
            let active = self.nodes.iter().rev().filter(|node| node.is_active());
            let nodes: Vec<Arc<BlockNode>> = active.cloned().collect();
            let ids: Vec<NodeId> = nodes.iter().map(|node| node.id()).collect();
            let mut graph = lock();
            graph.check_inactive(&ids)?;
            let is_needed = graph.waiting(&ids).iter().any(|user| !self.waited.contains(user));
            Ok(if is_needed { Vec::new() } else { nodes })
        })
    }
}

impl std::fmt::Debug for Woken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.nodes.iter().map(|node| node.name())).finish()
    }
}

impl Graph {
    fn is_active(&mut self, id: NodeId) -> bool {
        self.node(id).is_some_and(|node| node.life.is_active())
    }

    /// The nodes that go inactive with these, parents first.
    fn plan_inactive(
        &mut self,
        roots: &[Arc<BlockNode>],
    ) -> Result<Vec<Arc<BlockNode>>, GraphError> {
        let mut below: Vec<NodeId> = Vec::new();
        for root in roots {
            below.extend(self.closure(root.id(), Graph::children));
        }
        below.sort_unstable();
        below.dedup();
        below.sort_by_key(|id| Reverse(self.nodes.get(id).map_or(0, |entry| entry.height)));
        let mut planned: Vec<NodeId> = Vec::new();
        for id in below {
            let is_root = roots.iter().any(|root| root.id() == id);
            if self.is_active(id) && (is_root || self.active_parent(id, &planned).is_none()) {
                planned.push(id);
            }
        }
        self.check_inactive(&planned)?;
        Ok(planned.into_iter().filter_map(|id| self.node(id)).collect())
    }

    /// The inactive nodes among these and those that they lead to, children first.
    fn plan_active(&mut self, roots: &[Arc<BlockNode>]) -> Vec<Arc<BlockNode>> {
        let mut below: Vec<NodeId> = Vec::new();
        for root in roots {
            below.extend(self.closure(root.id(), Graph::children));
        }
        below.sort_unstable();
        below.dedup();
        below.retain(|id| !self.is_active(*id));
        below.sort_by_key(|id| self.nodes.get(id).map_or(0, |entry| entry.height));
        below.into_iter().filter_map(|id| self.node(id)).collect()
    }

    /// An active parent of a node, other than `others`.
    fn active_parent(&mut self, id: NodeId, others: &[NodeId]) -> Option<NodeId> {
        let parents = self.parents(id);
        parents.into_iter().find(|parent| !others.contains(parent) && self.is_active(*parent))
    }

    /// That nothing keeps these nodes active.
    fn check_inactive(&mut self, nodes: &[NodeId]) -> Result<(), GraphError> {
        for id in nodes {
            if let Some(node) = self.node(*id) {
                self.check_operation(&node, Operation::Inactivate)?;
            }
            if let Some(parent) = self.active_parent(*id, nodes) {
                let (node, parent) = (self.node_name(*id), self.node_name(parent));
                return Err(GraphError::ActiveParent { node, parent });
            }
            let users = self.nodes.get(id).map_or(Vec::new(), |entry| entry.users.clone());
            if let Some(user) = users.into_iter().find(|user| self.keeps_active(*user)) {
                let (node, user) = (self.node_name(*id), self.user_name(user));
                return Err(GraphError::ActiveUser { node, user });
            }
        }
        Ok(())
    }

    fn keeps_active(&self, user: UserId) -> bool {
        let Some(user) = self.users.get(&user) else { return false };
        let is_concerned = match &user.kind {
            Kind::Backend { claim, .. } => !claim.allow_inactive,
            Kind::User { .. } => true,
            Kind::Edge { .. } => false,
        };
        is_concerned && user.wants.held.intersects(CHANGES)
    }

    /// The backends of these nodes whose requests are to pass, reads as well.
    fn waiting(&self, nodes: &[NodeId]) -> Vec<UserId> {
        let users = nodes.iter().filter_map(|id| self.nodes.get(id));
        let users = users.flat_map(|entry| entry.users.iter().copied());
        let waits = |id: &UserId| match self.users.get(id).map(|user| &user.kind) {
            Some(Kind::Backend { claim, .. }) => !claim.allow_inactive,
            _ => false,
        };
        users.filter(waits).collect()
    }

    fn set_activity(&mut self, nodes: &[Arc<BlockNode>], activity: Activity) {
        for node in nodes {
            node.life.set_activity(activity);
            self.shut(node);
        }
    }

    /// Requests pass from here on. Returns the backends that lead to the nodes.
    fn activated(&mut self, nodes: &[Arc<BlockNode>]) -> Vec<(UserId, BackendHome)> {
        self.set_activity(nodes, Activity::Active);
        let mut backends: Vec<_> =
            nodes.iter().flat_map(|node| self.backends_above(node)).collect();
        backends.sort_by_key(|(id, _)| *id);
        backends.dedup_by_key(|(id, _)| *id);
        backends
    }

    /// That a user does not need its node to be active, or it is.
    ///
    /// # Errors
    /// If the node is inactive, and an active node or a backend that writes is to use it.
    pub(super) fn check_needs_active(&mut self, id: UserId) -> Result<(), PermissionError> {
        match self.users.get(&id).and_then(|user| user.node) {
            Some(node) => self.check_activity(id, node),
            None => Ok(()),
        }
    }

    /// [`check_needs_active`](Self::check_needs_active) of a user that is to turn to `new`.
    pub(super) fn check_activity(
        &mut self,
        id: UserId,
        new: NodeId,
    ) -> Result<(), PermissionError> {
        if self.is_active(new) {
            return Ok(());
        }
        let parent = self.users.get(&id).and_then(super::User::parent);
        let is_refused = match parent {
            Some(parent) => self.is_active(parent),
            None => self.keeps_active(id),
        };
        if !is_refused {
            return Ok(());
        }
        Err(PermissionError::Inactive { node: self.node_name(new), user: self.user_name(id) })
    }
}

impl GraphGuard {
    /// The nodes give all permissions back.
    fn inactivate(&mut self, nodes: &[Arc<BlockNode>]) -> Result<(), GraphError> {
        let ids: Vec<NodeId> = nodes.iter().map(|node| node.id()).collect();
        // Users may have come since this was looked at.
        self.check_inactive(&ids)?;
        let before: Vec<_> = nodes.iter().map(|node| node.life.activity()).collect();
        self.set_activity(nodes, Activity::Inactive);
        let permitted = self.permit(&ids);
        if permitted.is_err() {
            for (node, before) in nodes.iter().zip(before) {
                self.set_activity(std::slice::from_ref(node), before);
            }
        }
        Ok(permitted?)
    }

    /// The nodes hold what their users want.
    fn wake(&mut self, nodes: &[Arc<BlockNode>]) -> Result<(), GraphError> {
        let ids: Vec<NodeId> = nodes.iter().map(|node| node.id()).collect();
        self.set_activity(nodes, Activity::Waking);
        let permitted = self.permit_anew(&ids, true);
        if permitted.is_err() {
            self.set_activity(nodes, Activity::Inactive);
        }
        permitted
    }
}

impl BlockNode {
    /// Whether it is not [inactive](Self::co_set_active). Any thread.
    pub fn is_active(&self) -> bool {
        self.life.is_active()
    }

    /// Hands the storage of a node over to another process, or takes it back.
    ///
    /// An inactive node holds no permissions, its image is not locked, and its requests fail with EPERM.
    /// Its children become inactive as well, but for those with other active parents. Before,
    /// what was written is flushed. When the node becomes active, with its children, it reads its
    /// length anew. Nothing changes where nothing is to be changed.
    ///
    /// # Errors
    /// Inactive: if it has an active parent, or a backend writes to it that does not
    /// [allow that](crate::BackendOptions::allow_inactive); if a flush fails; if requests do not end.
    /// Active: if another process holds the image, or its length cannot be read. Nothing has changed then.
    pub fn co_set_active(self: &Arc<Self>, co: &Co<'_>, active: bool) -> Result<(), GraphError> {
        co_set_active(co, std::slice::from_ref(self), active)
    }

    /// [Makes](Self::co_set_active) a node active, with its children, in a way that can be undone if that was for
    /// nothing.
    ///
    /// # Errors
    /// As of [`co_set_active`](Self::co_set_active).
    pub fn co_wake(self: &Arc<Self>, co: &Co<'_>) -> Result<Woken, GraphError> {
        let _change = lock_changes(co)?;
        let nodes = co_activate(co, std::slice::from_ref(self))?;
        let ids: Vec<NodeId> = nodes.iter().map(|node| node.id()).collect();
        let waited = lock().waiting(&ids);
        Ok(Woken { nodes, waited })
    }
}

#[cfg(test)]
mod tests;
