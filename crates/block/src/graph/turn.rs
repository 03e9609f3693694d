//! Users that turn from node to node, or back if others do not agree.
//!
//! The nodes concerned are drained. An edge turns at once, under the lock of the graph; a backend on
//! its own thread, afterwards.

use std::sync::Arc;

use super::edge::Edge;
use super::{Graph, GraphError, GraphGuard, Kind, NodeId, UserId};
use crate::graph::node::BlockNode;

/// What was turned, to be kept until the lock is free: edges may go only then.
#[derive(Default)]
pub(crate) struct Turned {
    users: Vec<(UserId, NodeId)>,
    edges: Vec<(Arc<Edge>, Arc<BlockNode>)>,
}

impl Turned {
    /// Where the edges led before.
    pub(crate) fn old_nodes(self) -> Vec<Arc<BlockNode>> {
        self.edges.into_iter().map(|(_, node)| node).collect()
    }
}

/// Under the lock of permissions.
impl GraphGuard {
    /// Turns users to other nodes, if everybody agrees to that, and to what else has changed in the
    /// nodes `also`. A backend that writes and no longer can is an error unless it may
    /// `become_readers`.
    ///
    /// # Errors
    /// If a user does not agree. No user has turned then.
    pub(crate) fn turn(
        &mut self,
        users: &[(UserId, Arc<BlockNode>)],
        also: &[NodeId],
        become_readers: bool,
        turned: &mut Turned,
    ) -> Result<(), GraphError> {
        let mut nodes = also.to_vec();
        for (id, new) in users {
            let Some(user) = self.users.get(id) else { continue };
            turned.users.push((*id, user.node));
            nodes.extend([user.node, new.id()]);
            self.move_user(*id, new.id());
        }
        let agreed = users.iter().try_for_each(|(id, new)| {
            self.check_open(new.id())?;
            Ok(self.check_activity(*id, new.id())?)
        });
        let agreed = agreed.and_then(|()| self.refuse_cycles(users)).and_then(|()| {
            self.refuse_too_high(users)?;
            self.turn_edges(users, turned);
            self.permit_anew(&nodes, become_readers)
        });
        if agreed.is_err() {
            self.turn_back(turned);
        }
        // Also then: a drain may have begun while drivers were told.
        for (id, _) in users {
            let parent = self.users.get(id).and_then(|user| user.parent());
            parent.into_iter().for_each(|parent| self.settle(parent));
        }
        agreed
    }

    /// The edges among users that have moved. Who asks for a length goes down the edges without the
    /// lock, and must not find a cycle in between either: so the lowest turn first. Below one that
    /// turns everything is as it will be then.
    fn turn_edges(&mut self, users: &[(UserId, Arc<BlockNode>)], turned: &mut Turned) {
        let mut users: Vec<_> = users.iter().collect();
        // One that is below another has less below it.
        users.sort_by_cached_key(|(_, new)| self.closure(new.id(), Graph::children).len());
        for (id, new) in users {
            if let Some(Kind::Edge { edge, .. }) = self.users.get(id).map(|user| &user.kind)
                && let Some(edge) = edge.upgrade()
            {
                let old = edge.swap(Arc::clone(new));
                turned.edges.push((edge, old));
            }
        }
    }

    fn turn_back(&mut self, turned: &mut Turned) {
        let users: Vec<_> = turned.users.drain(..).rev().collect();
        for (id, node) in &users {
            self.move_user(*id, *node);
        }
        let above = self.parents_of(users.iter().map(|(id, _)| *id));
        self.measure(above);
        for (edge, node) in turned.edges.iter().rev() {
            // Those it leads away from are held by the caller.
            let new = edge.swap(Arc::clone(node));
            self.kept.push(new);
        }
    }
}

impl Graph {
    /// A user turns from its node to another, as far as the graph goes.
    fn move_user(&mut self, id: UserId, node: NodeId) {
        let Some(user) = self.users.get_mut(&id) else { return };
        let old = std::mem::replace(&mut user.node, node);
        if let Some(entry) = self.nodes.get_mut(&old) {
            entry.users.retain(|it| *it != id);
        }
        self.entry(node).users.push(id);
    }

    /// That no node stands on itself by an edge that has moved. Only all of them together can tell: each
    /// alone may be right.
    fn refuse_cycles(&mut self, users: &[(UserId, Arc<BlockNode>)]) -> Result<(), GraphError> {
        for (user, new) in users {
            let below = self.closure(new.id(), Graph::children);
            if let Some(parent) = self.parent_among(*user, &below) {
                let above = self.node_name(parent);
                return Err(GraphError::Cycle { above, below: new.name().to_owned() });
            }
        }
        Ok(())
    }

    /// That no node stands on too many others now.
    fn refuse_too_high(&mut self, users: &[(UserId, Arc<BlockNode>)]) -> Result<(), GraphError> {
        let above = self.parents_of(users.iter().map(|(id, _)| *id));
        match self.measure(above) {
            None => Ok(()),
            Some(node) => Err(GraphError::too_high(&self.node_name(node))),
        }
    }

    /// The nodes whose edges these users are.
    fn parents_of(&self, users: impl Iterator<Item = UserId>) -> Vec<NodeId> {
        users.filter_map(|id| self.users.get(&id)?.parent()).collect()
    }

    /// The node whose edge this user is, if it is one of `nodes`.
    pub(super) fn parent_among(&self, user: UserId, nodes: &[NodeId]) -> Option<NodeId> {
        self.users.get(&user)?.parent().filter(|parent| nodes.contains(parent))
    }
}
