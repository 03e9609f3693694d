//! The switch by libc: `getcontext`, `makecontext`, `swapcontext`.
//!
//! Each switch saves and restores the signal mask with a system call, so a pair costs two; that is
//! what makes it a hundred times slower than the backend in assembly. It is here for comparison,
//! and for CPUs that the other one does not know.
//!
//! QEMU avoids these system calls by starting a coroutine with `makecontext` and switching with
//! `sigsetjmp` and `siglongjmp`. That is not offered: `sigsetjmp` returns twice, and to call a
//! function that does so is undefined behaviour in Rust, whose compiler then keeps values in
//! registers and places that the second return finds changed. Backends in assembly replace it: they
//! tell the compiler exactly what a switch leaves intact.
//!
//! A suspended context keeps the signal mask that was set when it suspended, and has it again when
//! it is resumed, so masks should be set before coroutines run.

use std::cell::{Cell, UnsafeCell};
use std::mem::{MaybeUninit, offset_of};
use std::ptr;

use super::Entry;
use crate::stack::StackRange;

/// A stack that runs one function. See the module above for the contract.
pub(crate) struct Context {
    /// Where the context goes on. Points into itself once it is filled in, so it is not moved then.
    own: UnsafeCell<MaybeUninit<libc::ucontext_t>>,
    /// Where its resumer goes on.
    resumer: UnsafeCell<MaybeUninit<libc::ucontext_t>>,
    /// What to start, until that is done.
    start: Cell<Option<Start>>,
}

struct Start {
    stack: StackRange,
    entry: Entry,
    arg: *const (),
}

impl Context {
    /// For a debugger: see `coroutine/debug_layout.rs`.
    pub(crate) const BACKEND: u32 = 2;
    pub(crate) const SAVED_OFFSET: usize = offset_of!(Context, own);

    /// Prepares `entry(arg)` on the stack.
    ///
    /// # Safety
    /// The terms of the module above.
    pub(crate) unsafe fn new(stack: StackRange, entry: Entry, arg: *const ()) -> Context {
        Context {
            own: UnsafeCell::new(MaybeUninit::uninit()),
            resumer: UnsafeCell::new(MaybeUninit::uninit()),
            start: Cell::new(Some(Start { stack, entry, arg })),
        }
    }

    /// Runs the context until it suspends.
    ///
    /// # Safety
    /// The terms of the module above: it is not running, nor waiting for one that it resumed.
    pub(crate) unsafe fn resume(&self) {
        if let Some(start) = self.start.take() {
            // SAFETY: it has not been started, and is in its place now.
            unsafe { self.make(start) };
        }
        // SAFETY: `own` was filled in when the context was made or suspended last. Nothing else uses
        // `resumer`, for the context has no other resumer now.
        let result = unsafe { libc::swapcontext(self.resumer.get().cast(), self.own.get().cast()) };
        debug_assert_eq!(result, 0);
    }

    /// Goes back to the resumer.
    ///
    /// # Safety
    /// The terms of the module above: this context runs now.
    pub(crate) unsafe fn suspend(&self) {
        // SAFETY: it runs, so its resumer has filled in `resumer`, and nothing uses `own`.
        let result = unsafe { libc::swapcontext(self.own.get().cast(), self.resumer.get().cast()) };
        debug_assert_eq!(result, 0);
    }

    /// Fills in `own`, so that the first switch to it calls the entry.
    #[cold]
    unsafe fn make(&self, start: Start) {
        type NoArguments = extern "C" fn();
        let own: *mut libc::ucontext_t = self.own.get().cast();
        let (entry, arg) = (halves(start.entry as usize), halves(start.arg.expose_provenance()));
        let limit = start.stack.limit.get();
        // SAFETY: `getcontext` fills in all that `makecontext` wants to be filled in but the stack,
        // which is the caller's. There is nothing to go on with after the entry, which does not
        // return. `makecontext` passes any number of ints to a function of its own C type.
        unsafe {
            let result = libc::getcontext(own);
            debug_assert_eq!(result, 0);
            (*own).uc_stack.ss_sp = ptr::with_exposed_provenance_mut(limit);
            (*own).uc_stack.ss_size = start.stack.base.get() - limit;
            (*own).uc_link = ptr::null_mut();
            let function = std::mem::transmute::<*const (), NoArguments>(run as *const ());
            libc::makecontext(own, function, 4, entry[0], entry[1], arg[0], arg[1]);
        }
    }
}

/// The first function on the stack. Its arguments are ints, for that is all that `makecontext`
/// passes.
unsafe extern "C" fn run(entry_low: u32, entry_high: u32, arg_low: u32, arg_high: u32) -> ! {
    let arg = ptr::with_exposed_provenance::<()>(whole(arg_low, arg_high));
    // SAFETY: these are the halves that `make` made of an `Entry` and of what it asks for.
    unsafe {
        let entry = std::mem::transmute::<usize, Entry>(whole(entry_low, entry_high));
        entry(arg)
    }
}

fn halves(number: usize) -> [u32; 2] {
    [number as u32, (number as u64 >> 32) as u32]
}

fn whole(low: u32, high: u32) -> usize {
    (u64::from(high) << 32 | u64::from(low)) as usize
}
