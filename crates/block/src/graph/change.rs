//! Changes of the graph while requests run: replace a node, insert one, remove it again.
//!
//! Both nodes are drained meanwhile, so that no request is inside an edge when it turns. An edge turns
//! at once, under the lock of the graph. A backend belongs to its context, so it turns there: the
//! change passes through the loop of each context that has one.

use std::io;
use std::sync::Arc;

use coblk_aio::sync::{CoMutex, CoMutexGuard};
use coblk_aio::{AioContext, AioHandle, Co, PoolShare, trace_event};

use super::turn::Turned;
use super::{Child, DrainedSection, Graph, MAX_HEIGHT, Operation, UserId, lock, lock_permits};
use crate::backend::root;
use crate::driver::MAX_LENGTH;
use crate::driver::permissions::PermissionError;
use crate::graph::gate::{WAIT_LIMIT, co_visit};
use crate::graph::life::co_close_if_unused;
use crate::graph::node::BlockNode;

/// Why the graph cannot be changed in this way. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// A node would stand on itself.
    #[error("node '{above}' cannot stand on node '{below}', which stands on it")]
    Cycle {
        /// The node whose edge would turn.
        above: String,
        /// Where it would lead.
        below: String,
    },
    /// Requests go down a chain of nodes by calls, so it has a bound.
    #[error("node '{node}' would stand on more than {max} nodes, one upon the other")]
    TooHigh {
        /// The node.
        node: String,
        /// How many nodes may be below one.
        max: usize,
    },
    /// No request could reach its end.
    #[error("node '{node}' would have {length} bytes, more than {MAX_LENGTH}")]
    TooLong {
        /// The node.
        node: String,
        /// Its length in bytes.
        length: u64,
    },
    /// A driver contradicts itself.
    #[error("node '{node}': its driver has impossible limits: {limits}")]
    Limits {
        /// The node.
        node: String,
        /// What it says.
        limits: String,
    },
    /// A driver lists an edge that is not this node's alone.
    #[error("node '{0}': its driver lists a child twice, or one of another node")]
    NotItsChild(String),
    /// What is to be inserted does not lead on.
    #[error("node '{above}' cannot be inserted above node '{below}': it does not stand on it")]
    NotAbove {
        /// The node to be inserted.
        above: String,
        /// Where.
        below: String,
    },
    /// There is not one node that could take its place.
    #[error("node '{node}' cannot be removed: it stands on {children} nodes, not on one")]
    NoOnlyChild {
        /// The node to be removed.
        node: String,
        /// How many.
        children: usize,
    },
    /// What is written to would become read-only.
    #[error("node '{node}' cannot become read-only: {user} writes to it")]
    Writer {
        /// The node.
        node: String,
        /// Who writes, as `backend 'drive'`.
        user: String,
    },
    /// Requests do not end: their disk does not answer, or they are long.
    #[error("node '{0}' still has requests in flight after {limit} s", limit = WAIT_LIMIT.as_secs())]
    RequestsInTheWay(String),
    /// Another change does not end.
    #[error("another change of nodes has not ended after {} s", WAIT_LIMIT.as_secs())]
    ChangeInTheWay,
    /// It is to be closed.
    #[error("node '{0}' is in use")]
    InUse(String),
    /// It takes no users.
    #[error("node '{0}' is closed")]
    Closed(String),
    /// What a driver had to write before its end was not written. The node is open.
    #[error("node '{node}' cannot be closed: {source}")]
    Close {
        /// The node.
        node: String,
        /// Why.
        source: io::Error,
    },
    /// An active node stands on it.
    #[error("node '{node}' cannot be inactive: node '{parent}', which stands on it, is active")]
    ActiveParent {
        /// The node.
        node: String,
        /// What stands on it.
        parent: String,
    },
    /// A user writes to it.
    #[error("node '{node}' cannot be inactive: {user} writes to it")]
    ActiveUser {
        /// The node.
        node: String,
        /// Which user, as `backend 'drive'`.
        user: String,
    },
    /// The storage of a node cannot be handed over, or taken back.
    #[error("node '{node}' cannot be made {}: {source}", if *active { "active" } else { "inactive" })]
    Activity {
        /// The node.
        node: String,
        /// What it was to be.
        active: bool,
        /// Why.
        source: io::Error,
    },
    /// A user of the node keeps it from being changed.
    #[error("node '{node}' cannot be {operation}: {user} blocks it: {reason}")]
    Blocked {
        /// The node.
        node: String,
        /// What was to be done.
        operation: Operation,
        /// Which user, as `job 'backup'`.
        user: String,
        /// Its reason.
        reason: String,
    },
    /// Users of both nodes exclude each other.
    #[error(transparent)]
    Permission(#[from] PermissionError),
}

