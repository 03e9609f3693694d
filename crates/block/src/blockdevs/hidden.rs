//! [`HiddenNode`]: a node that belongs to a job. It is listed, and commands leave it alone.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use coblk_aio::{Co, PoolShare};

use super::Blockdevs;
use crate::graph::GraphError;
use crate::graph::life::co_close_if_unused;
use crate::graph::node::BlockNode;
use crate::registry::{BlockdevError, Entry, Names};

/// That a node belongs to a job, from [`Blockdevs::adopt_hidden`]. It is listed until this is dropped.
/// Any thread.
#[must_use = "the node is listed while this lives"]
pub struct HiddenNode {
    node: Arc<BlockNode>,
    /// It may outlive the set that lists it.
    names: Weak<Mutex<Names>>,
}

impl Blockdevs {
    /// Lists a node that belongs to `owner`, such as `job 'backup'`, which messages say. The node is among
    /// [`nodes`](Self::nodes), and its name is taken. No name of an option or a command leads to it: a
    /// delete, a reopen and a child of that name are refused. Where it is a filter above the child of
    /// a node, options of the node mean the child below, and cannot name another child meanwhile.
    ///
    /// The node is closed by the step that takes its last user.
    ///
    /// # Errors
    /// If its name is not one that options can have, or is taken, or the node is closed.
    pub fn adopt_hidden(
        &self,
        node: Arc<BlockNode>,
        owner: impl Into<String>,
    ) -> Result<HiddenNode, BlockdevError> {
        let name = node.name().to_owned();
        self.make_hidden(Some(&name), owner, |_| Ok(node))
    }

    /// [`adopt_hidden`](Self::adopt_hidden) of a node that `make` makes, by the name that it is given: the one
    /// that is `wanted`, or one that no option can have.
    ///
    /// # Errors
    /// As of [`adopt_hidden`](Self::adopt_hidden); those of `make`.
    pub fn make_hidden(
        &self,
        wanted: Option<&str>,
        owner: impl Into<String>,
        make: impl FnOnce(&str) -> Result<Arc<BlockNode>, GraphError>,
    ) -> Result<HiddenNode, BlockdevError> {
        let reserved = self.registry.reserve(wanted)?;
        let node = make(&reserved.name)?;
        if node.life.is_closed() {
            return Err(GraphError::Closed(node.name().to_owned()).into());
        }
        node.life.set_belongs_to_users(true);
        reserved.enter(Entry::Hidden(Arc::clone(&node), owner.into()));
        Ok(HiddenNode { node, names: self.registry.weak_names() })
    }

    /// That a node can be called `name`.
    ///
    /// # Errors
    /// If it is not a name that options can have, or is taken.
    pub fn check_name(&self, name: &str) -> Result<(), BlockdevError> {
        self.registry.reserve(Some(name)).map(drop)
    }

    /// The node called `name`, also if it belongs to a job: for users that take a node as it is, such as
    /// exports. They turn to what comes in its place when the job ends.
    pub fn node_or_hidden(&self, name: &str) -> Option<Arc<BlockNode>> {
        self.names().nodes.get(name).and_then(Entry::node)
    }

    /// The name by which options mean a node: that of the node below, while a filter belongs to a job.
    pub fn name_in_options(&self, node: Arc<BlockNode>) -> String {
        self.names().below_hidden(node).name().to_owned()
    }

    /// The refusal of a change, if the node belongs to a job.
    pub(super) fn hidden(&self, node: &BlockNode) -> Option<BlockdevError> {
        let names = self.names();
        names.owner(node).map(|owner| BlockdevError::hidden(node.name(), owner))
    }
}

impl HiddenNode {
    /// The node.
    pub fn node(&self) -> &Arc<BlockNode> {
        &self.node
    }

    /// Closes the node if it has no users, and takes it off the list. A close that fails is logged. A worker
    /// drops the node, as that may close files; a drop of this does so itself, and does not close the node.
    pub fn co_end(self, co: &Co<'_>) {
        // Its name is taken until then.
        co_close_if_unused(co, &self.node);
        PoolShare::once(co, || drop(self));
    }
}

impl Drop for HiddenNode {
    fn drop(&mut self) {
        let Some(names) = self.names.upgrade() else { return };
        let mut locked = names.lock().unwrap_or_else(PoisonError::into_inner);
        // `self` holds the node, which so ends outside the lock.
        locked.nodes.remove(self.node.name());
    }
}

impl fmt::Debug for HiddenNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HiddenNode").field("node", &self.node.name()).finish_non_exhaustive()
    }
}
