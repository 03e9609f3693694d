//! Requests that are not whole blocks of their driver (contract: C80).
//!
//! ```text
//! blocks of the driver   |-----------|-----------|-----------|
//! the request                 |---------------------|
//! what the driver gets   |head|-- the caller's memory --|tail|
//! ```
//!
//! The driver gets one vector of three parts, so that the caller's memory, the long part, is not
//! copied. Where the driver is particular about memory, `transfer.rs` copies what it must.

use std::io;
use std::ops::Range;

use coblk_aio::{AlignedBuffer, Co, IoVector, IoVectorMut};

use super::{errno, transfer};
use crate::driver::debug_event::DebugEvent;
use crate::driver::flags::{ReadFlags, WriteFlags};
use crate::graph::node::BlockNode;
use crate::io::live_limits::LiveLimits;

/// The whole blocks that a range touches. EIO if they have no end.
pub(super) fn whole_blocks(limits: &LiveLimits, range: &Range<u64>) -> io::Result<Range<u64>> {
    let block = u64::from(limits.request_alignment());
    let end = range.end.checked_next_multiple_of(block).ok_or_else(|| errno(libc::EIO))?;
    Ok(range.start - range.start % block..end)
}

/// Reads whole blocks; what lies around the caller's range goes to a spare buffer.
#[inline(never)]
pub(super) fn read(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    let bytes = target.len();
    if bytes == 0 {
        return Ok(());
    }
    let limits = node.live_limits();
    let range = offset..offset + bytes as u64;
    let blocks = whole_blocks(limits, &range)?;
    let (head, tail) = ((range.start - blocks.start) as usize, (blocks.end - range.end) as usize);
    let memory_alignment = limits.memory_alignment() as usize;
    let tail_at = head.next_multiple_of(memory_alignment);
    let mut spare = AlignedBuffer::new(tail_at + tail, memory_alignment)?;
    let (spare_head, spare_tail) = spare.split_at_mut(tail_at);
    let mut vector = IoVectorMut::from(&mut spare_head[..head]);
    vector.extend(target.slice(0, bytes));
    vector.push(spare_tail);
    transfer::read(node, co, blocks.start, &mut vector, flags)
}

/// Reads the blocks at the edges, and writes all of `blocks` with `source` in the middle. Nobody
/// else may write to them meanwhile. A read that fails fails the write, and nothing is written.
pub(super) fn write(
    node: &BlockNode,
    co: &Co<'_>,
    blocks: &Range<u64>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    let head = (offset - blocks.start) as usize;
    let tail = (blocks.end - offset) as usize - source.len();
    let edges = read_edges(node, co, blocks, head > 0, tail > 0)?;
    let mut vector = IoVector::from(&edges[..head]);
    vector.extend(source);
    vector.push(&edges[edges.len() - tail..]);
    transfer::write(node, co, blocks.start, &vector, flags)
}

/// The first block, if `first`, and the last, if `last`, one after the other. They are read at once
/// where they lie together; if they are one block, it is there once.
fn read_edges(
    node: &BlockNode,
    co: &Co<'_>,
    blocks: &Range<u64>,
    first: bool,
    last: bool,
) -> io::Result<AlignedBuffer> {
    let limits = node.live_limits();
    let block = limits.request_alignment() as usize;
    let memory_alignment = limits.memory_alignment() as usize;
    let read = |part: &mut [u8], at| {
        transfer::read(node, co, at, &mut IoVectorMut::from(part), ReadFlags::empty())
    };
    if first && last && blocks.end - blocks.start <= 2 * block as u64 {
        let mut all = AlignedBuffer::new((blocks.end - blocks.start) as usize, memory_alignment)?;
        node.debug_event(DebugEvent::PwritevRmwHead);
        node.debug_event(DebugEvent::PwritevRmwTail);
        read(&mut all, blocks.start)?;
        node.debug_event(DebugEvent::PwritevRmwAfterHead);
        node.debug_event(DebugEvent::PwritevRmwAfterTail);
        return Ok(all);
    }
    let mut edges =
        AlignedBuffer::new(block * (usize::from(first) + usize::from(last)), memory_alignment)?;
    if first {
        node.debug_event(DebugEvent::PwritevRmwHead);
        read(&mut edges[..block], blocks.start)?;
        node.debug_event(DebugEvent::PwritevRmwAfterHead);
    }
    if last {
        let at = edges.len() - block;
        node.debug_event(DebugEvent::PwritevRmwTail);
        read(&mut edges[at..], blocks.end - block as u64)?;
        node.debug_event(DebugEvent::PwritevRmwAfterTail);
    }
    Ok(edges)
}
