//! The request path of a node: checks the range, and makes the request fit the driver.

use std::io;

use coblk_aio::{AlignedBuffer, Co, IoVector, IoVectorMut, trace_event};
use libc::iovec;

use crate::driver::BlockLimits;
use crate::flags::{WriteFlags, ZeroFlags};
use crate::node::BlockNode;

/// Longest buffer that a request is copied through, or that zeroes are written from.
const BOUNCE_BYTES: usize = 1 << 20;

#[inline]
pub(crate) fn co_preadv(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
) -> io::Result<()> {
    let bytes = target.len();
    check_range(node, offset, bytes as u64)?;
    trace_event!("bdrv_co_preadv", node = node.name(), offset, bytes);
    if fits(node.limits(), target.as_iovecs(), bytes) {
        return read_piece(node, co, offset, target);
    }
    let mut done = 0;
    while done < bytes {
        let len = piece_len(node.limits(), target.slice(done, bytes - done).as_iovecs());
        read_piece(node, co, offset + done as u64, &mut target.slice(done, len))?;
        done += len;
    }
    Ok(())
}

#[inline]
pub(crate) fn co_pwritev(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    let bytes = source.len();
    check_range(node, offset, bytes as u64)?;
    trace_event!("bdrv_co_pwritev", node = node.name(), offset, bytes);
    if fits(node.limits(), source.as_iovecs(), bytes) {
        return write_piece(node, co, offset, source, flags);
    }
    let mut done = 0;
    while done < bytes {
        let len = piece_len(node.limits(), source.slice(done, bytes - done).as_iovecs());
        write_piece(node, co, offset + done as u64, &source.slice(done, len), flags)?;
        done += len;
    }
    Ok(())
}

pub(crate) fn co_flush(node: &BlockNode, co: &Co<'_>) -> io::Result<()> {
    trace_event!("bdrv_co_flush", node = node.name());
    node.driver().co_flush(co)
}

pub(crate) fn co_pdiscard(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    bytes: u64,
) -> io::Result<()> {
    check_range(node, offset, bytes)?;
    trace_event!("bdrv_co_pdiscard", node = node.name(), offset, bytes);
    if bytes == 0 { Ok(()) } else { node.driver().co_pdiscard(co, offset, bytes) }
}

/// Asks the driver, and if it has no way of its own writes zeroes (contract: C81).
pub(crate) fn co_pwrite_zeroes(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    bytes: u64,
    flags: ZeroFlags,
) -> io::Result<()> {
    check_range(node, offset, bytes)?;
    trace_event!("bdrv_co_pwrite_zeroes", node = node.name(), offset, bytes);
    if bytes == 0 {
        return Ok(());
    }
    match node.driver().co_pwrite_zeroes(co, offset, bytes, flags) {
        Err(error)
            if error.raw_os_error() == Some(libc::ENOTSUP)
                && !flags.contains(ZeroFlags::NO_FALLBACK) =>
        {
            write_zeroes_from_buffer(node, co, offset, bytes, flags)
        }
        result => result,
    }
}

fn write_zeroes_from_buffer(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    bytes: u64,
    flags: ZeroFlags,
) -> io::Result<()> {
    let len = usize::try_from(bytes).unwrap_or(BOUNCE_BYTES).min(BOUNCE_BYTES);
    let zeroes = AlignedBuffer::new(len, node.limits().memory_alignment as usize)?;
    let write_flags =
        if flags.contains(ZeroFlags::FUA) { WriteFlags::FUA } else { WriteFlags::empty() };
    let end = offset + bytes;
    let mut at = offset;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(len).min(len);
        co_pwritev(node, co, at, &IoVector::from(&zeroes[..len]), write_flags)?;
        at += len as u64;
    }
    Ok(())
}

/// Past the end is EIO (contract: C74). An offset is unsigned, so a negative one is past any end.
#[inline]
fn check_range(node: &BlockNode, offset: u64, bytes: u64) -> io::Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= node.length() => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}

#[inline]
fn fits(limits: &BlockLimits, ranges: &[iovec], bytes: usize) -> bool {
    ranges.len() <= limits.max_iov && bytes as u64 <= limits.max_transfer
}

/// How much of a vector, from its beginning, the driver takes at once. Never 0.
fn piece_len(limits: &BlockLimits, ranges: &[iovec]) -> usize {
    let most = usize::try_from(limits.max_transfer).unwrap_or(usize::MAX);
    let len: usize = ranges.iter().take(limits.max_iov).map(|range| range.iov_len).sum();
    let len = len.min(most);
    let alignment = limits.request_alignment as usize;
    let aligned = len - len % alignment;
    if aligned > 0 {
        return aligned;
    }
    // Ranges so small that the driver's share of them makes no block: one block, by copy.
    let total: usize = ranges.iter().map(|range| range.iov_len).sum();
    total.min(alignment)
}

#[inline]
fn read_piece(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
) -> io::Result<()> {
    check_alignment(node.limits(), offset, target.len())?;
    if takes_in_place(node.limits(), target.as_iovecs()) {
        return node.driver().co_preadv(co, offset, target);
    }
    let mut done = 0;
    while done < target.len() {
        let len = (target.len() - done).min(BOUNCE_BYTES);
        let mut bounce = AlignedBuffer::new(len, node.limits().memory_alignment as usize)?;
        let mut vector = IoVectorMut::from(&mut bounce[..]);
        node.driver().co_preadv(co, offset + done as u64, &mut vector)?;
        target.copy_from(done, &bounce);
        done += len;
    }
    Ok(())
}

#[inline]
fn write_piece(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    check_alignment(node.limits(), offset, source.len())?;
    if takes_in_place(node.limits(), source.as_iovecs()) {
        return node.driver().co_pwritev(co, offset, source, flags);
    }
    let mut done = 0;
    while done < source.len() {
        let len = (source.len() - done).min(BOUNCE_BYTES);
        let mut bounce = AlignedBuffer::new(len, node.limits().memory_alignment as usize)?;
        source.copy_to(done, &mut bounce);
        node.driver().co_pwritev(co, offset + done as u64, &IoVector::from(&bounce[..]), flags)?;
        done += len;
    }
    Ok(())
}

/// Whether the driver can use this memory as it is.
#[inline]
fn takes_in_place(limits: &BlockLimits, ranges: &[iovec]) -> bool {
    let alignment = limits.memory_alignment as usize;
    ranges.len() <= limits.max_iov
        && (alignment == 1
            || ranges
                .iter()
                .all(|range| (range.iov_base as usize | range.iov_len).is_multiple_of(alignment)))
}

/// Padding a request to the driver's blocks needs serialising of overlapping requests, which this
/// layer does not have yet: what is not aligned is refused.
#[inline]
fn check_alignment(limits: &BlockLimits, offset: u64, bytes: usize) -> io::Result<()> {
    let alignment = u64::from(limits.request_alignment);
    if alignment == 1 || (offset | bytes as u64).is_multiple_of(alignment) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }
}
