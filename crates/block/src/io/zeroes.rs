//! Zeroes: by the driver's own means, or written (contract: C81).
//!
//! ```text
//! driver's unit     |-----------|-----------|-----------|
//! the request            |------------------------|
//!                        |written|  driver  |written|
//! ```
//!
//! The whole units in the middle go to the driver. The edges, which it could not zero without their
//! neighbours, are written, with padding where it is needed.

use std::io;
use std::ops::Range;
use std::sync::OnceLock;

use coblk_aio::{AlignedBuffer, Co, IoVector, trace_event};

use super::after_write::WriteKind;
use super::changing::Changing;
use super::held::{Held, lock};
use super::steps::Steps;
use super::tracked::Access;
use super::write::finish_write;
use super::{
    RequestPath, check_range, check_wanted, co_flush, errno, padding, transfer, whole_units,
};
use crate::driver::flags::{WriteFlags, ZeroFlags};

/// Most zeroes in one write (contract: C81).
const MAX_WRITE_BYTES: u64 = 16 << 20;
/// Most zeroes that are written at an edge where no zeroes shall be written: not more than it costs
/// to deallocate.
const MAX_EDGE_BYTES: u64 = 4096;
/// Zeroes that exist; a longer write has them several times.
const ZEROES_BYTES: usize = 1 << 20;
/// The largest alignment that any driver may ask of memory that it uses in place.
const ZEROES_ALIGNMENT: usize = 4096;

/// The caller may have locked the range.
pub(crate) fn co_pwrite_zeroes(
    path: &RequestPath,
    co: &Co<'_>,
    held: Option<&Held>,
    offset: u64,
    bytes: u64,
    mut flags: ZeroFlags,
) -> io::Result<()> {
    check_range(path, offset, bytes)?;
    trace_event!("bdrv_co_pwrite_zeroes", node = path.name(), offset, bytes);
    if bytes == 0 {
        // Durable ones of nothing are there for their flush.
        return if flags.contains(ZeroFlags::FUA) { co_flush(path, co) } else { Ok(()) };
    }
    if !path.state.is_discard_enabled() {
        flags.remove(ZeroFlags::MAY_UNMAP);
    }
    let durable = flags.contains(ZeroFlags::FUA);
    if !path.limits.native_fua() {
        flags.remove(ZeroFlags::FUA);
    }
    if flags.contains(ZeroFlags::SERIALISING) && !path.state.is_tracking() {
        return Err(errno(libc::ENOTSUP));
    }
    let result = zero_locked(path, co, held, offset..offset + bytes, flags);
    finish_write(path, co, durable, result)
}

/// Zeroes with one lock on all of their range, where there are locks, until users of changes have been
/// told. If they are not whole blocks, they keep all other changes out (contract: C80).
fn zero_locked(
    path: &RequestPath,
    co: &Co<'_>,
    held: Option<&Held>,
    range: Range<u64>,
    flags: ZeroFlags,
) -> io::Result<()> {
    let blocks = padding::whole_blocks(&path.limits, &range)?;
    let access = match flags.contains(ZeroFlags::SERIALISING) {
        true => Access::ExcludeAll,
        false if blocks == range => Access::Write,
        false => Access::ExcludeWrites,
    };
    let _lock = lock(path, co, held, blocks.clone(), access, range.end)?;
    let changing = Changing::with_blocks(path, range.clone(), blocks, WriteKind::Zeroes);
    let result = zero(path, co, range, flags - ZeroFlags::SERIALISING);
    changing.end(result.is_ok());
    result
}

fn zero(path: &RequestPath, co: &Co<'_>, range: Range<u64>, flags: ZeroFlags) -> io::Result<()> {
    let limits = path.limits.get();
    let unit = limits.request_alignment.max(limits.pwrite_zeroes_alignment);
    let middle = whole_units(&range, unit);
    let edges = [range.start..middle.start, middle.end..range.end];
    let is_long = |edge: &Range<u64>| edge.end.saturating_sub(edge.start) > MAX_EDGE_BYTES;
    if flags.contains(ZeroFlags::NO_FALLBACK) && edges.iter().any(is_long) {
        return Err(errno(libc::ENOTSUP));
    }
    // The middle first: it decides whether there is a fast way.
    if !middle.is_empty() {
        zero_units(path, co, middle.clone(), unit, flags)?;
    } else if flags.contains(ZeroFlags::NO_FALLBACK) {
        return Err(errno(libc::ENOTSUP));
    }
    for edge in edges {
        write_zeroes(co, edge, |at, zeroes| {
            let range = at..at + zeroes.len() as u64;
            let blocks = padding::whole_blocks(&path.limits, &range)?;
            padding::write(path, co, &blocks, at, zeroes, write_flags(flags))
        })?;
    }
    Ok(())
}

/// Whole units: by the driver, as much at a time as it takes; by writing, if it has no way of its
/// own and the caller does not forbid that.
fn zero_units(
    path: &RequestPath,
    co: &Co<'_>,
    range: Range<u64>,
    unit: u32,
    flags: ZeroFlags,
) -> io::Result<()> {
    let mut steps = Steps::new(unit, path.limits.get().max_pwrite_zeroes);
    let mut at = range.start;
    while at < range.end {
        let bytes = steps.next(co, range.end - at);
        match path.driver().co_pwrite_zeroes(co, at, bytes, flags) {
            Ok(()) => {
                at += bytes;
                if at < range.end {
                    check_wanted(co)?;
                    steps.done(co);
                }
            }
            Err(error)
                if error.raw_os_error() == Some(libc::ENOTSUP)
                    && !flags.contains(ZeroFlags::NO_FALLBACK) =>
            {
                // It will not have found a way when the next piece comes.
                let flags = write_flags(flags);
                return write_zeroes(co, at..range.end, |at, zeroes| {
                    transfer::write(path, co, at, zeroes, flags)
                });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Calls `write` with an offset and zeroes, until it has had all of `range`.
fn write_zeroes(
    co: &Co<'_>,
    range: Range<u64>,
    mut write: impl FnMut(u64, &IoVector<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        check_wanted(co)?;
        let bytes = MAX_WRITE_BYTES.min(range.end - at);
        write(at, &zeroes(bytes as usize)?)?;
        at += bytes;
    }
    Ok(())
}

/// A vector of zeroes. They are the process's own, never written, so they hardly take memory.
fn zeroes(bytes: usize) -> io::Result<IoVector<'static>> {
    static ZEROES: OnceLock<AlignedBuffer> = OnceLock::new();
    let all = match ZEROES.get() {
        Some(all) => all,
        None => {
            let made = AlignedBuffer::new(ZEROES_BYTES, ZEROES_ALIGNMENT)?;
            ZEROES.get_or_init(|| made)
        }
    };
    let mut vector = IoVector::new();
    while vector.len() < bytes {
        vector.push(&all[..(bytes - vector.len()).min(all.len())]);
    }
    Ok(vector)
}

fn write_flags(flags: ZeroFlags) -> WriteFlags {
    if flags.contains(ZeroFlags::FUA) { WriteFlags::FUA } else { WriteFlags::empty() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_as_many_as_asked() {
        for bytes in [1, 512, ZEROES_BYTES, ZEROES_BYTES + 1, MAX_WRITE_BYTES as usize] {
            let vector = zeroes(bytes).unwrap();
            assert_eq!(vector.len(), bytes);
            assert_eq!(vector.as_iovecs().len(), bytes.div_ceil(ZEROES_BYTES));
        }
        assert!(zeroes(3 << 20).unwrap().is_aligned(ZEROES_ALIGNMENT));
    }
}
