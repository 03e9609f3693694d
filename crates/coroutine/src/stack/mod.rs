//! Memory for stacks: [`Stack`] is one, with a guard page below it.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::{self, NonNull};

/// Bytes from one end of a stack to the other, its guard page included.
const STACK_SIZE: usize = 1 << 20;

/// The memory of one coroutine. From high addresses to low: the entry slot, the frames, the guard page.
pub(crate) struct Stack {
    bottom: NonNull<u8>,
    size: usize,
}

/// The part of a stack on which frames lie, as addresses. The guard page is its lowest page.
#[derive(Clone, Copy)]
pub(crate) struct StackRange {
    base: NonZeroUsize,
    limit: NonZeroUsize,
}

impl Stack {
    /// Maps a new stack.
    pub(crate) fn new() -> io::Result<Stack> {
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: asks for fresh memory; touches none that exists.
        let bottom = unsafe { libc::mmap(ptr::null_mut(), STACK_SIZE, prot, flags, -1, 0) };
        if bottom == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let bottom = NonNull::new(bottom.cast()).expect("mmap returned address 0");
        let stack = Stack { bottom, size: STACK_SIZE };
        // SAFETY: the lowest page of the mapping made above.
        if unsafe { libc::mprotect(bottom.as_ptr().cast(), 4096, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    /// The highest `reserved` bytes, which frames leave alone.
    pub(crate) fn top(&self, reserved: usize) -> NonNull<u8> {
        // SAFETY: `reserved` is a few hundred bytes, a stack many pages.
        unsafe { self.bottom.add(self.size - reserved) }
    }

    /// What is left for frames below `reserved` bytes at the top.
    pub(crate) fn range(&self, reserved: usize) -> StackRange {
        StackRange { base: self.top(reserved).addr(), limit: self.bottom.addr() }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and its owner runs nothing on it any more.
        unsafe { libc::munmap(self.bottom.as_ptr().cast(), self.size) };
    }
}

impl StackRange {
    /// The address just above the first frame.
    #[inline]
    pub(crate) fn base(&self) -> NonZeroUsize {
        self.base
    }

    /// The lowest address, that of the guard page.
    #[inline]
    pub(crate) fn limit(&self) -> NonZeroUsize {
        self.limit
    }
}
