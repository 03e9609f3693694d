//! System calls as safe functions: the only place of the block layer that talks to the kernel.
//!
//! Each returns the kernel's errno inside an `io::Error` and does nothing else: who calls decides
//! about retries. All of them may be called from any thread.

pub mod block_device;
mod cpu;
mod descriptor;
pub mod faults;
mod fork;
mod fuse;
mod fuse_ring;
mod lock;
mod membarrier;
mod socket;
mod timerfd;
mod words;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::{c_int, c_void};

use crate::io_vector::{IoVector, IoVectorMut};
pub(crate) use cpu::{CpuSet, allowed_cpus, clock_ns, current_cpu};
pub use descriptor::{
    clear_nonblocking, is_inherited, redirect, release_inherited_listener, write_without_sigpipe,
};
use faults::Call;
pub(crate) use fork::OwnProcess;
pub use fuse::join_fuse_session;
pub use fuse_ring::{FuseEntry, FuseRing};
pub use lock::{is_byte_locked_by_others, lock_byte, unlock_byte};
pub use membarrier::ProcessBarrier;
pub(crate) use socket::{receive, send};
pub(crate) use timerfd::TimerFd;
pub use words::LazyWords;

/// Ranges one system call takes; a longer vector is transferred in part.
pub const IOV_MAX: usize = 1024;

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn check_zero(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn offset(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn iov_count(count: usize) -> c_int {
    // IOV_MAX fits, so the conversion cannot lose anything.
    count.min(IOV_MAX) as c_int
}

/// Reads at `offset_bytes` into `target`; returns how many bytes were read, 0 at the end of file.
pub fn preadv(
    fd: BorrowedFd<'_>,
    target: &mut IoVectorMut<'_>,
    offset_bytes: u64,
) -> io::Result<usize> {
    let allowed = faults::before(Call::Read, target.len())?;
    if allowed < target.len() {
        return preadv_all(fd, &mut target.slice(0, allowed), offset_bytes);
    }
    preadv_all(fd, target, offset_bytes)
}

fn preadv_all(
    fd: BorrowedFd<'_>,
    target: &mut IoVectorMut<'_>,
    offset_bytes: u64,
) -> io::Result<usize> {
    let iov = target.as_iovecs();
    // SAFETY: the ranges are valid for writing while `target` is borrowed, and the kernel writes
    // nothing outside them.
    check(unsafe {
        libc::preadv(fd.as_raw_fd(), iov.as_ptr(), iov_count(iov.len()), offset(offset_bytes)?)
    })
}

/// [`preadv`] that fails with EAGAIN instead of waiting for the disk (`RWF_NOWAIT`).
pub fn preadv_nowait(
    fd: BorrowedFd<'_>,
    target: &mut IoVectorMut<'_>,
    offset_bytes: u64,
) -> io::Result<usize> {
    let (iov, at) = (target.as_iovecs(), offset(offset_bytes)?);
    // The C library's function may be cancelled. In a process with threads it says so with two atomic
    // read-modify-writes, for a call that never waits. The offset's high half counts on 32 bits alone.
    //
    // SAFETY: as in `preadv`.
    let bytes = unsafe {
        libc::syscall(
            libc::SYS_preadv2,
            fd.as_raw_fd(),
            iov.as_ptr(),
            iov_count(iov.len()),
            at as libc::c_long,
            (at >> 32) as libc::c_long,
            libc::RWF_NOWAIT,
        )
    };
    check(bytes as isize)
}

/// Writes `source` at `offset_bytes`; returns how many bytes were written.
pub fn pwritev(fd: BorrowedFd<'_>, source: &IoVector<'_>, offset_bytes: u64) -> io::Result<usize> {
    let allowed = faults::before(Call::Write, source.len())?;
    if allowed < source.len() {
        return pwritev_all(fd, &source.slice(0, allowed), offset_bytes);
    }
    pwritev_all(fd, source, offset_bytes)
}

fn pwritev_all(fd: BorrowedFd<'_>, source: &IoVector<'_>, offset_bytes: u64) -> io::Result<usize> {
    let iov = source.as_iovecs();
    // SAFETY: the ranges are valid for reading while `source` is borrowed; the kernel only reads.
    check(unsafe {
        libc::pwritev(fd.as_raw_fd(), iov.as_ptr(), iov_count(iov.len()), offset(offset_bytes)?)
    })
}

/// Another descriptor for what has the number `fd`, such as a socket that this process was started
/// with. It is closed on exec. EBADF if there is nothing of that number.
pub fn duplicate_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; the kernel checks the number, its owner keeps it.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Makes written data durable.
pub fn fdatasync(fd: BorrowedFd<'_>) -> io::Result<()> {
    faults::before(Call::Other, 0)?;
    // SAFETY: no memory is involved.
    check_zero(unsafe { libc::fdatasync(fd.as_raw_fd()) })
}

/// Drops the clean pages of a file from the page cache. Other pages stay.
pub fn forget_pages(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let error = unsafe { libc::posix_fadvise(fd.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// What [`fallocate`] does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Gives the blocks back; the range reads as zeroes.
    PunchHole,
    /// Makes the range read as zeroes, blocks kept; the length does not change.
    ZeroRange,
    /// Allocates blocks, growing the file if need be; data that is there stays.
    Allocate,
}

impl Fallocate {
    pub(crate) fn mode(self) -> c_int {
        match self {
            Fallocate::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Fallocate::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            Fallocate::Allocate => 0,
        }
    }
}

/// Changes how a range of a file is stored.
pub fn fallocate(
    fd: BorrowedFd<'_>,
    what: Fallocate,
    offset_bytes: u64,
    len_bytes: u64,
) -> io::Result<()> {
    faults::before(Call::Other, 0)?;
    // SAFETY: no memory is involved.
    check_zero(unsafe {
        libc::fallocate(fd.as_raw_fd(), what.mode(), offset(offset_bytes)?, offset(len_bytes)?)
    })
}

/// Asks the file system (btrfs) to write a file in place, without copies or checksums. The file must be
/// empty. ENOTTY or EOPNOTSUPP where the file system has no such choice.
pub fn disable_copy_on_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    // FS_NOCOW_FL of the kernel.
    const NO_COPY_ON_WRITE: c_int = 0x0080_0000;
    let mut flags: c_int = 0;
    // SAFETY: FS_IOC_GETFLAGS writes an int, whatever its number says of the size.
    check_zero(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) })?;
    flags |= NO_COPY_ON_WRITE;
    // SAFETY: FS_IOC_SETFLAGS reads an int.
    check_zero(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) })
}

