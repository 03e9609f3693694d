//! What a descriptor is of, and how.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use libc::c_int;

use super::{check, check_zero};

/// Atomically makes `target` refer to `source`'s open file description (`dup3`). The one it referred to
/// before is closed, if no other descriptor refers to it. Both stay open, and with their owners.
///
/// Concurrent users of `target` get one or the other.
pub fn redirect(target: &File, source: &File) -> io::Result<()> {
    let (target, source) = (target.as_raw_fd(), source.as_raw_fd());
    loop {
        // SAFETY: no memory is involved, and the number stays open: the kernel changes what it
        // stands for in one step. A `File` may be of any open file.
        let result = check(unsafe { libc::dup3(source, target, libc::O_CLOEXEC) } as isize);
        match result {
            // Another thread is just getting a descriptor.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR)) => {}
            result => return result.map(|_| ()),
        }
    }
}

/// Whether a descriptor has been there since the program was started: it stays open on exec, unlike all
/// that the standard library and this crate open.
pub fn is_inherited(fd: RawFd) -> bool {
    // SAFETY: no memory is involved; the kernel checks the number.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// Closes an [inherited](is_inherited) socket that listens. Its number stands for `/dev/null` from now
/// on, so it cannot become that of something else.
///
/// # Errors
/// EBADF if it was not inherited, EINVAL if it is no such socket.
pub fn release_inherited_listener(fd: RawFd) -> io::Result<()> {
    if !is_inherited(fd) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    let mut listens: c_int = 0;
    let mut bytes = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes an int, whose length it is given.
    check_zero(unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut listens).cast(),
            &raw mut bytes,
        )
    })?;
    if listens == 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: no memory is involved. The number was inherited, so no owner in this program counts on
    // what it stands for; and it stays open.
    check(unsafe { libc::dup3(null.as_raw_fd(), fd, libc::O_CLOEXEC) } as isize).map(|_| ())
}

/// Writes to a pipe or a terminal, and has a reader that is gone be the error EPIPE and no signal. A
/// socket has a flag for that, and its own calls.
pub fn write_without_sigpipe(fd: BorrowedFd<'_>, source: &[u8]) -> io::Result<usize> {
    // SAFETY: the sets are plain values that the calls initialise; `source` is readable. The signal is
    // blocked for this thread, which alone a write sends it to, and taken back if this write has sent it.
    unsafe {
        let [mut pipe, mut pending, mut mask]: [libc::sigset_t; 3] = std::mem::zeroed();
        libc::sigemptyset(&mut pipe);
        libc::sigaddset(&mut pipe, libc::SIGPIPE);
        libc::sigpending(&mut pending);
        let is_older = libc::sigismember(&pending, libc::SIGPIPE) == 1;
        libc::pthread_sigmask(libc::SIG_BLOCK, &pipe, &mut mask);
        let written = check(libc::write(fd.as_raw_fd(), source.as_ptr().cast(), source.len()));
        let has_sent = written.as_ref().is_err_and(|it| it.raw_os_error() == Some(libc::EPIPE));
        if has_sent && !is_older {
            let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::sigtimedwait(&pipe, std::ptr::null_mut(), &at_once);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &mask, std::ptr::null_mut());
        written
    }
}

/// Has calls on an open file wait for what they are about, if it was opened not to.
pub fn clear_nonblocking(file: &File) -> io::Result<()> {
    let nonblocking: c_int = 0;
    // SAFETY: the kernel reads an int, and does this to any open file.
    check_zero(unsafe { libc::ioctl(file.as_raw_fd(), libc::FIONBIO, &raw const nonblocking) })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn read(mut file: &File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_descriptor_becomes_one_of_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            File::open(path).unwrap()
        });
        let number = a.as_raw_fd();
        redirect(&a, &b).unwrap();
        assert_eq!((read(&a).as_str(), a.as_raw_fd()), ("b", number));
        assert_eq!(read(&b), "", "one open file has one position");
        // SAFETY: no memory is involved.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        drop(b);
        a.metadata().unwrap();
    }

    #[test]
    fn a_file_that_was_opened_not_to_wait_waits() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let mut options = File::options();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(image.path()).unwrap();
        // SAFETY: no memory is involved.
        let flags = || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        assert_ne!(flags() & libc::O_NONBLOCK, 0);
        clear_nonblocking(&file).unwrap();
        assert_eq!(flags() & libc::O_NONBLOCK, 0);
    }
}
