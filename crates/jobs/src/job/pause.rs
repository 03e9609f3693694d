//! Pauses: by the user, and by drains of the nodes that a job uses.
//!
//! A drain asks the job to rest and does not wait for its main coroutine: all requests of a job are counted
//! at the gates of their nodes, so the drain of a node waits for those to that node and for no others. What
//! the job does besides is to wait, or to change the graph, which drains by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coblk_aio::{Co, RemoteBottomHalf};
use coblk_block::{BlockNode, NodeUse, NodeUser, PermissionError, Permissions};

/// The drains of the nodes of one job, and the way to tell it. Any thread.
pub(super) struct Drains {
    /// For messages.
    name: String,
    count: AtomicUsize,
    kick: RemoteBottomHalf,
}

impl Drains {
    pub(super) fn new(name: String, kick: RemoteBottomHalf) -> Arc<Drains> {
        Arc::new(Drains { name, count: AtomicUsize::new(0), kick })
    }

    /// How many of the nodes are drained.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Begins the use of a node by the job, with permissions.
    pub(super) fn co_use(
        self: &Arc<Self>,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        (held, shared): (Permissions, Permissions),
    ) -> Result<NodeUse, PermissionError> {
        let user = Arc::new(OfNode { drains: Arc::clone(self), is_drained: AtomicUsize::new(0) });
        NodeUse::co_new(co, user, node, held, shared)
    }
}

/// The use of one node. What the end of a use leaves of a drain ends with it.
struct OfNode {
    drains: Arc<Drains>,
    is_drained: AtomicUsize,
}

impl NodeUser for OfNode {
    fn name(&self) -> String {
        self.drains.name.clone()
    }

    fn drained_begin(&self) {
        self.is_drained.fetch_add(1, Ordering::SeqCst);
        self.drains.count.fetch_add(1, Ordering::SeqCst);
        self.drains.kick.schedule();
    }

    fn drained_end(&self) {
        self.is_drained.fetch_sub(1, Ordering::SeqCst);
        self.drains.count.fetch_sub(1, Ordering::SeqCst);
        self.drains.kick.schedule();
    }
}

impl Drop for OfNode {
    fn drop(&mut self) {
        self.drains.count.fetch_sub(*self.is_drained.get_mut(), Ordering::SeqCst);
        self.drains.kick.schedule();
    }
}
