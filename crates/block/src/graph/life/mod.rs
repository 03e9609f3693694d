//! The end of a node: its driver is closed before the node is dropped, as a drop cannot suspend.
//!
//! A node belongs to those that hold it, or to its users: what was opened as the child of another node is
//! held by its edges alone. A step that takes the last user of such a node closes it, after the step's own
//! drains have ended. Parents come first. A closed node takes no users: an edge or a backend that is
//! made at the same moment is refused, and requests fail with ESHUTDOWN.
//!
//! The driver's last writes are counted at its own gate, as [own I/O](super::own_io): so a drain of a node
//! it leads to waits for them, and they wait for one that has begun.

use std::cmp::Reverse;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use coblk_aio::sync::CoMutex;
use coblk_aio::{AioHandle, Co, trace_event};

use super::joint::put_off;
use super::permit::co_give_back;
use super::{Graph, GraphError, NodeId, lock};
use crate::graph::node::BlockNode;

/// Where a node is in its life. Changed under the lock of the graph.
pub(crate) struct Life {
    closed: AtomicBool,
    /// Its driver has closed it, and does nothing to its children any more.
    has_ended: AtomicBool,
    /// An [`Activity`].
    activity: AtomicU8,
    belongs_to_users: AtomicBool,
    /// Held while it is being closed, with what has come of the last attempt: the errno of its driver, or 0.
    closing: CoMutex<Option<i32>>,
}

/// Whose the storage of a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// This process's.
    Active,
    /// This process's again, but the driver does not know it well yet.
    Waking,
    /// Another's.
    Inactive,
}

impl Life {
    pub(super) fn new(activity: Activity) -> Life {
        let (closed, has_ended, belongs_to_users) = Default::default();
        let (activity, closing) = (AtomicU8::new(activity as u8), CoMutex::new(None));
        Life { closed, has_ended, activity, belongs_to_users, closing }
    }

    pub(crate) fn activity(&self) -> Activity {
        let stored = self.activity.load(Ordering::SeqCst);
        let all = [Activity::Active, Activity::Waking];
        all.into_iter().find(|it| *it as u8 == stored).unwrap_or(Activity::Inactive)
    }

    /// Requests pass.
    pub(crate) fn is_active(&self) -> bool {
        self.activity() == Activity::Active
    }

    pub(super) fn set_activity(&self, activity: Activity) {
        self.activity.store(activity as u8, Ordering::SeqCst);
    }

    /// It is closed, or is being closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// It is being closed.
    fn is_closing(&self) -> bool {
        self.is_closed() && !self.has_ended.load(Ordering::SeqCst)
    }

    /// Whether it is closed as soon as it has no users.
    pub(crate) fn set_belongs_to_users(&self, belongs: bool) {
        self.belongs_to_users.store(belongs, Ordering::SeqCst);
    }
}

impl BlockNode {
    /// Closes a node that has no users, before it is dropped: its driver writes what it keeps. Children
    /// that were opened for it alone are closed as well; if one of these fails, that is logged. Closing a
    /// closed node does nothing; while another call closes it, this waits for the end of that, and has its
    /// result. Waits while the node is drained, and a drain waits for it.
    ///
    /// [`Blockdevs`](crate::Blockdevs) closes the nodes that it has opened. Nodes that are made in code
    /// are closed by their owner, if their driver
    /// [has something to close](crate::BlockDriver::needs_close).
    ///
    /// # Errors
    /// If the node has users, or the driver fails. The node is open then, with all that it had.
    pub fn co_close(self: &Arc<Self>, co: &Co<'_>) -> Result<(), GraphError> {
        co_close_one(co, self)?;
        co_close_unused_below(co, self);
        Ok(())
    }
}

/// Closes a node that belongs to its users and has none, with the children that were opened for it.
/// A failure is logged. For the steps that take users from nodes, after their drains.
pub(crate) fn co_close_if_unused(co: &Co<'_>, node: &Arc<BlockNode>) {
    if !put_off(co, node) && lock().is_unused(node) && log(node, co_close_one(co, node)) {
        co_close_unused_below(co, node);
    }
}

/// [`co_close_if_unused`], for callers that are told of a failure.
///
/// # Errors
/// If the driver fails. The node stays open then.
pub(crate) fn co_close_unused(co: &Co<'_>, node: &Arc<BlockNode>) -> Result<(), GraphError> {
    // In a statement of its own: the lock must be free while the driver is waited for.
    let is_unused = lock().is_unused(node);
    match is_unused.then(|| node.co_close(co)) {
        // It has got a user meanwhile.
        None | Some(Err(GraphError::InUse(_))) => Ok(()),
        Some(closed) => closed,
    }
}

/// [`co_close_if_unused`], in a coroutine of its own, for drops, which cannot suspend. A context that ends
/// before drops the node unclosed.
pub(crate) fn close_soon(home: &AioHandle, node: Arc<BlockNode>) {
    if lock().is_unused(&node) {
        let close = move |co: &Co<'_>| co_close_if_unused(co, &node);
        home.schedule(move |ctx| ctx.spawn("close an unused node", close));
    }
}

