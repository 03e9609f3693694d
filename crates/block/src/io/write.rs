//! Writes.

use std::io;

use coblk_aio::{Co, IoVector, trace_event};

use super::after_write::WriteKind;
use super::changing::Changing;
use super::held::{Held, lock};
use super::state::Features;
use super::tracked::Access;
use super::{RequestPath, check_range, co_flush, flags, padding, transfer, zeroes};
use crate::driver::flags::{WriteFlags, ZeroFlags};
use crate::driver::mode::DetectZeroes;

#[inline]
pub(crate) fn co_pwritev(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    let bytes = source.len();
    check_range(path, offset, bytes as u64)?;
    trace_event!("bdrv_co_pwritev", node = path.name(), offset, bytes);
    let features = path.state.features();
    if features.intersects(Features::OF_WRITES) || !flags.is_empty() {
        return write_special(path, co, None, offset, source, flags);
    }
    let changing = Changing::new(path, offset..offset + bytes as u64, WriteKind::Write);
    let result = transfer::write_plain(path, co, offset, source);
    changing.end_plainly(features, result.is_ok());
    result
}

/// [`co_pwritev`] by a caller that has locked the range.
pub(crate) fn co_pwritev_held(
    path: &RequestPath,
    co: &Co<'_>,
    held: &Held,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    let bytes = source.len();
    check_range(path, offset, bytes as u64)?;
    trace_event!("bdrv_co_pwritev", node = path.name(), offset, bytes);
    write_special(path, co, Some(held), offset, source, flags)
}

/// A write that asks for something, or to a node with something special.
#[inline(never)]
fn write_special(
    path: &RequestPath,
    co: &Co<'_>,
    held: Option<&Held>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
) -> io::Result<()> {
    let bytes = source.len() as u64;
    if path.state.features().contains(Features::DETECT_ZEROES)
        && let Some(flags) = as_zeroes(path, source, flags)
    {
        return zeroes::co_pwrite_zeroes(path, co, held, offset, bytes, flags);
    }
    let durable = flags.contains(WriteFlags::FUA);
    let alone = flags.contains(WriteFlags::SERIALISING);
    let flags = if flags.is_empty() { flags } else { flags::of_write(path, flags)? };
    if bytes == 0 {
        // A durable write of nothing is there for its flush.
        return if durable { co_flush(path, co) } else { Ok(()) };
    }
    let access = if alone { Access::ExcludeAll } else { Access::Write };
    let result = write_locked(path, co, held, offset, source, flags, access);
    finish_write(path, co, durable, result)
}

/// The flags of a request for zeroes, if a write is one and may be made so.
#[cold]
fn as_zeroes(path: &RequestPath, source: &IoVector<'_>, flags: WriteFlags) -> Option<ZeroFlags> {
    // One of nothing may be there for its flush.
    if source.is_empty() || flags.contains(WriteFlags::SERIALISING) || !source.is_zero() {
        return None;
    }
    let mut zeroes = ZeroFlags::empty();
    zeroes.set(ZeroFlags::FUA, flags.contains(WriteFlags::FUA));
    zeroes.set(ZeroFlags::MAY_UNMAP, path.state.detect_zeroes() == DetectZeroes::Unmap);
    Some(zeroes)
}

/// A write with a lock on its range, where there are locks, until users of changes have been told. It
/// waits for writes that pad their way through the same blocks, and if it is one of them, for all others
/// there (contract: C80).
#[inline(never)]
fn write_locked(
    path: &RequestPath,
    co: &Co<'_>,
    held: Option<&Held>,
    offset: u64,
    source: &IoVector<'_>,
    flags: WriteFlags,
    access: Access,
) -> io::Result<()> {
    let range = offset..offset + source.len() as u64;
    if range.is_empty() {
        return Ok(());
    }
    let blocks = padding::whole_blocks(&path.limits, &range)?;
    let access = if blocks == range { access } else { access.max(Access::ExcludeWrites) };
    let _lock = lock(path, co, held, blocks.clone(), access, range.end)?;
    let changing = Changing::with_blocks(path, range, blocks.clone(), WriteKind::Write);
    let result = padding::write(path, co, &blocks, offset, source, flags);
    changing.end(result.is_ok());
    result
}

/// After a change to what is stored: it has to be flushed now if it is to be `durable` and the driver has
/// not seen to that. One flush at the end covers all pieces of a request, and is shared with other
/// requests that need one.
#[inline(never)]
pub(super) fn finish_write(
    path: &RequestPath,
    co: &Co<'_>,
    durable: bool,
    result: io::Result<()>,
) -> io::Result<()> {
    result?;
    if durable && !path.limits.native_fua() { co_flush(path, co) } else { Ok(()) }
}
