//! The switch in assembly, by the corosensei crate: no system call, about twenty instructions.

use std::cell::{Cell, UnsafeCell};
use std::mem::offset_of;
use std::ptr;

use corosensei::stack::{Stack, StackPointer};
use corosensei::{Coroutine, Yielder};

use super::Entry;
use crate::stack::StackRange;

/// A stack that runs one function. See the module above for the contract.
pub(crate) struct Context {
    coroutine: UnsafeCell<Coroutine<*const Context, (), (), Borrowed>>,
    /// Lives at the base of the stack; known once the context has run for the first time.
    yielder: Cell<*const Yielder<*const Context, ()>>,
}

impl Context {
    /// For a debugger: see `coroutine/debug_layout.rs`.
    pub(crate) const BACKEND: u32 = 1;
    pub(crate) const SAVED_OFFSET: usize = offset_of!(Context, coroutine);

    /// Prepares `entry(arg)` on the stack.
    ///
    /// # Safety
    /// The terms of the module above.
    pub(crate) unsafe fn new(stack: StackRange, entry: Entry, arg: *const ()) -> Context {
        let run = move |yielder: &Yielder<*const Context, ()>, own: *const Context| {
            // SAFETY: `own` is the context that is being resumed. By the caller `arg` is what `entry`
            // asks for.
            unsafe {
                (*own).yielder.set(yielder);
                entry(arg)
            }
        };
        // SAFETY: the closure borrows nothing but `arg`, which the caller answers for.
        let coroutine = unsafe { Coroutine::with_stack_unchecked(Borrowed(stack), run) };
        Context { coroutine: UnsafeCell::new(coroutine), yielder: Cell::new(ptr::null()) }
    }

    /// Runs the context until it suspends.
    ///
    /// # Safety
    /// The terms of the module above: it is not running, nor waiting for one that it resumed.
    #[inline]
    pub(crate) unsafe fn resume(&self) {
        // SAFETY: the context is not running, so no other resume holds this reference; while it
        // runs it touches `yielder` and its stack, not this field.
        unsafe { (*self.coroutine.get()).resume(self) };
    }

    /// Goes back to the resumer.
    ///
    /// # Safety
    /// The terms of the module above: this context runs now.
    #[inline]
    pub(crate) unsafe fn suspend(&self) {
        // SAFETY: it runs, so its first resume has set the pointer, to a place on its own stack.
        unsafe { (*self.yielder.get()).suspend(()) };
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the owner drops a context only when none of its frames has anything left to drop.
        // Without this corosensei would want to unwind it.
        unsafe { self.coroutine.get_mut().force_reset() }
    }
}

/// A stack that the control block owns.
struct Borrowed(StackRange);

// SAFETY: the range ends in a guard page and is larger than the minimum: the `stack` module sees to
// both.
unsafe impl Stack for Borrowed {
    #[inline]
    fn base(&self) -> StackPointer {
        self.0.base
    }

    #[inline]
    fn limit(&self) -> StackPointer {
        self.0.limit
    }
}
