//! Drained sections: of a node, with its parents and theirs, and of all nodes.

use std::sync::Arc;
use std::time::Duration;

use coblk_aio::sync::TimedOut;
use coblk_aio::{AioContext, Co};

use super::change::has_no_limit;
use super::{Graph, GraphError, NodeUser, lock};
use crate::graph::gate::WAIT_LIMIT;
use crate::graph::node::BlockNode;

type Users = Vec<Arc<dyn NodeUser>>;

/// A section whose gates are closed, and what it waits for.
type Begun = (DrainedSection, Vec<Arc<BlockNode>>, Users);

impl BlockNode {
    /// Drains the node: new requests wait, from every context, also those to its parents; returns
    /// when the requests in flight have completed. The node is quiesced until the section is
    /// dropped. Sections nest (contract: C77). A drain does not flush (C78).
    ///
    /// Polls `ctx` meanwhile, so callbacks run. Must not be called from a request's own callback:
    /// it would wait for itself.
    ///
    /// # Panics
    /// If called inside a coroutine; there, use [`co_drain`](Self::co_drain).
    pub fn drain(self: &Arc<Self>, ctx: &AioContext) -> DrainedSection {
        ctx.run(|co| self.co_drain(co))
    }

    /// [`drain`](Self::drain), from a coroutine (contract: C78).
    pub fn co_drain(self: &Arc<Self>, co: &Co<'_>) -> DrainedSection {
        let (section, above, users) = self.begin_drain();
        // A node that becomes a parent meanwhile starts quiesced, or was drained by the change.
        for node in above {
            node.gate.wait_until_idle(co, || false);
        }
        users.iter().for_each(|user| user.co_rest(co));
        section
    }

    /// [`co_drain`](Self::co_drain), but no longer than `limit`: a disk may not answer, or a long
    /// request be under way.
    ///
    /// # Errors
    /// If requests are still in flight then. Requests go on as before.
    pub fn co_drain_within(
        self: &Arc<Self>,
        co: &Co<'_>,
        limit: Duration,
    ) -> Result<DrainedSection, TimedOut> {
        let begun = self.begin_drain();
        let limit_ns = i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX);
        co_wait_until(co, begun, Some(co.context().now_ns().saturating_add(limit_ns)))
    }

    /// Closes the gates. The nodes whose requests in flight are to be waited for, and their other users.
    fn begin_drain(self: &Arc<Self>) -> Begun {
        let mut graph = lock();
        graph.entry(self.id()).drains += 1;
        graph.settle(self.id());
        let section = DrainedSection { node: Arc::clone(self) };
        let above = graph.closure(self.id(), Graph::parents);
        let users = above.iter().flat_map(|id| graph.node_users(*id)).collect();
        let above: Vec<_> = above.into_iter().filter_map(|id| graph.node(id)).collect();
        (section, above, users)
    }
}

/// Waits until a section is drained, no longer than to `end_ns` if there is such an end.
fn co_wait_until(
    co: &Co<'_>,
    (section, above, users): Begun,
    end_ns: Option<i64>,
) -> Result<DrainedSection, TimedOut> {
    let ctx = co.context();
    // A node that becomes a parent meanwhile starts quiesced, or was drained by the change.
    for node in above {
        let waits = Arc::clone(&node);
        let timer = ctx.timer(move |_| waits.gate.wake_drainers());
        end_ns.iter().for_each(|end_ns| timer.arm_at_ns(*end_ns));
        if !node.gate.wait_until_idle(co, || end_ns.is_some_and(|it| ctx.now_ns() >= it)) {
            return Err(TimedOut);
        }
    }
    for user in users {
        let Some(end_ns) = end_ns else {
            user.co_rest(co);
            continue;
        };
        let left_ns = end_ns.saturating_sub(ctx.now_ns());
        // None at all would be no limit.
        let left = Duration::from_nanos(left_ns.max(1).unsigned_abs());
        co.timeout(left, "users of a drained node", move |co| user.co_rest(co))?;
    }
    Ok(section)
}

/// Drains nodes for a change: closes the gates of all before it waits for the requests of any.
///
/// # Errors
/// If requests of one have not ended within [`WAIT_LIMIT`] from now on.
pub(super) fn co_drain_together(
    co: &Co<'_>,
    nodes: &[Arc<BlockNode>],
) -> Result<Vec<DrainedSection>, GraphError> {
    let begun: Vec<_> = nodes.iter().map(|node| node.begin_drain()).collect();
    let limited = (!has_no_limit(co)).then_some(WAIT_LIMIT.as_nanos() as i64);
    let end_ns = limited.map(|limit_ns| co.context().now_ns() + limit_ns);
    let wait = |(node, begun): (&Arc<BlockNode>, Begun)| {
        let drained = co_wait_until(co, begun, end_ns);
        drained.map_err(|_| GraphError::RequestsInTheWay(node.name().to_owned()))
    };
    nodes.iter().zip(begun).map(wait).collect()
}

/// A drained section: while it lives, no request enters its node, nor a node that leads to it.
#[must_use = "requests go on when the section is dropped"]
pub struct DrainedSection {
    node: Arc<BlockNode>,
}

impl DrainedSection {
    /// # Panics
    /// If it does not hold for `node`.
    pub(crate) fn demand(&self, node: &BlockNode) {
        let above = lock().closure(self.node.id(), Graph::parents);
        assert!(above.contains(&node.id()), "node '{}' is not in the drained section", node.name());
    }
}

impl Drop for DrainedSection {
    fn drop(&mut self) {
        let mut graph = lock();
        graph.entry(self.node.id()).drains -= 1;
        graph.settle(self.node.id());
    }
}

/// Drains every node of the process, those that are made later included, until the section is
/// dropped. Polls `ctx` meanwhile.
///
/// # Panics
/// If called inside a coroutine.
pub fn drain_all(ctx: &AioContext) -> DrainedAllSection {
    let (all, users) = {
        let mut graph = lock();
        graph.drains_of_all += 1;
        let nodes = graph.all_nodes();
        nodes.iter().for_each(|node| graph.settle(node.id()));
        let users: Users = nodes.iter().flat_map(|node| graph.node_users(node.id())).collect();
        (DrainedAllSection { nodes }, users)
    };
    ctx.run(|co| {
        for node in &all.nodes {
            node.gate.wait_until_idle(co, || false);
        }
        users.iter().for_each(|user| user.co_rest(co));
    });
    all
}

/// A drained section of all nodes: while it lives, no request enters any node.
#[must_use = "requests go on when the section is dropped"]
pub struct DrainedAllSection {
    /// Kept, so that their drivers see the end.
    nodes: Vec<Arc<BlockNode>>,
}

impl Drop for DrainedAllSection {
    fn drop(&mut self) {
        {
            let mut graph = lock();
            graph.drains_of_all -= 1;
            // Also those that were born meanwhile.
            for node in graph.all_nodes() {
                graph.settle(node.id());
            }
        }
        self.nodes.clear();
    }
}
