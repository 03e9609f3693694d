//! [`SnapshotReads`]: the bytes of an instant, of a driver that keeps them.

use std::io;

use coblk_aio::{Co, IoVectorMut};

use super::not_supported;
use crate::driver::extent::Extent;
use crate::driver::flags::ReadFlags;

/// A driver that keeps the bytes of an instant, as copy-before-write does: what is written to the node
/// later does not change them.
///
/// A parent's driver asks by its edge ([`Child::co_snapshot_preadv`](crate::Child::co_snapshot_preadv) and
/// the two others), as part of a request of its own, which is counted at the gate of its node. The layer
/// has checked that the range is within the node's [`length`](crate::BlockDriver::length), and nothing
/// else: requests have any offset, length and memory, and are neither cut nor padded, nor ordered with
/// requests to the bytes of now. What must exclude each other there, the driver locks.
///
/// Methods are called as those of [`BlockDriver`](crate::BlockDriver) are: in coroutines, in several contexts at
/// once. Errors carry the OS errno.
pub trait SnapshotReads: Send + Sync {
    /// Fills all of `target` with the bytes of the instant, from `offset` bytes on. Flags are those of the
    /// parent's request.
    fn co_snapshot_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()>;

    /// Describes the bytes of the instant from `offset` bytes on, without reading them: how many of them,
    /// from 1 to `bytes`, are of one kind. By default all may be data.
    fn co_snapshot_block_status(
        &self,
        _co: &Co<'_>,
        _offset: u64,
        bytes: u64,
    ) -> io::Result<Extent> {
        Ok(Extent::data(bytes))
    }

    /// Gives up the bytes of the instant in a range: they are not read any more, so the driver need not
    /// keep them. The bytes of now stay. By default ENOTSUP.
    fn co_snapshot_pdiscard(&self, _co: &Co<'_>, _offset: u64, _bytes: u64) -> io::Result<()> {
        Err(not_supported())
    }
}
