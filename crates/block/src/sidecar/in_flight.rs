//! [`InFlight`]: writes that are under way, counted so that those of before an instant can be waited for while
//! others begin.
//!
//! A write counts itself in the half that is in use when it begins, and then looks whether its regions are
//! entered. To wait is to change the half, wait until the other one is empty, and to do that once more: a write
//! that found the half before the first change, and has counted itself after it, is in one of both.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coblk_aio::{Co, CoWaker};

/// Any thread; one waits at a time.
#[derive(Default)]
pub(super) struct InFlight {
    turns: AtomicUsize,
    halves: [AtomicUsize; 2],
    is_waited_for: AtomicBool,
    waiter: Mutex<Option<CoWaker>>,
}

/// The half in which a write is counted.
pub(super) type Half = usize;

impl InFlight {
    pub(super) fn begin(&self) -> Half {
        let half = self.turns.load(Ordering::SeqCst) % 2;
        self.halves[half].fetch_add(1, Ordering::SeqCst);
        half
    }

    pub(super) fn end(&self, half: Half) {
        let was_last = self.halves[half].fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last && self.is_waited_for.load(Ordering::SeqCst) {
            let waiter = self.waiter().take();
            waiter.into_iter().for_each(CoWaker::wake);
        }
    }

    fn waiter(&self) -> MutexGuard<'_, Option<CoWaker>> {
        self.waiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all writes have ended that have begun before.
    pub(super) fn co_wait(&self, co: &Co<'_>) {
        self.is_waited_for.store(true, Ordering::SeqCst);
        for _ in 0..2 {
            let half = self.turns.fetch_add(1, Ordering::SeqCst) % 2;
            while self.halves[half].load(Ordering::SeqCst) > 0 {
                co.suspend_for("writes in flight", |waker| {
                    let mut waiter = self.waiter();
                    // Looked at again under the lock that the end takes.
                    if self.halves[half].load(Ordering::SeqCst) > 0 {
                        *waiter = Some(waker);
                    } else {
                        drop(waiter);
                        co.context().schedule(move |_| waker.wake());
                    }
                });
            }
        }
        self.is_waited_for.store(false, Ordering::SeqCst);
    }
}
