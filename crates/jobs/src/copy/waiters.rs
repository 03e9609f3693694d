//! [`Waiters`]: guests that wait for the end of claims. Those of any context.

use std::sync::{Mutex, PoisonError};

use coblk_aio::{Co, CoWaker};

use super::atomics::{AtomicU64, Ordering, model_fence};

/// They count themselves, and then look once more, before they sleep; the end of a claim clears its bits, and then
/// looks for them. One of the two sees the other. Without waiters the end of a claim costs one load more.
#[derive(Default)]
pub(crate) struct Waiters {
    count: AtomicU64,
    list: Mutex<Vec<CoWaker>>,
}

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<CoWaker>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next [`wake`](Self::wake), unless `is_over` already.
    pub(crate) fn co_wait(&self, co: &Co<'_>, is_over: impl Fn() -> bool) {
        self.count.fetch_add(1, Ordering::SeqCst);
        model_fence();
        let _counted = Counted(&self.count);
        if is_over() {
            return;
        }
        co.suspend_for("the end of a copy", |waker| {
            let mut list = self.lock();
            // The lock is held until the waker is stored: a claim that ends meanwhile finds it.
            if is_over() {
                drop(list);
                co.context().schedule(move |_| waker.wake());
            } else {
                list.push(waker);
            }
        });
    }

    /// Claims have ended.
    pub(crate) fn wake(&self) {
        model_fence();
        if self.count.load(Ordering::SeqCst) > 0 {
            let waiting = std::mem::take(&mut *self.lock());
            waiting.into_iter().for_each(CoWaker::wake);
        }
    }
}

struct Counted<'a>(&'a AtomicU64);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
