//! What a front end shows us may be taken away: a file that is truncated leaves pages that nobody
//! may touch, and touching one raises SIGBUS. A [`Guard`] on a mapping turns that into the end of
//! the connection: the mapping is replaced by memory of our own, zeroes, and the socket is shut down.
//!
//! This is the only unsafe code of the crate; `docs/unsafe.md` has its invariant. The handler does
//! what a signal handler may: it reads atomics, and calls `mmap`, `shutdown` and `sigaction`.
//! A SIGBUS that is none of ours goes to whoever handled it before.
#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

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
}

static SLOTS_IN_USE: [Slot; SLOTS] = [const {
    Slot { start: AtomicUsize::new(0), len: AtomicUsize::new(0), socket: AtomicI32::new(-1) }
}; SLOTS];

/// What handled SIGBUS before us.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

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
        slot.start.store(region.as_ptr() as usize, Ordering::Relaxed);
        slot.len.store(region.size(), Ordering::Release);
        Some(Guard { slot })
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
        // SAFETY: both structures are plain data for which zeroes are valid, and live during the
        // calls. The previous handler is stored before ours can run.
        unsafe {
            let mut previous: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, ptr::null(), &mut previous) != 0 {
                return false;
            }
            let _ = PREVIOUS.set(previous);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) == 0
        }
    });
    installed.then_some(())
}

extern "C" fn on_sigbus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid structure, for SIGBUS with an address;
    // errno is this thread's own, and is put back.
    unsafe {
        let errno = *libc::__errno_location();
        if !replace((*info).si_addr() as usize) {
            // Returning makes the instruction fault again, and whoever came before us sees it.
            let previous = PREVIOUS.get().map_or(ptr::null(), ptr::from_ref);
            libc::sigaction(libc::SIGBUS, previous, ptr::null_mut());
        }
        *libc::__errno_location() = errno;
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
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range is a guarded mapping, which stays in place while it is guarded, and which
    // is accessed through volatile slices only: other contents are as good as what a front end may
    // write there. The faulting thread is inside an access to it, so its owner has not dropped it.
    unsafe {
        let at = ptr::without_provenance_mut(start);
        let replaced = libc::mmap(at, len, protection, flags, -1, 0);
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

    #[test]
    fn a_truncated_file_ends_the_connection_and_not_the_process() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(8192).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let region: MmapRegion = MmapRegion::from_file(offset, 8192).unwrap();
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
}
