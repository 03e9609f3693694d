//! Children and parents of nodes, for monitors, messages and tests.

use std::borrow::Cow;
use std::sync::Arc;

use super::{DeviceId, Graph, Kind, UserId, lock};
use crate::accounting::Statistics;
use crate::graph::node::BlockNode;

/// A user of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Parent {
    /// A node whose driver has it as a child.
    Node {
        /// Its name.
        name: String,
        /// The name of the edge there, such as `file`.
        child: Cow<'static, str>,
    },
    /// A backend: a device, an export, a job.
    Backend {
        /// Its name.
        name: String,
    },
    /// A [`NodeUser`](crate::NodeUser).
    User {
        /// Its name.
        name: String,
    },
}

/// A backend, as other threads see it.
#[derive(Clone)]
#[non_exhaustive]
pub struct BackendInfo {
    /// Its name.
    pub name: String,
    /// Its counters, and the settings of what is counted.
    pub statistics: Statistics,
}

impl Graph {
    /// The names of a backend and of its node, if it is there and has one.
    pub(crate) fn backend_and_node(&mut self, id: UserId) -> Option<(String, String)> {
        let user = self.users.get(&id)?;
        let Kind::Backend { name, .. } = &user.kind else { return None };
        let (name, node) = (name.clone(), user.node?);
        Some((name, self.node_name(node)))
    }
}

/// A device: the backends that were opened with the same
/// [`BackendOptions`](crate::BackendOptions), one on each of its contexts. Names may be given twice;
/// this is the device itself, wherever changes of the graph put it. Any thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(pub(crate) DeviceId);

impl Device {
    /// The node that it is on at this moment; `None` without a medium.
    pub fn node(self) -> Option<Arc<BlockNode>> {
        let mut graph = lock();
        let mut users = graph.users.values();
        let node = users.find(|user| user.device() == Some(self.0))?.node?;
        graph.node(node)
    }

    /// Its backends that have a medium, the oldest first.
    pub fn backends(self) -> Vec<BackendInfo> {
        let graph = lock();
        let own = graph.users.values().filter(|user| user.device() == Some(self.0));
        own.filter_map(|user| BackendInfo::of(&user.kind)).collect()
    }
}

impl BackendInfo {
    fn of(kind: &Kind) -> Option<BackendInfo> {
        match kind {
            Kind::Backend { name, statistics, .. } => {
                Some(BackendInfo { name: name.clone(), statistics: statistics.clone() })
            }
            Kind::Edge { .. } | Kind::User { .. } => None,
        }
    }
}

/// The names of all nodes of the process that have requests of backends, or I/O of their own, in flight at this
/// moment, the oldest first; for the last words of a program that does not wait for them. Any thread.
pub fn nodes_in_flight() -> Vec<String> {
    let nodes = lock().all_nodes();
    let busy = nodes.iter().filter(|node| node.gate.in_flight() > 0);
    busy.map(|node| node.name().to_owned()).collect()
}

/// The graph as it is at this moment. Any thread.
impl BlockNode {
    /// Its children, each by the name of its edge, such as `file`, or `children.0`. An empty slot has
    /// none.
    pub fn children(&self) -> Vec<(Cow<'static, str>, Arc<BlockNode>)> {
        let mut graph = lock();
        let edges = graph.entry(self.id()).children.clone();
        let child = |edge| {
            let user = graph.users.get(&edge)?;
            let (label, node) = (user.edge_info()?.label(), user.node?);
            Some((label, graph.node(node)?))
        };
        edges.into_iter().filter_map(child).collect()
    }

    /// The backends on it, the oldest first.
    pub fn backends(&self) -> Vec<BackendInfo> {
        let mut graph = lock();
        let users = graph.entry(self.id()).users.clone();
        let backend = |user| BackendInfo::of(&graph.users.get(&user)?.kind);
        users.into_iter().filter_map(backend).collect()
    }

    /// Its users: parents, backends and others, the oldest first.
    pub fn parents(&self) -> Vec<Parent> {
        let mut graph = lock();
        let kinds: Vec<Kind> = {
            let users = graph.entry(self.id()).users.clone();
            users.iter().filter_map(|user| Some(graph.users.get(user)?.kind.clone())).collect()
        };
        let parents = kinds.into_iter().filter_map(|kind| match kind {
            Kind::Backend { name, .. } => Some(Parent::Backend { name }),
            Kind::User { user, .. } => Some(Parent::User { name: user.name() }),
            Kind::Edge { info, parent, .. } => {
                let name = graph.node_name(parent?);
                Some(Parent::Node { name, child: info.label() })
            }
        });
        parents.collect()
    }
}
