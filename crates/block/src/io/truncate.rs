//! Changes of a device's length.

use std::io;

use coblk_aio::{Co, trace_event};

use super::errno;
use super::flags::backing;
use super::tracked::Access;
use crate::backend::length_watch;
use crate::driver::MAX_LENGTH;
use crate::driver::flags::Truncate;
use crate::graph::Child;
use crate::graph::node::BlockNode;
use crate::io::after_write::WriteKind;

/// Sets the length, also to less than it is: nothing may be in flight beyond the new end.
pub(crate) fn co_truncate(
    node: &BlockNode,
    co: &Co<'_>,
    length: u64,
    how: Truncate,
) -> io::Result<()> {
    set_length(node, co, length, how, true).map(|_| ())
}

/// Sets the length, unless that is less than it is. False then: another change of length, or a
/// drain, for which this has waited, has made it longer meanwhile, and nothing is done.
pub(crate) fn co_grow(
    node: &BlockNode,
    co: &Co<'_>,
    length: u64,
    how: Truncate,
) -> io::Result<bool> {
    set_length(node, co, length, how, false)
}

/// Others that change the length wait; so do tracked writes beyond the shorter of the old and the new
/// end, and find out about that end when it is their turn.
fn set_length(
    node: &BlockNode,
    co: &Co<'_>,
    length: u64,
    mut how: Truncate,
    may_shrink: bool,
) -> io::Result<bool> {
    trace_event!("bdrv_co_truncate", node = node.name(), length);
    if length > MAX_LENGTH {
        return Err(errno(libc::EFBIG));
    }
    let end = length.min(node.length());
    let block = u64::from(node.limits().request_alignment);
    let _tracked = node.path.tracked.begin(co, end - end % block..u64::MAX, Access::ExcludeWrites);
    // It may have been another's turn before.
    if !may_shrink && length < node.length() {
        return Ok(false);
    }
    // What a backing file has beyond the end was never a part of this device.
    let shines_through = |child: &Child| child.length() > node.length();
    how.zero |= length > node.length() && backing(node.driver()).is_some_and(shines_through);
    let old = node.length();
    let result = node.driver().co_truncate(co, length, how);
    node.path.wrote(old.min(length)..old.max(length), WriteKind::Truncate, result.is_ok());
    length_watch::tell(node);
    result.map(|()| true)
}

/// Has the driver look how long its storage is. Changes of length wait.
pub(crate) fn co_refresh_length(node: &BlockNode, co: &Co<'_>) -> io::Result<u64> {
    let _tracked = node.path.tracked.begin(co, u64::MAX - 1..u64::MAX, Access::ExcludeWrites);
    let result = node.driver().co_refresh_length(co);
    length_watch::tell(node);
    match result? {
        length if length > MAX_LENGTH => Err(errno(libc::EFBIG)),
        length => Ok(length),
    }
}
