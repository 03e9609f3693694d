//! A driver's own I/O, which is no part of a request.
//!
//! A request is counted at the gate of the node that its backend is on, and all that its driver does
//! for it is done before it ends. What a driver does by itself (a mark in a log, a table that is
//! written back) is counted nowhere, so the driver counts it itself, at the gate of its node, which a
//! drain of a child closes as well. A driver without children has its
//! [`Background`](crate::Background) for that.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use coblk_aio::{Co, IoVector, IoVectorMut};

use super::joint::is_joint;
use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, WriteFlags, ZeroFlags};
use crate::graph::chain::{self, Base};
use crate::graph::node::BlockNode;
use crate::graph::{Child, Graph, lock};
use crate::io::{self as request_path, RequestPath};

/// A driver's own I/O on its way. A drain of its node, or of a child, waits until it is dropped.
#[must_use = "a drain waits only while it lives"]
pub struct OwnIo<N: Deref<Target = BlockNode> = Arc<BlockNode>> {
    node: N,
}

impl<N: Deref<Target = BlockNode>> OwnIo<N> {
    /// It has been counted.
    pub(super) fn entered(node: N) -> OwnIo<N> {
        OwnIo { node }
    }

    pub(super) fn node(&self) -> &BlockNode {
        &self.node
    }

    /// The request path of the node.
    pub(crate) fn path(&self) -> &RequestPath {
        &self.node.path
    }

    /// [`path`](Self::path), for changes.
    pub(crate) fn writable(&self) -> io::Result<&RequestPath> {
        self.node.writable()
    }
}

impl<N: Deref<Target = BlockNode>> Drop for OwnIo<N> {
    fn drop(&mut self) {
        self.node.gate.leave_own();
    }
}

impl Child {
    /// Counts the driver's own I/O in without waiting, even while its node is quiesced: for I/O
    /// without which a request that is already counted, and that a drain waits for, cannot end. Any
    /// thread.
    pub fn enter_own(&self) -> OwnIo {
        let node = self.owner();
        node.gate.enter_own();
        OwnIo { node }
    }

    /// Counts the driver's own I/O in, once its node is not quiesced: for work that begins by
    /// itself. Must not be called by a coroutine that drains the node, which would wait for itself.
    /// Any thread.
    pub fn co_begin_own(&self, co: &Co<'_>) -> OwnIo {
        let node = self.owner();
        begin(&node, co);
        OwnIo { node }
    }
}

impl Child {
    /// Lets a drain of the driver's node go ahead if it waits for nothing but the operation on the whole image that
    /// this coroutine makes, and waits for its end. To be called by a method of [`ImageFormat`](crate::ImageFormat),
    /// where nothing of the image is in flight. What the operation holds stays held: in the drained section others may
    /// find it so, such as a reopen, and must not wait for it (contract: C78). `pauses` is called before they can, and
    /// the section ends with [`drained_end`](crate::BlockDriver::drained_end). Any thread.
    ///
    /// Returns `false` if the drain waits for others as well, which may wait for the operation: it has to go on.
    /// A coroutine that makes a joint change is within a drained section of its own, and goes on at once, too.
    pub fn co_let_drain(&self, co: &Co<'_>, pauses: impl FnOnce()) -> bool {
        let node = self.owner();
        if !node.gate.is_closed() || !node.gate.is_quiesced() || is_joint(co) {
            return true;
        }
        // A request to a parent is counted there, and may have I/O of this node count. So parents are looked at first.
        let only = |it: &Arc<BlockNode>| usize::from(Arc::ptr_eq(it, &node));
        let is_last = node.ancestors().iter().rev().all(|it| it.gate.co_has_only(co, only(it)));
        if is_last {
            node.gate.co_pause_own(co, pauses);
        }
        is_last
    }
}

impl BlockNode {
    /// The node, and all that lead to it.
    fn ancestors(&self) -> Vec<Arc<BlockNode>> {
        let mut graph = lock();
        let above = graph.closure(self.id(), Graph::parents);
        above.into_iter().filter_map(|id| graph.node(id)).collect()
    }

    /// [`Child::enter_own`], for changes of the graph, which have drained this node perhaps, and
    /// not its descendants.
    pub(crate) fn enter_own(&self) -> OwnIo<&BlockNode> {
        self.gate.enter_own();
        OwnIo { node: self }
    }

    /// [`Child::co_begin_own`], for users that are not drivers.
    pub(crate) fn co_begin_own(&self, co: &Co<'_>) -> OwnIo<&BlockNode> {
        begin(self, co);
        OwnIo { node: self }
    }
}

/// A coroutine that makes a joint change has drained its nodes, and waits for no drain.
fn begin(node: &BlockNode, co: &Co<'_>) {
    if is_joint(co) { node.gate.enter_own() } else { node.gate.co_begin_own(co) }
}

/// Requests to a node that count as its own I/O: they wait for no drain, and a drain waits for them. For copies
/// that are part of a request to a parent of the node, and that go on by themselves if that request has to end
/// before them. Any thread.
#[must_use = "a drain waits for as long as it lives"]
pub struct OwnRequests {
    own: OwnIo,
}

impl BlockNode {
    /// Counts such requests in, until it is dropped.
    pub fn own_requests(self: &Arc<Self>) -> OwnRequests {
        self.gate.enter_own();
        OwnRequests { own: OwnIo { node: Arc::clone(self) } }
    }
}

/// # Errors
/// EPERM if the node refuses writes, or is inactive or closed; else those of requests.
impl OwnRequests {
    fn readable(&self) -> io::Result<&RequestPath> {
        match self.own.node.gate.refusal() {
            Some(error) => Err(error),
            None => Ok(self.own.path()),
        }
    }

    /// Reads bytes at `offset` to all of `target`.
    pub fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        request_path::co_preadv(self.readable()?, co, offset, target, flags)
    }

    /// Has the next reads of what is durable come from the storage of the node, and of all that it leads to, and not
    /// from what this host caches.
    pub fn co_drop_caches(&self, co: &Co<'_>) -> io::Result<()> {
        self.readable()?;
        let mut left = vec![Arc::clone(&self.own.node)];
        while let Some(node) = left.pop() {
            node.driver().co_drop_cache(co)?;
            left.extend(node.children().into_iter().map(|(_, child)| child));
        }
        Ok(())
    }

    /// What is known of the first bytes of a range, of all layers of the node.
    pub fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.readable()?;
        let node = &self.own.node;
        chain::co_status_above(node, co, Base::NONE, offset, bytes).map(|found| found.extent)
    }

    fn writable(&self) -> io::Result<&RequestPath> {
        match self.own.node.gate.refusal() {
            Some(error) => Err(error),
            None => self.own.writable(),
        }
    }

    /// Writes `source` at `offset` bytes.
    pub fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        request_path::co_pwritev(self.writable()?, co, offset, source, flags)
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        request_path::co_pwrite_zeroes(self.writable()?, co, None, offset, bytes, flags)
    }

    /// Deallocates `bytes` bytes from `offset` on.
    pub fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        request_path::co_pdiscard(self.writable()?, co, None, offset, bytes)
    }
}
