//! Whole blocks to and from the driver: cut to what it takes at once, copied through a buffer where
//! it asks for memory that the caller does not have.

use std::io;

use coblk_aio::{AlignedBuffer, Co, IoVector, IoVectorMut};
use libc::iovec;

use super::RequestPath;
use crate::driver::BlockLimits;
use crate::driver::flags::{ReadFlags, WriteFlags};
use crate::io::live_limits::LiveLimits;

/// Longest buffer that data is copied through.
const BOUNCE_BYTES: usize = 1 << 20;

/// Reads for a driver that takes any offset, length and memory.
#[inline]
pub(super) fn read_plain(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
) -> io::Result<()> {
    if is_one_piece(&path.limits, target.as_iovecs(), target.len()) {
        return path.driver().co_preadv(co, offset, target, ReadFlags::empty());
    }
    read(path, co, offset, target, ReadFlags::empty())
}

/// Writes for such a driver.
#[inline]
pub(super) fn write_plain(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    source: &IoVector<'_>,
) -> io::Result<()> {
    if is_one_piece(&path.limits, source.as_iovecs(), source.len()) {
        return path.driver().co_pwritev(co, offset, source, WriteFlags::empty());
    }
    write(path, co, offset, source, WriteFlags::empty())
}

#[inline]
fn is_one_piece(limits: &LiveLimits, ranges: &[iovec], bytes: usize) -> bool {
    bytes as u64 <= limits.max_transfer() && ranges.len() <= limits.max_iov()
}

/// Reads whole blocks.
#[inline(never)]
pub(super) fn read(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    let (bytes, mut done) = (target.len(), 0);
    if is_one_piece(&path.limits, target.as_iovecs(), bytes) {
        return read_piece(path, co, offset, target, flags);
    }
    while done < bytes {
        let len = piece_len(&path.limits.get(), target.slice(done, bytes - done).as_iovecs());
        read_piece(path, co, offset + done as u64, &mut target.slice(done, len), flags)?;
        done += len;
    }
    Ok(())
}

fn read_piece(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    match takes_in_place(&path.limits, target.as_iovecs()) {
        true => path.driver().co_preadv(co, offset, target, flags),
        false => read_by_copy(path, co, offset, target, flags),
    }
}

/// Writes whole blocks. When it fails some of them may be written.
#[inline(never)]
pub(super) fn write(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    let (bytes, mut done) = (source.len(), 0);
    if is_one_piece(&path.limits, source.as_iovecs(), bytes) {
        return write_piece(path, co, offset, source, flags);
    }
    while done < bytes {
        let len = piece_len(&path.limits.get(), source.slice(done, bytes - done).as_iovecs());
        write_piece(path, co, offset + done as u64, &source.slice(done, len), flags)?;
        done += len;
    }
    Ok(())
}

fn write_piece(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    match takes_in_place(&path.limits, source.as_iovecs()) {
        true => path.driver().co_pwritev(co, offset, source, flags),
        false => write_by_copy(path, co, offset, source, flags),
    }
}

/// How much of a vector, from its beginning, the driver takes at once. Whole blocks, never none.
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

/// Whether the driver can use this memory as it is.
#[inline]
fn takes_in_place(limits: &LiveLimits, ranges: &[iovec]) -> bool {
    let memory_alignment = limits.memory_alignment() as usize;
    let len_alignment = limits.request_alignment() as usize;
    ranges.len() <= limits.max_iov()
        && (memory_alignment | len_alignment == 1
            || ranges.iter().all(|range| {
                (range.iov_base as usize).is_multiple_of(memory_alignment)
                    && range.iov_len.is_multiple_of(len_alignment)
            }))
}

#[inline(never)]
fn read_by_copy(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    let mut bounce = bounce(&path.limits.get(), target.len())?;
    let mut done = 0;
    while done < target.len() {
        let len = (target.len() - done).min(bounce.len());
        let part = &mut bounce[..len];
        let mut through = IoVectorMut::from(&mut *part);
        path.driver().co_preadv(co, offset + done as u64, &mut through, flags)?;
        target.copy_from(done, part);
        done += len;
    }
    Ok(())
}

#[inline(never)]
fn write_by_copy(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    let mut bounce = bounce(&path.limits.get(), source.len())?;
    let mut done = 0;
    while done < source.len() {
        let len = (source.len() - done).min(bounce.len());
        let part = &mut bounce[..len];
        source.copy_to(done, part);
        path.driver().co_pwritev(co, offset + done as u64, &IoVector::from(&*part), flags)?;
        done += len;
    }
    Ok(())
}

/// A buffer for a transfer of `bytes`, or for its whole blocks one after the other.
fn bounce(limits: &BlockLimits, bytes: usize) -> io::Result<AlignedBuffer> {
    let most = BOUNCE_BYTES.max(limits.request_alignment as usize);
    AlignedBuffer::new(bytes.min(most), limits.memory_alignment as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(request_alignment: u32, memory_alignment: u32) -> BlockLimits {
        BlockLimits {
            request_alignment,
            memory_alignment,
            max_transfer: 8192,
            max_iov: 3,
            ..BlockLimits::default()
        }
    }

    fn live(request_alignment: u32, memory_alignment: u32) -> LiveLimits {
        LiveLimits::new(limits(request_alignment, memory_alignment))
    }

    /// Ranges of these lengths, at addresses that are multiples of 4096.
    fn ranges(lengths: &[usize]) -> Vec<iovec> {
        let address = |index: usize| std::ptr::without_provenance_mut((index + 1) << 12);
        let range =
            |(index, len): (usize, &usize)| iovec { iov_base: address(index), iov_len: *len };
        lengths.iter().enumerate().map(range).collect()
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
        assert!(takes_in_place(&live(512, 4096), &memory));
        // Lengths follow the request alignment, addresses the memory alignment.
        assert!(!takes_in_place(&live(4096, 512), &memory));
        memory[1].iov_base = memory[1].iov_base.wrapping_byte_add(4);
        assert!(takes_in_place(&live(512, 4), &memory));
        assert!(!takes_in_place(&live(512, 8), &memory));
        memory[1].iov_len = 100;
        assert!(!takes_in_place(&live(512, 4), &memory));
        assert!(takes_in_place(&live(1, 1), &memory));
        assert!(!takes_in_place(&live(1, 1), &ranges(&[1, 1, 1, 1])), "too many ranges");
    }
}
