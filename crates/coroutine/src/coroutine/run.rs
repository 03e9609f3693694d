//! How a coroutine runs: the switch to it, what it leaves to do when it comes back, and its
//! unwinding.

use std::any::Any;
use std::mem::ManuallyDrop;
use std::panic::resume_unwind;
use std::thread;

use super::CoroutineState;
use super::control::{Control, Unwinding};
use super::current;
use super::entry::Thrown;
use super::wake_queue::WakeQueue;

/// What a panic carries.
pub(crate) type Payload = Box<dyn Any + Send>;

/// Runs a coroutine until it suspends or terminates.
///
/// # Safety
/// It is created or suspended.
#[inline]
pub(crate) unsafe fn switch_to(control: &Control) {
    // Kept in the block and not in this frame: what a frame keeps in a register across a switch is
    // pushed on one stack and popped when the processor has found the way back to it. From there to
    // the thread-local and back, one resume waited for the one before; without that it takes a third
    // less time.
    control.set_resumer(current::get());
    current::set(control);
    control.set_state(CoroutineState::Entered);
    // SAFETY: it waits, so it neither runs nor waits for one that it resumed.
    unsafe { control.context().resume() };
    current::set(control.resumer());
}

/// Who is told of a panic: the name of the coroutine, and what the panic carries. Must not unwind.
pub(crate) type OnPanic<'a> = &'a mut dyn FnMut(&'static str, Payload);

/// Runs those that a coroutine woke, and those that they wake, depth first. Tells of all panics
/// among them, that of `first` included.
///
/// A loop over a list and not a recursion: however many wake each other in turn, the stack does not
/// grow. contract: C15
pub(crate) fn settle(first: &Control, on_panic: OnPanic<'_>) {
    let pending = WakeQueue::new();
    collect(first, &pending, on_panic);
    while let Some(coroutine) = pending.pop_front() {
        let coroutine = ManuallyDrop::new(coroutine);
        let control = coroutine.control();
        // Without its mark it was unwound in the meantime, and its wake taken back.
        if control.scheduled_by().is_some() {
            control.set_scheduled_by(None);
            // SAFETY: it waited when it was queued, and while it has its mark no other code can
            // resume it, unwind it or take back the mark.
            unsafe { switch_to(control) };
            if control.has_left_work() {
                collect(control, &pending, on_panic);
            }
        }
        // This may be the last handle, and end it; a panic of that must not leave the others
        // behind.
        let name = control.name();
        if let Some(payload) = coroutine.give_up() {
            on_panic(name, payload);
        }
    }
}

/// As [`settle`]; returns the first panic.
pub(crate) fn settle_first(control: &Control) -> Option<Payload> {
    let mut first = None;
    settle(control, &mut |_, payload| first = first.take().or(Some(payload)));
    first
}

/// As [`settle`]; `on_panic` returns which panics go on, and the first of them does.
// Out of line: a request that wakes no other and does not panic pays nothing for the closure.
#[cold]
#[inline(never)]
pub(crate) fn settle_catching(
    control: &Control,
    mut on_panic: impl FnMut(&'static str, Payload) -> Option<Payload>,
) {
    let mut first = None;
    settle(control, &mut |name, payload| {
        let going_on = on_panic(name, payload);
        first = first.take().or(going_on);
    });
    if let Some(payload) = first {
        resume_unwind(payload);
    }
}

/// As [`settle`]; lets the first panic go on.
#[inline(never)]
pub(crate) fn settle_and_propagate(control: &Control) {
    if let Some(payload) = settle_first(control) {
        resume_unwind(payload);
    }
}

/// Has a coroutine throw where it is suspended, so that its destructors run.
///
/// # Safety
/// It is suspended.
pub(crate) unsafe fn unwind_frames(control: &Control) {
    /// Code that catches panics and goes on gets that many of them before it is given up.
    const ATTEMPTS: usize = 100;
    let thrown = Thrown::new();
    let was_panicking = thread::panicking();
    for _ in 0..ATTEMPTS {
        control.set_thrown(thrown.payload());
        // SAFETY: by the caller, and then because the last attempt left it suspended.
        unsafe { switch_to(control) };
        if control.state() == CoroutineState::Terminated {
            break;
        }
        // If it is suspended again in a destructor, on its way out, the thread is panicking. To
        // throw from there would abort; to resume it before its time would tell it that what it
        // waits for is done. A thread that was panicking before does not tell; then it has been
        // caught if what was thrown is gone.
        if thread::panicking() && (!was_panicking || thrown.exists()) {
            break;
        }
    }
    control.set_unwinding(Unwinding::Underway);
}

/// Moves those that a coroutine woke to the front of what is pending, and its panic out of it.
fn collect(control: &Control, pending: &WakeQueue, on_panic: OnPanic<'_>) {
    control.set_left_work(false);
    pending.prepend(control.woken());
    if let Some(payload) = control.take_panic() {
        on_panic(control.name(), payload);
    }
}
