//! Changes of the graph while requests run: replace a node, insert one, remove it again.
//!
//! Both nodes are drained meanwhile, so that no request is inside an edge when it turns. An edge turns
//! at once, under the lock of the graph. A backend belongs to its context, so it turns there: the
//! change passes through the loop of each context that has one.

use std::io;
use std::sync::Arc;

use coblk_aio::sync::{CoMutex, CoMutexGuard};
use coblk_aio::{AioContext, Co, PoolShare, trace_event};

use super::joint::is_joint;
use super::turn::Turned;
use super::{DrainedSection, Graph, GraphError, Operation, UserId, lock, lock_permits};
use crate::graph::backends::BackendHome;
use crate::graph::gate::{WAIT_LIMIT, co_visit};
use crate::graph::homes::co_settle_homes;
use crate::graph::life::co_close_if_unused;
use crate::graph::node::BlockNode;
use crate::io as request_path;

/// The lock of changes of the graph: while it lives no other change of the graph comes in between. For callers that
/// make several changes as one. It is taken before any node is drained. Any thread.
///
/// Where a [joint change](crate::JointChange) of the same coroutine has the lock, this is a part of it.
#[must_use = "changes of others wait only while it lives"]
pub struct ChangeLock {
    _guard: Option<CoMutexGuard<'static, ()>>,
}

impl ChangeLock {
    /// Takes the lock when the changes before have ended.
    ///
    /// # Errors
    /// If they have not within [`WAIT_LIMIT`](crate::WAIT_LIMIT).
    pub fn co_take(co: &Co<'_>) -> Result<ChangeLock, GraphError> {
        lock_changes(co)
    }
}

/// Changes come one after the other.
///
/// # Errors
/// If those before have not ended within [`WAIT_LIMIT`].
pub(crate) fn lock_changes(co: &Co<'_>) -> Result<ChangeLock, GraphError> {
    static CHANGES: CoMutex<()> = CoMutex::new(());
    let locked = |guard| Ok(ChangeLock { _guard: Some(guard) });
    if is_joint(co) {
        return Ok(ChangeLock { _guard: None });
    }
    if let Some(guard) = CHANGES.try_lock() {
        return locked(guard);
    }
    if has_no_limit(co) {
        return locked(CHANGES.lock(co));
    }
    // One that comes too late is dropped, and so given on.
    let guard = co.timeout(WAIT_LIMIT, "wait for changes", |co| CHANGES.lock(co));
    guard.map_err(|_| GraphError::ChangeInTheWay).and_then(locked)
}

/// Drains a node that is to change.
///
/// # Errors
/// If its requests have not ended within [`WAIT_LIMIT`].
pub(crate) fn co_drain_for_change(
    co: &Co<'_>,
    node: &Arc<BlockNode>,
) -> Result<DrainedSection, GraphError> {
    let name = || node.name().to_owned();
    if has_no_limit(co) {
        return Ok(node.co_drain(co));
    }
    node.co_drain_within(co, WAIT_LIMIT).map_err(|_| GraphError::RequestsInTheWay(name()))
}

/// Simulated time is over as soon as nothing else is to be done, while other threads take real time.
pub(crate) fn has_no_limit(co: &Co<'_>) -> bool {
    co.context().simulation().is_some()
}

/// Changes of the graph. Each drains the nodes concerned first: requests in flight complete where
/// they are, later ones go where the graph then leads. So none may be called from a request's own
/// callback. All contexts that have backends concerned must be polling.
///
/// A change waits for requests, and for other changes, up to [`WAIT_LIMIT`] each; then it fails, and has
/// changed nothing.
impl BlockNode {
    /// Turns all users of this node, edges and backends of any context, to `new`, but for the edges
    /// on the way from `new` down to this node: so no node becomes its own child.
    ///
    /// # Errors
    /// If an edge is frozen, a chain would be too long, or the users of both nodes exclude each other. If
    /// what was written to this node cannot be made durable, the next flush of `new` says so.
    pub fn co_replace(
        self: &Arc<Self>,
        co: &Co<'_>,
        new: &Arc<BlockNode>,
    ) -> Result<(), GraphError> {
        turn_users(co, self, || Ok(Arc::clone(new)), Graph::keep_way_down)
    }

