//! [`Child`]: how a driver holds the node it stands on.

use std::io;
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwap;
use coblk_aio::{Co, IoVector, IoVectorMut};

use super::{Kind, Use, UserId, lock};
use crate::driver::BlockLimits;
use crate::driver::debug_event::DebugEvent;
use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags, ZeroFlags};
use crate::driver::role::ChildRole;
use crate::graph::node::BlockNode;
use crate::io as request_path;

/// An edge of the block graph: from the driver that holds it to the node it stands on.
///
/// A driver that stands on nodes holds them by these, and lists them in
/// [`BlockDriver::children`](crate::BlockDriver::children): so a drain of a node below reaches the
/// node above, and a node can be [replaced](BlockNode::co_replace) while requests run. Requests go
/// down an edge as they do to the node itself, with the same errors. Any thread.
pub struct Child {
    name: &'static str,
    role: ChildRole,
    edge: Arc<Edge>,
    id: UserId,
}

/// What an edge is in the driver. It changes only while the node above is quiet.
pub(crate) struct Edge {
    node: ArcSwap<BlockNode>,
    /// The node whose driver holds it, as soon as there is one.
    owner: OnceLock<Weak<BlockNode>>,
}

impl Edge {
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

impl Child {
    /// An edge to `node`, which has this role for the driver. Its name is that of the option that says
    /// which node it is, such as `file`.
    pub fn new(name: &'static str, role: ChildRole, node: Arc<BlockNode>) -> Child {
        let id = node.id();
        let edge = Arc::new(Edge { node: ArcSwap::new(node), owner: OnceLock::new() });
        let kind = Kind::Edge { name, edge: Arc::downgrade(&edge), parent: None };
        let id = lock().add_user(id, kind, Use::NONE);
        Child { name, role, edge, id }
    }

    /// The name of the option that says which node is below, such as `file`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What the node below is for the driver.
    pub fn role(&self) -> ChildRole {
        self.role
    }

    pub(crate) fn id(&self) -> UserId {
        self.id
    }

    /// The node below, at this moment.
    pub fn node(&self) -> Arc<BlockNode> {
        self.edge.node.load_full()
    }

    /// Whether the graph has it as an edge of this node. What a driver lists later may be another's.
    pub(crate) fn is_of(&self, node: &BlockNode) -> bool {
        self.edge.owner.get().is_some_and(|owner| std::ptr::eq(owner.as_ptr(), node))
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
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.edge.node.load().co_preadv(co, offset, target, flags)
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

    /// [`co_preadv`](Self::co_preadv), for a driver that asks for larger blocks than the node below
    /// has: the last of them may reach beyond the end of that node, where zeroes are read.
    pub fn co_preadv_blocks(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let there = self.bytes_there(offset, target.len());
        if there == target.len() {
            return self.co_preadv(co, offset, target, flags);
        }
        target.fill_from(there, 0);
        self.co_preadv(co, offset, &mut target.slice(0, there), flags)
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
        let there = self.bytes_there(offset, source.len());
        if there == source.len() {
            return self.co_pwritev(co, offset, source, flags);
        }
        self.co_pwritev(co, offset, &source.slice(0, there), flags)
    }

    /// How many of so many bytes from `offset` on are before the end.
    fn bytes_there(&self, offset: u64, bytes: usize) -> usize {
        let there = self.length().saturating_sub(offset);
        usize::try_from(there).map_or(bytes, |there| there.min(bytes))
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

    /// What the node below knows of the bytes from `offset` on, whatever backing files have.
    pub fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.edge.node.load().co_block_status(co, offset, bytes)
    }

    /// Changes the length to `length` bytes.
    pub fn co_truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        self.edge.node.load().co_truncate(co, length, how)
    }

    /// Looks how long the storage is now, and returns it in bytes.
    pub fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        request_path::co_refresh_length(&self.edge.node.load(), co)
    }
}