/// What O_DIRECT on this file asks for: alignment of memory and of offsets in bytes. `None` if the
/// kernel or the file system does not tell (before Linux 6.1), or does not do O_DIRECT.
pub fn direct_io_alignment(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    // SAFETY: an all-zero statx is a valid value.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor; `answer` is writable.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &mut answer,
        )
    };
    let alignments = (answer.stx_dio_mem_align, answer.stx_dio_offset_align);
    let told = result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
    (told && alignments.0.is_power_of_two() && alignments.1.is_power_of_two()).then_some(alignments)
}

/// Waits until the descriptor is readable; false if `timeout`, kept to the nanosecond, ran out.
/// A signal ends the wait like a time-out.
pub(crate) fn wait_readable(fd: RawFd, timeout: Duration) -> io::Result<bool> {
    let mut poll_fd = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let timeout = libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // SAFETY: one valid pollfd, a valid timespec, and no signal mask.
    let result = unsafe { libc::ppoll(&mut poll_fd, 1, &timeout, std::ptr::null()) };
    match result {
        0 => Ok(false),
        1.. => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

/// Where the data at or after `offset_bytes` begins (SEEK_DATA). `None` if there is none up to the
/// end of file. Moves the descriptor's file position, which nothing here goes by.
pub fn seek_data(fd: BorrowedFd<'_>, offset_bytes: u64) -> io::Result<Option<u64>> {
    seek(fd, offset_bytes, libc::SEEK_DATA)
}

/// Where the data at `offset_bytes` ends, at the end of file at the latest (SEEK_HOLE). `None` if
/// `offset_bytes` is beyond that. Moves the descriptor's file position, which nothing here goes by.
pub fn seek_hole(fd: BorrowedFd<'_>, offset_bytes: u64) -> io::Result<Option<u64>> {
    seek(fd, offset_bytes, libc::SEEK_HOLE)
}

fn seek(fd: BorrowedFd<'_>, offset_bytes: u64, whence: c_int) -> io::Result<Option<u64>> {
    faults::before(Call::Other, 0)?;
    // SAFETY: no memory is involved.
    let result = unsafe { libc::lseek(fd.as_raw_fd(), offset(offset_bytes)?, whence) };
    match u64::try_from(result) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Cuts a file, or makes it longer by a hole, to `len_bytes`.
pub fn ftruncate(fd: BorrowedFd<'_>, len_bytes: u64) -> io::Result<()> {
    faults::before(Call::Other, 0)?;
    // SAFETY: no memory is involved.
    check_zero(unsafe { libc::ftruncate(fd.as_raw_fd(), offset(len_bytes)?) })
}

/// A monotonic clock that ticks every few milliseconds and costs next to nothing.
#[inline]
pub(crate) fn coarse_clock_ns() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable. The clock exists since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// While it lives the calling thread blocks signals, and threads that it starts inherit that: so the
/// signals of a process reach the threads that handle them, and no thread of ours for a moment.
/// Those that a thread causes itself (SIGSEGV and its like) stay as they are.
pub(crate) struct SignalsBlocked {
    before: libc::sigset_t,
    thread: std::marker::PhantomData<*mut ()>,
}

impl SignalsBlocked {
    pub(crate) fn here() -> SignalsBlocked {
        // SAFETY: both sets are plain values; the one is initialised by sigfillset, the other by
        // the kernel.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut set);
            for own in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
                libc::sigdelset(&mut set, own);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &set, &mut before);
            SignalsBlocked { before, thread: std::marker::PhantomData }
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: a mask that the kernel has given.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

/// A new eventfd, non-blocking and closed on exec.
pub(crate) fn eventfd() -> io::Result<std::os::fd::OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    check_zero(c_int::from(fd < 0))?;
    // SAFETY: just created, and owned by nothing else.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

/// Has an epoll report edges of readiness to read with that number; of all that ask so for a source, one that
/// sleeps.
pub(crate) fn watch_shared(epoll: RawFd, fd: RawFd, number: u64) -> io::Result<()> {
    let events = (libc::EPOLLIN | libc::EPOLLET | libc::EPOLLEXCLUSIVE) as u32;
    let mut event = libc::epoll_event { events, u64: number };
    // SAFETY: the event is read during the call.
    check_zero(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) })
}

/// Adds 1 to an eventfd.
pub(crate) fn eventfd_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    let one = 1u64;
    // SAFETY: eight readable bytes.
    let result = unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast::<c_void>(), 8) };
    check(result).map(|_| ())
}

/// Takes the value of an eventfd; 0 if nothing was written since.
pub(crate) fn eventfd_read(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut value = 0u64;
    // SAFETY: eight writable bytes.
    let result = unsafe { libc::read(fd.as_raw_fd(), (&raw mut value).cast::<c_void>(), 8) };
    match check(result) {
        Ok(_) => Ok(value),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    }
}