    /// [`co_replace`](Self::co_replace) from outside of coroutines. Polls `ctx` meanwhile.
    ///
    /// # Panics
    /// If called inside a coroutine.
    pub fn replace(
        self: &Arc<Self>,
        ctx: &AioContext,
        new: &Arc<BlockNode>,
    ) -> Result<(), GraphError> {
        ctx.run(|co| self.co_replace(co, new))
    }

    /// Inserts `above`, which has this node as its child, directly or not: users turn to it as by
    /// [`co_replace`](Self::co_replace).
    ///
    /// # Errors
    /// If `above` does not lead to this node; else as of [`co_replace`](Self::co_replace).
    pub fn co_insert_above(
        self: &Arc<Self>,
        co: &Co<'_>,
        above: &Arc<BlockNode>,
    ) -> Result<(), GraphError> {
        turn_users(co, self, || Ok(Arc::clone(above)), Graph::above_only)
    }

    /// [`co_insert_above`](Self::co_insert_above) from outside of coroutines. Polls `ctx` meanwhile.
    ///
    /// # Panics
    /// If called inside a coroutine.
    pub fn insert_above(
        self: &Arc<Self>,
        ctx: &AioContext,
        above: &Arc<BlockNode>,
    ) -> Result<(), GraphError> {
        ctx.run(|co| self.co_insert_above(co, above))
    }

    /// Turns all users of this node to its child: undoes
    /// [`co_insert_above`](Self::co_insert_above).
    ///
    /// # Errors
    /// If it does not have exactly one child; else as of [`co_replace`](Self::co_replace).
    pub fn co_remove(self: &Arc<Self>, co: &Co<'_>) -> Result<(), GraphError> {
        turn_users(co, self, || lock().only_child(self), Graph::keep_way_down)
    }

    /// [`co_remove`](Self::co_remove) from outside of coroutines. Polls `ctx` meanwhile.
    ///
    /// # Panics
    /// If called inside a coroutine.
    pub fn remove(self: &Arc<Self>, ctx: &AioContext) -> Result<(), GraphError> {
        ctx.run(|co| self.co_remove(co))
    }
}

/// Chooses the users of the first node that turn to the second.
pub(super) trait Choose:
    Fn(&mut Graph, &BlockNode, &BlockNode) -> Result<Vec<UserId>, GraphError> + Sync
{
}

impl<F> Choose for F where
    F: Fn(&mut Graph, &BlockNode, &BlockNode) -> Result<Vec<UserId>, GraphError> + Sync
{
}

/// Has the users of `old` turn to what `find` says.
///
/// The nodes are drained before other changes are waited for, as their disks may not answer, and others
/// need not wait for that. A change that turns an edge to a drained node has drained the parent as
/// well, so what was idle stays so; but what `find` says may be another node by then.
pub(super) fn turn_users(
    co: &Co<'_>,
    old: &Arc<BlockNode>,
    find: impl Fn() -> Result<Arc<BlockNode>, GraphError>,
    choose: impl Choose,
) -> Result<(), GraphError> {
    let new = loop {
        let new = find()?;
        lock().check_open(new.id())?;
        new.check_declared()?;
        trace_event!("bdrv_replace_node", old = old.name(), new = new.name());
        // Refused before anybody has to wait.
        choose(&mut lock(), old, &new)?;
        let _drained = (co_drain_for_change(co, old)?, co_drain_for_change(co, &new)?);
        let lost = co_flush_for_users(co, old, &new);
        let _change = lock_changes(co)?;
        if Arc::ptr_eq(&find()?, &new) {
            turn_drained_users(co, old, &new, &choose, lost)?;
            break new;
        }
    };
    // Its last I/O waits for drains.
    co_close_if_unused(co, old);
    [old, &new].into_iter().for_each(|node| co_settle_homes(co, node));
    Ok(())
}

/// Writes of the users of a drained node that are not flushed are owed to them, and their next
/// flush
/// goes to the new node: so it is flushed now. Where filters lead from one to the other that flush gets
/// there all the same. Returns why it failed, or ETIMEDOUT after [`WAIT_LIMIT`].
fn co_flush_for_users(
    co: &Co<'_>,
    old: &Arc<BlockNode>,
    new: &Arc<BlockNode>,
) -> Option<io::Error> {
    if passes_on_to(old, new) || passes_on_to(new, old) {
        return None;
    }
    co_flush_in_time(co, old).err()
}

