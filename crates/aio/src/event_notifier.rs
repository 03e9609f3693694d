//! An event notifier: an eventfd that a thread, a process or a guest kicks, and a callback on the
//! loop for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys;

/// A kick that can be given from any thread or process, and waited for on a context with
/// [`AioContext::event_handler`](crate::AioContext::event_handler). Kicks that come
/// before the loop looks are merged into one.
#[derive(Debug)]
pub struct EventNotifier {
    fd: OwnedFd,
}

impl EventNotifier {
    /// A notifier without a kick.
    ///
    /// # Errors
    /// If the process or the system has no descriptors left.
    pub fn new() -> io::Result<EventNotifier> {
        Ok(EventNotifier { fd: sys::eventfd()? })
    }

    /// Kicks it. Any thread.
    ///
    /// # Errors
    /// Only if the descriptor was closed behind our back: a kick that is already pending counts as
    /// success.
    pub fn set(&self) -> io::Result<()> {
        match sys::eventfd_write(self.fd.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Takes back all kicks; whether there were any.
    ///
    /// # Errors
    /// Only if the descriptor was closed behind our back.
    pub fn test_and_clear(&self) -> io::Result<bool> {
        Ok(sys::eventfd_read(self.fd.as_fd())? != 0)
    }

    /// Another handle on the same notifier, to give away.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<EventNotifier> {
        Ok(EventNotifier { fd: self.fd.try_clone()? })
    }
}

impl AsFd for EventNotifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for EventNotifier {
    /// Takes over an eventfd made elsewhere, such as one that came over a socket.
    fn from(fd: OwnedFd) -> EventNotifier {
        EventNotifier { fd }
    }
}
