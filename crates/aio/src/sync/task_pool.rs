//! [`TaskPool`]: many coroutines, a bounded number at once.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::resume_unwind;
use std::rc::Rc;

use super::queue::CoQueue;
use crate::co::Co;
use crate::panics;

/// Runs tasks in coroutines of one context, at most so many at once, and keeps the first error.
/// For work that splits one request into many, such as a long copy.
///
/// ```
/// use coblk_aio::AioContext;
/// use coblk_aio::sync::TaskPool;
///
/// let ctx = AioContext::new()?;
/// let outcome = ctx.run(|co| {
///     let pool = TaskPool::<std::io::Error>::new(4);
///     for chunk in 0..100 {
///         pool.start(co, "copy", move |co| {
///             co.context().thread_pool().submit_co(co, || assert!(chunk < 100));
///             Ok(())
///         });
///     }
///     pool.wait_all(co)
/// });
/// assert!(outcome.is_ok());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Dropping the pool changes nothing for tasks that run.
pub struct TaskPool<E> {
    shared: Rc<Shared<E>>,
    max_busy: usize,
}

struct Shared<E> {
    busy: Cell<usize>,
    ended: Cell<u64>,
    first_error: RefCell<Option<E>>,
    /// What the first panic of a task said.
    first_panic: RefCell<Option<String>>,
    /// Those who wait for a task to end.
    waiting: CoQueue,
}

impl<E: 'static> TaskPool<E> {
    /// A pool for `max_busy` tasks at once.
    ///
    /// # Panics
    /// If that is 0.
    pub fn new(max_busy: usize) -> TaskPool<E> {
        assert!(max_busy > 0, "a task pool for no tasks");
        let shared = Shared {
            busy: Cell::new(0),
            ended: Cell::new(0),
            first_error: RefCell::new(None),
            first_panic: RefCell::new(None),
            waiting: CoQueue::new(),
        };
        TaskPool { shared: Rc::new(shared), max_busy }
    }

    /// Waits for a slot, then runs `task` in it until it first suspends.
    ///
    /// If `task` panics its slot is free again, the panic is the loop's
    /// ([`PanicPolicy`](crate::PanicPolicy)), and [`wait_all`](Self::wait_all) panics too.
    pub fn start(
        &self,
        co: &Co<'_>,
        name: &'static str,
        task: impl FnOnce(&Co<'_>) -> Result<(), E> + 'static,
    ) {
        self.wait_slot(co);
        let slot = Slot::take(&self.shared);
        co.context().spawn(name, move |co| {
            let slot = slot;
            match co.catch_unwind(|| task(co)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    slot.0.first_error.borrow_mut().get_or_insert(error);
                }
                Err(panic) => {
                    let message = panics::message(&*panic).to_owned();
                    slot.0.first_panic.borrow_mut().get_or_insert(message);
                    drop(slot);
                    resume_unwind(panic);
                }
            }
        });
    }

    /// Waits until fewer than the maximum run.
    pub fn wait_slot(&self, co: &Co<'_>) {
        while self.shared.busy.get() >= self.max_busy {
            self.shared.waiting.wait(co);
        }
    }

    /// Waits until one more task has ended; does not wait if none runs.
    pub fn wait_one(&self, co: &Co<'_>) {
        let ended = self.shared.ended.get();
        while self.shared.busy.get() > 0 && self.shared.ended.get() == ended {
            self.shared.waiting.wait(co);
        }
    }

    /// Waits until no task runs.
    ///
    /// # Errors
    /// With the first error since the last time, as [`take_error`](Self::take_error).
    ///
    /// # Panics
    /// If a task has panicked since the last time.
    pub fn wait_all(&self, co: &Co<'_>) -> Result<(), E> {
        while self.shared.busy.get() > 0 {
            self.shared.waiting.wait(co);
        }
        if let Some(message) = self.shared.first_panic.take() {
            panic!("a task has panicked: {message}");
        }
        self.take_error().map_or(Ok(()), Err)
    }

    /// Whether a task has failed, and its error has not been taken.
    pub fn has_failed(&self) -> bool {
        self.shared.first_error.borrow().is_some()
    }

    /// The first error that a task ended with, once.
    pub fn take_error(&self) -> Option<E> {
        self.shared.first_error.borrow_mut().take()
    }

    /// Tasks that run now.
    pub fn busy(&self) -> usize {
        self.shared.busy.get()
    }
}

/// A task's place. Free again when the task is gone, however it went.
struct Slot<E>(Rc<Shared<E>>);

impl<E> Slot<E> {
    fn take(shared: &Rc<Shared<E>>) -> Slot<E> {
        shared.busy.set(shared.busy.get() + 1);
        Slot(Rc::clone(shared))
    }
}

impl<E> Drop for Slot<E> {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
        self.0.ended.set(self.0.ended.get() + 1);
        // All of them: they wait for different things, and each looks for itself.
        self.0.waiting.wake_all();
    }
}

impl<E> fmt::Debug for TaskPool<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskPool")
            .field("busy", &self.shared.busy.get())
            .field("max_busy", &self.max_busy)
            .finish_non_exhaustive()
    }
}
