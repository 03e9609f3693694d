//! Sockets and vectors of memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

use super::{IOV_MAX, check};
use crate::io_vector::{IoVector, IoVectorMut};

/// Receives what there is into `target`; returns how many bytes came, 0 at the end.
pub fn receive(fd: BorrowedFd<'_>, target: &mut IoVectorMut<'_>) -> io::Result<usize> {
    let mut message = message_of(target.as_iovecs());
    // SAFETY: the ranges are valid for writing while `target` is borrowed, and the kernel writes nothing
    // outside them; the rest of the message is empty.
    check(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, 0) })
}

/// Sends what there is room for; returns how many bytes went. A peer that is gone raises no signal.
pub fn send(fd: BorrowedFd<'_>, source: &IoVector<'_>) -> io::Result<usize> {
    let message = message_of(source.as_iovecs());
    let flags: c_int = libc::MSG_NOSIGNAL;
    // SAFETY: the ranges are valid for reading while `source` is borrowed; the kernel only reads.
    check(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
}

/// A message without an address and without ancillary data.
fn message_of(ranges: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: an all-zero header is a valid value: nothing in it points anywhere.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = ranges.as_ptr().cast_mut();
    message.msg_iovlen = ranges.len().min(IOV_MAX) as _;
    message
}
