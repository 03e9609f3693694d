//! [`CopyBeforeWrite`]: a filter that has old bytes copied to a target before a guest writes over them.

use std::io;
use std::sync::Arc;

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{
    BlockNode, Child, EdgeId, EdgeInfo, Extent, Filter, Permissions, ReadFlags, SnapshotReads,
    Tracking, Truncate, WriteFlags, ZeroFlags,
};

use super::keeper::Keeper;
use super::reads::{Found, Reads};
use crate::copy::pace::Latency;
use crate::copy::piece::Scratch;

/// Longest read of the instant at a time, in bytes: a guest may wait for it.
const MAX_READ: u64 = 1 << 20;

/// A filter that keeps the bytes of an instant: that in which it came above its node. Before a guest writes to a
/// cluster for the first time, its old bytes are copied to the target. Reads pass.
///
/// The bytes of the instant are [read](SnapshotReads) by the driver [`SnapshotAccess`](crate::SnapshotAccess): from
/// the target where they were copied, and else from the node.
pub struct CopyBeforeWrite {
    node: Child,
    target: Child,
    keeper: Arc<Keeper>,
    /// Of a target that has the node as its backing file: its readers look at the node where it has nothing, so a
    /// copy keeps them out.
    _tracking: Option<Tracking>,
}

impl CopyBeforeWrite {
    pub(crate) fn on(
        (node, target): (Child, Child),
        keeper: &Arc<Keeper>,
        tracking: Option<Tracking>,
    ) -> CopyBeforeWrite {
        CopyBeforeWrite { node, target, keeper: Arc::clone(keeper), _tracking: tracking }
    }

    /// Does a request of a guest that changes a range, once that may be.
    fn change(
        &self,
        co: &Co<'_>,
        (offset, bytes): (u64, u64),
        change: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        Latency::of(self.keeper.plan.latency.as_ref(), co, || {
            self.co_keep(co, offset, bytes)?;
            change()
        })
    }

    fn co_keep(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let range = offset..offset.saturating_add(bytes);
        self.keeper.co_keep(co, (&self.node, &self.target), range)
    }

    /// Reads of the instant, while it is whole.
    fn reads(&self) -> io::Result<&Reads> {
        match &self.keeper.reads {
            Some(_) if self.keeper.is_broken() => Err(io::Error::from_raw_os_error(libc::EACCES)),
            Some(reads) => Ok(reads),
            None => Err(io::Error::from_raw_os_error(libc::ENOTSUP)),
        }
    }

    /// Does something with the first bytes of a range of the instant, where they are; returns what it has returned,
    /// and how many bytes they were.
    fn co_at<R>(
        &self,
        range: &std::ops::Range<u64>,
        act: impl FnOnce(Place<'_>, u64) -> io::Result<R>,
    ) -> io::Result<(R, u64)> {
        match self.reads()?.find(range)? {
            Found::Target(bytes) => Ok((act(Place::Target(&self.target), bytes)?, bytes)),
            Found::Memory(bytes, start, held) => {
                Ok((act(Place::Memory(start, &held), bytes)?, bytes))
            }
            Found::Node(bytes, read) => {
                let result = act(Place::Node(&self.node), bytes)?;
                drop(read);
                // A write may have gone on meanwhile without a copy.
                self.reads()?;
                Ok((result, bytes))
            }
        }
    }
}

/// Where bytes of the instant are.
enum Place<'a> {
    Target(&'a Child),
    Node(&'a Child),
    /// In memory, from an offset on.
    Memory(u64, &'a Scratch),
}

impl Filter for CopyBeforeWrite {
    fn name(&self) -> &'static str {
        "copy-before-write"
    }

    fn child(&self) -> &Child {
        &self.node
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.node.id(), self.target.id()]
    }

    fn read(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let latency = self.keeper.plan.latency.as_ref();
        Latency::of(latency, co, || self.node.co_preadv(co, offset, target, flags))
    }

    fn write(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        // What does not change keeps the instant.
        let bytes = if flags.contains(WriteFlags::UNCHANGED) { 0 } else { source.len() as u64 };
        self.change(co, (offset, bytes), || self.node.co_pwritev(co, offset, source, flags))
    }

    fn zero(&self, co: &Co<'_>, offset: u64, bytes: u64, flags: ZeroFlags) -> io::Result<()> {
        let zero = || self.node.co_pwrite_zeroes(co, offset, bytes, flags);
        self.change(co, (offset, bytes), zero)
    }

    fn discard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.change(co, (offset, bytes), || self.node.co_pdiscard(co, offset, bytes))
    }

