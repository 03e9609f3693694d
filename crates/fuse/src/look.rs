//! Questions about the file.

use std::io;

use coblk_aio::Co;

use crate::data::errno;
use crate::queue::Queue;
use crate::reply::{Attributes, Reply};
use crate::request::Time;

/// For how long the kernel may rely on attributes. It is told when the length changes.
const VALID: Time = (1, 0);
/// What one transfer should have at least, in bytes.
pub const BLOCK_BYTES: u32 = 4096;
/// Extents that are looked at before others have a turn.
const MAX_AT_ONCE: usize = 64;

/// The attributes of the file.
pub fn attributes(co: &Co<'_>, queue: &Queue) -> io::Result<Reply> {
    let node = queue.backend.node().ok_or_else(|| errno(libc::ENOMEDIUM))?;
    let size = node.length();
    // Programs take a file for sparse if it has fewer blocks than its length.
    let allocated = node.co_allocated_bytes(co).ok().flatten().unwrap_or(size);
    let attributes = Attributes {
        size,
        blocks: allocated.div_ceil(512),
        block_bytes: BLOCK_BYTES,
        ..queue.file.attributes()
    };
    Ok(Reply::attributes(VALID, &attributes))
}

/// Looks for data, or for a hole.
pub fn seek(co: &Co<'_>, queue: &Queue, offset: u64, whence: u32) -> io::Result<Reply> {
    let wants_data = match whence as i32 {
        libc::SEEK_DATA => true,
        libc::SEEK_HOLE => false,
        _ => return Err(errno(libc::EINVAL)),
    };
    co.while_wanted(&queue.wanted, || look_for(co, queue, offset, wants_data))
}

fn look_for(co: &Co<'_>, queue: &Queue, offset: u64, wants_data: bool) -> io::Result<Reply> {
    let length = queue.backend.length()?;
    let mut at = offset;
    for turn in 1.. {
        if at >= length {
            break;
        }
        let extent = queue.backend.co_block_status(co, at, length - at)?;
        // What reads as zeroes may be skipped by a client that copies.
        if wants_data != extent.zero {
            return Ok(Reply::found(at));
        }
        // It may have become shorter.
        if extent.bytes == 0 {
            break;
        }
        at += extent.bytes;
        if turn % MAX_AT_ONCE == 0 {
            co.yield_now();
        }
        if !co.is_wanted() {
            return Err(errno(libc::ECANCELED));
        }
    }
    // There is a hole behind the end.
    if wants_data || offset >= length { Err(errno(libc::ENXIO)) } else { Ok(Reply::found(length)) }
}
