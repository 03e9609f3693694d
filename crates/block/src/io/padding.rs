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

use super::{RequestPath, errno, transfer};
use crate::driver::debug_event::DebugEvent;
use crate::driver::flags::{ReadFlags, WriteFlags};
use crate::io::live_limits::LiveLimits;

/// The whole blocks that a range touches. EIO if they have no end.
pub(super) fn whole_blocks(limits: &LiveLimits, range: &Range<u64>) -> io::Result<Range<u64>> {
    let block = u64::from(limits.request_alignment());
    let end = range.end.checked_next_multiple_of(block).ok_or_else(|| errno(libc::EIO))?;
    Ok(range.start - range.start % block..end)
}

/// Reads whole blocks.
#[inline]
pub(super) fn read(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    if is_whole_blocks(&path.limits, offset, target.len() as u64) {
        transfer::read(path, co, offset, target, flags)
    } else {
        read_padded(path, co, offset, target, flags)
    }
}

#[inline]
fn is_whole_blocks(limits: &LiveLimits, offset: u64, bytes: u64) -> bool {
    // A power of two: the mask is cheaper than a remainder.
    (offset | bytes) & (u64::from(limits.request_alignment()) - 1) == 0
}

/// Reads whole blocks; bytes around the caller's range go to a spare buffer.
#[inline(never)]
fn read_padded(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    let bytes = target.len();
    if bytes == 0 {
        return Ok(());
    }
    let limits = &path.limits;
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
    transfer::read(path, co, blocks.start, &mut vector, flags)
}

/// Writes all of `blocks`, with `source` in the middle; what is left of those at the edges is read first.
/// Such blocks are locked, so that no other request writes to them meanwhile. A read that fails fails the
/// write, and nothing is written.
pub(super) fn write(
    path: &RequestPath,
    co: &Co<'_>,
    blocks: &Range<u64>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    let head = (offset - blocks.start) as usize;
    let tail = (blocks.end - offset) as usize - source.len();
    if head == 0 && tail == 0 {
        return transfer::write(path, co, offset, source, flags);
    }
    let edges = read_edges(path, co, blocks, head > 0, tail > 0)?;
    let mut vector = IoVector::from(&edges[..head]);
    vector.extend(source);
    vector.push(&edges[edges.len() - tail..]);
    transfer::write(path, co, blocks.start, &vector, flags)
}

/// The first block, if `first`, and the last, if `last`, one after the other. They are read at once
/// where they lie together; if they are one block, it is there once.
fn read_edges(
    path: &RequestPath,
    co: &Co<'_>,
    blocks: &Range<u64>,
    first: bool,
    last: bool,
) -> io::Result<AlignedBuffer> {
    let limits = &path.limits;
    let block = limits.request_alignment() as usize;
    let memory_alignment = limits.memory_alignment() as usize;
    let read = |part: &mut [u8], at| {
        transfer::read(path, co, at, &mut IoVectorMut::from(part), ReadFlags::empty())
    };
    if first && last && blocks.end - blocks.start <= 2 * block as u64 {
        let mut all = AlignedBuffer::new((blocks.end - blocks.start) as usize, memory_alignment)?;
        path.debug_event(DebugEvent::PwritevRmwHead);
        path.debug_event(DebugEvent::PwritevRmwTail);
        read(&mut all, blocks.start)?;
        path.debug_event(DebugEvent::PwritevRmwAfterHead);
        path.debug_event(DebugEvent::PwritevRmwAfterTail);
        return Ok(all);
    }
    let mut edges =
        AlignedBuffer::new(block * (usize::from(first) + usize::from(last)), memory_alignment)?;
    if first {
        path.debug_event(DebugEvent::PwritevRmwHead);
        read(&mut edges[..block], blocks.start)?;
        path.debug_event(DebugEvent::PwritevRmwAfterHead);
    }
    if last {
        let at = edges.len() - block;
        path.debug_event(DebugEvent::PwritevRmwTail);
        read(&mut edges[at..], blocks.end - block as u64)?;
        path.debug_event(DebugEvent::PwritevRmwAfterTail);
    }
    Ok(edges)
}
