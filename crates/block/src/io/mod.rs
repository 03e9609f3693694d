//! The request path of a node: what happens between a request and its driver.
//!
//! ```text
//! mod.rs       is the range inside the device? are offset and length whole blocks?
//!   |   \
//!   |    tracked/      where blocks are larger than a byte: wait for overlapping requests
//!   |      |
//!   |    padding.rs    make whole blocks of it: read, modify, write
//!   |   /
//! transfer.rs  cut it to what the driver takes at once, copy where its memory rules ask for it
//!   |
//! the driver   `BlockDriver::co_preadv`, `co_pwritev`
//! ```
//!
//! Flushes are in `flush.rs`, zeroes in `zeroes.rs`, discards in `discard.rs`, block status in
//! `status.rs`, changes of length in `truncate.rs`.
//!
//! A node whose driver takes any offset and length has nothing to pad, so nothing to serialise, unless a
//! user of range locks asks for that: its
//! reads and writes take no lock, allocate nothing, and write no memory that they share.

pub(crate) mod after_write;
mod discard;
mod flags;
mod flush;
pub(crate) mod live_limits;
mod padding;
mod state;
mod status;
mod threshold;
pub(crate) mod tracked;
mod transfer;
mod truncate;
mod zeroes;

use std::io;
use std::ops::Range;

use coblk_aio::{Co, IoVector, IoVectorMut, trace_event};

use crate::driver::flags::{ReadFlags, WriteFlags, ZeroFlags};
use crate::graph::node::BlockNode;
use crate::graph::node_info::DetectZeroes;
use crate::io::after_write::WriteKind;
use crate::io::live_limits::LiveLimits;
use state::Features;
use tracked::{Access, Tracked};

pub(crate) use discard::co_pdiscard;
pub(crate) use flush::{co_flush, co_flush_own};
pub(crate) use state::PathState;
pub(crate) use status::co_block_status;
pub use threshold::ThresholdPassed;
pub(crate) use truncate::{co_grow, co_refresh_length, co_truncate};
pub(crate) use zeroes::co_pwrite_zeroes;

#[inline]
pub(crate) fn co_preadv(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    let bytes = target.len();
    check_range(node, offset, bytes as u64)?;
    trace_event!("bdrv_co_preadv", node = node.name(), offset, bytes);
    if node.path.is_tracking() || !flags.is_empty() {
        return read_special(node, co, offset, target, flags);
    }
    read(node, co, offset, target, flags)
}

/// A read that asks for something, or of a node whose ranges are locked.
#[inline(never)]
fn read_special(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    let alone = flags.contains(ReadFlags::SERIALISING);
    let flags = flags::of_read(node, flags)?;
    if !node.path.is_tracking() || target.is_empty() {
        return read(node, co, offset, target, flags);
    }
    let access = if alone { Access::ExcludeAll } else { Access::Read };
    let range = offset..offset + target.len() as u64;
    let _tracked = track(node, co, range.clone(), access, range.end)?;
    read(node, co, offset, target, flags)
}

#[inline]
fn read(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    let bytes = target.len();
    if is_whole_blocks(node.live_limits(), offset, bytes as u64) {
        transfer::read(node, co, offset, target, flags)
    } else {
        padding::read(node, co, offset, target, flags)
    }
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
    let special = node.path.features().intersects(Features::OF_WRITES);
    if special || !flags.is_empty() {
        return write_special(node, co, offset, source, flags);
    }
    let result = match node.live_limits().request_alignment() {
        1 => transfer::write(node, co, offset, source, flags),
        _ => write_tracked(node, co, offset, source, flags, Access::Write, |_| {}),
    };
    node.path.wrote_plainly(offset + bytes as u64, result.is_ok());
    result
}

/// A write that asks for something, or to a node with something special.
#[inline(never)]
fn write_special(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    let bytes = source.len() as u64;
    if node.path.features().contains(Features::DETECT_ZEROES)
        && let Some(flags) = as_zeroes(node, source, flags)
    {
        return co_pwrite_zeroes(node, co, offset, bytes, flags);
    }
    let durable = flags.contains(WriteFlags::FUA);
    let alone = flags.contains(WriteFlags::SERIALISING);
    let flags = flags::of_write(node, flags)?;
    if bytes == 0 {
        // A durable write of nothing is there for its flush.
        return if durable { co_flush(node, co) } else { Ok(()) };
    }
    let wrote = |succeeded| node.path.wrote(offset..offset + bytes, WriteKind::Write, succeeded);
    let access = if alone { Access::ExcludeAll } else { Access::Write };
    let result = write_tracked(node, co, offset, source, flags, access, wrote);
    finish_write(node, co, durable, result)
}

