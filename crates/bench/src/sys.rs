//! What the kernel tells about this process: CPU time, mappings, memory, context switches.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::time::Duration;

/// CPU time of all threads of this process so far, in nanoseconds.
pub fn process_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable. The clock exists on every Linux, so there is no error to look at.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// CPU time of the children that were waited for, user and system.
pub fn children_cpu() -> Duration {
    // SAFETY: an all-zero rusage is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is writable.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) };
    let duration = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs())
            + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

/// The calling thread's id, as `/proc/self/task` names it.
pub fn thread_id() -> i32 {
    // SAFETY: touches no memory.
    unsafe { libc::gettid() }
}

/// Memory mappings of this process.
pub fn mappings() -> io::Result<usize> {
    Ok(fs::read_to_string("/proc/self/maps")?.lines().count())
}

/// A field of `/proc/self/status` that is counted in kB, such as `VmRSS`, in bytes.
pub fn status_bytes(field: &str) -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    field_of(&status, field).map(|kib| kib * 1024).ok_or_else(|| missing(field))
}

/// Memory that could be had without swapping, in bytes.
pub fn memory_available() -> io::Result<u64> {
    let info = fs::read_to_string("/proc/meminfo")?;
    field_of(&info, "MemAvailable").map(|kib| kib * 1024).ok_or_else(|| missing("MemAvailable"))
}

/// What a thread of this process has done so far.
#[derive(Clone, Copy, Debug)]
pub struct ThreadUse {
    /// How often it went to sleep, and so was woken.
    pub sleeps: u64,
    /// Time on a CPU.
    pub cpu_ns: u64,
}

/// Looks at a thread from outside, without disturbing it.
pub fn thread_use(thread_id: i32) -> io::Result<ThreadUse> {
    let task = format!("/proc/self/task/{thread_id}");
    let status = fs::read_to_string(format!("{task}/status"))?;
    let sleeps = field_of(&status, "voluntary_ctxt_switches")
        .ok_or_else(|| missing("voluntary_ctxt_switches"))?;
    let schedstat = fs::read_to_string(format!("{task}/schedstat"))?;
    let cpu_ns = schedstat.split_whitespace().next().and_then(|word| word.parse().ok());
    Ok(ThreadUse { sleeps, cpu_ns: cpu_ns.ok_or_else(|| missing("schedstat"))? })
}

/// The number behind `name:` in a file of the kind of `/proc/self/status`.
fn field_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn missing(field: &str) -> io::Error {
    io::Error::other(format!("the kernel does not tell {field}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "VmRSSx:\t 1 kB\nVmRSS:\t  42 kB\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(field_of(text, "VmRSS"), Some(42));
        assert_eq!(field_of(text, "voluntary_ctxt_switches"), None);
    }

    #[test]
    fn the_kernel_tells() {
        assert!(mappings().unwrap() > 3);
        assert!(status_bytes("VmRSS").unwrap() > 4096);
        assert!(memory_available().unwrap() > 0);
        assert!(thread_use(thread_id()).is_ok());
        assert!(process_cpu_ns() > 0);
    }
}
