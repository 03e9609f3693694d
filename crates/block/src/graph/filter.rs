//! [`Filter`]: a driver that passes requests on to one node, and changes something on the way.

use std::any::Any;
use std::io;

use coblk_aio::{AioHandle, Co, IoVector, IoVectorMut};

use crate::driver::background::Background;
use crate::driver::debug_event::DebugEvent;
use crate::driver::edge::{EdgeId, EdgeInfo};
use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags, ZeroFlags};
use crate::driver::permissions::Permissions;
use crate::driver::snapshot::SnapshotReads;
use crate::driver::stamp::StorageStamp;
use crate::driver::{BlockDriver, BlockLimits};
use crate::graph::Child;

/// A driver that passes requests on to one child. An implementation has the hooks that it changes,
/// and nothing else: all other requests and questions go to the child, [moved](Self::at) if need
/// be. Everything else is as for a [`BlockDriver`], which a filter is.
///
/// ```
/// # use std::io;
/// # use coblk_aio::{Co, IoVector};
/// use coblk_block::{Child, Filter, WriteFlags};
///
/// /// Refuses writes to the first 512 bytes.
/// struct KeepsBootSector(Child);
///
/// impl Filter for KeepsBootSector {
///     fn name(&self) -> &'static str {
///         "keeps-boot-sector"
///     }
///     fn child(&self) -> &Child {
///         &self.0
///     }
///     fn write(&self, co: &Co<'_>, offset: u64, source: &IoVector<'_>, flags: WriteFlags)
///         -> io::Result<()>
///     {
///         if offset < 512 {
///             return Err(io::ErrorKind::PermissionDenied.into());
///         }
///         self.0.co_pwritev(co, offset, source, flags)
///     }
/// }
/// ```
pub trait Filter: Any + Send + Sync {
    /// The driver's name.
    fn name(&self) -> &'static str;

    /// The child that requests are passed on to.
    fn child(&self) -> &Child;

    /// Maps an offset of this node to one of the child, both in bytes.
    #[inline]
    fn at(&self, offset: u64) -> u64 {
        offset
    }

    /// See [`BlockDriver::is_filter`]. A format that passes requests on is none.
    fn is_filter(&self) -> bool {
        true
    }

    /// See [`BlockDriver::length`].
    fn length(&self) -> u64 {
        self.child().length()
    }

    /// See [`BlockDriver::is_read_only`].
    fn is_read_only(&self) -> bool {
        self.child().is_read_only()
    }

    /// See [`BlockDriver::limits`]. By default those of
    /// [one that passes requests on](BlockLimits::passing_on).
    fn limits(&self) -> BlockLimits {
        BlockLimits::passing_on()
    }

    /// See [`BlockDriver::co_preadv`].
    #[inline]
    fn read(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.child().co_preadv(co, self.at(offset), target, flags)
    }

    /// See [`BlockDriver::snapshot`]. The child's is not passed on: requests of this node may be moved.
    fn snapshot(&self) -> Option<&dyn SnapshotReads> {
        None
    }

    /// See [`BlockDriver::co_pwritev`].
    #[inline]
    fn write(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.child().co_pwritev(co, self.at(offset), source, flags)
    }

    /// See [`BlockDriver::co_flush`].
    fn flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.child().co_flush(co)
    }

    /// See [`BlockDriver::co_write_back`].
    fn write_back(&self, _co: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    /// See [`BlockDriver::co_close`].
    fn close(&self, co: &Co<'_>) -> io::Result<()> {
        self.write_back(co)
    }

    /// See [`BlockDriver::co_inactivate`].
    fn inactivate(&self, co: &Co<'_>) -> io::Result<()> {
        self.write_back(co)
    }

    /// See [`BlockDriver::co_activate`].
    fn activate(&self, _co: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    /// See [`BlockDriver::needs_close`].
    fn needs_close(&self) -> bool {
        false
    }

    /// See [`BlockDriver::background`].
    fn background(&self) -> Option<&Background> {
        None
    }

    /// See [`BlockDriver::co_set_home`].
    fn set_home(&self, _co: &Co<'_>, _home: AioHandle) {}

    /// See [`BlockDriver::co_pwrite_zeroes`].
    fn zero(&self, co: &Co<'_>, offset: u64, bytes: u64, flags: ZeroFlags) -> io::Result<()> {
        self.child().co_pwrite_zeroes(co, self.at(offset), bytes, flags)
    }

    /// See [`BlockDriver::co_pdiscard`].
    fn discard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.child().co_pdiscard(co, self.at(offset), bytes)
    }

    /// See [`BlockDriver::co_block_status`]. By default the child is asked.
    fn status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let (child, at) = (self.child(), self.at(offset));
        let extent = child.co_block_status(co, at, bytes)?;
        Ok(match extent.stored {
            Some(_) => extent.stored_at(Some(child.name()), at),
            None => extent,
        })
    }

    /// See [`BlockDriver::co_truncate`].
    fn truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        self.child().co_truncate(co, length, how)
    }

    /// See [`BlockDriver::co_refresh_length`].
    fn refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        self.child().co_refresh_length(co)
    }

    /// See [`BlockDriver::children`].
    fn children(&self) -> Vec<EdgeId> {
        vec![self.child().id()]
    }

    /// See [`BlockDriver::filename`].
    fn filename(&self) -> Option<String> {
        None
    }

    /// See [`BlockDriver::child_permissions`].
    fn child_permissions(
        &self,
        edge: &EdgeInfo,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        edge.role().default_permissions((held, shared), !self.is_read_only())
    }

    /// See [`BlockDriver::debug_event`].
    fn debug_event(&self, _event: DebugEvent) {}

    /// See [`BlockDriver::wants_debug_events`].
    fn wants_debug_events(&self) -> bool {
        false
    }

    /// See [`BlockDriver::cancel_in_flight`].
    fn cancel_in_flight(&self) {}

    /// See [`BlockDriver::drained_begin`].
    fn drained_begin(&self) {}

    /// See [`BlockDriver::drained_end`].
    fn drained_end(&self) {}
}

