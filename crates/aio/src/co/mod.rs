//! Coroutines of a context: [`Co`], the right to suspend, and [`CoWaker`], the way back.

mod list;
mod note;
mod task;
mod waker;
mod wanted;

use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::ptr::NonNull;

use coblk_coroutine::Suspender;

use crate::context::AioContext;
use crate::trace_event;
pub use list::CoroutineInfo;
use note::Note;
pub use note::NoteInfo;
pub(crate) use task::{Task, TaskList};
pub use waker::CoWaker;
pub use wanted::Wanted;

/// The right to suspend (design decision D2).
///
/// Code that may suspend takes a `&Co<'_>`; only code that runs in a coroutine has one. It knows
/// the coroutine's context, which never changes (contract: C12).
///
/// It stays on its thread:
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<coblk_aio::Co<'static>>();
/// ```
pub struct Co<'a> {
    task: NonNull<Task>,
    suspender: &'a Suspender,
    home: PhantomData<*mut ()>,
}

impl<'a> Co<'a> {
    pub(crate) fn new(task: NonNull<Task>, suspender: &'a Suspender) -> Co<'a> {
        Co { task, suspender, home: PhantomData }
    }

    #[inline]
    pub(crate) fn task(&self) -> &Task {
        // SAFETY: a `Co` lives on its coroutine's stack, inside the frame that releases the task
        // after the `Co` is gone (`AioContext::spawn`).
        unsafe { self.task.as_ref() }
    }

    /// The context it runs in.
    #[inline]
    pub fn context(&self) -> &AioContext {
        self.task().context()
    }

    /// The name it was spawned with.
    pub fn name(&self) -> &'static str {
        self.task().name()
    }

    /// Whether it has ever suspended, that is, whether the code that spawned it has gone on.
    #[inline]
    pub fn has_suspended(&self) -> bool {
        self.task().has_suspended()
    }

    /// Suspends until the waker, which `register` gets to store somewhere, is used.
    ///
    /// The wake may come before this coroutine has suspended, from another thread; it is not lost.
    ///
    /// # Panics
    /// If the waker was dropped without being used: nobody could ever wake this coroutine, and a
    /// request that hangs in silence is worse than one that fails. Also if `register` uses the
    /// waker itself (contract: C23), or suspends with another waker.
    pub fn suspend_with(&self, register: impl FnOnce(CoWaker)) {
        self.suspend_for("a wake-up", register);
    }

    /// [`suspend_with`](Self::suspend_with), saying what it waits for, for
    /// [`AioContext::coroutines`].
    ///
    /// # Panics
    /// As [`suspend_with`](Self::suspend_with).
    pub fn suspend_for(&self, what: &'static str, register: impl FnOnce(CoWaker)) {
        let task = self.task();
        register(CoWaker::arm(self.task));
        self.suspend_until_woken(what);
        assert!(
            !task.waker_was_lost(),
            "coroutine '{}': its waker was dropped, nobody can wake it any more",
            task.name()
        );
    }

    /// Goes to the end of the loop's next bottom-half phase, so that everything else that is ready
    /// runs first.
    #[inline(always)]
    pub fn reschedule(&self) {
        self.task().assert_idle();
        Task::schedule_local(self.task);
        self.suspend_until_woken("its turn");
    }

    /// Runs `code` and catches its panic. The unwinding of the coroutine itself, when its context
    /// ends, is not caught: it must reach the coroutine's end.
    #[inline]
    pub fn catch_unwind<R>(&self, code: impl FnOnce() -> R) -> std::thread::Result<R> {
        std::panic::catch_unwind(AssertUnwindSafe(code)).or_else(|panic| {
            if coblk_coroutine::is_forced_unwind(&*panic) {
                resume_unwind(panic)
            } else {
                Err(panic)
            }
        })
    }

    /// Suspends until the wake that was arranged for has been served; not at all if that has
    /// happened already. Resumed for any other reason, it suspends again: somebody may have got
    /// hold of the coroutine's handle, and its node is not free before it is woken.
    #[inline(always)]
    fn suspend_until_woken(&self, what: &'static str) {
        while !self.task().is_idle() {
            self.suspend(what);
        }
    }

    /// Suspends. Whoever calls this checks that what it waits for has happened.
    #[inline(always)]
    pub(crate) fn suspend(&self, what: &'static str) {
        self.task().set_suspended(what);
        trace_event!("coroutine_yield", coroutine = self.name(), what);
        self.suspender.suspend();
    }
}
