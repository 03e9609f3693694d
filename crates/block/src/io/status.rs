//! Block status: the state of a range, without reading it.

use std::io;

use coblk_aio::{Co, trace_event};

use super::{RequestPath, check_range, errno};
use crate::driver::extent::Extent;

/// What the node itself knows of the bytes at the beginning of a range: at least one, unless there are
/// none.
pub(crate) fn co_block_status(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    bytes: u64,
) -> io::Result<Extent> {
    check_range(path, offset, bytes)?;
    trace_event!("bdrv_co_block_status", node = path.name(), offset, bytes);
    if bytes == 0 {
        return Ok(Extent::data(0));
    }
    let block = u64::from(path.limits.request_alignment());
    let range = offset..offset + bytes;
    // Whole blocks, as a request has them, but for the last one of a node that ends within it.
    let start = range.start - range.start % block;
    // It may have become shorter since it was looked at.
    let end = range.end.next_multiple_of(block).min(path.length().max(range.end));
    let extent = path.driver().co_block_status(co, start, end - start)?;
    // The caller goes on behind what it was told: with nothing it would never come to an end.
    if extent.bytes == 0 {
        return Err(errno(libc::EIO));
    }
    let known = start.saturating_add(extent.bytes).min(end);
    let extent = Extent { bytes: known - start, ..extent };
    let extent = match known - known % block {
        _ if known == end => extent.part(offset - start, bytes),
        // A block of several kinds.
        whole if whole <= start => Extent::data((start + block).min(range.end) - offset),
        whole => extent.part(offset - start, whole.min(range.end) - offset),
    };
    Ok(Extent { end: offset + extent.bytes == path.length(), ..extent })
}
