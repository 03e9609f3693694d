//! The right to suspend.

use std::fmt;
use std::ptr;

use super::control::{Control, Unwinding};
use super::{Coroutine, CoroutineState};
use super::{current, entry};

/// The right to suspend a coroutine, given to the closure it runs.
///
/// A function that may suspend takes `&Suspender`, so a function without one cannot. It stays on
/// its thread:
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<&coblk_coroutine::Suspender>();
/// ```
#[repr(transparent)]
pub struct Suspender(Control);

impl Suspender {
    /// Goes back to the resumer of this coroutine, and returns when it is resumed again.
    ///
    /// # Panics
    ///
    /// With "yielding to no one" if its coroutine is not the one that runs now. contract: C10
    // Always inlined, like what calls it on the way of a request: the processor predicts the return
    // of each frame between two switches for the other stack, and wrongly.
    #[inline(always)]
    pub fn suspend(&self) {
        let running = current::get();
        if !ptr::eq(running, &self.0) {
            not_running(&self.0);
        }
        // The same block as `self`, but reached through the thread-local: `self` is reloaded from
        // this stack, whose address the processor knows late after a switch. It is 1.5 ns a pair.
        // SAFETY: it is `self`.
        let control = unsafe { &*running };
        control.set_state(CoroutineState::Suspended);
        // SAFETY: it runs now, as just checked.
        unsafe { control.context().suspend() };
        if control.unwinding() == Unwinding::Throw {
            entry::throw_unwind(control);
        }
    }

    /// A handle to this coroutine.
    #[inline]
    pub fn coroutine(&self) -> Coroutine {
        // SAFETY: a coroutine whose suspender is at hand has frames, so a handle keeps it alive.
        unsafe { Coroutine::clone_raw(&self.0) }
    }

    /// The suspender of a coroutine: another name for its control block.
    #[inline]
    pub(crate) fn of(control: &Control) -> &Suspender {
        // SAFETY: the type is a transparent wrapper.
        unsafe { &*ptr::from_ref(control).cast::<Suspender>() }
    }
}

#[cold]
#[inline(never)]
fn not_running(control: &Control) -> ! {
    panic!("coroutine '{}' is not the one running: it would be yielding to no one", control.name())
}

impl fmt::Debug for Suspender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suspender").field("coroutine", &self.0.name()).finish()
    }
}
