//! Frozen chains: edges that do not change while a job relies on them.
//!
//! A job that works on a chain of nodes, from one down to a base, freezes the edges in between.
//! From then on each change that would turn one of them is refused and names it: replace, insert,
//! remove, attach, detach, reopen. Edges from other parents, and the edges of the base itself, stay
//! free.
//!
//! Freezing is a change itself, so it waits for changes that are under way: an edge that has turned, and
//! may still turn back because a user refuses, is not frozen in between.

use std::sync::Arc;

use coblk_aio::Co;

use super::{Graph, GraphError, Kind, NodeId, UserId, lock, lock_changes};
use crate::driver::role::ChildRole;
use crate::graph::node::BlockNode;

/// A frozen chain: while it lives, its edges do not change. Any thread.
#[must_use = "the chain is frozen only while it lives"]
pub struct FrozenChain {
    edges: Vec<UserId>,
}

impl BlockNode {
    /// Freezes the edges on the way from this node down to `base`, or to the end of the chain without
    /// one, until the chain is dropped. The way goes through the child of a filter and through backing
    /// files. The reason is told where a change is refused, such as `job 'commit0' needs it`.
    ///
    /// # Errors
    /// If the way does not lead to `base`, or a part of it is frozen already: nothing is frozen then. If
    /// other changes have not ended within [`WAIT_LIMIT`](crate::WAIT_LIMIT).
    pub fn co_freeze_chain(
        self: &Arc<Self>,
        co: &Co<'_>,
        base: Option<&Arc<BlockNode>>,
        reason: impl Into<String>,
    ) -> Result<FrozenChain, GraphError> {
        let reason: Arc<str> = reason.into().into();
        let _change = lock_changes(co)?;
        let mut graph = lock();
        let edges = graph.way_down(self, base)?;
        edges.iter().try_for_each(|edge| graph.check_not_frozen(*edge))?;
        for edge in &edges {
            graph.set_frozen(*edge, Some(Arc::clone(&reason)));
        }
        Ok(FrozenChain { edges })
    }
}

impl FrozenChain {
    /// [`BlockNode::co_set_child`], also for an edge that this chain has frozen, which is free afterwards:
    /// for the end of a job. Another change cannot come before it.
    ///
    /// # Errors
    /// As of [`BlockNode::co_set_child`]; the edge stays frozen then.
    pub fn co_set_child(
        &mut self,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        edge: &str,
        child: Option<&Arc<BlockNode>>,
    ) -> Result<(), GraphError> {
        let id = super::attach::co_set_frozen_child(co, node, edge, child, &self.edges)?;
        self.edges.retain(|edge| *edge != id);
        Ok(())
    }
}

impl Drop for FrozenChain {
    fn drop(&mut self) {
        let mut graph = lock();
        for edge in &self.edges {
            graph.set_frozen(*edge, None);
        }
    }
}

impl Graph {
    /// The edges from a node down its chain to `base`.
    fn way_down(
        &mut self,
        top: &BlockNode,
        base: Option<&Arc<BlockNode>>,
    ) -> Result<Vec<UserId>, GraphError> {
        let (mut edges, mut node) = (Vec::new(), top.id());
        while base.is_none_or(|base| base.id() != node) {
            let Some((edge, next)) = self.chain_edge(node) else { break };
            edges.push(edge);
            node = next;
        }
        match base {
            Some(base) if base.id() != node => {
                let (top, base) = (top.name().to_owned(), base.name().to_owned());
                Err(GraphError::NotInChain { top, base })
            }
            _ => Ok(edges),
        }
    }

    /// The edge by which the chain of a node goes on.
    fn chain_edge(&self, node: NodeId) -> Option<(UserId, NodeId)> {
        let edges = &self.nodes.get(&node)?.children;
        let with_role = |role| {
            edges.iter().find_map(|id| {
                let user = self.users.get(id)?;
                user.edge_info()?.role().contains(role).then_some((*id, user.node?))
            })
        };
        with_role(ChildRole::FILTERED).or_else(|| with_role(ChildRole::COW))
    }

    /// Freezes an edge for a reason, or not any more; returns the reason that there was.
    pub(super) fn set_frozen(
        &mut self,
        edge: UserId,
        reason: Option<Arc<str>>,
    ) -> Option<Arc<str>> {
        match self.users.get_mut(&edge).map(|user| &mut user.kind) {
            Some(Kind::Edge { frozen, .. }) => std::mem::replace(frozen, reason),
            _ => None,
        }
    }

    /// That a user may turn to `new`.
    ///
    /// # Errors
    /// If it is a frozen edge, and leads elsewhere.
    pub(super) fn check_frozen(
        &mut self,
        user: UserId,
        new: Option<&BlockNode>,
    ) -> Result<(), GraphError> {
        let now = self.users.get(&user).and_then(|user| user.node);
        if now == new.map(BlockNode::id) { Ok(()) } else { self.check_not_frozen(user) }
    }

    fn check_not_frozen(&mut self, edge: UserId) -> Result<(), GraphError> {
        let Some(user) = self.users.get(&edge) else { return Ok(()) };
        let Kind::Edge { info, parent: Some(parent), frozen: Some(reason), .. } = &user.kind else {
            return Ok(());
        };
        let (edge, parent, child) = (info.label(), *parent, user.node);
        let reason = reason.to_string();
        let parent = self.node_name(parent);
        let child = child.map_or_else(String::new, |child| self.node_name(child));
        Err(GraphError::Frozen { edge, parent, child, reason })
    }
}
