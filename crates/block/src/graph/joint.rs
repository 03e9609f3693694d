//! [`JointChange`]: several changes as one, in one drained section.
//!
//! A joint change has the lock of changes, and its nodes are drained together, from its beginning to its end. What
//! its coroutine does meanwhile is a part of it: a change of the graph does not wait for the lock, which its
//! coroutine has, and the coroutine's own I/O does not wait for drains, which it would wait for itself. What has
//! to wait for the end of drains, which is to close nodes and to move background work, is put off to the end.
//!
//! The coroutine is known by its number. Others that it starts, or waits for with a limit, are not a part of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::Co;

use super::change::{ChangeLock, lock_changes};
use super::drain::co_drain_together;
use super::{DrainedSection, GraphError};
use crate::graph::homes::co_settle_homes;
use crate::graph::life::co_close_if_unused;
use crate::graph::node::BlockNode;

/// The joint change that is under way: there is one at most, as it has the lock of changes.
struct UnderWay {
    /// The number of its coroutine.
    coroutine: u64,
    /// Nodes that may have to be closed, or whose background work may have to move.
    later: Vec<Arc<BlockNode>>,
}

static UNDER_WAY: Mutex<Option<UnderWay>> = Mutex::new(None);

fn under_way() -> MutexGuard<'static, Option<UnderWay>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this coroutine makes a joint change.
pub(super) fn is_joint(co: &Co<'_>) -> bool {
    under_way().as_ref().is_some_and(|it| it.coroutine == co.id())
}

/// Has the end of the joint change that this coroutine makes, if it does, see to a node. Returns whether it does.
pub(super) fn put_off(co: &Co<'_>, node: &Arc<BlockNode>) -> bool {
    let mut under_way = under_way();
    let Some(it) = under_way.as_mut().filter(|it| it.coroutine == co.id()) else { return false };
    if !it.later.iter().any(|known| Arc::ptr_eq(known, node)) {
        it.later.push(Arc::clone(node));
    }
    true
}

/// Several changes as one: while it lives no other change of the graph is made, and no request enters its
/// nodes, or one that leads to them.
///
/// Changes that its coroutine makes meanwhile are a part of it. They are not taken back when it ends; that is
/// its owner's to do.
#[must_use = "it lasts until it is ended"]
pub struct JointChange {
    drained: Vec<DrainedSection>,
    // Given back last.
    lock: ChangeLock,
}

impl JointChange {
    /// Begins one of these nodes. All their gates close before it waits for the requests of any, so a request
    /// that begins after another one has completed is not in front of it.
    ///
    /// Must not be called from a request's own callback, nor by a coroutine that makes a joint change.
    ///
    /// # Errors
    /// If other changes, or requests of one of the nodes, have not ended within [`WAIT_LIMIT`](crate::WAIT_LIMIT).
    pub fn co_begin(co: &Co<'_>, nodes: &[Arc<BlockNode>]) -> Result<JointChange, GraphError> {
        debug_assert!(!is_joint(co), "a joint change within another");
        let lock = lock_changes(co)?;
        let drained = co_drain_together(co, nodes)?;
        *under_way() = Some(UnderWay { coroutine: co.id(), later: Vec::new() });
        Ok(JointChange { drained, lock })
    }

    /// Ends it: requests go on, and nodes that it has left without users are closed.
    pub fn co_end(self, co: &Co<'_>) {
        let later = under_way().take().map_or(Vec::new(), |it| it.later);
        drop(self);
        later.iter().for_each(|node| co_close_if_unused(co, node));
        later.iter().for_each(|node| co_settle_homes(co, node));
    }
}

impl Drop for JointChange {
    fn drop(&mut self) {
        // That of a coroutine that is unwound, which cannot see to anything.
        drop(under_way().take());
        self.drained.clear();
        let _last = &self.lock;
    }
}
