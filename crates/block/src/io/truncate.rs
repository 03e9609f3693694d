//! Changes of a device's length.

use std::io;

use coblk_aio::{Co, trace_event};

use super::after_write::WriteKind;
use super::changing::Changing;
use super::known::answers_may_have_changed;
use super::tracked::Access;
use super::{RequestPath, errno};
use crate::driver::MAX_LENGTH;
use crate::driver::flags::{Preallocation, Truncate};

/// Sets the length, also to less than it is: nothing may be in flight beyond the new end. `backing` says
/// how long the backing file is, in bytes.
pub(crate) fn co_truncate(
    path: &RequestPath,
    co: &Co<'_>,
    length: u64,
    how: Truncate,
    backing: &dyn Fn() -> u64,
) -> io::Result<()> {
    set_length(path, co, length, how, backing, true).map(|_| ())
}

/// Sets the length, unless that is less than it is. False then: another change of length, or a
/// drain, for which this has waited, has made it longer meanwhile, and nothing is done.
pub(crate) fn co_grow(
    path: &RequestPath,
    co: &Co<'_>,
    length: u64,
    how: Truncate,
    backing: &dyn Fn() -> u64,
) -> io::Result<bool> {
    set_length(path, co, length, how, backing, false)
}

/// Others that change the length wait; so do tracked writes beyond the shorter of the old and the new
/// end, and find out about that end when it is their turn.
fn set_length(
    path: &RequestPath,
    co: &Co<'_>,
    length: u64,
    mut how: Truncate,
    backing: &dyn Fn() -> u64,
    may_shrink: bool,
) -> io::Result<bool> {
    trace_event!("bdrv_co_truncate", node = path.name(), length);
    if length > MAX_LENGTH {
        return Err(errno(libc::EFBIG));
    }
    let end = length.min(path.length());
    let block = u64::from(path.limits.get().request_alignment);
    let _tracked = path.state.tracked.begin(co, end - end % block..u64::MAX, Access::ExcludeWrites);
    // It may have been another's turn before.
    if !may_shrink && length < path.length() {
        return Ok(false);
    }
    // Requests that need the same space at once make it once.
    let is_plain = how.preallocation == Preallocation::Off && !how.zero;
    if !may_shrink && is_plain && end < length && length == path.length() {
        return Ok(true);
    }
    // What a backing file has beyond the end was never a part of this device.
    how.zero |= length > path.length() && path.state.has_backing() && backing() > path.length();
    let old = path.length();
    let changing = Changing::new(path, old.min(length)..old.max(length), WriteKind::Truncate);
    let result = path.driver().co_truncate(co, length, how);
    changing.end(result.is_ok());
    result.map(|()| true)
}

/// Has the driver look how long its storage is. Changes of length wait.
pub(crate) fn co_refresh_length(path: &RequestPath, co: &Co<'_>) -> io::Result<u64> {
    let _tracked = path.state.tracked.begin(co, u64::MAX - 1..u64::MAX, Access::ExcludeWrites);
    let result = path.driver().co_refresh_length(co);
    answers_may_have_changed();
    match result? {
        length if length > MAX_LENGTH => Err(errno(libc::EFBIG)),
        length => Ok(length),
    }
}
