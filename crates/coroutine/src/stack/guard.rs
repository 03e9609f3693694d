//! The two ways to make a page fault when it is touched.

use std::io;
use std::ptr::NonNull;

use super::page_bytes;

/// How the guard page below each stack is made to fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuardKind {
    /// A marker in the page table, by `madvise(MADV_GUARD_INSTALL)`. Needs Linux 6.13. Costs no
    /// mapping, so the number of stacks is bounded by memory only.
    Marker,
    /// A page without access rights, by `mprotect`. Each stack then costs two mappings, of which
    /// the kernel allows `vm.max_map_count` (65530 by default): about 32,000 stacks.
    Mapping,
}

/// The number that Linux 6.13 gave it; the libc crate has none for it yet.
const MADV_GUARD_INSTALL: libc::c_int = 102;

impl GuardKind {
    /// Makes a page fault.
    ///
    /// # Safety
    /// The page is mapped, and nothing in it is needed.
    pub(super) unsafe fn install(self, page: NonNull<u8>) -> io::Result<()> {
        let (address, length) = (page.as_ptr().cast(), page_bytes());
        // SAFETY: by the caller; both calls touch this page only.
        check(unsafe {
            match self {
                GuardKind::Marker => libc::madvise(address, length, MADV_GUARD_INSTALL),
                GuardKind::Mapping => libc::mprotect(address, length, libc::PROT_NONE),
            }
        })
    }

    /// Makes a guard page an ordinary one again, if that gives a mapping back. Returns whether it
    /// did.
    ///
    /// # Safety
    /// The page is mapped.
    pub(super) unsafe fn remove_if_costly(self, page: NonNull<u8>) -> bool {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: by the caller; touches this page only.
        self == GuardKind::Mapping
            && unsafe { libc::mprotect(page.as_ptr().cast(), page_bytes(), access) == 0 }
    }
}

/// Makes a page fault in the cheapest way that the kernel has, and says which.
///
/// # Safety
/// As [`GuardKind::install`].
pub(super) unsafe fn install_cheapest(page: NonNull<u8>) -> io::Result<GuardKind> {
    // Asked by trying: an older kernel says EINVAL, a system call filter anything.
    for kind in [GuardKind::Marker, GuardKind::Mapping] {
        // SAFETY: by the caller.
        if unsafe { kind.install(page) }.is_ok() {
            return Ok(kind);
        }
    }
    Err(io::Error::last_os_error())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
