//! [`Child`]: how a driver holds a child.

use std::io;
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwap;
use coblk_aio::{Co, IoVector, IoVectorMut};

use super::{Kind, Use, UserId, lock};
use crate::driver::BlockLimits;
use crate::driver::debug_event::DebugEvent;
use crate::driver::edge::{EdgeId, EdgeInfo};
use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags, ZeroFlags};
use crate::driver::role::ChildRole;
use crate::graph::node::BlockNode;
use crate::io as request_path;

/// An edge of the block graph: from the driver that holds it to a child.
///
/// A driver holds its children by these, and lists them in
/// [`BlockDriver::children`](crate::BlockDriver::children): so a drain of a node below reaches the
/// node above, and a node can be [replaced](BlockNode::co_replace) while requests run. Requests go
/// down an edge as they do to the node itself, with the same errors. Any thread.
pub struct Child {
    edge: Arc<Edge>,
}

/// An edge as its driver and the node of that driver have it. It leads elsewhere only while that node is
/// quiet.
pub(crate) struct Edge {
    info: EdgeInfo,
    node: ArcSwap<BlockNode>,
    /// The node whose driver holds it, as soon as there is one.
    owner: OnceLock<Weak<BlockNode>>,
}

impl Edge {
    #[inline]
    pub(crate) fn info(&self) -> &EdgeInfo {
        &self.info
    }

    /// Its id among the users of the node that it leads to.
    pub(crate) fn user(&self) -> UserId {
        self.info.id().into()
    }

    /// The node that it leads to, at this moment.
    pub(crate) fn node(&self) -> Arc<BlockNode> {
        self.node.load_full()
    }

    /// [`Child::co_preadv_blocks`].
    #[inline]
    pub(super) fn co_preadv_blocks(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        request_path::co_preadv_blocks(&self.node.load().path, co, offset, target, flags)
    }

    /// Turns the edge to `node`; gives back what it led to.
    pub(super) fn swap(&self, node: Arc<BlockNode>) -> Arc<BlockNode> {
        self.node.swap(node)
    }

    /// The driver that holds it is this node's.
    pub(super) fn set_owner(&self, owner: &Arc<BlockNode>) {
        // It has one owner for its life.
        let _ = self.owner.set(Arc::downgrade(owner));
    }
}

impl From<EdgeId> for UserId {
    fn from(edge: EdgeId) -> UserId {
        UserId(edge.0)
    }
}

impl Child {
    /// An edge to `node`, which has this role for the driver. Its name is that of the option that says
    /// which node it is, such as `file`.
    pub fn new(name: &'static str, role: ChildRole, node: Arc<BlockNode>) -> Child {
        let mut graph = lock();
        let (to, id) = (node.id(), graph.new_user_id());
        let info = EdgeInfo::new(EdgeId(id.number()), name, role);
        let edge = Arc::new(Edge { info, node: ArcSwap::new(node), owner: OnceLock::new() });
        let kind = Kind::Edge { name, edge: Arc::downgrade(&edge), parent: None };
        graph.add_user_as(id, to, kind, Use::NONE);
        Child { edge }
    }

    #[inline]
    pub(super) fn edge(&self) -> &Edge {
        &self.edge
    }

    /// Names the edge, for its driver to [list](crate::BlockDriver::children).
    #[inline]
    pub fn id(&self) -> EdgeId {
        self.edge.info.id()
    }

    /// The name of the option that says which node is below, such as `file`.
    pub fn name(&self) -> &'static str {
        self.edge.info.name()
    }

    /// What the node below is for the driver.
    pub fn role(&self) -> ChildRole {
        self.edge.info.role()
    }

    /// The node below, at this moment.
    pub fn node(&self) -> Arc<BlockNode> {
        self.edge.node()
    }

    /// The node whose driver holds this edge; while that driver is being made, the node below.
    pub(crate) fn owner(&self) -> Arc<BlockNode> {
        let owner = self.edge.owner.get().and_then(Weak::upgrade);
        owner.unwrap_or_else(|| self.node())
    }

    /// The driver has reached a step of a request, and the node below may be one that disturbs it
    /// (`blkdebug`).
    #[inline]
    pub fn debug_event(&self, event: DebugEvent) {
        self.edge.node.load().debug_event(event);
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
        self.edge.node.load().limits()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        super::remove_user(self.edge.user());
    }
}

/// Requests. Each is part of one that a [`BlockBackend`](crate::BlockBackend) has counted in above, or that
/// the driver has counted itself ([`OwnIo`](crate::OwnIo)), so it does not wait at the gate. Errors are
/// those of the backend's requests.
impl Child {
    /// Fills `target` from `offset` bytes on.
    #[inline]
    pub fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        request_path::co_preadv(&self.edge.node.load().path, co, offset, target, flags)
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
        request_path::co_pwritev(self.edge.node.load().writable()?, co, offset, source, flags)
    }

    /// [`co_preadv`](Self::co_preadv), for a driver that asks for larger blocks than the node below
    /// has: the last of them may reach beyond the end of that node, where zeroes are read.
    pub fn co_preadv_blocks(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.edge.co_preadv_blocks(co, offset, target, flags)
    }

    /// [`co_pwritev`](Self::co_pwritev), for such a driver: what is beyond the end is padding, and not
    /// written.
    pub fn co_pwritev_blocks(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let there = request_path::bytes_there(&self.edge.node.load().path, offset, source.len());
        if there == source.len() {
            return self.co_pwritev(co, offset, source, flags);
        }
        self.co_pwritev(co, offset, &source.slice(0, there), flags)
    }

    /// Makes all writes durable that completed before.
    pub fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        request_path::co_flush(&self.edge.node.load().path, co)
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let node = self.edge.node.load();
        request_path::co_pwrite_zeroes(node.writable()?, co, None, offset, bytes, flags)
    }

    /// Gives `bytes` bytes from `offset` on back to the storage.
    pub fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        request_path::co_pdiscard(self.edge.node.load().writable()?, co, None, offset, bytes)
    }

    /// What the node below knows of the bytes from `offset` on, whatever backing files have.
    pub fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        request_path::co_block_status(&self.edge.node.load().path, co, offset, bytes)
    }

    /// Changes the length to `length` bytes.
    pub fn co_truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        self.edge.node.load().co_truncate(co, length, how)
    }

    /// Looks how long the storage is now, and returns it in bytes.
    pub fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        self.edge.node.load().co_look_at_length(co)
    }
}
