//! Coroutines of a context: [`Co`], the right to suspend, and [`CoWaker`], the way back.

mod block_on;
mod blocking;
mod call;
mod info;
mod note;
mod pool_share;
mod ring_io;
mod task;
mod waker;
mod wanted;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::ptr::NonNull;

use coblk_coroutine::Suspender;

use crate::context::{AioContext, Inner};
use crate::trace_event;
pub use blocking::AioJob;
pub(crate) use call::serve_cancels;
pub use info::CoroutineInfo;
use note::Note;
pub use note::NoteInfo;
pub use pool_share::PoolShare;
pub(crate) use pool_share::Shares;
pub(crate) use task::{Task, TaskLayout, TaskList};
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
    release: Release,
    suspender: &'a Suspender,
    home: PhantomData<*mut ()>,
}

impl<'a> Co<'a> {
    pub(crate) fn new(release: Release, suspender: &'a Suspender) -> Co<'a> {
        Co { release, suspender, home: PhantomData }
    }

    #[inline]
    pub(crate) fn task(&self) -> &Task {
        // SAFETY: live until `release` is dropped.
        unsafe { self.release.task.get().as_ref() }
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

    /// Its number, unique in the process: that of [`CoroutineInfo::id`].
    pub fn id(&self) -> u64 {
        self.suspender.coroutine().id()
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
    /// If the waker was dropped without being used: nothing could ever wake this coroutine, and a
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
        register(CoWaker::arm(self.release.task.get()));
        let out = WakerOut(self);
        self.suspend_until_woken(what);
        std::mem::forget(out);
        let task = self.task();
        assert!(
            !task.waker_was_lost(),
            "coroutine '{}': its waker was dropped, nobody can wake it any more",
            task.name()
        );
    }

    /// Goes to the end of the loop's next bottom-half phase, so that everything else that is ready
    /// runs first.
    #[inline(always)]
    pub fn yield_now(&self) {
        self.task().assert_idle();
        let out = WakerOut(self);
        Task::schedule_local(self.release.task.get());
        self.suspend_until_woken("its turn");
        std::mem::forget(out);
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
    /// happened already. Resumed for any other reason, it suspends again: other code may have got
    /// hold of the coroutine's handle, and its node is not free before it is woken.
    #[inline(always)]
    fn suspend_until_woken(&self, what: &'static str) {
        while !self.task().is_idle() {
            self.suspend(what);
        }
    }

    /// Suspends. The caller checks that what it waits for has happened.
    #[inline(always)]
    pub(crate) fn suspend(&self, what: &'static str) {
        self.task().set_suspended(what);
        trace_event!("coroutine_yield", coroutine = self.name(), what);
        self.suspender.suspend();
    }
}

/// When a suspension is unwound: its waker may still be out, or its node on a list, and the coroutine
/// may suspend again on its way to its end.
struct WakerOut<'a, 'b>(&'a Co<'b>);

impl Drop for WakerOut<'_, '_> {
    #[cold]
    fn drop(&mut self) {
        let Release { inner, task } = &self.0.release;
        if !self.0.task().is_idle() {
            // SAFETY: a context outlives its coroutines, of which this is one. The `Co` is all that
            // refers to the task: whatever else did has been unwound with the suspension.
            task.set(unsafe { inner.as_ref().tasks().replace(task.get()) });
        }
    }
}

/// Gives a task back when its coroutine's closure is gone, run or not.
// Aligned, so that it does not move what is captured with it off the 16-byte pieces that closures
// are copied in; a load across two fresh pieces has to wait for both.
#[repr(align(16))]
pub(crate) struct Release {
    inner: NonNull<Inner>,
    task: Cell<NonNull<Task>>,
}

impl Release {
    /// # Safety
    /// `task` was acquired from that context, for the closure that this will be dropped with.
    pub(crate) unsafe fn new(inner: NonNull<Inner>, task: NonNull<Task>) -> Release {
        Release { inner, task: Cell::new(task) }
    }
}

impl Drop for Release {
    #[inline]
    fn drop(&mut self) {
        trace_event!("coroutine_terminate");
        // SAFETY: a context outlives its coroutines and their closures. The task was acquired for
        // this closure, which is dropped once; the resumer of a coroutine holds a handle on it.
        unsafe { self.inner.as_ref().tasks().release(self.task.get()) };
    }
}

impl fmt::Debug for Co<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Co").field("name", &self.name()).finish_non_exhaustive()
    }
}