/// The node is closed. Closes those that it leads to that have no users but closed nodes.
fn co_close_unused_below(co: &Co<'_>, node: &Arc<BlockNode>) {
    let below = lock().nodes_below(node);
    for node in below {
        if lock().is_unused(&node) {
            log(&node, co_close_one(co, &node));
        }
    }
}

fn log(node: &BlockNode, closed: Result<(), GraphError>) -> bool {
    match &closed {
        // Another user has come. That one closes the node.
        Ok(()) | Err(GraphError::InUse(_)) => {}
        Err(error) => tracing::error!(node = node.name(), %error, "a node cannot be closed"),
    }
    closed.is_ok()
}

fn co_close_one(co: &Co<'_>, node: &Arc<BlockNode>) -> Result<(), GraphError> {
    let failed = |source| GraphError::Close { node: node.name().to_owned(), source };
    let is_closing = node.life.is_closing();
    let mut last = node.life.closing.lock(co);
    // That of the attempt that this has waited for.
    if let Some(errno @ 1..) = last.take().filter(|_| is_closing) {
        *last = Some(errno);
        return Err(failed(io::Error::from_raw_os_error(errno)));
    }
    if !lock().begin_close(node)? {
        return Ok(());
    }
    trace_event!("bdrv_close", node = node.name());
    let closing = Closing(node);
    let _own = node.co_begin_own(co);
    // What an inactive node kept was written before, and its storage is another's.
    let closed = if node.life.is_active() { node.driver().co_close(co) } else { Ok(()) };
    let errno = |error: &io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    *last = Some(closed.as_ref().err().map_or(0, errno));
    if closed.is_ok() {
        node.life.has_ended.store(true, Ordering::SeqCst);
        co_give_back(co, node);
    }
    drop(closing);
    closed.map_err(failed)
}

/// A node that is being closed. It is open again if that fails, or ends with its coroutine.
struct Closing<'a>(&'a BlockNode);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if self.0.life.is_closing() {
            lock().reopen(self.0);
        }
    }
}

impl Graph {
    /// Closes a node for users. Returns whether it was open.
    fn begin_close(&mut self, node: &BlockNode) -> Result<bool, GraphError> {
        if node.life.is_closed() {
            return Ok(false);
        }
        if self.has_open_users(node.id()) {
            return Err(GraphError::InUse(node.name().to_owned()));
        }
        node.life.closed.store(true, Ordering::SeqCst);
        self.shut(node);
        Ok(true)
    }

    /// The close has failed.
    fn reopen(&mut self, node: &BlockNode) {
        node.life.closed.store(false, Ordering::SeqCst);
        self.shut(node);
    }

    /// Has requests fail, or not, as the node's life says.
    pub(super) fn shut(&mut self, node: &BlockNode) {
        let errno = match node.life.is_active() {
            _ if node.life.is_closed() => libc::ESHUTDOWN,
            true => 0,
            false => libc::EPERM,
        };
        self.wakes.extend(node.gate.shut(errno));
    }

    fn is_unused(&mut self, node: &BlockNode) -> bool {
        let belongs = node.life.belongs_to_users.load(Ordering::SeqCst);
        belongs && !self.has_open_users(node.id())
    }

    /// Whether a node has users besides the edges of nodes that are closed, or about to be gone: another thread may
    /// be the last to drop one. One that is being closed is a user: its driver's last writes come, and it may
    /// stay open if they fail.
    pub(super) fn has_open_users(&mut self, node: NodeId) -> bool {
        let users = self.nodes.get(&node).map_or(Vec::new(), |entry| entry.users.clone());
        users.into_iter().any(|user| match self.users.get(&user).and_then(super::User::parent) {
            Some(parent) => {
                let parent = self.node(parent);
                parent.is_some_and(|parent| !parent.life.has_ended.load(Ordering::SeqCst))
            }
            None => true,
        })
    }

    /// The nodes that one leads to, parents first.
    pub(super) fn nodes_below(&mut self, node: &BlockNode) -> Vec<Arc<BlockNode>> {
        let mut below = self.closure(node.id(), Graph::children);
        below.retain(|id| *id != node.id());
        below.sort_by_key(|id| Reverse(self.nodes.get(id).map_or(0, |entry| entry.height)));
        below.into_iter().filter_map(|id| self.node(id)).collect()
    }

    /// That a node takes users.
    ///
    /// # Errors
    /// If it is closed.
    pub(super) fn check_open(&mut self, id: NodeId) -> Result<(), GraphError> {
        match self.node(id) {
            Some(node) if node.life.is_closed() => Err(GraphError::Closed(node.name().to_owned())),
            _ => Ok(()),
        }
    }
}

/// The end of an open node is an error only if something is lost by it.
pub(super) fn check_end(node: &BlockNode) {
    if !node.life.is_closed() && node.life.is_active() && node.driver().needs_close() {
        tracing::error!(node = node.name(), "a node was dropped before it was closed");
    }
}

#[cfg(test)]
pub(crate) mod tests;
