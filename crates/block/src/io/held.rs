//! The lock on a request's range: taken for the request, or held by its caller.

use std::io;
use std::ops::Range;

use coblk_aio::Co;

use super::tracked::{Access, Tracked};
use super::{RequestPath, errno};

/// A lock that the caller of a request has on a range of the node.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) range: Range<u64>,
    pub(crate) access: Access,
}

impl Held {
    /// Whether requests that do this to these blocks may go on under the lock.
    fn covers(&self, blocks: &Range<u64>, access: Access) -> bool {
        self.access >= access && self.range.start <= blocks.start && blocks.end <= self.range.end
    }
}

/// Waits until nothing that must not overlap `blocks` is in the way, and keeps what must not
/// overlap out for as long as the guard lives. There is none where ranges are not locked, nor where the
/// caller `held` one. Waiting takes time in which the device may have been cut short of the request's
/// `end`: EIO if so.
pub(super) fn lock<'a>(
    path: &'a RequestPath,
    co: &Co<'_>,
    held: Option<&Held>,
    blocks: Range<u64>,
    access: Access,
    end: u64,
) -> io::Result<Option<Tracked<'a>>> {
    if let Some(held) = held {
        return if held.covers(&blocks, access) { Ok(None) } else { Err(errno(libc::EINVAL)) };
    }
    if path.limits.request_alignment() == 1 && !path.state.is_tracking() {
        return Ok(None);
    }
    let tracked = path.state.tracked.begin(co, blocks, access);
    if end <= path.length() { Ok(Some(tracked)) } else { Err(errno(libc::EIO)) }
}
