//! Homes of drivers' background work, and the contexts that use a node.
//!
//! A home follows from the graph: it is that of the oldest backend on the node or on an ancestor.
//! So it is settled after each step that brings a backend or takes one, and after an edge has turned, in a
//! coroutine; steps
//! outside of coroutines cannot drain, and leave homes as they are until the next step.

use std::sync::Arc;

use coblk_aio::{AioHandle, Co};

use super::joint::put_off;
use super::{Graph, GraphError, NodeId, co_drain_for_change, has_no_limit, lock, lock_changes};
use crate::graph::gate::{WAIT_LIMIT, co_visit_all};
use crate::graph::node::BlockNode;

/// Whether background work of a driver is at home in that context, which must not end then. Any thread.
pub fn is_home(context: &AioHandle) -> bool {
    let nodes = lock().all_nodes();
    let mut homes = nodes.iter().filter_map(|node| Some(node.driver().background()?.home()));
    homes.any(|home| home == *context)
}

/// Moves the background work of a node's driver, and of its descendants', to where it has to be.
/// Work that cannot be moved, as requests do not end, stays; that is logged.
pub(crate) fn co_settle_homes(co: &Co<'_>, node: &Arc<BlockNode>) {
    if put_off(co, node) {
        return;
    }
    let moves = lock().homes_below(node);
    for node in moves {
        if let Err(error) = co_move_home(co, &node) {
            tracing::warn!(node = node.name(), %error, "background work stays where it is");
        }
    }
}

/// As `change.rs`: drained before other changes are waited for, and looked at anew behind them.
fn co_move_home(co: &Co<'_>, node: &Arc<BlockNode>) -> Result<(), GraphError> {
    let _drained = co_drain_for_change(co, node)?;
    let _change = lock_changes(co)?;
    let home = lock().home_to_be(node);
    if let (Some(home), Some(background)) = (home, node.driver().background()) {
        node.driver().co_set_home(co, home.clone());
        background.set_home(home);
    }
    Ok(())
}

impl BlockNode {
    /// Returns when every context that may have requests at this node has gone through its loop
    /// once: those of backends on it and on its ancestors, those of background work of the drivers
    /// there, and the caller's. So what a context read before, plainly and without suspending, is
    /// used no more, and what was stored before is seen by all requests that begin from now on.
    /// Requests in flight are not waited for.
    ///
    /// Not passed are contexts that reach the node in another way alone: by a
    /// [`RangeLock`](crate::RangeLock), or a function that [`Co::call_at`] runs there and that is neither the home
    /// of a backend nor of background work. Their users arrange for the same themselves.
    ///
    /// # Errors
    /// ETIMEDOUT after [`WAIT_LIMIT`]: a context does not poll. One that has ended counts as passed.
    pub fn co_pass_contexts(self: &Arc<Self>, co: &Co<'_>) -> std::io::Result<()> {
        let others = lock().contexts_above(self);
        // What runs on this thread may have called the caller.
        co.yield_now();
        if has_no_limit(co) {
            co_visit_all(co, &others);
            return Ok(());
        }
        let pass = move |co: &Co<'_>| co_visit_all(co, &others);
        Ok(co.timeout(WAIT_LIMIT, "pass contexts", pass)?)
    }
}

impl Graph {
    /// Where the background work of a node's driver has to go, if it has any, and is elsewhere.
    fn home_to_be(&mut self, node: &BlockNode) -> Option<AioHandle> {
        let background = node.driver().background()?;
        if !self.nodes.contains_key(&node.id()) || node.life.is_closed() {
            return None;
        }
        let backends = self.backends_above(node);
        let oldest = backends.into_iter().filter(|(_, home)| !home.context.is_closed());
        let oldest = oldest.min_by_key(|(id, _)| *id);
        background.home_to_be(oldest.map(|(_, home)| home.context))
    }

    /// A node and its descendants, as far as their background work has to move.
    fn homes_below(&mut self, node: &BlockNode) -> Vec<Arc<BlockNode>> {
        let ids: Vec<NodeId> = self.closure(node.id(), Graph::children);
        let nodes: Vec<_> = ids.into_iter().filter_map(|id| self.node(id)).collect();
        nodes.into_iter().filter(|node| self.home_to_be(node).is_some()).collect()
    }

    /// The contexts that may have requests at a node, each once.
    fn contexts_above(&mut self, node: &BlockNode) -> Vec<AioHandle> {
        let mut contexts: Vec<AioHandle> = Vec::new();
        let backends = self.backends_above(node).into_iter().map(|(_, home)| home.context);
        let ids = self.closure(node.id(), Graph::parents);
        let nodes: Vec<_> = ids.into_iter().filter_map(|id| self.node(id)).collect();
        let homes = nodes.iter().filter_map(|node| Some(node.driver().background()?.home()));
        for context in backends.chain(homes) {
            if !contexts.contains(&context) {
                contexts.push(context);
            }
        }
        contexts
    }
}
