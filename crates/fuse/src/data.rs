//! Reads and writes.

use std::io;

use coblk_aio::Co;
use coblk_block::{Truncate, WriteFlags};

use crate::queue::Answer;
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
        Err(error) => answer.error(error.raw_os_error().unwrap_or(libc::EIO)),
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
    let size = u64::from(what.size);
    let end = what.offset.checked_add(size).ok_or_else(|| errno(libc::EFBIG))?;
    let length = queue.backend.length()?;
    let mut fits = size;
    if end > length {
        if rules.growable {
            queue.backend.co_grow_with(co, end, growth())?;
        } else {
            fits = length.saturating_sub(what.offset).min(size);
            if fits == 0 && size > 0 {
                return Err(errno(libc::ENOSPC));
            }
        }
    }
    let is_durable = rules.writethrough || what.flags as i32 & libc::O_DSYNC != 0;
    let flags = if is_durable { WriteFlags::FUA } else { WriteFlags::empty() };
    queue.file.touch();
    queue.backend.co_pwritev(co, what.offset, &room.source(fits as usize), flags)?;
    Ok(Reply::written(fits as u32))
}