/// Flushes a node whose users are about to go, for no longer than [`WAIT_LIMIT`]: ETIMEDOUT then.
pub(super) fn co_flush_in_time(co: &Co<'_>, node: &Arc<BlockNode>) -> io::Result<()> {
    if node.is_read_only() {
        return Ok(());
    }
    let flush = |co: &Co<'_>, node: &BlockNode| {
        let _own = node.enter_own();
        request_path::co_flush(&node.path, co)
    };
    if has_no_limit(co) {
        return flush(co, node);
    }
    let own = Arc::clone(node);
    co.timeout(WAIT_LIMIT, "flush before a change", move |co| flush(co, &own))
        .unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)))
}

/// The nodes are drained, and there is no other change. `lost` is why the old one could not be flushed.
pub(super) fn turn_drained_users(
    co: &Co<'_>,
    old: &Arc<BlockNode>,
    new: &Arc<BlockNode>,
    choose: impl Choose,
    lost: Option<io::Error>,
) -> Result<(), GraphError> {
    // Edges may go only after the lock.
    let mut turned = Turned::default();
    let (moved, above, parents) = PoolShare::once(co, || {
        let mut graph = lock_permits();
        let users = choose(&mut graph, old, new)?;
        let turns: Vec<_> = users.iter().map(|id| (*id, Some(Arc::clone(new)))).collect();
        graph.turn(&turns, &[], true, &mut turned)?;
        // The parents may have nothing to flush, but the new node may.
        graph.owe_flush_above(new);
        // A node that cannot be flushed can be replaced, but not without its users being told.
        if let Some(error) = lost {
            tracing::error!(node = old.name(), %error, "flush of a node that is replaced failed");
            new.path.state.fail_next_flush(&error);
        }
        let above = graph.backends_above(new).into_iter();
        let (moved, above) = above.partition::<Vec<_>, _>(|(id, _)| users.contains(id));
        let parents: Vec<_> = graph.parents_of(users.into_iter());
        let parents: Vec<_> = parents.into_iter().filter_map(|id| graph.node(id)).collect();
        Ok::<_, GraphError>((moved, above, parents))
    })?;
    // Limits may be those of children.
    parents.iter().for_each(|node| node.look_at_limits());
    for (id, home) in moved {
        let new = Arc::clone(new);
        co_visit(co, &home.context, move || (home.turn)(id, new));
    }
    co_look_at_node(co, above);
    Ok(())
}

/// Whether filters pass requests on from one node to the other.
fn passes_on_to(above: &Arc<BlockNode>, below: &Arc<BlockNode>) -> bool {
    let mut node = Arc::clone(above);
    while !Arc::ptr_eq(&node, below) {
        match node.filtered() {
            Some(next) => node = next,
            None => return false,
        }
    }
    true
}

/// Has backends find out anew what their nodes are like.
pub(crate) fn co_look_at_node(co: &Co<'_>, backends: Vec<(UserId, BackendHome)>) {
    for (id, home) in backends {
        co_visit(co, &home.context, move || (home.look_at_node)(id));
    }
}

impl Graph {
    /// The users of `old` that turn to `new`: all but those on the way from there down to `old`.
    pub(super) fn keep_way_down(
        &mut self,
        old: &BlockNode,
        new: &BlockNode,
    ) -> Result<Vec<UserId>, GraphError> {
        self.check_operation(old, Operation::Replace)?;
        let below = self.closure(new.id(), Graph::children);
        let mut users = self.entry(old.id()).users.clone();
        users.retain(|user| !self.stays(*user) && self.parent_among(*user, &below).is_none());
        users.iter().try_for_each(|user| self.check_frozen(*user, Some(new)))?;
        Ok(users)
    }

    /// [`keep_way_down`](Self::keep_way_down), if there is such a way.
    pub(super) fn above_only(
        &mut self,
        old: &BlockNode,
        new: &BlockNode,
    ) -> Result<Vec<UserId>, GraphError> {
        let below = self.closure(new.id(), Graph::children);
        if old.id() == new.id() || !below.contains(&old.id()) {
            let (above, below) = (new.name().to_owned(), old.name().to_owned());
            return Err(GraphError::NotAbove { above, below });
        }
        self.keep_way_down(old, new)
    }

    fn only_child(&mut self, node: &BlockNode) -> Result<Arc<BlockNode>, GraphError> {
        let children = self.children(node.id());
        let only = if let [only] = children[..] { self.node(only) } else { None };
        let (node, children) = (node.name().to_owned(), children.len());
        only.ok_or(GraphError::NoOnlyChild { node, children })
    }
}