    /// What would be cut off is part of the instant.
    fn truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        match length < self.keeper.plan.length {
            true => Err(io::Error::from_raw_os_error(libc::EBUSY)),
            false => self.node.co_truncate(co, length, how),
        }
    }

    fn snapshot(&self) -> Option<&dyn SnapshotReads> {
        self.keeper.reads.is_some().then_some(self)
    }

    /// A write to the node that does not come through here would change the instant. So a job does not begin if
    /// a writer stays below: one that leads to the target, whose edge cannot turn. The target may be written by
    /// others, as its backing file may be the node.
    fn child_permissions(
        &self,
        edge: &EdgeInfo,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        if edge.id() == self.target.id() {
            return (Permissions::WRITE, Permissions::all() - Permissions::RESIZE);
        }
        if held.is_empty() && !self.keeper.is_alone() {
            return (held, shared);
        }
        let kept = Permissions::WRITE | Permissions::RESIZE;
        (held | Permissions::CONSISTENT_READ, shared - kept)
    }
}

impl SnapshotReads for CopyBeforeWrite {
    fn co_snapshot_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let end = offset + target.len() as u64;
        let mut at = offset;
        while at < end {
            let range = at..end.min(at.saturating_add(MAX_READ));
            let (_, bytes) = self.co_at(&range, |from, bytes| {
                let mut piece = target.slice((at - offset) as usize, bytes as usize);
                match from {
                    Place::Target(from) | Place::Node(from) => {
                        from.co_preadv(co, at, &mut piece, flags)
                    }
                    Place::Memory(start, held) => {
                        held.copy_to(start, at, &mut piece);
                        Ok(())
                    }
                }
            })?;
            at += bytes;
        }
        Ok(())
    }

    fn co_snapshot_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let (extent, _) = self.co_at(&(offset..offset + bytes), |from, bytes| match from {
            // The target is asked for what was written there, and so by itself.
            Place::Target(from) => from.co_block_status(co, offset, bytes),
            Place::Node(from) => from.co_status_above(co, None, offset, bytes).map(|it| it.extent),
            Place::Memory(..) => Ok(Extent::data(bytes)),
        })?;
        // There is no backing file to look at.
        Ok(Extent { allocated: true, stored: None, ..extent })
    }

    fn co_snapshot_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let reads = self.reads()?;
        let clusters = self.keeper.granules_within(&(offset..offset.saturating_add(bytes)));
        let range = self.keeper.bytes_of(&clusters);
        if range.is_empty() {
            return Ok(());
        }
        reads.forbid(range.clone());
        self.keeper.granules.clear(clusters);
        self.target.co_pdiscard(co, range.start, range.end - range.start)
    }
}

/// Bytes a cluster of an image; 1 where there are none.
pub(crate) fn cluster_size(node: &BlockNode) -> Option<u64> {
    let info = node.driver().image().and_then(|image| image.info().ok());
    info.and_then(|info| info.cluster_size).filter(|bytes| *bytes > 0)
}

/// Whether a node leads to another one, directly or not.
pub(crate) fn leads_to(above: &Arc<BlockNode>, below: &Arc<BlockNode>) -> bool {
    let mut todo = vec![Arc::clone(above)];
    let mut seen: Vec<Arc<BlockNode>> = Vec::new();
    while let Some(node) = todo.pop() {
        if Arc::ptr_eq(&node, below) {
            return true;
        }
        if !seen.iter().any(|known| Arc::ptr_eq(known, &node)) {
            todo.extend(node.children().into_iter().map(|(_, child)| child));
            seen.push(node);
        }
    }
    false
}
