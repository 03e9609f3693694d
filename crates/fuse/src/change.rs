//! Changes of what is no data: attributes, the length, how ranges are stored.

use std::io;

use coblk_aio::Co;
use coblk_block::{MAX_LENGTH, Preallocation, Truncate, ZeroFlags};

use crate::abi::attr;
use crate::data::{errno, growth};
use crate::look::attributes;
use crate::queue::Queue;
use crate::reply::Reply;
use crate::request::{Fallocate, SetAttr};

/// The longest step of a request for any length. Behind each, one that has no client left ends.
const STEP: u64 = 1 << 30;

/// The modes of fallocate(2).
const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE as u32;
const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE as u32 | KEEP_SIZE;
const ZERO_RANGE: u32 = libc::FALLOC_FL_ZERO_RANGE as u32;
const ZERO_INSIDE: u32 = ZERO_RANGE | KEEP_SIZE;

/// Sets attributes; the length is that of the node.
pub fn set_attributes(co: &Co<'_>, queue: &Queue, new: &SetAttr) -> io::Result<Reply> {
    queue.file.check(new).map_err(errno)?;
    if new.valid & attr::SIZE != 0 {
        let how = Truncate { exact: true, ..growth() };
        queue.backend.co_truncate_with(co, new.size, how)?;
        queue.file.touch();
    }
    queue.file.set(new);
    attributes(co, queue)
}

/// Changes how a range is stored.
pub fn fallocate(co: &Co<'_>, queue: &Queue, what: &Fallocate) -> io::Result<Reply> {
    if !queue.file.rules.writable {
        return Err(errno(libc::EACCES));
    }
    let end = what.offset.checked_add(what.length).filter(|end| *end <= MAX_LENGTH);
    let end = end.ok_or_else(|| errno(libc::EFBIG))?;
    let length = queue.backend.length()?;
    match what.mode {
        PUNCH_HOLE => zero(co, queue, what.offset..end.min(length), ZeroFlags::MAY_UNMAP)?,
        ZERO_INSIDE => zero(co, queue, what.offset..end.min(length), ZeroFlags::empty())?,
        ZERO_RANGE => {
            if end > length {
                grow(co, queue, end, growth())?;
            }
            // New bytes are zeroes.
            zero(co, queue, what.offset..end.min(length), ZeroFlags::empty())?;
        }
        // Space for bytes that are there cannot be asked for without writing them.
        0 if what.offset >= length => {
            grow(co, queue, end, Truncate { preallocation: Preallocation::Falloc, ..growth() })?;
        }
        _ => return Err(errno(libc::EOPNOTSUPP)),
    }
    Ok(Reply::empty())
}

fn grow(co: &Co<'_>, queue: &Queue, end: u64, how: Truncate) -> io::Result<()> {
    if !queue.file.rules.growable {
        return Err(errno(libc::ENOSPC));
    }
    queue.file.touch();
    queue.backend.co_grow_with(co, end, how)
}

fn zero(
    co: &Co<'_>,
    queue: &Queue,
    range: std::ops::Range<u64>,
    flags: ZeroFlags,
) -> io::Result<()> {
    queue.file.touch();
    let mut at = range.start;
    co.while_wanted(&queue.wanted, || {
        while at < range.end {
            if !co.is_wanted() {
                return Err(errno(libc::ECANCELED));
            }
            let step = STEP.min(range.end - at);
            queue.backend.co_pwrite_zeroes(co, at, step, flags)?;
            at += step;
        }
        Ok(())
    })
}
