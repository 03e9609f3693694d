//! Who stands on whom, for those who look at the graph: monitors, messages, tests.

use std::sync::Arc;

use super::{Kind, lock};
use crate::node::BlockNode;

/// A user of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Parent {
    /// A node that stands on it.
    Node {
        /// Its name.
        name: String,
        /// What the node below is for it, such as `file`.
        role: &'static str,
    },
    /// A backend: a device, an export, a job.
    Backend {
        /// Its name.
        name: String,
    },
}

/// The graph as it is at this moment. Any thread.
impl BlockNode {
    /// The nodes it stands on, each with its role, such as `file`.
    pub fn children(&self) -> Vec<(&'static str, Arc<BlockNode>)> {
        let children = self.driver().children();
        children.into_iter().map(|child| (child.role(), child.node())).collect()
    }

    /// Its users: nodes that stand on it, and backends, the oldest first.
    pub fn parents(&self) -> Vec<Parent> {
        let mut graph = lock();
        let kinds: Vec<Kind> = {
            let users = &graph.entry(self.id()).users;
            let users = users.clone();
            users.iter().filter_map(|user| Some(graph.users.get(user)?.kind.clone())).collect()
        };
        let parents = kinds.into_iter().filter_map(|kind| match kind {
            Kind::Backend { name, .. } => Some(Parent::Backend { name }),
            Kind::Edge { role, parent, .. } => {
                let name = graph.node_name(parent?);
                Some(Parent::Node { name, role })
            }
        });
        parents.collect()
    }
}
