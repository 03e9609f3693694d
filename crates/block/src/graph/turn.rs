//! Users that turn from node to node, or back if others do not agree.
//!
//! The nodes concerned are drained. An edge turns at once, under the lock of the graph; a backend on
//! its own thread, afterwards.

use std::sync::Arc;

use super::edge::Edge;
use super::{Graph, GraphError, GraphGuard, Kind, NodeId, Use, UserId};
use crate::graph::node::BlockNode;

/// A user, and the node that it is to turn to; `None` for an edge that is to lead nowhere.
pub(crate) type Turn = (UserId, Option<Arc<BlockNode>>);

/// Edges that were turned, to be kept until the lock is free: they may be dropped only then.
#[derive(Default)]
pub(crate) struct Turned {
    users: Vec<(UserId, Option<NodeId>)>,
    edges: Vec<(Arc<Edge>, Option<Arc<BlockNode>>)>,
}

impl Turned {
    /// Where the edges led before.
    pub(crate) fn old_nodes(self) -> Vec<Arc<BlockNode>> {
        self.edges.into_iter().filter_map(|(_, node)| node).collect()
    }
}

/// Under the lock of permissions.
impl GraphGuard {
    /// Turns users to other nodes, if all users agree to that, and to what else has changed in the
    /// nodes `also`. A backend that writes and no longer can is an error unless it may
    /// `become_readers`.
    ///
    /// # Errors
    /// If an edge is frozen, a node cannot have such users, or a user does not agree. No user has turned
    /// then.
    pub(crate) fn turn(
        &mut self,
        users: &[Turn],
        also: &[NodeId],
        become_readers: bool,
        turned: &mut Turned,
    ) -> Result<(), GraphError> {
        users.iter().try_for_each(|(id, new)| self.check_frozen(*id, new.as_deref()))?;
        let mut nodes = also.to_vec();
        for (id, new) in users {
            let Some(user) = self.users.get(id) else { continue };
            turned.users.push((*id, user.node));
            let new = new.as_ref().map(|new| new.id());
            nodes.extend(user.node.into_iter().chain(new));
            self.move_user(*id, new);
        }
        let agreed = self.check_turned(users).and_then(|()| {
            self.turn_edges(users, turned);
            self.permit_anew(&nodes, become_readers)
        });
        match agreed {
            Ok(()) => self.forget_wants(users),
            Err(_) => self.turn_back(turned),
        }
        // Also then: a drain may have begun while drivers were told.
        for (id, _) in users {
            let parent = self.users.get(id).and_then(|user| user.parent());
            parent.into_iter().for_each(|parent| self.settle(parent));
        }
        agreed
    }

    /// The edges among users that have moved. A question such as for a length goes down the edges
    /// without the lock, and must not find a cycle in between either: so descendants turn first:
    /// everything that an edge leads to is in its final place when the edge turns.
    fn turn_edges(&mut self, users: &[Turn], turned: &mut Turned) {
        let mut users: Vec<_> = users.iter().collect();
        // A descendant has fewer descendants.
        users.sort_by_cached_key(|(_, new)| {
            new.as_ref().map_or(0, |new| self.closure(new.id(), Graph::children).len())
        });
        for (id, new) in users {
            if let Some(Kind::Edge { edge, .. }) = self.users.get(id).map(|user| &user.kind)
                && let Some(edge) = edge.upgrade()
            {
                debug_assert!(self.is_idle_above(*id), "an edge turns under a request");
                let old = edge.swap(new.clone());
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
            let new = edge.swap(node.clone());
            self.kept.extend(new);
        }
    }
}

impl Graph {
    /// A user turns from its node to another, as far as the graph goes.
    fn move_user(&mut self, id: UserId, node: Option<NodeId>) {
        let Some(user) = self.users.get_mut(&id) else { return };
        let old = std::mem::replace(&mut user.node, node);
        if let Some(entry) = old.and_then(|old| self.nodes.get_mut(&old)) {
            entry.users.retain(|it| *it != id);
        }
        if let Some(node) = node {
            self.entry(node).users.push(id);
        }
    }

    /// That the graph may be as it is now, after these users have moved.
    fn check_turned(&mut self, users: &[Turn]) -> Result<(), GraphError> {
        for (id, new) in users {
            if let Some(new) = new {
                self.check_open(new.id())?;
                self.check_activity(*id, new.id())?;
            }
        }
        self.refuse_cycles(users)?;
        self.refuse_too_high(users)
    }

    /// That no node is its own child by an edge that has moved. Only all of them together can tell: each
    /// alone may be right.
    fn refuse_cycles(&mut self, users: &[Turn]) -> Result<(), GraphError> {
        for (user, new) in users {
            let Some(new) = new else { continue };
            let below = self.closure(new.id(), Graph::children);
            if let Some(parent) = self.parent_among(*user, &below) {
                let above = self.node_name(parent);
                return Err(GraphError::Cycle { above, below: new.name().to_owned() });
            }
        }
        Ok(())
    }

    /// That no chain of children is too long now.
    fn refuse_too_high(&mut self, users: &[Turn]) -> Result<(), GraphError> {
        let above = self.parents_of(users.iter().map(|(id, _)| *id));
        match self.measure(above) {
            None => Ok(()),
            Some(node) => Err(GraphError::too_high(&self.node_name(node))),
        }
    }

    /// An edge that leads nowhere wants nothing.
    fn forget_wants(&mut self, users: &[Turn]) {
        for (id, _) in users.iter().filter(|(_, new)| new.is_none()) {
            if let Some(user) = self.users.get_mut(id) {
                user.wants = Use::NONE;
            }
        }
    }

    /// Whether no request is inside an edge, as far as backends have counted them.
    fn is_idle_above(&mut self, edge: UserId) -> bool {
        let Some(parent) = self.users.get(&edge).and_then(|user| user.parent()) else {
            return true;
        };
        let above = self.closure(parent, Graph::parents);
        above.into_iter().filter_map(|id| self.node(id)).all(|node| node.gate.is_idle())
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
