//! Reads.

use std::io;

use coblk_aio::{Co, IoVectorMut, trace_event};

use super::held::{Held, lock};
use super::state::Features;
use super::tracked::Access;
use super::{RequestPath, bytes_there, check_range, flags, padding, transfer};
use crate::driver::flags::ReadFlags;

#[inline]
pub(crate) fn co_preadv(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    check_range(path, offset, target.len() as u64)?;
    read_checked(path, co, offset, target, flags)
}

/// [`co_preadv`]; behind the end there are zeroes.
#[inline]
pub(crate) fn co_preadv_blocks(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    if check_range(path, offset, target.len() as u64).is_ok() {
        return read_checked(path, co, offset, target, flags);
    }
    read_to_end(path, co, offset, target, flags)
}

#[inline(never)]
fn read_to_end(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    let there = bytes_there(path, offset, target.len());
    target.fill_from(there, 0);
    if there == 0 {
        return Ok(());
    }
    co_preadv(path, co, offset, &mut target.slice(0, there), flags)
}

#[inline]
fn read_checked(
    path: &RequestPath,
    co: &Co<'_>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    trace_event!("bdrv_co_preadv", node = path.name(), offset, bytes = target.len());
    if path.state.features().intersects(Features::OF_READS) || !flags.is_empty() {
        return read_special(path, co, None, offset, target, flags);
    }
    transfer::read_plain(path, co, offset, target)
}

/// [`co_preadv`] by a caller that has locked the range.
pub(crate) fn co_preadv_held(
    path: &RequestPath,
    co: &Co<'_>,
    held: &Held,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    let bytes = target.len();
    check_range(path, offset, bytes as u64)?;
    trace_event!("bdrv_co_preadv", node = path.name(), offset, bytes);
    read_special(path, co, Some(held), offset, target, flags)
}

/// A read that asks for something, or of a node with something special.
#[inline(never)]
fn read_special(
    path: &RequestPath,
    co: &Co<'_>,
    held: Option<&Held>,
    offset: u64,
    target: &mut IoVectorMut<'_>,
    flags: ReadFlags,
) -> io::Result<()> {
    let alone = flags.contains(ReadFlags::SERIALISING);
    let flags = if flags.is_empty() { flags } else { flags::of_read(path, flags)? };
    if !path.state.is_tracking() || target.is_empty() {
        return padding::read(path, co, offset, target, flags);
    }
    let access = if alone { Access::ExcludeAll } else { Access::Read };
    let range = offset..offset + target.len() as u64;
    let _lock = lock(path, co, held, range.clone(), access, range.end)?;
    padding::read(path, co, offset, target, flags)
}