/// The flags of a request for zeroes, if a write is one and may be made so.
#[cold]
fn as_zeroes(node: &BlockNode, source: &IoVector<'_>, flags: WriteFlags) -> Option<ZeroFlags> {
    // One of nothing may be there for its flush.
    if source.is_empty() || flags.contains(WriteFlags::SERIALISING) || !source.is_zero() {
        return None;
    }
    let mut zeroes = ZeroFlags::empty();
    zeroes.set(ZeroFlags::FUA, flags.contains(WriteFlags::FUA));
    zeroes.set(ZeroFlags::MAY_UNMAP, node.path.detect_zeroes() == DetectZeroes::Unmap);
    Some(zeroes)
}

/// After a change to what is stored, which has been [noted](PathState::wrote): it has to be flushed now
/// if it is to be `durable` and the driver has not seen to that. One flush at the end covers all
/// pieces of a request, and is shared with other requests that need one.
#[inline(never)]
fn finish_write(
    node: &BlockNode,
    co: &Co<'_>,
    durable: bool,
    result: io::Result<()>,
) -> io::Result<()> {
    result?;
    if durable && !node.live_limits().native_fua() { co_flush(node, co) } else { Ok(()) }
}

/// A write with a lock on its range, where there are locks. It waits for writes that pad their way
/// through the same blocks, and if it is one of them, for all others there (contract: C80). `wrote` is
/// called before the lock is given back.
#[inline(never)]
fn write_tracked(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
    access: Access,
    wrote: impl FnOnce(bool),
) -> io::Result<()> {
    let bytes = source.len() as u64;
    let range = offset..offset + bytes;
    if bytes == 0 {
        return Ok(());
    }
    if is_whole_blocks(node.live_limits(), offset, bytes) {
        let _tracked = track(node, co, range.clone(), access, range.end)?;
        let result = transfer::write(node, co, offset, source, flags);
        wrote(result.is_ok());
        return result;
    }
    let blocks = padding::whole_blocks(node.live_limits(), &range)?;
    let access = if access == Access::Write { Access::ExcludeWrites } else { access };
    let _tracked = track(node, co, blocks.clone(), access, range.end)?;
    let result = padding::write(node, co, &blocks, offset, source, flags);
    wrote(result.is_ok());
    result
}

/// Waits until nothing that must not overlap `blocks` is in the way, and keeps what must not
/// overlap out for as long as the guard lives. There is none where ranges are not locked. Waiting
/// takes time in which the device may have been cut short of the request's `end`: EIO if so.
fn track<'a>(
    node: &'a BlockNode,
    co: &Co<'_>,
    blocks: Range<u64>,
    access: Access,
    end: u64,
) -> io::Result<Option<Tracked<'a>>> {
    if node.live_limits().request_alignment() == 1 && !node.path.is_tracking() {
        return Ok(None);
    }
    let tracked = node.path.tracked.begin(co, blocks, access);
    if end <= node.length() { Ok(Some(tracked)) } else { Err(errno(libc::EIO)) }
}

/// The whole units of `unit` bytes that lie in `range`. If there are none, the end of `range`.
fn whole_units(range: &Range<u64>, unit: u32) -> Range<u64> {
    let unit = u64::from(unit);
    let end = range.end - range.end % unit;
    match range.start.checked_next_multiple_of(unit) {
        Some(start) if start < end => start..end,
        _ => range.end..range.end,
    }
}

/// Past the end is EIO (contract: C74). An offset is unsigned, so a negative one is past any end.
#[inline]
pub(crate) fn check_range(node: &BlockNode, offset: u64, bytes: u64) -> io::Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= node.length() => Ok(()),
        _ => Err(errno(libc::EIO)),
    }
}

#[inline]
fn is_whole_blocks(limits: &LiveLimits, offset: u64, bytes: u64) -> bool {
    // A power of two: the mask is cheaper than a remainder.
    (offset | bytes) & (u64::from(limits.request_alignment()) - 1) == 0
}

/// Before each further piece of a request: whether anybody waits for it.
fn check_wanted(co: &Co<'_>) -> io::Result<()> {
    if co.is_wanted() { Ok(()) } else { Err(errno(libc::ECANCELED)) }
}

#[cold]
fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::MAX_LENGTH;
    use crate::drivers::Null;

    #[test]
    fn a_range_must_end_within_the_length() {
        for length in [0, 1, 512, MAX_LENGTH] {
            let node = BlockNode::new("node", Null::new(length));
            let check = |offset, bytes| check_range(&node, offset, bytes).is_ok();
            assert!(check(0, length) && check(length, 0) && check(length / 2, length - length / 2));
            assert!(!check(0, length + 1) && !check(length + 1, 0) && !check(length, 1));
            if length > 0 {
                assert!(!check(1, length), "{length}");
            }
            // Ends beyond 2^64, which wraps to something small.
            assert!(!check(u64::MAX, 1) && !check(2, u64::MAX - 1) && !check(u64::MAX, u64::MAX));
        }
    }
}
