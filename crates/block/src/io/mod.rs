//! The request path of a node: what happens between a request and its driver.
//!
//! ```text
//! mod.rs       is the range inside the device? are offset and length whole blocks?
//!   |   \
//!   |    tracked.rs    where blocks are larger than a byte: wait for overlapping requests
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
//! A node whose driver takes any offset and length has nothing to pad, so nothing to serialise: its
//! reads and writes take no lock, allocate nothing, and write no memory that they share.

mod discard;
mod flush;
mod padding;
mod status;
mod threshold;
mod tracked;
mod transfer;
mod truncate;
mod zeroes;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use coblk_aio::{Co, IoVector, IoVectorMut, trace_event};

use crate::flags::{WriteFlags, ZeroFlags};
use crate::live_limits::LiveLimits;
use crate::node::BlockNode;
use crate::node_info::DetectZeroes;
use flush::FlushState;
use threshold::WriteThreshold;
use tracked::{Overlap, Tracked, TrackedRequests};

pub(crate) use discard::co_pdiscard;
pub(crate) use flush::{co_flush, co_flush_own};
pub(crate) use status::co_block_status;
pub use status::{BlockStatus, BlockStatusKind};
pub use threshold::ThresholdPassed;
pub(crate) use truncate::{co_grow, co_refresh_length, co_truncate};
pub(crate) use zeroes::co_pwrite_zeroes;

/// What the request path keeps of a node. Any thread.
#[derive(Default)]
pub(crate) struct PathState {
    tracked: TrackedRequests,
    flush: FlushState,
    discard_disabled: AtomicBool,
    read_only: AtomicBool,
    highest_write: AtomicU64,
    threshold: WriteThreshold,
    /// A [`DetectZeroes`].
    detect_zeroes: AtomicU8,
}

impl PathState {
    pub(crate) fn is_discard_enabled(&self) -> bool {
        !self.discard_disabled.load(Ordering::Relaxed)
    }

