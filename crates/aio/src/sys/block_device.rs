//! What only block devices can be asked.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

use super::check_zero;
use super::faults::{self, Call};

/// The kernel's `_IO(0x12, 119)`. Where architectures write that differently, they do so for number
/// 104 too, which libc has.
const BLKDISCARD: libc::Ioctl = libc::BLKSSZGET + (119 - 104);

/// Size in bytes of the blocks that a device is addressed by. ENOTTY if it is no block device.
pub fn logical_block_bytes(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: c_int = 0;
    // SAFETY: BLKSSZGET writes an int.
    check_zero(unsafe { libc::ioctl(fd.as_raw_fd(), libc::BLKSSZGET, &raw mut bytes) })?;
    u32::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Tells a device that a range of it, in whole logical blocks, is not needed any more. What is read
/// there afterwards is unspecified.
pub fn discard(fd: BorrowedFd<'_>, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    faults::before(Call::Other, 0)?;
    let range = [offset_bytes, len_bytes];
    // SAFETY: BLKDISCARD reads two 64-bit values.
    check_zero(unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, range.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_block_device_is_refused() {
        let image = tempfile::tempfile().unwrap();
        let errno = |error: io::Error| error.raw_os_error();
        assert_eq!(logical_block_bytes(image.as_fd()).map_err(errno), Err(Some(libc::ENOTTY)));
        assert_eq!(discard(image.as_fd(), 0, 512).map_err(errno), Err(Some(libc::ENOTTY)));
    }
}
