//! libc's swapcontext, as the first coroutines of QEMU used it: two signal-mask system calls a pair
//! of switches.
//!
//! ```text
//!   Pair::main  <---- swapcontext ---->  Pair::coroutine, on Pair::stack
//! ```
//!
//! # Why it is sound
//!
//! A [`Pair`] lies in a box and never moves, so the contexts, which glibc fills with pointers into
//! themselves, stay valid. `entry` gets the pair's address in two halves, for makecontext passes
//! ints. While the coroutine runs, the main flow is inside `resume`, which holds the pair; no
//! reference to a context is held across a switch, only raw pointers. Nothing on the coroutine's
//! stack has a destructor, so it may be freed whenever the coroutine is suspended or done.
#![allow(unsafe_code)]

use std::io;
use std::ptr;

use crate::measure::{Lap, lap};

const STACK_SIZE: usize = 64 << 10;

/// Two contexts that switch to each other.
struct Pair {
    main: libc::ucontext_t,
    coroutine: libc::ucontext_t,
    stack: Box<[u8]>,
}

/// Resume and suspend.
pub fn resume_suspend() -> impl FnMut(u64) -> io::Result<Lap> {
    let pair = Pinned::new();
    // SAFETY: the pair is new and lives in this closure, at one address; `forever` never returns.
    unsafe { Pair::prepare(pair.as_ptr(), forever) };
    move |ops| {
        Ok(lap(ops, || {
            for _ in 0..ops {
                // SAFETY: prepared above; the coroutine is suspended, and we are the main flow.
                unsafe { Pair::resume(pair.as_ptr()) };
            }
        }))
    }
}

/// Create, run and end, on a stack that is kept.
pub fn create_run_end() -> impl FnMut(u64) -> io::Result<Lap> {
    let pair = Pinned::new();
    move |ops| {
        Ok(lap(ops, || {
            for _ in 0..ops {
                // SAFETY: the coroutine has ended, or never ran; the pair lives in this closure.
                unsafe {
                    Pair::prepare(pair.as_ptr(), once);
                    Pair::resume(pair.as_ptr());
                }
            }
        }))
    }
}

/// A box that is only ever looked at through its pointer.
struct Pinned(*mut Pair);

impl Pinned {
    fn new() -> Pinned {
        // SAFETY: a ucontext_t is a C struct of integers and pointers; zero is a valid value of it.
        let (main, coroutine) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let stack = vec![0; STACK_SIZE].into_boxed_slice();
        Pinned(Box::into_raw(Box::new(Pair { main, coroutine, stack })))
    }

    fn as_ptr(&self) -> *mut Pair {
        self.0
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: made from a box in `Pair::new`, and freed once. Its stack does not run.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

impl Pair {
    /// Makes the coroutine begin at `entry`; when that returns the main flow goes on.
    ///
    /// # Safety
    /// `pair` is valid and no coroutine is suspended on its stack that will be resumed.
    unsafe fn prepare(pair: *mut Pair, entry: extern "C" fn(u32, u32)) {
        // SAFETY: valid by contract. makecontext wants a function without parameters and passes it
        // the ints that follow, which on every Linux ABI arrive as the two that `entry` takes.
        unsafe {
            let context = &raw mut (*pair).coroutine;
            libc::getcontext(context);
            (*context).uc_stack.ss_sp = (*pair).stack.as_mut_ptr().cast();
            (*context).uc_stack.ss_size = STACK_SIZE;
            (*context).uc_link = &raw mut (*pair).main;
            let entry = std::mem::transmute::<extern "C" fn(u32, u32), extern "C" fn()>(entry);
            let address = pair.expose_provenance() as u64;
            libc::makecontext(context, entry, 2, (address >> 32) as u32, address as u32);
        }
    }

    /// # Safety
    /// `pair` was prepared, its coroutine has not ended, and the caller is the main flow.
    unsafe fn resume(pair: *mut Pair) {
        // SAFETY: by contract; see the head of the module.
        unsafe { libc::swapcontext(&raw mut (*pair).main, &raw const (*pair).coroutine) };
    }
}

extern "C" fn forever(high: u32, low: u32) {
    let address = (u64::from(high) << 32) | u64::from(low);
    let pair: *mut Pair = ptr::with_exposed_provenance_mut(address as usize);
    loop {
        // SAFETY: the address is that of the pair this coroutine was prepared with, and it runs
        // now.
        unsafe { libc::swapcontext(&raw mut (*pair).coroutine, &raw const (*pair).main) };
    }
}

extern "C" fn once(_high: u32, _low: u32) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_run() {
        assert_eq!(resume_suspend()(100).unwrap().ops, 100);
        assert_eq!(create_run_end()(100).unwrap().ops, 100);
    }
}
