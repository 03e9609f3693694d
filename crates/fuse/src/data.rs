//! Reads and writes.

use std::io;

use coblk_aio::Co;
use coblk_block::{Truncate, WriteFlags};

use crate::answer::Answer;
use crate::queue::Queue;
use crate::reply::Reply;
use crate::request::Write;

pub fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// How a file grows: new bytes are zeroes, whatever a backing file has there.
pub fn growth() -> Truncate {
    Truncate { zero: true, ..Truncate::default() }
}

/// Answers with what there is of a range: less than asked for at the end of the file.
pub fn read(co: &Co<'_>, mut answer: Answer, offset: u64, size: u32) {
    match read_to_end(co, &mut answer, offset, size) {
        Ok(()) => answer.data(),
        Err(error) => answer.failed(&error),
    }
}

fn read_to_end(co: &Co<'_>, answer: &mut Answer, offset: u64, size: u32) -> io::Result<()> {
    let Answer { queue, room, .. } = answer;
    let mut length = queue.backend.length()?;
    loop {
        let there = u64::from(size).min(length.saturating_sub(offset));
        room.set_len(there as usize);
        if there == 0 {
            return Ok(());
        }
        let result = queue.backend.co_preadv(co, offset, &mut room.target());
        // It may have become shorter meanwhile.
        let now = queue.backend.length()?;
        if result.is_ok() || now >= length {
            return result;
        }
        length = now;
    }
}

/// Writes what the file has room for. The data is in memory of the export, which the client cannot change
/// any more.
pub fn write(co: &Co<'_>, answer: &Answer, what: &Write) -> io::Result<Reply> {
    let Answer { queue, room, .. } = answer;
    if room.len() < what.size as usize {
        return Err(errno(libc::EINVAL));
    }
    let rules = &queue.file.rules;
    if !rules.writable {
        return Err(errno(libc::EACCES));
    }
    let end = what.offset.checked_add(what.size.into()).ok_or_else(|| errno(libc::EFBIG))?;
    let is_durable = rules.writethrough || what.flags as i32 & libc::O_DSYNC != 0;
    let flags = if is_durable { WriteFlags::FUA } else { WriteFlags::empty() };
    loop {
        let fits = room_for(co, queue, what, end)?;
        queue.file.touch();
        let source = room.source(fits as usize);
        match queue.backend.co_pwritev(co, what.offset, &source, flags) {
            Ok(()) => return Ok(Reply::written(fits as u32)),
            // It has become shorter meanwhile, by a user other than the file's.
            Err(_) if queue.backend.length()? < what.offset + fits => {}
            Err(error) => return Err(error),
        }
    }
}

/// How much of a write the node has room for, once it has grown if it may.
fn room_for(co: &Co<'_>, queue: &Queue, what: &Write, end: u64) -> io::Result<u64> {
    let (length, size) = (queue.backend.length()?, u64::from(what.size));
    if end <= length {
        return Ok(size);
    }
    if queue.file.rules.growable {
        queue.backend.co_grow_with(co, end, growth())?;
        return Ok(size);
    }
    match length.saturating_sub(what.offset).min(size) {
        0 if size > 0 => Err(errno(libc::ENOSPC)),
        fits => Ok(fits),
    }
}
