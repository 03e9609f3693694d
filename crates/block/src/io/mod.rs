//! The request path of a node: what happens between a request and its driver, one step after another.
//!
//! ```text
//! read.rs  write.rs  zeroes.rs  discard.rs
//!      check      is the range inside the device? what do flags and features ask for?
//!        |
//! held.rs lock    wait for overlapping requests, where blocks are larger than a byte or ranges are locked
//!        |
//! padding.rs      make whole blocks of it: read, modify, write
//!        |
//! transfer.rs     cut it to what the driver takes at once, copy where its memory rules ask for it
//!        |
//! the driver      `BlockDriver::co_preadv`, `co_pwritev`
//!        |
//! changing.rs     after a change, also one that is unwound, `state.rs` hears what is owed to the next flush,
//!                 bitmaps and hooks; then the lock is given back
//! ```
//!
//! Each function takes the [`RequestPath`] of the node, which is all that a request needs to know of it.
//! Flushes are in `flush.rs`, block status in `status.rs`, reads of an instant in `snapshot.rs`, changes of
//! length in `truncate.rs`.
//!
//! A node whose driver takes any offset and length has nothing to pad, so nothing to serialise, unless a
//! user of range locks asks for that: its reads and writes take no lock, allocate nothing, and write no
//! memory that they share.

pub(crate) mod after_write;
mod changing;
mod discard;
mod flags;
mod flush;
pub(crate) mod held;
mod image;
pub(crate) mod known;
pub(crate) mod live_limits;
mod padding;
mod path;
mod read;
mod snapshot;
mod state;
mod status;
mod steps;
mod threshold;
pub(crate) mod tracked;
mod transfer;
mod truncate;
mod write;
mod zeroes;

use std::io;
use std::ops::Range;

use coblk_aio::Co;

pub(crate) use discard::co_pdiscard;
pub(crate) use flush::{co_flush, co_flush_own};
pub(crate) use image::co_change_image;
pub(crate) use path::RequestPath;
pub(crate) use read::{co_preadv, co_preadv_blocks, co_preadv_held};
pub(crate) use snapshot::{co_snapshot_block_status, co_snapshot_pdiscard, co_snapshot_preadv};
pub(crate) use status::co_block_status;
pub use threshold::ThresholdPassed;
pub(crate) use truncate::{co_grow, co_refresh_length, co_truncate};
pub(crate) use write::{co_pwritev, co_pwritev_held};
pub(crate) use zeroes::co_pwrite_zeroes;

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
pub(crate) fn check_range(path: &RequestPath, offset: u64, bytes: u64) -> io::Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= path.length() => Ok(()),
        _ => Err(errno(libc::EIO)),
    }
}

/// How many of so many bytes from `offset` on are before the end.
pub(crate) fn bytes_there(path: &RequestPath, offset: u64, bytes: usize) -> usize {
    let there = path.length().saturating_sub(offset);
    usize::try_from(there).map_or(bytes, |there| there.min(bytes))
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
    use crate::driver::{BlockLimits, MAX_LENGTH};
    use crate::protocol::Null;

    #[test]
    fn a_range_must_end_within_the_length() {
        for length in [0, 1, 512, MAX_LENGTH] {
            let path = RequestPath::new(
                "node".to_owned(),
                Box::new(Null::new(length)),
                BlockLimits::default(),
            );
            let check = |offset, bytes| check_range(&path, offset, bytes).is_ok();
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
