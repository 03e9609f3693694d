//! Checks of the graph: its records of nodes, found again from nothing and compared.
//!
//! Heights, closed gates and granted permissions follow from the edges, the drains and the users. They
//! are kept up to date step by step; the check does not trust a step.

use std::collections::BTreeMap;

use super::permit::Use;
use super::{Graph, Kind, MAX_HEIGHT, NodeId, UserId, lock_permits};
use crate::driver::permissions::Permissions;
use crate::graph::life::Activity;
use crate::graph::node::BlockNode;

/// Faults, in words.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn demand(&mut self, holds: bool, fault: impl FnOnce() -> String) {
        if !holds {
            self.0.push(fault());
        }
    }
}

#[doc(hidden)]
impl BlockNode {
    /// For tests: what is wrong with the graph that this node belongs to. Waits for permissions that are
    /// about to change. No part of the stable interface.
    pub fn graph_faults(&self) -> Vec<String> {
        lock_permits().faults(self.id())
    }
}

impl Graph {
    fn faults(&mut self, start: NodeId) -> Vec<String> {
        let mut faults = Faults::default();
        let neighbours = |graph: &Graph, id| [graph.children(id), graph.parents(id)].concat();
        let mut nodes = self.closure(start, neighbours);
        // Of a node that is going, the edges go one after the other.
        nodes.retain(|id| self.node(*id).is_some());
        let mut heights = BTreeMap::new();
        for id in &nodes {
            self.check_users(*id, &mut faults);
            if self.measured(*id, MAX_HEIGHT, &mut heights).is_none() {
                faults
                    .0
                    .push(format!("node '{}' is its own child, or too high", self.node_name(*id)));
                return faults.0;
            }
        }
        // Parents first.
        nodes.sort_by_key(|id| std::cmp::Reverse(heights[id]));
        let mut granted = BTreeMap::new();
        for id in nodes {
            let name = self.node_name(id);
            let (height, kept) = (heights[&id], self.entry(id).height);
            faults.demand(height == kept, || format!("height of '{name}': {kept}, not {height}"));
            self.check_quiesced(id, &name, &mut faults);
            let together = self.check_granted(id, &name, &granted, &mut faults);
            granted.insert(id, together);
        }
        faults.0
    }

    /// Users know their nodes, and nodes their users and edges; and an edge leads where the graph says.
    fn check_users(&mut self, id: NodeId, faults: &mut Faults) {
        let name = self.node_name(id);
        let (mut users, mut edges) =
            (self.entry(id).users.clone(), self.entry(id).children.clone());
        let mut others: (Vec<UserId>, Vec<UserId>) = Default::default();
        for (user, it) in &self.users {
            others.0.extend((it.node == Some(id)).then_some(*user));
            others.1.extend((it.parent() == Some(id)).then_some(*user));
        }
        users.sort_unstable();
        edges.sort_unstable();
        faults
            .demand(users == others.0, || format!("users of '{name}': {users:?}, not {others:?}"));
        faults
            .demand(edges == others.1, || format!("edges of '{name}': {edges:?}, not {others:?}"));
        for edge in edges {
            let Some(user) = self.users.get(&edge) else { continue };
            let Kind::Edge { edge, info, .. } = &user.kind else { continue };
            let wants_nothing = user.node.is_some() || user.wants == Use::NONE;
            faults.demand(wants_nothing, || format!("empty edge '{info}' wants {:?}", user.wants));
            let Some(edge) = edge.upgrade() else { continue };
            let leads_to = edge.leads_to();
            let is_right = leads_to == user.node || !edge.is_slot() && user.node.is_none();
            let (info, node) = (*info, user.node);
            faults.demand(is_right, || {
                format!("edge '{info}' of '{name}' leads to {leads_to:?}, not {node:?}")
            });
        }
    }

    /// The height of a node, if it is not more than `most`.
    fn measured(
        &self,
        id: NodeId,
        most: usize,
        known: &mut BTreeMap<NodeId, usize>,
    ) -> Option<usize> {
        if let Some(height) = known.get(&id) {
            return Some(*height);
        }
        let mut height = 0;
        for child in self.children(id) {
            height = height.max(1 + self.measured(child, most.checked_sub(1)?, known)?);
        }
        known.insert(id, height);
        Some(height)
    }

    fn check_quiesced(&mut self, id: NodeId, name: &str, faults: &mut Faults) {
        let below = self.closure(id, Graph::children);
        let drained = below.iter().any(|id| self.nodes.get(id).is_some_and(|it| it.drains > 0));
        let quiesced = self.drains_of_all > 0 || drained;
        let kept = (self.entry(id).quiesced, self.node(id).map(|node| node.gate.is_quiesced()));
        faults.demand(kept == (quiesced, Some(quiesced)), || {
            format!("'{name}' is quiesced: {kept:?}, not {quiesced}")
        });
    }

    /// The permissions that the users of a node want together, as their parents have `granted`
    /// them.
    fn check_granted(
        &mut self,
        id: NodeId,
        name: &str,
        granted: &BTreeMap<NodeId, Use>,
        faults: &mut Faults,
    ) -> Use {
        let mut together = Use::NONE;
        let node = self.node(id);
        let force_share = node.as_ref().is_some_and(|node| node.is_force_share());
        let inactive = node.is_some_and(|node| node.life.activity() == Activity::Inactive);
        let users = if inactive { Vec::new() } else { self.entry(id).users.clone() };
        let mut wants = Vec::new();
        for user in users {
            let kept = self.users[&user].wants;
            let mut wanted = self.wanted(user, granted).unwrap_or(kept);
            if force_share {
                wanted.shared = Permissions::all();
            }
            faults.demand(kept == wanted, || {
                format!("user {user:?} of '{name}' wants {kept:?}, not {wanted:?}")
            });
            together =
                Use { held: together.held | wanted.held, shared: together.shared & wanted.shared };
            wants.push((user, wanted));
        }
        for (user, wanted) in &wants {
            for (other, others) in wants.iter().filter(|(other, _)| other != user) {
                let device = |id: &UserId| self.users[id].device();
                let same = device(user).is_some() && device(user) == device(other);
                faults.demand(same || others.shared.contains(wanted.held), || {
                    format!("users of '{name}' exclude each other: {wanted:?}, {others:?}")
                });
            }
        }
        let kept = self.entry(id).granted;
        faults.demand(kept == together, || format!("'{name}' grants {kept:?}, not {together:?}"));
        together
    }

    /// What an edge wants. `None` for other users, which say that themselves; and for edges of nodes that
    /// are not used or are going, which were not asked perhaps.
    fn wanted(&mut self, user: UserId, granted: &BTreeMap<NodeId, Use>) -> Option<Use> {
        let user = self.users.get(&user)?;
        let (info, parent) = (user.edge_info()?, user.parent()?);
        if self.nodes.get(&parent)?.users.is_empty() {
            return None;
        }
        let (above, node) = (*granted.get(&parent)?, self.node(parent)?);
        if node.life.activity() == Activity::Inactive {
            return Some(Use::NONE);
        }
        let (held, shared) = node.driver().child_permissions(&info, above.held, above.shared);
        Some(Use { held, shared })
    }
}
