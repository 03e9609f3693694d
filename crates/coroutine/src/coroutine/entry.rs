//! What a coroutine runs: the closure in its slot, and the loop that runs one closure after the
//! other.
//!
//! The slot is part of the control block, so that a closure of ordinary size costs no allocation. A
//! closure too large for it, or aligned more strictly, is boxed, and the slot holds the box; which
//! of the two is decided when the program is compiled.

use std::any::Any;
use std::mem::{align_of, size_of};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::CoroutineState;
use super::control::Control;
use super::suspender::Suspender;

/// Room for a closure.
#[repr(align(16))]
pub(crate) struct Slot(#[expect(dead_code, reason = "accessed through pointers")] [u8; 256]);

type Run = unsafe fn(*const Control);

/// How to run or drop the closure in a slot, whose type is known here and nowhere else.
pub(crate) struct EntryVtable {
    /// Moves the closure out of the slot, runs it to its end, and suspends; so on with those that
    /// come after it, for as long as they are of its type. Does not unwind.
    run: Run,
    /// Drops a closure that has not been run.
    drop: unsafe fn(NonNull<Slot>),
}

/// Puts a closure into a slot, and returns how to run or drop it there.
///
/// # Safety
/// `slot` is valid and holds no closure.
#[inline]
pub(crate) unsafe fn store<F>(slot: NonNull<Slot>, entry: F) -> &'static EntryVtable
where
    F: FnOnce(&Suspender),
{
    if const { size_of::<F>() <= size_of::<Slot>() && align_of::<F>() <= align_of::<Slot>() } {
        // SAFETY: it fits, as just checked.
        unsafe { slot.cast::<F>().write(entry) };
        const { &EntryVtable { run: run_inline::<F>, drop: drop_slot::<F> } }
    } else {
        // SAFETY: a box is one pointer, which fits.
        unsafe { slot.cast::<Box<F>>().write(Box::new(entry)) };
        const { &EntryVtable { run: run_boxed::<F>, drop: drop_slot::<Box<F>> } }
    }
}

/// Drops the closure that a coroutine was created with, and that it has not run.
///
/// # Safety
/// The slot of `control` holds a closure.
pub(crate) unsafe fn drop_unrun(control: &Control) {
    // SAFETY: by the caller, and the vtable was stored with that closure.
    unsafe { (control.entry().drop)(control.slot()) }
}

/// Runs one closure after the other, for as long as the stack lives. All frames of a coroutine lie
/// above this one.
///
/// # Safety
/// Runs on the stack of `control`, a [`Control`] that is valid for as long as that is resumed. Each time it is
/// resumed after it has terminated, its slot holds a closure.
pub(crate) unsafe fn trampoline(control: *const ()) -> ! {
    let control = control.cast::<Control>();
    loop {
        // SAFETY: by the caller, and the vtable was stored with the closure.
        unsafe { ((*control).entry().run)(control) };
    }
}

/// Runs closures of one type, one after the other.
///
/// It comes back for those of other types only. The processor predicts where a function returns to
/// from the calls it saw last, and after a switch those are of another stack: to come back after
/// each closure, and to be called for the next one, costs two wrong guesses. Idle in between, this
/// frame may hold what belongs to its thread, such as the address of a thread-local: see
/// [`Control::reset`].
///
/// # Safety
/// As [`trampoline`], the function on whose stack this runs; `take` moves the closure out of the
/// slot and runs it, and `own` is who calls this.
#[inline(always)]
unsafe fn run_alike(control: *const Control, own: Run, take: impl Fn(&Control, &Suspender)) {
    loop {
        // SAFETY: by the caller. It is unwind safe to look at the block afterwards: it is made of
        // cells, each of which is valid at any time. This function runs on the context that it
        // suspends.
        unsafe {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                take(&*control, Suspender::of(&*control));
            }));
            if let Err(payload) = outcome {
                keep_panic(&*control, payload);
            }
            (*control).set_state(CoroutineState::Terminated);
            (*control).context().suspend();
            // Resumed, and so with another closure.
            if !ptr::fn_addr_eq((*control).entry().run, own) {
                return;
            }
        }
    }
}

/// Throws the payload that unwinds a coroutine, up to the trampoline.
#[cold]
pub(crate) fn throw_unwind(control: &Control) -> ! {
    let payload = control.take_panic();
    resume_unwind(payload.expect("who unwinds a coroutine has said with what"))
}

/// What is thrown to unwind a coroutine. Nothing else can make one.
struct ForcedUnwind(Arc<AtomicBool>);

impl Drop for ForcedUnwind {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Whether a payload that was thrown to unwind a coroutine is still there. Code that catches it
/// usually drops it, and what is on its way out cannot be dropped.
pub(crate) struct Thrown(Arc<AtomicBool>);

impl Thrown {
    pub(crate) fn new() -> Thrown {
        Thrown(Arc::new(AtomicBool::new(false)))
    }

    /// The payload to throw.
    pub(crate) fn payload(&self) -> Box<dyn Any + Send> {
        self.0.store(true, Ordering::Relaxed);
        Box::new(ForcedUnwind(Arc::clone(&self.0)))
    }

    pub(crate) fn exists(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether a caught panic is the unwinding of a coroutine. Code that catches panics inside a coroutine must let this
/// one go on, with [`resume_unwind`].
pub fn is_forced_unwind(payload: &(dyn Any + Send)) -> bool {
    payload.is::<ForcedUnwind>()
}

#[cold]
fn keep_panic(control: &Control, payload: Box<dyn Any + Send>) {
    if !payload.is::<ForcedUnwind>() {
        control.set_panic(payload);
    }
}

unsafe fn run_inline<F: FnOnce(&Suspender)>(control: *const Control) {
    let take = |control: &Control, suspender: &Suspender| {
        // SAFETY: the slot holds an `F`, and is not looked at again before the next one is stored.
        let entry = unsafe { control.slot().cast::<F>().read() };
        entry(suspender);
    };
    // SAFETY: by the caller, the trampoline.
    unsafe { run_alike(control, run_inline::<F>, take) };
}

unsafe fn run_boxed<F: FnOnce(&Suspender)>(control: *const Control) {
    let take = |control: &Control, suspender: &Suspender| {
        // SAFETY: the slot holds a `Box<F>`, and is not looked at again before the next closure is
        // stored.
        let entry = unsafe { control.slot().cast::<Box<F>>().read() };
        entry(suspender);
    };
    // SAFETY: by the caller, the trampoline.
    unsafe { run_alike(control, run_boxed::<F>, take) };
}

unsafe fn drop_slot<T>(slot: NonNull<Slot>) {
    // SAFETY: the slot holds a `T`.
    unsafe { slot.cast::<T>().drop_in_place() };
}
