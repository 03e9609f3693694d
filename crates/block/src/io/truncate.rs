//! Changes of a device's length.

use std::io;

use coblk_aio::{Co, trace_event};

use super::tracked::Overlap;
use super::{errno, finish_write};
use crate::length;
use crate::node::BlockNode;

/// Sets the length. Others that change it wait; so do tracked writes beyond the shorter of the old
/// and the new end, and find out about that end when it is their turn.
pub(crate) fn co_truncate(node: &BlockNode, co: &Co<'_>, length: u64) -> io::Result<()> {
    trace_event!("bdrv_co_truncate", node = node.name(), length);
    if i64::try_from(length).is_err() {
        return Err(errno(libc::EFBIG));
    }
    let end = length.min(node.length());
    let block = u64::from(node.limits().request_alignment);
    let _tracked = node.path.tracked.begin(co, end - end % block..u64::MAX, Overlap::Excluded);
    let result = finish_write(node, co, false, node.driver().co_truncate(co, length));
    length::tell(node);
    result
}

/// Has the driver look how long its storage is. Changes of length wait.
pub(crate) fn co_refresh_length(node: &BlockNode, co: &Co<'_>) -> io::Result<u64> {
    let _tracked = node.path.tracked.begin(co, u64::MAX - 1..u64::MAX, Overlap::Excluded);
    let result = node.driver().co_refresh_length(co);
    length::tell(node);
    result
}
