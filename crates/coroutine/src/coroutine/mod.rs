//! The handle to a coroutine: create, resume, wake, unwind.
//!
//! - `control`: the block that a handle points to, at the top of its coroutine's stack
//! - `entry`: the closure of a coroutine, from its creation to its end
//! - `run`, `current`: resuming, and which coroutine runs now
//! - `suspender`: the right to suspend
//! - `wake_queue`: coroutines that the running one has woken
//! - `debug_layout`: where a debugger finds all that

pub(crate) mod control;
pub(crate) mod current;
mod debug_layout;
mod entry;
mod run;
mod suspender;
mod wake_queue;

use std::any::Any;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::thread;

use crate::pool;
use control::{Control, Unwinding};
use run::Payload;

pub use current::{current, in_coroutine, outside, serve_woken};
pub use debug_layout::ControlLayout;
pub use entry::is_forced_unwind;
pub use suspender::Suspender;

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
/// When the last handle goes away, a suspended coroutine is unwound, the closure of one that was
/// never resumed is dropped, and the stack returns to the pool. A handle to a terminated coroutine
/// keeps its stack from being used again, so do not collect them. A coroutine that owns a handle to
/// itself is a cycle, as with [`Rc`](std::rc::Rc), until it terminates.
pub struct Coroutine {
    control: NonNull<Control>,
}

