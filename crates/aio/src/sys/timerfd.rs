//! A timer of the kernel as a descriptor.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::check_zero;

/// A timer that makes its descriptor readable when it goes off.
#[derive(Debug)]
pub(crate) struct TimerFd(OwnedFd);

impl TimerFd {
    /// A timer that isn't armed, on the clock of [`coarse_clock_ns`](super::coarse_clock_ns). Its
    /// descriptor is non-blocking and closed on exec.
    pub(crate) fn new() -> io::Result<TimerFd> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it, so nothing else owns it.
        Ok(TimerFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Arms it for an instant, in place of an earlier one. One in the past means now.
    pub(crate) fn arm_at_ns(&self, instant_ns: i64) -> io::Result<()> {
        // Zero would disarm it.
        let instant_ns = instant_ns.max(1);
        let once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let first = libc::timespec {
            tv_sec: instant_ns / 1_000_000_000,
            tv_nsec: instant_ns % 1_000_000_000,
        };
        let setting = libc::itimerspec { it_interval: once, it_value: first };
        // SAFETY: the setting is readable, and what was set before is not asked for.
        check_zero(unsafe {
            libc::timerfd_settime(
                self.0.as_raw_fd(),
                libc::TFD_TIMER_ABSTIME,
                &setting,
                std::ptr::null_mut(),
            )
        })
    }
}

impl AsRawFd for TimerFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{coarse_clock_ns, wait_readable};
    use super::*;

    #[test]
    fn it_is_readable_from_its_instant_on() {
        let timer = TimerFd::new().unwrap();
        let readable = |timeout| wait_readable(timer.as_raw_fd(), timeout).unwrap();
        assert!(!readable(Duration::ZERO));
        timer.arm_at_ns(coarse_clock_ns() + 3_600_000_000_000).unwrap();
        assert!(!readable(Duration::ZERO));
        timer.arm_at_ns(coarse_clock_ns() + 1_000_000).unwrap();
        assert!(readable(Duration::from_secs(60)));
        // Armed again it is not, until then.
        timer.arm_at_ns(coarse_clock_ns() + 3_600_000_000_000).unwrap();
        assert!(!readable(Duration::ZERO));
        timer.arm_at_ns(-1).unwrap();
        assert!(readable(Duration::from_secs(60)));
    }
}
