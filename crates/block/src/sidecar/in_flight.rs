//! [`InFlight`]: writes that are under way, counted so that those of before an instant can be waited for while
//! others begin.
//!
//! A write counts itself in the half that is in use when it begins, and then looks whether its regions are
//! entered. To wait is to change the half, wait until the other one is empty, and to do that once more: a write
//! that found the half before the first change, and has counted itself after it, is in one of both.

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

use coblk_aio::{Co, CoWaker};

use crate::bitmap::atomics::{AtomicBool, AtomicUsize, Ordering, model_fence};

/// Any thread; one waits at a time, by a `W`.
pub(super) struct InFlight<W = CoWaker> {
    turns: AtomicUsize,
    halves: [AtomicUsize; 2],
    is_waited_for: AtomicBool,
    waiter: Mutex<Option<W>>,
}

/// The half in which a write is counted.
pub(super) type Half = usize;

impl<W> Default for InFlight<W> {
    fn default() -> InFlight<W> {
        let (turns, halves, is_waited_for) = Default::default();
        InFlight { turns, halves, is_waited_for, waiter: Mutex::new(None) }
    }
}

impl<W> InFlight<W> {
    pub(super) fn begin(&self) -> Half {
        let half = self.turns.load(Ordering::SeqCst) % 2;
        self.halves[half].fetch_add(1, Ordering::SeqCst);
        // The caller looks next whether its regions are entered.
        model_fence();
        half
    }

    /// Returns what is to be woken.
    #[must_use]
    pub(super) fn end(&self, half: Half) -> Option<W> {
        let was_last = self.halves[half].fetch_sub(1, Ordering::SeqCst) == 1;
        model_fence();
        let is_waited_for = was_last && self.is_waited_for.load(Ordering::SeqCst);
        if is_waited_for { self.waiter().take() } else { None }
    }

    fn waiter(&self) -> MutexGuard<'_, Option<W>> {
        self.waiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `wait` called until all writes have ended that have begun before. It is given what waits, and hands that
    /// to [`leave`](Self::leave).
    pub(super) fn wait(&self, mut wait: impl FnMut(Half)) {
        self.is_waited_for.store(true, Ordering::SeqCst);
        for _ in 0..2 {
            let half = self.turns.fetch_add(1, Ordering::SeqCst) % 2;
            model_fence();
            while self.halves[half].load(Ordering::SeqCst) > 0 {
                wait(half);
            }
        }
        self.is_waited_for.store(false, Ordering::SeqCst);
    }

    /// Leaves what is woken when a half is empty; gives it back if that is so already.
    pub(super) fn leave(&self, half: Half, waiter: W) -> Option<W> {
        let mut left = self.waiter();
        // Looked at again under the lock that the end takes.
        if self.halves[half].load(Ordering::SeqCst) > 0 {
            *left = Some(waiter);
            return None;
        }
        Some(waiter)
    }
}

impl InFlight {
    /// Waits until all writes have ended that have begun before.
    pub(super) fn co_wait(&self, co: &Co<'_>) {
        self.wait(|half| {
            co.suspend_for("writes in flight", |waker| {
                if let Some(waker) = self.leave(half, waker) {
                    co.context().schedule(move |_| waker.wake());
                }
            });
        });
    }
}