impl Coroutine {
    /// Creates a coroutine that will run `entry`. Does not run it. contract: C1
    ///
    /// Takes a pooled stack if there is one, and then allocates nothing; a closure of more than 256
    /// bytes, or one aligned to more than 16, is boxed.
    ///
    /// # Panics
    ///
    /// If there is no address space or no mapping left for a stack; [`Coroutine::try_new`] returns
    /// that as an error.
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
    /// If a new stack is needed, and the system has no address space or no mapping left for it.
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
    /// Everything that `entry` borrows must outlive the coroutine's run: until its state is
    /// [`Terminated`](CoroutineState::Terminated), whether by itself or by being unwound.
    ///
    /// # Panics
    ///
    /// As [`Coroutine::new`].
    #[inline(always)]
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
    #[inline(always)]
    pub unsafe fn try_new_unchecked<'a, F>(name: &'static str, entry: F) -> io::Result<Coroutine>
    where
        F: FnOnce(&Suspender) + 'a,
    {
        let (control, id) = pool::acquire()?;
        // SAFETY: the caller's promise is passed on. The block is valid, and has no other handle.
        unsafe { control.as_ref().prepare(name, id, entry) };
        Ok(Coroutine { control })
    }

    /// Runs it until it suspends or terminates, and says which. contract: C2, C3
    ///
    /// Then runs those that it woke with [`Coroutine::queue_wake`], in the order in which it woke
    /// them; what each of these wakes runs before the rest of them (depth first). contract: C13,
    /// C14
    ///
    /// # Panics
    ///
    /// If it is scheduled to be resumed elsewhere, naming the scheduler (contract: C8); if it
    /// runs already or waits for one that it resumed (contract: C9); if it has terminated.
    ///
    /// A panic of the coroutine goes on in its resumer, after those that it woke have run. So does
    /// a panic of one of these. If several panic, the first one goes on.
    #[inline]
    #[track_caller]
    pub fn resume(&self) -> CoroutineState {
        self.check_resumable();
        let control = self.control();
        // SAFETY: it is created or suspended, as just checked.
        unsafe { run::switch_to(control) };
        if control.has_left_work() {
            run::settle_and_propagate(control);
        }
        control.state()
    }

    /// As [`resume`](Self::resume), but `on_panic` is given each panic, with the name of the
    /// coroutine, and returns what is to go on. It must not panic itself.
    ///
    /// # Panics
    ///
    /// If it cannot be resumed, as [`resume`](Self::resume). With the first panic that `on_panic`
    /// has returned, after all have run.
    #[inline]
    #[track_caller]
    pub fn resume_catching(
        &self,
        on_panic: impl FnMut(&'static str, Box<dyn Any + Send>) -> Option<Box<dyn Any + Send>>,
    ) -> CoroutineState {
        self.check_resumable();
        let control = self.control();
        // SAFETY: it is created or suspended, as just checked.
        unsafe { run::switch_to(control) };
        if control.has_left_work() {
            run::settle_catching(control, on_panic);
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

    /// Has it resumed as soon as the coroutine that runs now suspends or terminates.
    /// contract: C13, C14
    ///
    /// `by` names the scheduler, for the message when another one tries to as well.
    ///
    /// # Panics
    ///
    /// Outside a coroutine; on the coroutine that runs now, or one that waits for it (contract:
    /// C9); if it is already scheduled (contract: C8); if it has terminated.
    #[inline]
    #[track_caller]
    pub fn queue_wake(&self, by: &'static str) {
        let current = current::get();
        assert!(!current.is_null(), "{by}: wake of '{}' queued outside a coroutine", self.name());
        self.check_resumable();
        self.control().set_scheduled_by(Some(by));
        if self.control().is_queued() {
            // From a wake that was taken back; it serves for this one.
            return;
        }
        // SAFETY: the coroutine that runs now is kept alive by its resumer.
        let current = unsafe { &*current };
        current.woken().push_back(self.clone());
        current.set_left_work(true);
    }

    /// Takes back a [`queue_wake`](Self::queue_wake): it stays suspended. Without effect if it does
    /// not wait to run because of one.
    pub fn take_back_wake(&self) {
        // It stays in the queue, which passes over it without its mark.
        if self.control().is_queued() {
            self.control().set_scheduled_by(None);
        }
    }

    /// Ends it where it is: the destructors on its stack run, and it is terminated. Drops the
    /// closure of one that was never resumed. Does nothing to one that has terminated.
    ///
    /// The function that is suspended does not return; it unwinds, as from a panic that no panic
    /// hook sees. Code of the coroutine that catches panics catches this one too. It should let it
    /// go on; if it does not, the next suspend unwinds again.
    ///
    /// A destructor may suspend while its coroutine is unwound, say to wait for a job that uses its
    /// memory. The coroutine is then left [`Suspended`](CoroutineState::Suspended), and what it
    /// waits for resumes it as ever. It is also left so if it catches what unwinds it again and
    /// again. When the last handle to such a coroutine goes away its stack is abandoned: never used
    /// again, and never freed.
    ///
    /// # Panics
    ///
    /// If it runs, or waits for one that it resumed; if it is scheduled, for its scheduler
    /// would resume what has ended (see [`take_back_wake`](Self::take_back_wake)). A panic of a
    /// destructor goes on in the caller.
    ///
    /// # Aborts
    ///
    /// If it is suspended in a destructor that runs because of a panic of its own: a second panic
    /// cannot get out of there. So does any unwinding in a program built with `panic = "abort"`.
    #[track_caller]
    pub fn unwind(&self) {
        if self.state() == CoroutineState::Terminated {
            return;
        }
        self.check_resumable();
        if let Some(payload) = self.end() {
            resume_unwind(payload);
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
    /// There is another handle to it.
    #[inline]
    pub(crate) unsafe fn clone_raw(control: *const Control) -> Coroutine {
        // SAFETY: by the caller it is valid, so it is not null either.
        unsafe {
            (*control).set_references((*control).references() + 1);
            Coroutine { control: NonNull::new_unchecked(control.cast_mut()) }
        }
    }

    #[inline]
    pub(crate) fn control(&self) -> &Control {
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

    /// Unwinds it, or drops its closure. Returns the first panic that came of it.
    #[cold]
    fn end(&self) -> Option<Payload> {
        let control = self.control();
        match control.state() {
            CoroutineState::Created => {
                control.set_state(CoroutineState::Terminated);
                // SAFETY: it has not run, so the closure is still there; being terminated, it is
                // not dropped again.
                catch_unwind(AssertUnwindSafe(|| unsafe { entry::drop_unrun(control) })).err()
            }
            CoroutineState::Suspended if control.unwinding() == Unwinding::No => {
                // SAFETY: it is suspended.
                unsafe { run::unwind_frames(control) };
                run::settle_first(control)
            }
            _ => None,
        }
    }

    /// What becomes of a coroutine when a handle goes away. Returns the panic that came of it, if
    /// any.
    #[inline]
    pub(crate) fn give_up(&self) -> Option<Payload> {
        let control = self.control();
        if control.references() > 1 {
            control.set_references(control.references() - 1);
            return None;
        }
        if !control.is_done() {
            return self.give_up_unended();
        }
        // SAFETY: this is the last handle, and the coroutine has terminated.
        unsafe { pool::release(self.control) };
        None
    }

    /// What the last handle does when it goes away before the coroutine has ended.
    #[cold]
    #[inline(never)]
    fn give_up_unended(&self) -> Option<Payload> {
        let control = self.control();
        // There is no other handle, so it is in no list either.
        control.set_scheduled_by(None);
        let payload = self.end();
        if control.references() > 1 {
            // A destructor has made another handle, and put it somewhere.
            control.set_references(control.references() - 1);
        } else if control.state() == CoroutineState::Terminated {
            // SAFETY: this is the last handle, and the coroutine has terminated.
            unsafe { pool::release(self.control) };
        } else {
            pool::abandon(self.control);
        }
        payload
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
    // Always inlined, for most handles are not the last one.
    #[inline(always)]
    fn drop(&mut self) {
        let control = self.control();
        if control.references() > 1 {
            control.set_references(control.references() - 1);
        } else {
            Coroutine::drop_last(self.control);
        }
    }
}

impl Coroutine {
    /// Drops the last handle.
    #[inline(never)]
    fn drop_last(control: NonNull<Control>) {
        // SAFETY: the last handle keeps the block, and goes away here.
        let block = unsafe { control.as_ref() };
        if block.is_done() {
            // SAFETY: this was the last handle, and the coroutine has terminated.
            unsafe { pool::release(control) };
        } else {
            Coroutine::drop_unended(control);
        }
    }

    #[cold]
    #[inline(never)]
    fn drop_unended(control: NonNull<Control>) {
        let last = ManuallyDrop::new(Coroutine { control });
        // While the thread is already panicking, another panic from a destructor would abort.
        if let Some(payload) = last.give_up_unended()
            && !thread::panicking()
        {
            resume_unwind(payload);
        }
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
