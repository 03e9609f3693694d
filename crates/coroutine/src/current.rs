//! Which coroutine runs on this thread.
//!
//! The thread-local is a plain cell, initialised by a constant and never dropped, so that an access
//! is one load relative to the thread pointer. Its address may be kept across a suspend: a
//! coroutine never changes thread.

use std::cell::Cell;
use std::ptr;

use crate::control::Control;
use crate::coroutine::Coroutine;

/// Whether the caller runs in a coroutine.
///
/// contract: C5
#[inline]
pub fn in_coroutine() -> bool {
    !get().is_null()
}

/// The coroutine that the caller runs in; `None` outside of any.
///
/// contract: C5
#[inline]
pub fn current() -> Option<Coroutine> {
    let control = get();
    // SAFETY: the coroutine that runs is kept alive by its resumer.
    (!control.is_null()).then(|| unsafe { Coroutine::clone_raw(control) })
}

thread_local! {
    static CURRENT: Cell<*const Control> = const { Cell::new(ptr::null()) };
}

/// The control block of the coroutine that runs now, null outside of any.
#[inline]
pub(crate) fn get() -> *const Control {
    CURRENT.get()
}

#[inline]
pub(crate) fn set(control: *const Control) {
    CURRENT.set(control);
}
