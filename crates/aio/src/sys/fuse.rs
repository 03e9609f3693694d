//! What only the kernel's FUSE device can be asked.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check_zero;

/// The kernel's `_IOR(229, 0, uint32_t)`.
const FUSE_DEV_IOC_CLONE: libc::Ioctl = libc::_IOR::<u32>(229, 0);

/// Makes `device`, a `/dev/fuse` that has just been opened, another descriptor of the session of `session`:
/// requests are read from either, and each is answered where it was read. EINVAL if `device` has a session,
/// ENOTTY if it is no such device.
pub fn join_fuse_session(device: BorrowedFd<'_>, session: BorrowedFd<'_>) -> io::Result<()> {
    let session = session.as_raw_fd() as u32;
    // SAFETY: FUSE_DEV_IOC_CLONE reads 32 bits, the number of a descriptor, which the kernel checks.
    check_zero(unsafe { libc::ioctl(device.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const session) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_fuse_device_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let joined = join_fuse_session(file.as_fd(), file.as_fd());
        assert_eq!(joined.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
