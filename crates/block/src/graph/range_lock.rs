//! Locks on ranges of a node, against its requests and each other.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use coblk_aio::{Co, IoVector, IoVectorMut};

use super::DrainedSection;
use crate::driver::flags::{ReadFlags, WriteFlags, ZeroFlags};
use crate::graph::node::BlockNode;
use crate::graph::own_io::OwnIo;
use crate::io as request_path;
use crate::io::held::Held;
use crate::io::tracked::{Access, Tracked};

/// While it lives, each request to its node locks its range.
#[must_use = "ranges are locked only while it lives"]
pub struct Tracking {
    node: Arc<BlockNode>,
}

/// A range of a node that others are kept out of until this is dropped.
#[must_use = "others are kept out only while it lives"]
pub struct RangeLock<'a> {
    node: &'a BlockNode,
    held: Held,
    _tracked: Tracked<'a>,
}

impl BlockNode {
    /// From the end of the drained section on each request to the node locks its range: reads as
    /// [`Access::Read`], changes as [`Access::Write`], serialising ones as [`Access::ExcludeAll`]. Until
    /// then, and when the last [`Tracking`] is dropped, requests pay nothing for that. Any thread.
    ///
    /// # Panics
    /// If the section is neither of this node nor of one that it leads to.
    pub fn track(self: &Arc<Self>, drained: &DrainedSection) -> Tracking {
        drained.demand(self);
        self.path.state.want_tracking(true);
        Tracking { node: Arc::clone(self) }
    }
}

impl Tracking {
    /// Waits for every earlier request to the range, in bytes, and every earlier lock on it that
    /// `access` conflicts with; later ones wait until the lock is dropped. First come, first served.
    ///
    /// A coroutine has one lock on a node: it must not take a second one, and what it does to the node
    /// meanwhile it does [through the lock](RangeLock), or it would wait for itself. Requests to its
    /// children are free. A drain waits for requests that wait for the lock.
    pub fn co_lock_range(&self, co: &Co<'_>, range: Range<u64>, access: Access) -> RangeLock<'_> {
        let tracked = self.node.path.state.tracked.begin(co, range.clone(), access);
        RangeLock { node: &self.node, held: Held { range, access }, _tracked: tracked }
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        self.node.path.state.want_tracking(false);
    }
}

/// Requests to the node under the lock, as those of a [`Child`](crate::Child). Each waits for no range and
/// for no drain, as requests that a drain waits for may wait for the lock; a drain waits for it.
///
/// # Errors
/// of every request: EINVAL if the blocks that it touches, in the node's request alignment, are not within
/// the lock's range, or its access is less than the request's: [`Access::Write`] for a change, and
/// [`Access::ExcludeWrites`] for one that is not whole blocks. EPERM if the node refuses writes, or is
/// inactive or closed. Else those of requests.
impl RangeLock<'_> {
    /// The range that is locked, in bytes.
    pub fn range(&self) -> Range<u64> {
        self.held.range.clone()
    }

    /// Fills `target` from `offset` bytes on.
    pub fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let own = self.enter()?;
        request_path::co_preadv_held(own.path(), co, &self.held, offset, target, flags)
    }

    /// Writes `source` at `offset` bytes.
    pub fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let own = self.enter()?;
        request_path::co_pwritev_held(own.writable()?, co, &self.held, offset, source, flags)
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let (own, held) = (self.enter()?, Some(&self.held));
        request_path::co_pwrite_zeroes(own.writable()?, co, held, offset, bytes, flags)
    }

    /// Deallocates `bytes` bytes from `offset` on.
    pub fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let (own, held) = (self.enter()?, Some(&self.held));
        request_path::co_pdiscard(own.writable()?, co, held, offset, bytes)
    }

    fn enter(&self) -> io::Result<OwnIo<&BlockNode>> {
        let own = self.node.enter_own();
        match self.node.gate.refusal() {
            Some(error) => Err(error),
            None => Ok(own),
        }
    }
}
