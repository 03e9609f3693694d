//! Which CPU a thread runs on, and which it may run on.

use std::io;
use std::mem::size_of;

/// CPUs that a set of them can name: more than one process of Linux is given.
const MAX_CPUS: usize = libc::CPU_SETSIZE as usize;
const WORD_BITS: usize = u64::BITS as usize;

/// A set of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuSet(pub(crate) [u64; MAX_CPUS / WORD_BITS]);

/// The CPU that the calling thread runs on, as of a moment. No system call: the kernel keeps the number in
/// the thread's memory, or in a page of its own. `u32::MAX` if it cannot be had.
#[inline]
pub(crate) fn current_cpu() -> u32 {
    // SAFETY: no memory is involved.
    let number = unsafe { libc::sched_getcpu() };
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The CPUs that the calling thread may run on. EINVAL on a machine with more CPUs than a set names.
pub(crate) fn allowed_cpus() -> io::Result<CpuSet> {
    let mut set = [0u64; MAX_CPUS / WORD_BITS];
    // SAFETY: the set is writable and as long as said; a cpu_set_t is an array of words as well.
    let result = unsafe {
        libc::sched_getaffinity(0, size_of::<CpuSet>(), set.as_mut_ptr().cast::<libc::cpu_set_t>())
    };
    super::check_zero(result)?;
    Ok(CpuSet(set))
}

/// Nanoseconds on the monotonic clock, the same for all threads.
#[inline]
pub(crate) fn clock_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable. Linux has the clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    // Neither is negative on this clock.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_runs_on_a_cpu_that_it_may_run_on() {
        let (CpuSet(set), cpu) = (allowed_cpus().unwrap(), current_cpu() as usize);
        assert!(set[cpu / WORD_BITS] & 1 << (cpu % WORD_BITS) != 0, "CPU {cpu} of {set:x?}");
    }

    #[test]
    fn the_clock_is_that_of_the_coarse_one() {
        let (coarse, precise) = (super::super::coarse_clock_ns(), clock_ns());
        assert!(i64::try_from(precise).unwrap() >= coarse);
    }
}
