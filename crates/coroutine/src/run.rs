//! How a coroutine runs: the switch to it, what it leaves to do when it comes back, and its
//! unwinding.

use std::any::Any;
use std::mem::ManuallyDrop;
use std::panic::resume_unwind;
use std::thread;

use crate::control::{Control, Unwinding};
use crate::coroutine::CoroutineState;
use crate::current;
use crate::wake_queue::WakeQueue;

/// What a panic carries.
pub(crate) type Payload = Box<dyn Any + Send>;

/// Runs a coroutine until it suspends or terminates.
///
/// # Safety
/// It is created or suspended.
#[inline]
pub(crate) unsafe fn switch_to(control: &Control) {
    let caller = current::get();
    current::set(control);
    control.set_state(CoroutineState::Entered);
    // SAFETY: it waits, so it neither runs nor waits for one that it resumed.
    unsafe { control.context().resume() };
    current::set(caller);
}

/// Runs those that a coroutine woke, and those that they wake, depth first. Returns the first panic
/// among all of them.
///
/// A loop over a list and not a recursion: however many wake each other in turn, the stack does not
/// grow. contract: C15
pub(crate) fn settle(first: &Control) -> Option<Payload> {
    let pending = WakeQueue::new();
    let mut panic = collect(first, &pending);
    while let Some(coroutine) = pending.pop_front() {
        let coroutine = ManuallyDrop::new(coroutine);
        let control = coroutine.control();
        control.set_scheduled_by(None);
        // SAFETY: it waited when it was queued, and as long as it is queued nobody else can resume
        // it, unwind it or take back its mark as scheduled.
        unsafe { switch_to(control) };
        if control.has_left_work() {
            panic = panic.or(collect(control, &pending));
        }
        // This may be the last handle, and end it; a panic of that must not leave the others
        // behind.
        panic = panic.or(coroutine.give_up());
    }
    panic
}

/// As [`settle`]; lets the panic go on.
#[inline(never)]
pub(crate) fn settle_loudly(control: &Control) {
    if let Some(payload) = settle(control) {
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
    control.set_unwinding(Unwinding::Throw);
    for _ in 0..ATTEMPTS {
        // SAFETY: by the caller, and then because the last attempt left it suspended.
        unsafe { switch_to(control) };
        // If it is suspended again in a destructor, the thread is still panicking. To throw from
        // there would abort; to resume it before its time would tell it that what it waits for is
        // done.
        if control.state() == CoroutineState::Terminated || thread::panicking() {
            break;
        }
    }
    control.set_unwinding(Unwinding::Underway);
}

/// Moves those that a coroutine woke to the front of what is pending, and its panic out of it.
fn collect(control: &Control, pending: &WakeQueue) -> Option<Payload> {
    control.set_left_work(false);
    pending.prepend(control.woken());
    control.take_panic()
}