    /// Returns how it was.
    pub(crate) fn swap_discard_enabled(&self, enabled: bool) -> bool {
        !self.discard_disabled.swap(!enabled, Ordering::Relaxed)
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    pub(crate) fn detect_zeroes(&self) -> DetectZeroes {
        detect_zeroes_of(self.detect_zeroes.load(Ordering::Relaxed))
    }

    /// Returns how it was.
    pub(crate) fn swap_detect_zeroes(&self, detect: DetectZeroes) -> DetectZeroes {
        detect_zeroes_of(self.detect_zeroes.swap(detect as u8, Ordering::Relaxed))
    }

    pub(crate) fn highest_write(&self) -> u64 {
        self.highest_write.load(Ordering::Relaxed)
    }

    /// A write ends here; if it failed, a part may be written.
    #[inline]
    fn wrote_up_to(&self, end: u64, succeeded: bool) {
        self.threshold.wrote_up_to(end);
        // Most do not reach further, and pay a load for that.
        if succeeded && end > self.highest_write.load(Ordering::Relaxed) {
            self.highest_write.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// A discard that the driver is asked for. As in QEMU it counts for the threshold, and not for the
    /// highest write.
    fn discards_up_to(&self, end: u64) {
        self.threshold.wrote_up_to(end);
    }

    pub(crate) fn write_threshold(&self) -> Option<u64> {
        self.threshold.end()
    }

    /// `None`: there is none.
    pub(crate) fn set_write_threshold(
        &self,
        end: u64,
        listener: Option<Box<dyn FnOnce(ThresholdPassed) + Send>>,
    ) {
        self.threshold.set(end, listener);
    }

    /// The next flush reaches the driver, whatever was written.
    pub(crate) fn owe_flush(&self) {
        self.flush.wrote();
    }

    /// The next flush fails with this: it would speak for writes that are lost.
    pub(crate) fn fail_next_flush(&self, error: &io::Error) {
        self.flush.fail_next(error.raw_os_error().unwrap_or(libc::EIO));
    }

    /// Returns how it was.
    pub(crate) fn swap_read_only(&self, read_only: bool) -> bool {
        self.read_only.swap(read_only, Ordering::Relaxed)
    }
}

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
    if is_whole_blocks(node.live_limits(), offset, bytes as u64) {
        transfer::read(node, co, offset, target)
    } else {
        padding::read(node, co, offset, target)
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
    if node.path.detect_zeroes.load(Ordering::Relaxed) != DetectZeroes::Off as u8
        && let Some(flags) = as_zeroes(node, source, flags)
    {
        return co_pwrite_zeroes(node, co, offset, bytes as u64, flags);
    }
    // A durable write of nothing is there for its flush.
    if flags.is_empty() || node.live_limits().native_fua() && bytes > 0 {
        let result = write(node, co, offset, source, flags);
        node.path.flush.wrote();
        node.path.wrote_up_to(offset + bytes as u64, result.is_ok());
        return result;
    }
    if bytes == 0 {
        return co_flush(node, co);
    }
    let result = write(node, co, offset, source, WriteFlags::empty());
    node.path.wrote_up_to(offset + bytes as u64, result.is_ok());
    node.path.flush.wrote();
    result?;
    co_flush(node, co)
}

/// The flags of a request for zeroes, if a write is one and may be made so.
#[cold]
fn as_zeroes(node: &BlockNode, source: &IoVector<'_>, flags: WriteFlags) -> Option<ZeroFlags> {
    // One of nothing may be there for its flush.
    if source.is_empty() || !source.is_zero() {
        return None;
    }
    let mut zeroes = ZeroFlags::empty();
    zeroes.set(ZeroFlags::FUA, flags.contains(WriteFlags::FUA));
    zeroes.set(ZeroFlags::MAY_UNMAP, node.path.detect_zeroes() == DetectZeroes::Unmap);
    Some(zeroes)
}

fn detect_zeroes_of(stored: u8) -> DetectZeroes {
    let all = [DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap];
    all.into_iter().find(|it| *it as u8 == stored).unwrap_or_default()
}

/// A write, wherever it comes from; who calls says [`FlushState::wrote`] afterwards.
#[inline]
fn write(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    if node.live_limits().request_alignment() == 1 {
        transfer::write(node, co, offset, source, flags)
    } else {
        write_tracked(node, co, offset, source, flags)
    }
}

/// After a change to what is stored: it has to be flushed, now if it is to be `durable` and the
/// driver has not seen to that. One flush at the end covers all pieces of a request, and is shared
/// with other requests that need one.
#[inline(never)]
fn finish_write(
    node: &BlockNode,
    co: &Co<'_>,
    durable: bool,
    result: io::Result<()>,
) -> io::Result<()> {
    // Also when it failed: a part may have been written.
    node.path.flush.wrote();
    result?;
    if durable && !node.live_limits().native_fua() { co_flush(node, co) } else { Ok(()) }
}

/// A write to a node with blocks. It waits for those that pad their way through the same blocks,
/// and if it is one of them, for all others there (contract: C80).
#[inline(never)]
fn write_tracked(
    node: &BlockNode,
    co: &Co<'_>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    let bytes = source.len() as u64;
    let range = offset..offset + bytes;
    if bytes == 0 {
        return Ok(());
    }
    if is_whole_blocks(node.live_limits(), offset, bytes) {
        let _tracked = track(node, co, range.clone(), Overlap::Allowed, range.end)?;
        return transfer::write(node, co, offset, source, flags);
    }
    let blocks = padding::whole_blocks(node.live_limits(), &range)?;
    let _tracked = track(node, co, blocks.clone(), Overlap::Excluded, range.end)?;
    padding::write(node, co, &blocks, offset, source, flags)
}

/// Waits until nothing that must not overlap `blocks` is in the way, and keeps what must not
/// overlap out for as long as the guard lives. There is none where nothing is ever padded. Waiting
/// takes time in which the device may have been cut short of the request's `end`: EIO if so.
fn track<'a>(
    node: &'a BlockNode,
    co: &Co<'_>,
    blocks: Range<u64>,
    overlap: Overlap,
    end: u64,
) -> io::Result<Option<Tracked<'a>>> {
    if node.live_limits().request_alignment() == 1 {
        return Ok(None);
    }
    let tracked = node.path.tracked.begin(co, blocks, overlap);
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
fn check_range(node: &BlockNode, offset: u64, bytes: u64) -> io::Result<()> {
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
