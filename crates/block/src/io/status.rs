//! What is known of a range without reading it.

use std::io;

use coblk_aio::{Co, trace_event};

use super::{check_range, errno};
use crate::node::BlockNode;

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
    let status = node.driver().co_block_status(co, offset, bytes)?;
    debug_assert!(status.bytes > 0, "driver '{}' knows of 0 bytes", node.driver().format_name());
    // Who asks goes on behind what he was told: none would be for ever.
    if status.bytes == 0 {
        return Err(errno(libc::EIO));
    }
    Ok(BlockStatus { bytes: status.bytes.min(bytes), ..status })
}
