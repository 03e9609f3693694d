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
    check_alignment(node.limits(), offset, bytes)?;
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
    check_alignment(node.limits(), offset, bytes)?;
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
    let memory_alignment = limits.memory_alignment as usize;
    let len_alignment = limits.request_alignment as usize;
    ranges.len() <= limits.max_iov
        && (memory_alignment | len_alignment == 1
            || ranges.iter().all(|range| {
                (range.iov_base as usize).is_multiple_of(memory_alignment)
                    && range.iov_len.is_multiple_of(len_alignment)
            }))
}

/// Padding a request to the driver's blocks needs serialising of overlapping requests, which this
/// layer does not have yet: what is not aligned is refused.
#[inline]
fn check_alignment(limits: &BlockLimits, offset: u64, bytes: usize) -> io::Result<()> {
    let alignment = u64::from(limits.request_alignment);
    if alignment == 1 || bytes == 0 || (offset | bytes as u64).is_multiple_of(alignment) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::Null;

    fn limits(request_alignment: u32, memory_alignment: u32) -> BlockLimits {
        BlockLimits { request_alignment, memory_alignment, max_transfer: 8192, max_iov: 3 }
    }

    /// Ranges of these lengths, at addresses that are multiples of 4096.
    fn ranges(lengths: &[usize]) -> Vec<iovec> {
        let address = |index: usize| std::ptr::without_provenance_mut((index + 1) << 12);
        let range =
            |(index, len): (usize, &usize)| iovec { iov_base: address(index), iov_len: *len };
        lengths.iter().enumerate().map(range).collect()
    }

    #[test]
    fn a_range_must_end_within_the_length() {
        for length in [0, 1, 512, i64::MAX as u64, u64::MAX - 1, u64::MAX] {
            let node = BlockNode::new("node", Null::new(length));
            let check = |offset, bytes| check_range(&node, offset, bytes).is_ok();
            assert!(check(0, length) && check(length, 0) && check(length / 2, length - length / 2));
            if length < u64::MAX {
                assert!(!check(0, length + 1) && !check(length + 1, 0) && !check(length, 1));
            }
            if length > 0 {
                assert!(!check(1, length), "{length}");
            }
            // Ends beyond 2^64, which wraps to something small.
            assert!(!check(u64::MAX, 1) && !check(2, u64::MAX - 1) && !check(u64::MAX, u64::MAX));
        }
    }

    #[test]
    fn a_piece_is_what_the_driver_takes_at_once() {
        let limits = limits(512, 1);
        // Cut at the longest transfer, at the most ranges, and down to whole blocks.
        assert_eq!(piece_len(&limits, &ranges(&[20000])), 8192);
        assert_eq!(piece_len(&limits, &ranges(&[512, 512, 512, 512])), 1536);
        assert_eq!(piece_len(&limits, &ranges(&[512, 100, 412, 512])), 1024);
        assert_eq!(piece_len(&limits, &ranges(&[100, 500, 500, 500])), 1024);
        // Three ranges that make no block: one block, though it takes more ranges.
        assert_eq!(piece_len(&limits, &ranges(&[100, 100, 100, 100, 112])), 512);
        // What is left at the end.
        assert_eq!(piece_len(&limits, &ranges(&[512])), 512);
    }

    #[test]
    fn a_piece_is_never_empty() {
        let tiny = BlockLimits { max_transfer: 0, max_iov: 0, ..limits(512, 512) };
        assert_eq!(piece_len(&tiny, &ranges(&[4096])), 512);
        let tiny = BlockLimits { max_transfer: 100, ..limits(512, 512) };
        assert_eq!(piece_len(&tiny, &ranges(&[4096])), 512);
    }

    #[test]
    fn memory_is_used_in_place_if_addresses_and_lengths_suit() {
        let mut memory = ranges(&[512, 1024]);
        assert!(takes_in_place(&limits(512, 4096), &memory));
        // Lengths follow the request alignment, addresses the memory alignment.
        assert!(!takes_in_place(&limits(4096, 512), &memory));
        memory[1].iov_base = memory[1].iov_base.wrapping_byte_add(4);
        assert!(takes_in_place(&limits(512, 4), &memory));
        assert!(!takes_in_place(&limits(512, 8), &memory));
        memory[1].iov_len = 100;
        assert!(!takes_in_place(&limits(512, 4), &memory));
        assert!(takes_in_place(&limits(1, 1), &memory));
        assert!(!takes_in_place(&limits(1, 1), &ranges(&[1, 1, 1, 1])), "too many ranges");
    }
}
