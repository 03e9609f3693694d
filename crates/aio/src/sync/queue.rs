//! [`CoQueue`]: coroutines that wait to be told.

use std::fmt;
use std::sync::Mutex;

use super::mutex::CoMutexGuard;
use super::waiters::{Place, Unwound, WaitList, Waiters, lock};
use crate::co::{Co, CoWaker};

/// A queue of coroutines that wait for a condition, usually on what a [`CoMutex`](super::CoMutex)
/// guards (contract: C69).
///
/// As with any condition variable the condition must be checked again after a wait: another
/// coroutine may have come first.
///
/// ```
/// use coblk_aio::sync::{CoMutex, CoQueue};
/// use coblk_aio::Co;
///
/// fn take(co: &Co<'_>, items: &CoMutex<Vec<u32>>, added: &CoQueue) -> u32 {
///     let mut guard = items.lock(co);
///     loop {
///         match guard.pop() {
///             Some(item) => return item,
///             None => guard = added.wait_locked(co, guard),
///         }
///     }
/// }
/// ```
#[derive(Default)]
pub struct CoQueue {
    waiters: Mutex<Waiters<()>>,
}

impl Default for Waiters<()> {
    fn default() -> Self {
        Waiters::new()
    }
}

impl CoQueue {
    /// An empty queue.
    pub const fn new() -> CoQueue {
        CoQueue { waiters: Mutex::new(Waiters::new()) }
    }

    /// Waits at the end of the queue. Without a lock, so only for conditions that no other thread
    /// changes.
    pub fn wait(&self, co: &Co<'_>) {
        self.wait_at(co, Place::Back, || ());
    }

    /// Waits at the end of the queue; releases the lock meanwhile and takes it again afterwards.
    /// An owner of the lock in between cannot miss this waiter.
    pub fn wait_locked<'a, T: ?Sized>(
        &self,
        co: &Co<'_>,
        guard: CoMutexGuard<'a, T>,
    ) -> CoMutexGuard<'a, T> {
        self.wait_locked_at(co, guard, Place::Back)
    }

    /// As [`wait_locked`](Self::wait_locked), but at the front: for one who was woken, must wait
    /// again, and shall not lose its turn.
    pub fn requeue_locked<'a, T: ?Sized>(
        &self,
        co: &Co<'_>,
        guard: CoMutexGuard<'a, T>,
    ) -> CoMutexGuard<'a, T> {
        self.wait_locked_at(co, guard, Place::Front)
    }

    /// Wakes the first waiter. False if there is none.
    pub fn wake_one(&self) -> bool {
        let next = lock(&self.waiters).pop();
        next.map(CoWaker::wake).is_some()
    }

    /// Wakes all who wait now, in their order.
    pub fn wake_all(&self) {
        let all = lock(&self.waiters).serve(|()| true);
        all.wake();
    }

    /// Whether no coroutine waits, at this moment.
    pub fn is_empty(&self) -> bool {
        lock(&self.waiters).is_empty()
    }

    fn wait_locked_at<'a, T: ?Sized>(
        &self,
        co: &Co<'_>,
        guard: CoMutexGuard<'a, T>,
        place: Place,
    ) -> CoMutexGuard<'a, T> {
        let mutex = CoMutexGuard::mutex(&guard);
        self.wait_at(co, place, || drop(guard));
        mutex.lock(co)
    }

    fn wait_at(&self, co: &Co<'_>, place: Place, queued: impl FnOnce()) {
        let list = WaitList { mutex: &self.waiters, waiters: |list| list };
        list.wait(co, lock(&self.waiters), ((), place), queued, |how| {
            // The wake that it can no longer use may be the only one for a condition that another
            // waiter could use as well.
            if how == Unwound::Served {
                self.wake_one();
            }
        });
    }
}

impl fmt::Debug for CoQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoQueue").field("is_empty", &self.is_empty()).finish()
    }
}
