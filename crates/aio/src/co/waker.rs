//! [`CoWaker`]: resumes one suspension of one coroutine, from any thread.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;

use super::task::{Task, Wake};
use crate::home::Home;

/// Wakes a coroutine that suspended with [`Co::suspend_with`](super::Co::suspend_with).
///
/// It is made for one suspension and consumed by [`wake`](Self::wake), so waking twice, or waking
/// a coroutine that has gone on, cannot be written (contract: C8, C25):
///
/// ```compile_fail
/// fn twice(waker: coblk_aio::CoWaker) {
///     waker.wake();
///     waker.wake();
/// }
/// ```
///
/// Dropping it unused makes the coroutine panic, for nothing else could wake it.
#[must_use = "a coroutine whose waker is dropped panics"]
pub struct CoWaker {
    task: NonNull<Task>,
    home: Arc<Home>,
}

// SAFETY: all that other threads do with the task is `Task::wake`, which goes through its atomic
// state and the context's remote list.
unsafe impl Send for CoWaker {}
// SAFETY: a shared reference to a waker offers nothing.
unsafe impl Sync for CoWaker {}

impl CoWaker {
    pub(super) fn arm(task: NonNull<Task>) -> CoWaker {
        // SAFETY: called by `Co`, whose task is live.
        CoWaker { task, home: unsafe { task.as_ref() }.arm() }
    }

    /// Resumes the coroutine in its own context (contract: C21): at once if this is its thread and
    /// no coroutine runs (C22); when the running coroutine suspends or ends, if there is one (C23);
    /// from a bottom half of that context if this is another thread (C24). If the context is gone,
    /// nothing happens.
    ///
    /// # Panics
    /// If a coroutine wakes itself. On the home thread also with whatever the coroutine panics
    /// with when it is resumed at once.
    pub fn wake(self) {
        self.wake_how(Wake::AtOnce);
    }

    /// [`wake`](Self::wake), but always from a bottom half.
    pub(crate) fn wake_later(self) {
        self.wake_how(Wake::Later);
    }

    #[inline]
    fn wake_how(self, wake: Wake) {
        let this = ManuallyDrop::new(self);
        // SAFETY: `self` is consumed and forgotten, so each field is used once, here; the home
        // handle is read out and dropped below, or when `Task::wake` unwinds.
        let (task, home) = unsafe { (this.task, std::ptr::read(&this.home)) };
        // SAFETY: our own task, and our only use of it.
        unsafe { Task::wake(task, &home, wake) };
    }
}

impl Drop for CoWaker {
    fn drop(&mut self) {
        // SAFETY: `wake` does not run this, so it is our only use of the task.
        unsafe { Task::wake(self.task, &self.home, Wake::Lost) };
    }
}

impl fmt::Debug for CoWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoWaker").field("context", &self.home.name).finish_non_exhaustive()
    }
}
