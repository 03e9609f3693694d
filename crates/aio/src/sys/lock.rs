//! Locks on single bytes of a file. They belong to the open file, not to the process (Linux calls
//! them open file description locks): they end when the last descriptor of it is closed, and two
//! open files of one process are strangers to each other.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_short};

use super::{check_zero, offset};

/// Takes a shared lock on a byte, which may be beyond the end of the file. EAGAIN if another open file description
/// holds it exclusively.
pub fn lock_byte(fd: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    call(fd, libc::F_OFD_SETLK, libc::F_RDLCK, byte).map(|_| ())
}

/// Gives up the lock on a byte; succeeds also if there is none.
pub fn unlock_byte(fd: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    call(fd, libc::F_OFD_SETLK, libc::F_UNLCK, byte).map(|_| ())
}

/// Whether anybody but this open file holds a lock on a byte.
pub fn is_byte_locked_by_others(fd: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    let found = call(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?;
    Ok(c_int::from(found) != libc::F_UNLCK)
}

/// Returns the kind of lock that is in the structure afterwards.
fn call(fd: BorrowedFd<'_>, command: c_int, kind: c_int, byte: u64) -> io::Result<c_short> {
    // SAFETY: an all-zero flock is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // The constants are small; the fields that hold them are.
    lock.l_type = kind as c_short;
    lock.l_whence = libc::SEEK_SET as c_short;
    lock.l_start = offset(byte)?;
    lock.l_len = 1;
    // SAFETY: `lock` is readable and writable for the call.
    check_zero(unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) })?;
    Ok(lock.l_type)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_byte_is_locked_for_others_until_its_file_is_closed() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let (ours, theirs) = (image.reopen().unwrap(), image.reopen().unwrap());
        let locked = |file: &File, byte| is_byte_locked_by_others(file.as_fd(), byte).unwrap();
        lock_byte(ours.as_fd(), 100).unwrap();
        lock_byte(ours.as_fd(), 101).unwrap();
        assert!(!locked(&ours, 100), "one's own");
        assert!(locked(&theirs, 100) && locked(&theirs, 101) && !locked(&theirs, 102));
        lock_byte(theirs.as_fd(), 100).unwrap();
        assert!(locked(&ours, 100));
        unlock_byte(ours.as_fd(), 100).unwrap();
        unlock_byte(ours.as_fd(), 150).unwrap();
        assert!(!locked(&theirs, 100));
        drop(ours);
        assert!(!locked(&theirs, 101));
        assert_eq!(
            lock_byte(theirs.as_fd(), u64::MAX).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }
}
