//! [`Waiters`]: guests that wait for the end of claims, or for something besides. Those of any context.

use std::sync::{Mutex, PoisonError};

use coblk_aio::{Co, CoWaker};

use super::atomics::{AtomicU64, Ordering, model_fence};

/// What one waits for, so that others are not woken in vain: of many guests each waits for a copy of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// The end of claims.
    Claims,
    /// One copy, by a number that no other under way has.
    Copy(usize),
    /// Memory.
    Memory,
}

/// They count themselves, and then look once more, before they sleep; the end of a claim clears its bits, and then
/// looks for them. One of the two sees the other. Without waiters the end of a claim costs one load more.
#[derive(Default)]
pub(crate) struct Waiters {
    count: AtomicU64,
    list: Mutex<Vec<(For, CoWaker)>>,
}

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(For, CoWaker)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of claims, unless `is_over` already.
    pub(crate) fn co_wait(&self, co: &Co<'_>, is_over: impl Fn() -> bool) {
        self.co_wait_for(co, For::Claims, is_over);
    }

    /// Waits until this, or all, are [woken](Self::wake_for), unless `is_over` already.
    pub(crate) fn co_wait_for(&self, co: &Co<'_>, what: For, is_over: impl Fn() -> bool) {
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
                list.push((what, waker));
            }
        });
    }

    /// All of them look again.
    pub(crate) fn wake(&self) {
        self.wake_those(|_| true);
    }

    /// This has come to an end. The caller has seen to it that those who look find that.
    pub(crate) fn wake_for(&self, what: For) {
        self.wake_those(|it| it == what);
    }

    fn wake_those(&self, is_meant: impl Fn(For) -> bool) {
        model_fence();
        if self.count.load(Ordering::SeqCst) > 0 {
            // Woken without the lock, which they may take.
            let meant: Vec<_> = self.lock().extract_if(.., |(it, _)| is_meant(*it)).collect();
            meant.into_iter().for_each(|(_, waker)| waker.wake());
        }
    }
}

struct Counted<'a>(&'a AtomicU64);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use coblk_aio::AioContext;

    use super::*;

    #[test]
    fn none_is_woken_for_what_another_waits_for() {
        let ctx = AioContext::for_test().unwrap();
        let waiters = Rc::new(Waiters::default());
        let (is_over, woken) = (Rc::<Cell<bool>>::default(), Rc::<Cell<[u32; 4]>>::default());
        let all = [For::Claims, For::Copy(1), For::Copy(2), For::Memory];
        for (place, what) in all.into_iter().enumerate() {
            let own = (Rc::clone(&waiters), Rc::clone(&is_over), Rc::clone(&woken));
            ctx.spawn("waits", move |co| {
                let (waiters, is_over, woken) = own;
                while !is_over.get() {
                    waiters.co_wait_for(co, what, || is_over.get());
                    let mut count = woken.get();
                    count[place] += 1;
                    woken.set(count);
                }
            });
        }
        ctx.run_until(|| waiters.lock().len() == 4);
        waiters.wake_for(For::Copy(2));
        waiters.wake_for(For::Copy(3));
        ctx.run_until(|| waiters.lock().len() == 4);
        assert_eq!(woken.get(), [0, 0, 1, 0]);
        waiters.wake_for(For::Claims);
        waiters.wake_for(For::Memory);
        ctx.run_until(|| waiters.lock().len() == 4);
        assert_eq!(woken.get(), [1, 0, 1, 1]);
        is_over.set(true);
        waiters.wake();
        ctx.run_until(|| waiters.count.load(Ordering::SeqCst) == 0);
        assert_eq!(woken.get(), [2, 1, 2, 2]);
    }
}
