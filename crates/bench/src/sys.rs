//! What the kernel tells about processes: CPU time, mappings, memory, context switches; and on which
//! CPUs it is to run them.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// CPU time of all threads of this process so far, in nanoseconds.
pub fn process_cpu_ns() -> u64 {
    // The clock exists on every Linux, so there is no error to look at.
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap_or(0)
}

/// CPU time of a process, of its threads that live and of those that have ended, in nanoseconds. It
/// counts user and system time exactly, where `/proc/PID/stat` counts ticks.
///
/// # Errors
/// If there is no such process.
pub fn cpu_ns_of(process_id: u32) -> io::Result<u64> {
    let process_id = libc::pid_t::try_from(process_id).map_err(io::Error::other)?;
    let mut clock = 0;
    // SAFETY: `clock` is writable.
    match unsafe { libc::clock_getcpuclockid(process_id, &mut clock) } {
        0 => clock_ns(clock),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn clock_ns(clock: libc::clockid_t) -> io::Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
}

/// The CPUs that the calling thread may run on, in ascending order.
///
/// # Errors
/// If the machine has more than the C library's set holds.
pub fn cpus() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero set is a valid value: the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable and as long as is said.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: looks at the set alone, and the CPUs are below its size.
    let is_in = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &set) };
    Ok((0..libc::CPU_SETSIZE.unsigned_abs() as usize).filter(is_in).collect())
}

/// Lets the calling thread, and all that it starts from now on, run on these CPUs only.
///
/// # Errors
/// If none of them is one that it may run on.
pub fn run_on(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero set is a valid value: the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE.unsigned_abs() as usize) {
        // SAFETY: changes the set alone, and the CPU is below its size.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: `set` is readable and as long as is said.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps the thread that made it, and all that it starts meanwhile, on one CPU, until this is dropped.
pub struct OnOneCpu {
    before: Vec<usize>,
}

impl OnOneCpu {
    /// On the first CPU that the calling thread may run on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new() -> io::Result<OnOneCpu> {
        let before = cpus()?;
        run_on(&before[..1])?;
        Ok(OnOneCpu { before })
    }
}

impl Drop for OnOneCpu {
    fn drop(&mut self) {
        // They were allowed before.
        let _ = run_on(&self.before);
    }
}

/// The kernel kills what `command` starts when the thread that started it ends, however it ends.
pub fn end_with_this_thread(command: &mut Command) {
    // SAFETY: the closure makes one system call, which touches no memory, and allocates nothing.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    };
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

/// Reads from a file into memory that others may see and change.
///
/// # Errors
/// As the kernel says; if the file is too short.
pub fn pread_shared<B: BitmapSlice>(
    file: &File,
    into: &VolatileSlice<'_, B>,
    offset: u64,
) -> io::Result<()> {
    let guard = into.ptr_guard_mut();
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: the slice is mapped and writable while the guard lives. The kernel writes, as a device
    // would; no reference to these bytes exists.
    let got = unsafe { libc::pread(file.as_raw_fd(), guard.as_ptr().cast(), guard.len(), offset) };
    whole(got, guard.len())
}

/// Writes to a file from memory that others may see and change.
///
/// # Errors
/// As the kernel says; if it does not take all.
pub fn pwrite_shared<B: BitmapSlice>(
    file: &File,
    from: &VolatileSlice<'_, B>,
    offset: u64,
) -> io::Result<()> {
    let guard = from.ptr_guard();
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: the slice is mapped while the guard lives, and the kernel reads each byte once.
    let got = unsafe { libc::pwrite(file.as_raw_fd(), guard.as_ptr().cast(), guard.len(), offset) };
    whole(got, guard.len())
}

fn whole(got: isize, wanted: usize) -> io::Result<()> {
    match usize::try_from(got) {
        Ok(got) if got == wanted => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
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

/// How often the threads of a process have gone to sleep by themselves so far.
///
/// # Errors
/// If there is no such process.
pub fn sleeps_of(process_id: u32) -> io::Result<u64> {
    let mut sleeps = 0;
    for task in fs::read_dir(format!("/proc/{process_id}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        sleeps += field_of(&status, "voluntary_ctxt_switches").unwrap_or(0);
    }
    Ok(sleeps)
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

    #[test]
    fn cpu_time_is_told_of_any_process() {
        assert!(cpu_ns_of(std::process::id()).unwrap() > 0);
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(cpu_ns_of(child.id()).is_err());
    }

    #[test]
    fn a_thread_stays_where_it_is_put() {
        std::thread::spawn(|| {
            let all = cpus().unwrap();
            run_on(&all[..1]).unwrap();
            assert_eq!(cpus().unwrap(), all[..1]);
            assert!(run_on(&[]).is_err());
        })
        .join()
        .unwrap();
    }
}
