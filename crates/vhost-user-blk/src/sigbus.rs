//! What a front end shows us may be taken away: a file that is truncated leaves pages
//! without memory, and touching one raises SIGBUS. A [`Guard`] on a mapping turns that into the end of
//! the connection: the mapping is replaced by memory of our own, zeroes, and the socket is shut down.
//! Memory that we have [taken away](crate::uffd) ourselves stays away: one page is put where it is touched, full of
//! bytes 0xff, with which no queue and no request is valid, and the kernel goes on to refuse what is around it.
//!
//! With `uffd.rs` this is the unsafe code of the crate; `docs/unsafe.md` has its invariant. The handler does
//! what a signal handler may: it reads atomics, and calls `mmap`, `mremap`, `shutdown` and `sigaction`.
//! A SIGBUS that is none of ours goes to the handler that was there before, and this one stays.
#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use vm_memory::MmapRegion;

/// Mappings of all front ends of the process that can be guarded at once.
const SLOTS: usize = 4096;

/// One mapping. The owner of a slot writes it; the handler reads it.
struct Slot {
    /// Address of the mapping; 0 if the slot is free, 1 while it is being filled.
    start: AtomicUsize,
    /// 0 unless the mapping is guarded.
    len: AtomicUsize,
    socket: AtomicI32,
    /// Bytes of a page, once the mapping was taken away.
    gone_by: AtomicUsize,
}

static SLOTS_IN_USE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        socket: AtomicI32::new(-1),
        gone_by: AtomicUsize::new(0),
    }
}; SLOTS];

/// What handled SIGBUS before us.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// It has given up: it left the next SIGBUS to the default action, as that of Rust's runtime does.
static PREVIOUS_IS_GONE: AtomicBool = AtomicBool::new(false);

/// While it exists, a mapping whose file was truncated costs the front end its connection, and not
/// the process its life. The mapping must stay in place that long.
pub(crate) struct Guard {
    slot: &'static Slot,
}

impl Guard {
    /// Guards `region`, which came over `socket`. `None` if too much is guarded already, or if
    /// the signal cannot be handled.
    pub(crate) fn new(region: &MmapRegion, socket: RawFd) -> Option<Guard> {
        install()?;
        let slot = SLOTS_IN_USE.iter().find(|slot| {
            slot.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        slot.socket.store(socket, Ordering::Relaxed);
        slot.gone_by.store(0, Ordering::Relaxed);
        slot.start.store(region.as_ptr() as usize, Ordering::Relaxed);
        slot.len.store(region.size(), Ordering::Release);
        Some(Guard { slot })
    }

    /// The mapping is taken away, and stays so.
    pub(crate) fn expect_nothing(&self) {
        self.slot.gone_by.store(rustix::param::page_size(), Ordering::SeqCst);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.slot.len.store(0, Ordering::SeqCst);
        self.slot.start.store(0, Ordering::Release);
    }
}

/// Installs the handler, once. Its outcome is remembered.
fn install() -> Option<()> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: the structure is plain data for which zeroes are valid, and lives during the call.
        // The previous handler is stored before ours can run.
        unsafe {
            let mut previous: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, ptr::null(), &mut previous) != 0 {
                return false;
            }
            let _ = PREVIOUS.set(previous);
        }
        take_signal()
    });
    installed.then_some(())
}

/// Makes [`on_sigbus`] the handler.
fn take_signal() -> bool {
    // SAFETY: the structure is plain data for which zeroes are valid, and lives during the call. What
    // the previous handler wants blocked while it runs is blocked while ours calls it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        if let Some(previous) = PREVIOUS.get() {
            action.sa_mask = previous.sa_mask;
        }
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) == 0
    }
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the kernel passes valid structures, for a fault with an address; errno
    // is this thread's own, and is put back.
    unsafe {
        let errno = *libc::__errno_location();
        let is_fault = (*info).si_code > 0;
        if !is_fault || !replace((*info).si_addr() as usize) {
            pass_on(signal, info, context, is_fault);
        }
        *libc::__errno_location() = errno;
    }
}

/// Does what would be done without us.
///
/// # Safety
/// Called by the handler, with what it was called with.
unsafe fn pass_on(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    is_fault: bool,
) {
    let previous = PREVIOUS.get().filter(|_| !PREVIOUS_IS_GONE.load(Ordering::Relaxed));
    let handler = previous.map_or(libc::SIG_DFL, |it| it.sa_sigaction);
    let with_info = previous.is_some_and(|it| it.sa_flags & libc::SA_SIGINFO != 0);
    // SAFETY: any other value than these two is the address of a function, of the kind that the flag
    // says; it is called as the kernel would. The structure is plain data.
    unsafe {
        match handler {
            // A fault cannot be ignored: the instruction would fault for ever.
            libc::SIG_IGN if !is_fault => return,
            libc::SIG_DFL | libc::SIG_IGN => return end_process(signal, is_fault),
            handler if with_info => {
                type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                std::mem::transmute::<usize, Handler>(handler)(signal, info, context);
            }
            handler => {
                std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler)(signal);
            }
        }
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut now);
        // After a fault the default action is due at once, when the instruction is tried again.
        if now.sa_sigaction == libc::SIG_DFL && !is_fault {
            PREVIOUS_IS_GONE.store(true, Ordering::Relaxed);
            take_signal();
        }
    }
}

/// The default action: when the handler returns a fault happens again, and what was sent is sent
/// again.
fn end_process(signal: libc::c_int, is_fault: bool) {
    // SAFETY: the default action has no handler, and needs nothing to live.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if !is_fault {
            libc::raise(signal);
        }
    }
}

