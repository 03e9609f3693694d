//! Memory for stacks.
//!
//! [`Stack`] is one piece of memory with a guard page at its low end; [`allocate`] and [`free`]
//! hand them out and take them back. What lies at the top of a stack (the control block) is not
//! known here.
//!
//! - `arena`: carves stacks from few large mappings, and gives memory back
//! - `guard`: the two ways to make a page fault
//! - `overflow`: says which coroutine ran into its guard page

mod arena;
mod config;
mod guard;
pub(crate) mod overflow;

pub use config::{StackConfig, StackConfigError, configure_stacks};
pub use guard::GuardKind;

use std::io;
use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::OnceLock;

use arena::Arena;

/// The stacks of this process.
static ARENA: Arena = Arena::new();

/// The memory of one coroutine: the lowest page is the guard page, the rest can be used.
///
/// A plain value: its last owner passes it to [`free`].
#[derive(Debug)]
pub(crate) struct Stack {
    bottom: NonNull<u8>,
    /// From one end to the other, guard page included.
    length_bytes: usize,
}

/// The part of a stack on which frames lie, as addresses. The guard page is its lowest page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StackRange {
    /// The address just above the first frame.
    pub(crate) base: NonZeroUsize,
    /// The lowest address.
    pub(crate) limit: NonZeroUsize,
}

/// A stack, with a guard page, which faults.
pub(crate) fn allocate() -> io::Result<Stack> {
    ARENA.allocate()
}

/// Takes a stack back, and its memory from it: what was written is lost.
///
/// # Safety
/// Came from [`allocate`], and nothing runs on it or points to it any more.
pub(crate) unsafe fn free(stack: Stack) {
    // SAFETY: by the caller.
    unsafe { ARENA.free(stack) }
}

/// The stacks that are allocated now.
pub(crate) fn allocated() -> usize {
    ARENA.allocated()
}

/// How stacks are guarded; known once the first one has been allocated.
pub(crate) fn guard_kind() -> Option<GuardKind> {
    ARENA.guard_kind()
}

impl Stack {
    pub(crate) const BOTTOM_OFFSET: usize = offset_of!(Stack, bottom);
    pub(crate) const LENGTH_OFFSET: usize = offset_of!(Stack, length_bytes);

    /// How much of it can be used.
    pub(crate) fn size_bytes(&self) -> usize {
        self.length_bytes - page_bytes()
    }

    /// The lowest address, that of the guard page.
    pub(crate) fn limit(&self) -> NonZeroUsize {
        self.bottom.addr()
    }

    /// Room for a `T` at the top, on cache lines of its own. Frames lie below it.
    ///
    /// All stacks end at the same offset in a page, so what is used the most in each of them would
    /// compete for the same few sets of the first-level cache. That room is therefore a few lines
    /// further down in one stack than in the next; it is still in the topmost page. With 256
    /// coroutines that take turns it makes a resume a quarter faster.
    pub(crate) fn place_at_top<T>(&self) -> NonNull<T> {
        const CACHE_LINE: usize = 64;
        const PLACES: usize = 8;
        const STEP: usize = 3 * CACHE_LINE;
        let nth = self.bottom.addr().get() / self.length_bytes;
        let end = self.length_bytes - nth % PLACES * STEP;
        let offset = (end - size_of::<T>()) & !(CACHE_LINE - 1);
        debug_assert!(align_of::<T>() <= CACHE_LINE);
        // SAFETY: the smallest stack has several pages, and a `T` here is smaller than one.
        unsafe { self.bottom.add(offset) }.cast()
    }

    /// Gives the memory of whole pages below an address back to the system; the guard page stays.
    ///
    /// # Safety
    /// Nothing in them is needed.
    pub(crate) unsafe fn give_back_below(&self, end: usize) {
        let page = page_bytes();
        let bytes = (end & !(page - 1)).saturating_sub(self.limit().get() + page);
        if bytes > 0 {
            // SAFETY: by the caller; these are pages of this stack, above the guard page.
            unsafe { arena::give_back(self.bottom.add(page), bytes) };
        }
    }

    /// What is left for frames below an object at the top.
    pub(crate) fn below<T>(&self, top: NonNull<T>) -> StackRange {
        StackRange { base: top.addr(), limit: self.limit() }
    }
}

/// Bytes in a page of memory.
pub(crate) fn page_bytes() -> usize {
    static PAGE: OnceLock<usize> = OnceLock::new();
    // SAFETY: asks for a number.
    *PAGE.get_or_init(|| unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize)
}