impl<F: Filter> BlockDriver for F {
    fn format_name(&self) -> &'static str {
        self.name()
    }

    fn length(&self) -> u64 {
        Filter::length(self)
    }

    fn filtered(&self) -> Option<EdgeId> {
        Some(self.child().id())
    }

    fn is_filter(&self) -> bool {
        Filter::is_filter(self)
    }

    fn at_filtered(&self, offset: u64) -> u64 {
        self.at(offset)
    }

    fn is_read_only(&self) -> bool {
        Filter::is_read_only(self)
    }

    fn limits(&self) -> BlockLimits {
        Filter::limits(self)
    }

    fn leaves_reads_unwritten(&self) -> bool {
        self.child().node().driver().leaves_reads_unwritten()
    }

    #[inline]
    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.read(co, offset, target, flags)
    }

    fn snapshot(&self) -> Option<&dyn SnapshotReads> {
        Filter::snapshot(self)
    }

    #[inline]
    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.write(co, offset, source, flags)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.flush(co)
    }

    fn co_write_back(&self, co: &Co<'_>) -> io::Result<()> {
        self.write_back(co)
    }

    fn co_close(&self, co: &Co<'_>) -> io::Result<()> {
        self.close(co)
    }

    fn co_inactivate(&self, co: &Co<'_>) -> io::Result<()> {
        self.inactivate(co)
    }

    fn co_activate(&self, co: &Co<'_>) -> io::Result<()> {
        self.activate(co)
    }

    fn needs_close(&self) -> bool {
        Filter::needs_close(self)
    }

    fn background(&self) -> Option<&Background> {
        Filter::background(self)
    }

    fn co_set_home(&self, co: &Co<'_>, home: AioHandle) {
        self.set_home(co, home);
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        self.zero(co, offset, bytes, flags)
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.discard(co, offset, bytes)
    }

    fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.status(co, offset, bytes)
    }

    fn co_truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        self.truncate(co, length, how)
    }

    fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        self.refresh_length(co)
    }

    fn co_allocated_bytes(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        self.child().node().co_allocated_bytes(co)
    }

    fn co_stamp(&self, co: &Co<'_>) -> io::Result<Option<StorageStamp>> {
        let node = self.child().node();
        let has_all = self.at(0) == 0 && Filter::length(self) == node.length();
        if has_all { node.driver().co_stamp(co) } else { Ok(None) }
    }

    fn children(&self) -> Vec<EdgeId> {
        Filter::children(self)
    }

    fn filename(&self) -> Option<String> {
        Filter::filename(self)
    }

    fn child_permissions(
        &self,
        edge: &EdgeInfo,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        Filter::child_permissions(self, edge, held, shared)
    }

    fn debug_event(&self, event: DebugEvent) {
        Filter::debug_event(self, event);
    }

    fn debug_event_below(&self, event: DebugEvent) {
        self.child().debug_event(event);
    }

    fn wants_debug_events(&self) -> bool {
        Filter::wants_debug_events(self)
    }

    fn cancel_in_flight(&self) {
        Filter::cancel_in_flight(self);
    }

    fn drained_begin(&self) {
        Filter::drained_begin(self);
    }

    fn drained_end(&self) {
        Filter::drained_end(self);
    }
}