/// Puts memory of our own in the place of the guarded mapping at `addr`.
fn replace(addr: usize) -> bool {
    let found = SLOTS_IN_USE.iter().find_map(|slot| {
        let len = slot.len.load(Ordering::Acquire);
        let start = slot.start.load(Ordering::Relaxed);
        (addr.wrapping_sub(start) < len).then_some((slot, start, len))
    });
    let Some((slot, start, len)) = found else { return false };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let page = slot.gone_by.load(Ordering::SeqCst);
    // SAFETY: the range is a guarded mapping, which stays in place while it is guarded, and which
    // is accessed through volatile slices only: other contents are as good as what a front end may
    // write there. The faulting thread is inside an access to it, so its owner has not dropped it.
    // One page is filled before it is put there: no other thread sees it otherwise. If there is no room for a
    // mapping more, all of it is replaced.
    unsafe {
        let mut replaced = libc::MAP_FAILED;
        if page != 0 {
            let at = ptr::without_provenance_mut::<libc::c_void>(addr & !(page - 1));
            let new = libc::mmap(ptr::null_mut(), page, protection, flags, -1, 0);
            if new != libc::MAP_FAILED {
                ptr::write_bytes(new.cast::<u8>(), 0xff, page);
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                replaced = libc::mremap(new, page, page, flags, at);
            }
        }
        if replaced == libc::MAP_FAILED {
            let at = ptr::without_provenance_mut(start);
            replaced = libc::mmap(at, len, protection, flags | libc::MAP_FIXED, -1, 0);
        }
        libc::shutdown(slot.socket.load(Ordering::Relaxed), libc::SHUT_RDWR);
        replaced != libc::MAP_FAILED
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::Ordering;

    use rustix::fs::{MemfdFlags, memfd_create};
    use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

    use super::*;

    /// Truncates guarded memory, and touches it.
    fn the_guard_holds() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let (file, region) = mapping();
        let guard = Guard::new(&region, ours.as_raw_fd()).unwrap();
        let memory = region.get_slice(4096, 8).unwrap();
        memory.store(7u64, 0, Ordering::Relaxed).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(memory.load::<u64>(0, Ordering::Relaxed).unwrap(), 0);
        memory.store(9u64, 0, Ordering::Relaxed).unwrap();
        assert_eq!(memory.load::<u64>(0, Ordering::Relaxed).unwrap(), 9);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "the connection is shut down");
        drop(guard);
    }

    fn mapping() -> (std::fs::File, MmapRegion) {
        let file = std::fs::File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(8192).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        (file, MmapRegion::from_file(offset, 8192).unwrap())
    }

    #[test]
    fn a_truncated_file_ends_the_connection_and_not_the_process() {
        the_guard_holds();
    }

    static SEEN: AtomicUsize = AtomicUsize::new(0);

    /// A handler of another part of the program: puts a page where one is missing.
    extern "C" fn foreign(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        SEEN.fetch_add(1, Ordering::Relaxed);
        // SAFETY: for a fault the address is inside a mapping of the test's own.
        unsafe {
            if (*info).si_code > 0 {
                let page = ptr::without_provenance_mut((*info).si_addr() as usize & !4095);
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                libc::mmap(page, 4096, protection, flags, -1, 0);
            }
        }
    }

    fn raise() {
        // SAFETY: it takes a number.
        unsafe { libc::raise(libc::SIGBUS) };
    }

    /// What the processes do that [`a_foreign_signal_is_passed_on_and_the_guard_stays`] starts: a
    /// handler is the process's own, so each has one to itself.
    #[test]
    fn in_a_process_of_its_own() {
        match std::env::var(CASE).as_deref() {
            Ok("handler") => {
                // SAFETY: the structure is plain data, and the handler of the kind that the flag says.
                unsafe {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = foreign as *const () as usize;
                    action.sa_flags = libc::SA_SIGINFO;
                    libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
                }
                the_guard_holds();
                let (file, unguarded) = mapping();
                file.set_len(0).unwrap();
                for count in 1..=2 {
                    raise();
                    let page = unguarded.get_slice((count - 1) * 4096, 8).unwrap();
                    assert_eq!(page.load::<u64>(0, Ordering::Relaxed).unwrap(), 0);
                    assert_eq!(SEEN.load(Ordering::Relaxed), 2 * count);
                    the_guard_holds();
                }
            }
            // That of Rust's runtime, which gives up when it is called.
            Ok("runtime") => {
                the_guard_holds();
                raise();
                the_guard_holds();
                raise();
                panic!("a second one ends the process, as it does without a guard");
            }
            Ok("ignored") => {
                // SAFETY: nothing is called.
                unsafe { libc::signal(libc::SIGBUS, libc::SIG_IGN) };
                the_guard_holds();
                raise();
                the_guard_holds();
            }
            Ok("fault") => {
                the_guard_holds();
                let (file, unguarded) = mapping();
                file.set_len(0).unwrap();
                let _ = unguarded.get_slice(0, 8).unwrap().load::<u64>(0, Ordering::Relaxed);
                panic!("a fault of others ends the process");
            }
            _ => {}
        }
    }

    const CASE: &str = "COBLK_SIGBUS_CASE";

    #[test]
    fn a_foreign_signal_is_passed_on_and_the_guard_stays() {
        use std::os::unix::process::ExitStatusExt;
        let killed = Some(libc::SIGBUS);
        let cases = [("handler", None), ("runtime", killed), ("ignored", None), ("fault", killed)];
        for (case, signal) in cases {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "sigbus::tests::in_a_process_of_its_own"])
                .env(CASE, case)
                .output()
                .unwrap();
            assert_eq!(output.status.signal(), signal, "{case}: {output:?}");
            assert!(signal.is_some() || output.status.success(), "{case}: {output:?}");
        }
    }
}
