//! Filters that come and go while requests run, and users that can be turned back.

use std::sync::{Arc, Mutex, PoisonError};

use coblk_aio::Co;

use super::change::turn_users;
use super::{Graph, GraphError, UserId};
use crate::graph::node::BlockNode;

/// Users that have turned from one node to another. Dropped, they stay where they are.
#[must_use = "users can be turned back only by this"]
pub struct TurnedUsers {
    users: Vec<UserId>,
    from: Arc<BlockNode>,
    to: Arc<BlockNode>,
}

impl BlockNode {
    /// Inserts a filter above this node, which passes requests on to it: all users of this node turn to the
    /// filter. Those that the filter has had stay. As [`co_insert_above`](Self::co_insert_above), for nodes that a
    /// user names.
    ///
    /// # Errors
    /// If `filter` does not have the bytes of this node: filters must lead down to it, none of which moves or cuts
    /// them; else as of [`co_replace`](Self::co_replace).
    pub fn co_insert_filter(
        self: &Arc<Self>,
        co: &Co<'_>,
        filter: &Arc<BlockNode>,
    ) -> Result<TurnedUsers, GraphError> {
        check_filter(filter, self)?;
        co_turn(co, self, filter, Graph::above_only)
    }

    /// Removes a filter: all its users turn to the node that it passes requests on to.
    ///
    /// # Errors
    /// If it is none, or does not have the bytes of its child; else as of [`co_replace`](Self::co_replace).
    pub fn co_remove_filter(self: &Arc<Self>, co: &Co<'_>) -> Result<TurnedUsers, GraphError> {
        let below = self.filtered();
        let below = below.ok_or_else(|| GraphError::NoFilter(self.name().to_owned()))?;
        check_filter(self, &below)?;
        co_turn(co, self, &below, Graph::keep_way_down)
    }
}

impl TurnedUsers {
    /// The node that they have come from.
    pub fn from(&self) -> &Arc<BlockNode> {
        &self.from
    }

    /// The node that they have turned to.
    pub fn to(&self) -> &Arc<BlockNode> {
        &self.to
    }

    /// Turns them back, but for those that have gone, or turned again.
    ///
    /// # Errors
    /// As of [`BlockNode::co_replace`].
    pub fn co_turn_back(self, co: &Co<'_>) -> Result<(), GraphError> {
        let stay = |graph: &mut Graph, old: &BlockNode, new: &BlockNode| {
            let mut users = graph.keep_way_down(old, new)?;
            users.retain(|user| self.users.contains(user));
            Ok(users)
        };
        turn_users(co, &self.to, || Ok(Arc::clone(&self.from)), stay)
    }
}

/// Turns the users that `choose` chooses, and notes them.
fn co_turn(
    co: &Co<'_>,
    old: &Arc<BlockNode>,
    new: &Arc<BlockNode>,
    choose: fn(&mut Graph, &BlockNode, &BlockNode) -> Result<Vec<UserId>, GraphError>,
) -> Result<TurnedUsers, GraphError> {
    let chosen = Mutex::new(Vec::new());
    let note = |graph: &mut Graph, old: &BlockNode, new: &BlockNode| {
        let users = choose(graph, old, new)?;
        // The last choice is the one that turns.
        chosen.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&users);
        Ok(users)
    };
    turn_users(co, old, || Ok(Arc::clone(new)), note)?;
    let users = chosen.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(TurnedUsers { users, from: Arc::clone(old), to: Arc::clone(new) })
}

/// That filters lead from one node to the other, and that both have the same bytes.
fn check_filter(above: &Arc<BlockNode>, below: &Arc<BlockNode>) -> Result<(), GraphError> {
    let refused = || GraphError::NotItsFilter {
        above: above.name().to_owned(),
        below: below.name().to_owned(),
    };
    let mut node = Arc::clone(above);
    while !Arc::ptr_eq(&node, below) {
        let next = node.filtered().ok_or_else(refused)?;
        if node.driver().at_filtered(0) != 0 || node.length() != next.length() {
            return Err(refused());
        }
        node = next;
    }
    match Arc::ptr_eq(above, below) {
        true => Err(refused()),
        false => Ok(()),
    }
}
