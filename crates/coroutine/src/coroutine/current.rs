//! Which coroutine runs on this thread.
//!
//! The thread-local is a plain cell, initialised by a constant and never dropped, so that an access
//! is one load relative to the thread pointer. Its address may be kept across a suspend: a
//! coroutine never changes thread.

use std::any::Any;
use std::cell::Cell;
use std::ptr;

use super::Coroutine;
use super::control::Control;
use super::run;
use crate::stack::overflow::Running;

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

/// Runs `code` as if no coroutine ran on this thread, though it runs on the stack of one: for an
/// event loop that is entered inside a coroutine. Its callbacks are not part of that coroutine, and
/// what they wake must not wait until it suspends.
///
/// Call [`serve_woken`] before.
#[inline]
pub fn outside<R>(code: impl FnOnce() -> R) -> R {
    struct Restore(*const Control, *const Control);
    impl Drop for Restore {
        fn drop(&mut self) {
            set(self.0);
            STANDS_BACK.set(self.1);
        }
    }
    let running = get();
    if running.is_null() {
        return code();
    }
    let _restore = Restore(running, STANDS_BACK.replace(running));
    set(ptr::null());
    code()
}

/// Runs the coroutines that the one which runs now has woken ([`Coroutine::queue_wake`]), and those
/// that they wake, without waiting until it suspends. `on_panic` is as that of
/// [`Coroutine::resume_catching`]. Does nothing outside a coroutine.
///
/// # Panics
///
/// With the first panic that `on_panic` has returned, after all have run.
pub fn serve_woken(
    on_panic: impl FnMut(&'static str, Box<dyn Any + Send>) -> Option<Box<dyn Any + Send>>,
) {
    // SAFETY: the coroutine that runs is kept alive by its resumer.
    if let Some(control) = unsafe { get().as_ref() }
        && control.has_left_work()
    {
        run::settle_catching(control, on_panic);
    }
}

thread_local! {
    static CURRENT: Cell<*const Control> = const { Cell::new(ptr::null()) };
    /// The one on whose stack the loop of [`outside`] runs.
    static STANDS_BACK: Cell<*const Control> = const { Cell::new(ptr::null()) };
}

/// The coroutine on whose stack the caller runs. For a signal handler: if a coroutine runs, its thread
/// has touched the thread-locals before.
pub(crate) fn on_this_stack() -> Option<Running> {
    let running = get();
    let running = if running.is_null() { STANDS_BACK.get() } else { running };
    // SAFETY: the coroutine that runs is kept alive by its resumer. Its block is at the other end of
    // the stack, so it can be read when that has overflowed.
    let control = unsafe { running.as_ref() }?;
    let stack = control.stack();
    Some(Running {
        name: control.name(),
        guard: stack.limit().get(),
        size_bytes: stack.size_bytes(),
    })
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
