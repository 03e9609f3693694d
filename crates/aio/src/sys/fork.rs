//! Forks of the process, noticed.
//!
//! A child has a copy of all memory, and one thread. Contexts and pools that it has inherited have
//! lost their workers and other threads, and share the kernel's objects (epoll, ring, eventfd) with
//! the parent. Whatever is done with them in the child would hang, or reach into the parent.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many forks this process is away from the one that made the first mark.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The process that something was made in. To look at it costs a load.
///
/// Only `fork` is noticed: not a system call that goes past the C library.
#[derive(Clone, Copy)]
pub(crate) struct OwnProcess(u32);

impl OwnProcess {
    /// The calling one.
    pub(crate) fn new() -> OwnProcess {
        static WATCH: Once = Once::new();
        // SAFETY: the function may be called in a child: it adds to a static number.
        WATCH.call_once(|| unsafe {
            libc::pthread_atfork(None, None, Some(forked));
        });
        OwnProcess(FORKS.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn is_here(self) -> bool {
        FORKS.load(Ordering::Relaxed) == self.0
    }

    /// # Panics
    /// In a child of that process.
    #[inline]
    #[track_caller]
    pub(crate) fn assert_here(self, what: &str, name: &str) {
        if !self.is_here() {
            used_after_fork(what, name);
        }
    }
}

unsafe extern "C" fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

#[cold]
#[inline(never)]
#[track_caller]
fn used_after_fork(what: &str, name: &str) -> ! {
    panic!("{what} '{name}' belongs to the process that this one was forked from")
}
