//! Nodes that become read-only, or writable, by themselves: as a job ends, and no user asks for it.

use std::sync::{Arc, Mutex, Weak};

use coblk_aio::Co;

use super::Blockdevs;
use super::listing::describe_edges;
use crate::graph::node::BlockNode;
use crate::options::NodeOptions;
use crate::registry::{BlockdevError, Drivers, EventListener, Names, Registry};

/// The way to a set of nodes that may be gone by then, from [`Blockdevs::downgrade`]. Any thread.
#[derive(Clone)]
pub struct WeakBlockdevs {
    drivers: Drivers,
    names: Weak<Mutex<Names>>,
    events: EventListener,
}

impl std::fmt::Debug for WeakBlockdevs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WeakBlockdevs").finish_non_exhaustive()
    }
}

impl WeakBlockdevs {
    /// The set, if it is still there.
    pub fn upgrade(&self) -> Option<Blockdevs> {
        let (drivers, events) = (self.drivers.clone(), self.events.clone());
        let registry = Registry { drivers, names: self.names.upgrade()?, events };
        Some(Blockdevs { registry })
    }
}

impl Blockdevs {
    /// A way to this set that does not keep its nodes open.
    pub fn downgrade(&self) -> WeakBlockdevs {
        let Registry { drivers, events, .. } = &self.registry;
        let (drivers, events) = (drivers.clone(), events.clone());
        WeakBlockdevs { drivers, names: self.registry.weak_names(), events }
    }

    /// Has a node refuse writes, or take them: a [reopen](Self::co_reopen) with its other options and children as
    /// they are.
    ///
    /// # Errors
    /// If the node was made in code; else as of [`co_reopen`](Self::co_reopen). Nothing has changed then.
    pub fn co_set_read_only(
        &self,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        read_only: bool,
    ) -> Result<(), BlockdevError> {
        if node.is_read_only() == read_only {
            return Ok(());
        }
        let missing = || BlockdevError::NoOptions(node.name().to_owned());
        let (options, _) = self.entry(node).ok_or_else(missing)?;
        let mut options = NodeOptions::clone(&options).read_only(read_only).auto_read_only(false);
        options.node_name = Some(node.name().to_owned());
        describe_edges(node, &mut options);
        self.co_reopen(co, vec![options])
    }
}
