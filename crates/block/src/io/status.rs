//! What is known of a range without reading it.

use std::io;

use coblk_aio::{Co, trace_event};

use super::{check_range, errno};
use crate::graph::node::BlockNode;

/// What the bytes of a range are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockStatusKind {
    /// Anything, as far as one knows without reading.
    Data,
    /// They read as zeroes.
    Zero,
    /// They read as zeroes, and there is nothing stored for them.
    Hole,
}

/// What the first bytes of a range are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// What they are.
    pub kind: BlockStatusKind,
    /// How many bytes; there may be more of the same kind behind them.
    pub bytes: u64,
}

/// The status of the bytes at the beginning of a range: at least one, unless there are none.
pub(crate) fn co_block_status(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    bytes: u64,
) -> io::Result<BlockStatus> {
    check_range(node, offset, bytes)?;
    trace_event!("bdrv_co_block_status", node = node.name(), offset, bytes);
    if bytes == 0 {
        return Ok(BlockStatus { kind: BlockStatusKind::Data, bytes });
    }
    let block = u64::from(node.live_limits().request_alignment());
    let range = offset..offset + bytes;
    // Whole blocks, as a request has them, but for the last one of a node that ends within it.
    let start = range.start - range.start % block;
    let end = range.end.next_multiple_of(block).min(node.length());
    let status = node.driver().co_block_status(co, start, end - start)?;
    debug_assert!(status.bytes > 0, "driver '{}' knows of 0 bytes", node.driver().format_name());
    // Who asks goes on behind what he was told: none would be for ever.
    if status.bytes == 0 {
        return Err(errno(libc::EIO));
    }
    let known = start.saturating_add(status.bytes).min(end);
    if known == end {
        return Ok(BlockStatus { bytes, ..status });
    }
    Ok(match known - known % block {
        // A block of several kinds.
        known if known <= start => {
            let known = (start + block).min(range.end);
            BlockStatus { kind: BlockStatusKind::Data, bytes: known - offset }
        }
        known => BlockStatus { bytes: known.min(range.end) - offset, ..status },
    })
}