impl GraphError {
    pub(crate) fn too_high(node: &str) -> GraphError {
        GraphError::TooHigh { node: node.to_owned(), max: MAX_HEIGHT }
    }
}

/// Changes come one after the other.
///
/// # Errors
/// If those before have not ended within [`WAIT_LIMIT`].
pub(crate) fn lock_changes(co: &Co<'_>) -> Result<CoMutexGuard<'static, ()>, GraphError> {
    static CHANGES: CoMutex<()> = CoMutex::new(());
    if let Some(guard) = CHANGES.try_lock() {
        return Ok(guard);
    }
    if has_no_limit(co) {
        return Ok(CHANGES.lock(co));
    }
    // One that comes too late is dropped, and so given on.
    co.timeout(WAIT_LIMIT, "wait for changes", |co| CHANGES.lock(co))
        .map_err(|_| GraphError::ChangeInTheWay)
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
    /// All users of this node, edges and backends of any context, turn to `new`.
    ///
    /// # Errors
    /// If a node would stand on itself, or the users of both exclude each other. If what was written
    /// to this node cannot be made durable, the next flush of `new` says so.
    pub fn co_replace(
        self: &Arc<Self>,
        co: &Co<'_>,
        new: &Arc<BlockNode>,
    ) -> Result<(), GraphError> {
        turn_users(co, self, || Ok(Arc::clone(new)), Graph::all_users)
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

    /// All users of this node turn to `above`, which stands on it, directly or not; only the way
    /// from there to this node stays.
    ///
    /// # Errors
    /// If `above` does not stand on this node.
    pub fn co_insert_above(
        self: &Arc<Self>,
        co: &Co<'_>,
        above: &Arc<BlockNode>,
    ) -> Result<(), GraphError> {
        turn_users(co, self, || Ok(Arc::clone(above)), Graph::keep_way_down)
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

    /// All users of this node turn to the one it stands on: undoes
    /// [`co_insert_above`](Self::co_insert_above).
    ///
    /// # Errors
    /// If it does not stand on exactly one node.
    pub fn co_remove(self: &Arc<Self>, co: &Co<'_>) -> Result<(), GraphError> {
        turn_users(co, self, || lock().only_child(self), Graph::all_users)
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
type Choose = fn(&mut Graph, &BlockNode, &BlockNode) -> Result<Vec<UserId>, GraphError>;

/// Has the users of `old` turn to what `find` says.
///
/// The nodes are drained before other changes are waited for, as their disks may not answer, and others
/// need not wait for that. A change that turns an edge to a drained node has drained the node above as
/// well, so what was idle stays so; but what `find` says may be another node by then.
fn turn_users(
    co: &Co<'_>,
    old: &Arc<BlockNode>,
    find: impl Fn() -> Result<Arc<BlockNode>, GraphError>,
    choose: Choose,
) -> Result<(), GraphError> {
    loop {
        let new = find()?;
        lock().check_open(new.id())?;
        trace_event!("bdrv_replace_node", old = old.name(), new = new.name());
        // Refused before anybody has to wait.
        choose(&mut lock(), old, &new)?;
        let _drained = (co_drain_for_change(co, old)?, co_drain_for_change(co, &new)?);
        let lost = co_flush_for_users(co, old, &new);
        let _change = lock_changes(co)?;
        if Arc::ptr_eq(&find()?, &new) {
            break turn_drained_users(co, old, &new, choose, lost)?;
        }
    }
    // Its last I/O waits for drains.
    co_close_if_unused(co, old);
    Ok(())
}

/// What the users of a drained node have written and not flushed is owed to them, and their next flush
/// goes to the new node: so it is flushed now. Where filters lead from one to the other that flush gets
/// there all the same. Returns why it failed, or ETIMEDOUT after [`WAIT_LIMIT`].
fn co_flush_for_users(
    co: &Co<'_>,
    old: &Arc<BlockNode>,
    new: &Arc<BlockNode>,
) -> Option<io::Error> {
    if old.is_read_only() || passes_on_to(old, new) || passes_on_to(new, old) {
        return None;
    }
    let flush = |co: &Co<'_>, node: &BlockNode| {
        let _own = node.enter_own();
        node.co_flush(co)
    };
    if has_no_limit(co) {
        return flush(co, old).err();
    }
    let own = Arc::clone(old);
    co.timeout(WAIT_LIMIT, "flush before a change", move |co| flush(co, &own))
        .unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)))
        .err()
}

/// The nodes are drained, and there is no other change. `lost` is why the old one could not be flushed.
fn turn_drained_users(
    co: &Co<'_>,
    old: &Arc<BlockNode>,
    new: &Arc<BlockNode>,
    choose: Choose,
    lost: Option<io::Error>,
) -> Result<(), GraphError> {
    // Edges may go only after the lock.
    let mut turned = Turned::default();
    let (moved, above) = PoolShare::once(co, || {
        let mut graph = lock_permits();
        let users = choose(&mut graph, old, new)?;
        let turns: Vec<_> = users.iter().map(|id| (*id, Arc::clone(new))).collect();
        graph.turn(&turns, &[], true, &mut turned)?;
        // Those above may have nothing to flush, but the new node may.
        graph.owe_flush_above(new);
        // A node that cannot be flushed can be replaced, but not without its users being told.
        if let Some(error) = lost {
            tracing::error!(node = old.name(), %error, "flush of a node that is replaced failed");
            new.path.fail_next_flush(&error);
        }
        let above = graph.backends_above(new).into_iter();
        let backends = above.partition::<Vec<_>, _>(|(id, _)| users.contains(id));
        Ok::<_, GraphError>(backends)
    })?;
    for (id, home) in moved {
        let new = Arc::clone(new);
        co_visit(co, &home, move || root::turn(id, new));
    }
    co_look_at_node(co, above);
    Ok(())
}

/// Whether filters pass requests on from one node to the other.
fn passes_on_to(above: &Arc<BlockNode>, below: &Arc<BlockNode>) -> bool {
    let mut node = Arc::clone(above);
    while !Arc::ptr_eq(&node, below) {
        match node.filtered().map(Child::node) {
            Some(next) => node = next,
            None => return false,
        }
    }
    true
}

/// Has backends find out anew what their nodes are like.
pub(crate) fn co_look_at_node(co: &Co<'_>, backends: Vec<(UserId, AioHandle)>) {
    for (id, home) in backends {
        co_visit(co, &home, move || root::look_at_node(id));
    }
}

impl Graph {
    /// All users of `old`. None of them may stand below `new`: see `turn`.
    fn all_users(&mut self, old: &BlockNode, _: &BlockNode) -> Result<Vec<UserId>, GraphError> {
        self.check_operation(old, Operation::Replace)?;
        let mut users = self.entry(old.id()).users.clone();
        users.retain(|user| !self.stays(*user));
        Ok(users)
    }

    /// The users of `old` that are not on the way down from `new`.
    fn keep_way_down(
        &mut self,
        old: &BlockNode,
        new: &BlockNode,
    ) -> Result<Vec<UserId>, GraphError> {
        let below = self.closure(new.id(), Graph::children);
        if old.id() == new.id() || !below.contains(&old.id()) {
            let (above, below) = (new.name().to_owned(), old.name().to_owned());
            return Err(GraphError::NotAbove { above, below });
        }
        let mut users = self.all_users(old, new)?;
        users.retain(|user| self.parent_among(*user, &below).is_none());
        Ok(users)
    }

    fn only_child(&mut self, node: &BlockNode) -> Result<Arc<BlockNode>, GraphError> {
        let children = self.children(node.id());
        let only = if let [only] = children[..] { self.node(only) } else { None };
        let (node, children) = (node.name().to_owned(), children.len());
        only.ok_or(GraphError::NoOnlyChild { node, children })
    }
}
