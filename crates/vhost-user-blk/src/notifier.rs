//! Eventfds that come from a front end.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use coblk_aio::EventNotifier;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost::vhost_user::{Error, Result};

/// Takes over a descriptor that must be an eventfd: reading or writing anything else could block
/// the loop. For the same reason it is made non-blocking, which the front end sees too, as it does
/// with QEMU.
pub(crate) fn from_front_end(file: File) -> Result<EventNotifier> {
    let target = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    // Without /proc nothing can be said; then the front end is taken at its word.
    if target.is_ok_and(|target| target.as_os_str() != "anon_inode:[eventfd]") {
        return Err(Error::InvalidOperation("a notifier is not an eventfd"));
    }
    let nonblocking = fcntl_getfl(&file).and_then(|it| fcntl_setfl(&file, it | OFlags::NONBLOCK));
    nonblocking.map_err(|error| Error::ReqHandlerError(error.into()))?;
    Ok(EventNotifier::from(OwnedFd::from(file)))
}

/// Another handle on a notifier.
pub(crate) fn share(notifier: &EventNotifier) -> Result<EventNotifier> {
    notifier.try_clone().map_err(Error::ReqHandlerError)
}
