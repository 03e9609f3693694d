//! [`Child`]: how a driver holds the node it stands on.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use coblk_aio::{Co, IoVector, IoVectorMut};

use super::{Kind, Use, UserId, lock};
use crate::driver::BlockLimits;
use crate::flags::{WriteFlags, ZeroFlags};
use crate::io::BlockStatus;
use crate::node::BlockNode;

/// An edge of the block graph: from the driver that holds it to the node it stands on.
///
/// A driver that stands on nodes holds them by these, and lists them in
/// [`BlockDriver::children`](crate::BlockDriver::children): so a drain of a node below reaches the
/// node above, and a node can be [replaced](BlockNode::co_replace) while requests run. Requests go
/// down an edge as they do to the node itself, with the same errors. Any thread.
pub struct Child {
    role: &'static str,
    edge: Arc<Edge>,
    id: UserId,
}

/// What an edge is in the driver. It changes only while the node above is quiet.
pub(crate) struct Edge {
    node: ArcSwap<BlockNode>,
}

impl Edge {
    /// Turns the edge to `node`; gives back what it led to.
    pub(super) fn swap(&self, node: Arc<BlockNode>) -> Arc<BlockNode> {
        self.node.swap(node)
    }
}

impl Child {
    /// An edge to `node`, which has this role for the driver: the name of the option that says which
    /// node it is, such as `file`.
    pub fn new(role: &'static str, node: Arc<BlockNode>) -> Child {
        let id = node.id();
        let edge = Arc::new(Edge { node: ArcSwap::new(node) });
        let kind = Kind::Edge { role, edge: Arc::downgrade(&edge), parent: None };
        let id = lock().add_user(id, kind, Use::NONE);
        Child { role, edge, id }
    }

    /// What the node below is for the driver.
    pub fn role(&self) -> &'static str {
        self.role
    }

    pub(crate) fn id(&self) -> UserId {
        self.id
    }

    /// The node below, at this moment.
    pub fn node(&self) -> Arc<BlockNode> {
        self.edge.node.load_full()
    }

    /// Length of the node below in bytes.
    #[inline]
    pub fn length(&self) -> u64 {
        self.edge.node.load().length()
    }

    /// Whether the node below refuses writes.
    #[inline]
    pub fn is_read_only(&self) -> bool {
        self.edge.node.load().is_read_only()
    }

    /// What the node below takes in one request.
    #[inline]
    pub fn limits(&self) -> BlockLimits {
        *self.edge.node.load().limits()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        super::remove_user(self.id);
    }
}

/// Requests, as those of [`BlockNode`].
impl Child {
    /// Fills `target` from `offset` bytes on.
    #[inline]
    pub fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        self.edge.node.load().co_preadv(co, offset, target)
    }

    /// Writes `source` at `offset` bytes.
    #[inline]
    pub fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.edge.node.load().co_pwritev(co, offset, source, flags)
    }

    /// Makes all writes durable that completed before.
    pub fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.edge.node.load().co_flush(co)
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        self.edge.node.load().co_pwrite_zeroes(co, offset, bytes, flags)
    }

    /// Gives `bytes` bytes from `offset` on back to the storage.
    pub fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.edge.node.load().co_pdiscard(co, offset, bytes)
    }

    /// What is known of the bytes from `offset` on.
    pub fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<BlockStatus> {
        self.edge.node.load().co_block_status(co, offset, bytes)
    }

    /// Changes the length to `length` bytes.
    pub fn co_truncate(&self, co: &Co<'_>, length: u64) -> io::Result<()> {
        self.edge.node.load().co_truncate(co, length)
    }

    /// Looks how long the storage is now, and returns it in bytes.
    pub fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        self.edge.node.load().co_refresh_length(co)
    }
}
