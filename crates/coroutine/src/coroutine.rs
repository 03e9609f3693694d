//! The handle to a coroutine: create, resume, wake, unwind.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::ptr::NonNull;

use crate::control::Control;
use crate::suspender::Suspender;
use crate::wake_queue::WakeQueue;
use crate::{current, entry, pool};

/// Where a coroutine is between its creation and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CoroutineState {
    /// It has not been resumed yet.
    Created,
    /// It runs now, or waits for a coroutine that it resumed. contract: C6
    Entered,
    /// It waits to be resumed.
    Suspended,
    /// Its closure has returned, panicked or been unwound. It cannot be resumed any more.
    Terminated,
}

/// A counted handle to a coroutine; one pointer wide.
///
/// It stays on the thread that created it:
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<coblk_coroutine::Coroutine>();
/// ```
///
/// When the last handle goes away, a suspended coroutine is unwound, the closure of one that was never resumed is
/// dropped, and the stack returns to the pool. A handle to a terminated coroutine keeps its stack from being reused,
/// so do not collect them. A coroutine that owns a handle to itself is a cycle, as with [`Rc`](std::rc::Rc), until it
/// terminates.
pub struct Coroutine {
    control: NonNull<Control>,
}

impl Coroutine {
    /// Creates a coroutine that will run `entry`. Does not run it. contract: C1
    ///
    /// Takes a pooled stack if there is one, and then allocates nothing; a closure of more than 256 bytes is boxed.
    ///
    /// # Panics
    ///
    /// If there is no memory or no mapping left for a stack; [`Coroutine::try_new`] returns the error instead.
    #[inline]
    #[track_caller]
    pub fn new<F>(name: &'static str, entry: F) -> Coroutine
    where
        F: FnOnce(&Suspender) + 'static,
    {
        // SAFETY: a closure that is `'static` borrows nothing that ends.
        unsafe { Coroutine::new_unchecked(name, entry) }
    }

    /// As [`Coroutine::new`].
    ///
    /// # Errors
    ///
    /// If a new stack is needed and the system has no memory or no mapping left for it.
    #[inline]
    pub fn try_new<F>(name: &'static str, entry: F) -> io::Result<Coroutine>
    where
        F: FnOnce(&Suspender) + 'static,
    {
        // SAFETY: a closure that is `'static` borrows nothing that ends.
        unsafe { Coroutine::try_new_unchecked(name, entry) }
    }

    /// As [`Coroutine::new`], for a closure that borrows.
    ///
    /// # Safety
    ///
    /// Everything that `entry` borrows must outlive the coroutine's run: until it has terminated, also by being unwound.
    ///
    /// # Panics
    ///
    /// As [`Coroutine::new`].
    #[inline]
    #[track_caller]
    pub unsafe fn new_unchecked<'a, F>(name: &'static str, entry: F) -> Coroutine
    where
        F: FnOnce(&Suspender) + 'a,
    {
        // SAFETY: the caller's promise is passed on.
        match unsafe { Coroutine::try_new_unchecked(name, entry) } {
            Ok(coroutine) => coroutine,
            Err(error) => no_stack(name, &error),
        }
    }

    /// As [`Coroutine::try_new`], for a closure that borrows.
    ///
    /// # Errors
    ///
    /// As [`Coroutine::try_new`].
    ///
    /// # Safety
    ///
    /// As [`Coroutine::new_unchecked`].
    #[inline]
    pub unsafe fn try_new_unchecked<'a, F>(name: &'static str, entry: F) -> io::Result<Coroutine>
    where
        F: FnOnce(&Suspender) + 'a,
    {
        let (control, id) = pool::acquire()?;
        // SAFETY: the caller's promise is passed on. The block is valid, and nobody else has it.
        unsafe { control.as_ref().prepare(name, id, entry) };
        Ok(Coroutine { control })
    }

    /// Runs it until it suspends or terminates, and says which. contract: C2, C3
    ///
    /// Then runs those that it woke with [`Coroutine::queue_wake`], in the order in which it woke them; what each of
    /// these wakes runs before the rest of them (depth first). contract: C13, C14
    ///
    /// # Panics
    ///
    /// If it is scheduled to be resumed by somebody else, and says by whom (contract: C8); if it runs already or waits
    /// for one that it resumed (contract: C9); if it has terminated.
    ///
    /// A panic of the coroutine goes on in its resumer, after those that wait behind it have run. If several panic, the
    /// first one goes on.
    #[inline]
    #[track_caller]
    pub fn resume(&self) -> CoroutineState {
        let control = self.control();
        self.check_resumable();
        switch_to(control);
        let panic = control.take_panic();
        if panic.is_some() || !control.woken().is_empty() {
            run_woken(control, panic);
        }
        control.state()
    }

    /// A number that no other run of a coroutine in this process has.
    #[inline]
    pub fn id(&self) -> u64 {
        self.control().id()
    }

    /// The name it was created with.
    #[inline]
    pub fn name(&self) -> &'static str {
        self.control().name()
    }

    /// Where it is between its creation and its end.
    #[inline]
    pub fn state(&self) -> CoroutineState {
        self.control().state()
    }

    /// Has it resumed when the coroutine that runs now suspends or terminates. contract: C13, C14
    ///
    /// `by` is who schedules it, for the message when somebody else tries to as well.
    ///
    /// # Panics
    ///
    /// Outside a coroutine; on the coroutine that runs now, or one that waits for it; if it is already scheduled
    /// (contract: C8); if it has terminated.
    #[inline]
    #[track_caller]
    pub fn queue_wake(&self, by: &'static str) {
        let current = current::get();
        assert!(!current.is_null(), "{by}: wake of '{}' queued outside a coroutine", self.name());
        self.check_resumable();
        self.control().set_scheduled_by(Some(by));
        // SAFETY: the coroutine that runs now is kept alive by its resumer.
        unsafe { (*current).woken().push_back(self.clone()) };
    }

    /// Marks it as scheduled in a list of the caller's, so that whoever else resumes it fails and is told `by`.
    ///
    /// A coroutine may be marked while it runs, for it may suspend next.
    ///
    /// # Panics
    ///
    /// If it is already scheduled. contract: C8
    #[inline]
    #[track_caller]
    pub fn set_scheduled(&self, by: &'static str) {
        if self.control().scheduled_by().is_some() {
            not_resumable(self);
        }
        self.control().set_scheduled_by(Some(by));
    }

    /// Takes back the mark of [`Coroutine::set_scheduled`], so that it can be resumed.
    #[inline]
    pub fn clear_scheduled(&self) {
        self.control().set_scheduled_by(None);
    }

    /// Ends it where it is: the destructors on its stack run, and it is terminated. Drops the closure of one that was
    /// never resumed. Does nothing to one that has terminated.
    ///
    /// # Panics
    ///
    /// If it runs, or waits for one that it resumed.
    pub fn unwind(&self) {
        let control = self.control();
        match control.state() {
            CoroutineState::Terminated => {}
            CoroutineState::Entered => not_resumable(self),
            CoroutineState::Created => {
                control.set_state(CoroutineState::Terminated);
                // SAFETY: it has not run, so the closure is still there; now that it is terminated nobody drops it again.
                unsafe { entry::drop_unrun(control) };
            }
            CoroutineState::Suspended => {
                control.set_unwinding(true);
                switch_to(control);
                control.set_unwinding(false);
                run_woken(control, control.take_panic());
            }
        }
    }

    /// The handle as a pointer that owns it, for a list.
    pub(crate) fn into_raw(self) -> *const Control {
        let control = self.control;
        std::mem::forget(self);
        control.as_ptr()
    }

    /// The handle that [`Coroutine::into_raw`] made into a pointer.
    ///
    /// # Safety
    /// Once for each `into_raw`.
    pub(crate) unsafe fn from_raw(control: *const Control) -> Coroutine {
        // SAFETY: the pointer came from a handle, so it is not null.
        Coroutine { control: unsafe { NonNull::new_unchecked(control.cast_mut()) } }
    }

    /// One more handle to a coroutine.
    ///
    /// # Safety
    /// Somebody else holds a handle to it.
    #[inline]
    pub(crate) unsafe fn clone_raw(control: *const Control) -> Coroutine {
        // SAFETY: by the caller it is valid, so it is not null either.
        unsafe {
            (*control).set_references((*control).references() + 1);
            Coroutine { control: NonNull::new_unchecked(control.cast_mut()) }
        }
    }

    #[inline]
    fn control(&self) -> &Control {
        // SAFETY: a block is not freed while a handle to it exists.
        unsafe { self.control.as_ref() }
    }

    #[inline]
    #[track_caller]
    fn check_resumable(&self) {
        let control = self.control();
        let waits = matches!(control.state(), CoroutineState::Created | CoroutineState::Suspended);
        if !waits || control.scheduled_by().is_some() {
            not_resumable(self);
        }
    }
}

impl Clone for Coroutine {
    #[inline]
    fn clone(&self) -> Coroutine {
        // SAFETY: `self` is a handle to it.
        unsafe { Coroutine::clone_raw(self.control.as_ptr()) }
    }
}

impl Drop for Coroutine {
    #[inline]
    fn drop(&mut self) {
        let control = self.control();
        if control.references() > 1 {
            control.set_references(control.references() - 1);
            return;
        }
        if control.state() != CoroutineState::Terminated {
            self.unwind();
        }
        control.set_scheduled_by(None);
        // SAFETY: this was the last handle, and the coroutine has terminated.
        unsafe { pool::release(self.control) };
    }
}

impl fmt::Debug for Coroutine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Coroutine")
            .field("name", &self.name())
            .field("id", &self.id())
            .field("state", &self.state())
            .finish()
    }
}

/// Runs a coroutine that waits, until it suspends or terminates.
#[inline]
fn switch_to(control: &Control) {
    let caller = current::get();
    current::set(control);
    control.set_state(CoroutineState::Entered);
    // SAFETY: the caller has seen that it waits, so it neither runs nor waits for one that it resumed.
    unsafe { control.context().resume() };
    current::set(caller);
}

/// Runs those that `first` woke, and those that they wake, depth first; then lets the first panic go on.
///
/// A loop over a list and not a recursion: however many wake each other in turn, the stack does not grow. contract: C15
#[inline(never)]
fn run_woken(first: &Control, mut panic: Option<Box<dyn Any + Send>>) {
    let pending = WakeQueue::new();
    pending.prepend(first.woken());
    while let Some(coroutine) = pending.pop_front() {
        let control = coroutine.control();
        control.set_scheduled_by(None);
        if control.state() == CoroutineState::Terminated {
            continue; // it was unwound while it waited here
        }
        switch_to(control);
        panic = panic.or(control.take_panic());
        pending.prepend(control.woken());
    }
    if let Some(payload) = panic {
        resume_unwind(payload);
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn not_resumable(coroutine: &Coroutine) -> ! {
    let name = coroutine.name();
    if let Some(by) = coroutine.control().scheduled_by() {
        panic!("coroutine '{name}' was already scheduled in {by}");
    }
    match coroutine.state() {
        CoroutineState::Terminated => panic!("coroutine '{name}' has already terminated"),
        _ => panic!("coroutine '{name}' re-entered recursively"),
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn no_stack(name: &str, error: &io::Error) -> ! {
    panic!("no stack for coroutine '{name}': {error}")
}
