//! The list of coroutines that wait for something, first come first served.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;

use crate::co::{Co, CoWaker};

/// Wakers that were taken off a list under its lock, and are to be used without it: to wake may
/// run the coroutine at once.
#[must_use]
pub(super) struct Served(SmallVec<[CoWaker; 4]>);

impl Served {
    /// Wakes them in their order. If one of them runs at once and panics, the others are woken all
    /// the same, and the first panic goes on.
    pub(super) fn wake(self) {
        let mut first = None;
        for waker in self.0 {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
                first.get_or_insert(panic);
            }
        }
        if let Some(panic) = first {
            resume_unwind(panic);
        }
    }
}

/// Locks even if a thread panicked while it held the lock: nothing here is left half-changed.
pub(super) fn lock<S>(mutex: &Mutex<S>) -> MutexGuard<'_, S> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a waiter goes in the list.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Front,
    Back,
}

/// Waiters, each with what it wants. Keeps its memory, so waiting allocates nothing in the end.
pub(super) struct Waiters<T> {
    queue: VecDeque<Waiter<T>>,
    last_ticket: u64,
}

struct Waiter<T> {
    ticket: u64,
    wants: T,
    waker: CoWaker,
}

impl<T> Waiters<T> {
    pub(super) const fn new() -> Waiters<T> {
        Waiters { queue: VecDeque::new(), last_ticket: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes the first one off. To be woken without the lock, as [`Served`].
    pub(super) fn pop(&mut self) -> Option<CoWaker> {
        self.queue.pop_front().map(|waiter| waiter.waker)
    }

    /// Takes off those that `serve` says yes to; it is asked for each, in their order.
    pub(super) fn serve(&mut self, mut serve: impl FnMut(&T) -> bool) -> Served {
        let mut served = SmallVec::new();
        let mut index = 0;
        while let Some(waiter) = self.queue.get(index) {
            if serve(&waiter.wants) {
                served.extend(self.queue.remove(index).map(|waiter| waiter.waker));
            } else {
                index += 1;
            }
        }
        Served(served)
    }

    /// Takes off those at the head of the list that `serve` says yes to, up to the first no.
    pub(super) fn serve_front(&mut self, mut serve: impl FnMut(&T) -> bool) -> Served {
        let mut served = SmallVec::new();
        while self.queue.front().is_some_and(|waiter| serve(&waiter.wants)) {
            served.extend(self.pop());
        }
        Served(served)
    }

    fn push(&mut self, waker: CoWaker, wants: T, place: Place) -> u64 {
        self.last_ticket += 1;
        let waiter = Waiter { ticket: self.last_ticket, wants, waker };
        match place {
            Place::Front => self.queue.push_front(waiter),
            Place::Back => self.queue.push_back(waiter),
        }
        self.last_ticket
    }

    fn remove(&mut self, ticket: u64) -> Option<Waiter<T>> {
        let index = self.queue.iter().position(|waiter| waiter.ticket == ticket)?;
        self.queue.remove(index)
    }
}

/// How a waiter that was unwound was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwound {
    /// On the list; it has been taken off.
    Waiting,
    /// Off the list: it was given what it waited for, and that must go on to the next waiter.
    Served,
}

/// A list of waiters, and the data it is in.
pub(super) struct WaitList<'a, S, T> {
    pub(super) mutex: &'a Mutex<S>,
    pub(super) waiters: fn(&mut S) -> &mut Waiters<T>,
}

impl<S, T> WaitList<'_, S, T> {
    /// Suspends until the taker of the coroutine off the list wakes it. `state` is `mutex`,
    /// locked, under which the caller has decided to wait. `queued` runs when that lock is
    /// released and the coroutine is about to suspend. If it is unwound meanwhile, `unwound` is
    /// called, without the lock.
    pub(super) fn wait(
        &self,
        co: &Co<'_>,
        mut state: MutexGuard<'_, S>,
        (wants, place): (T, Place),
        queued: impl FnOnce(),
        unwound: impl FnMut(Unwound),
    ) {
        let mut guard = RemoveOnUnwind { list: self, ticket: None, unwound };
        co.suspend_with(|waker| {
            guard.ticket = Some((self.waiters)(&mut state).push(waker, wants, place));
            drop(state);
            queued();
        });
        guard.ticket = None;
    }
}

struct RemoveOnUnwind<'a, S, T, F: FnMut(Unwound)> {
    list: &'a WaitList<'a, S, T>,
    /// Set while the coroutine is on the list, or has been served and does not know yet.
    ticket: Option<u64>,
    unwound: F,
}

impl<S, T, F: FnMut(Unwound)> Drop for RemoveOnUnwind<'_, S, T, F> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let removed = (self.list.waiters)(&mut lock(self.list.mutex)).remove(ticket);
        let how = if removed.is_some() { Unwound::Waiting } else { Unwound::Served };
        drop(removed);
        (self.unwound)(how);
    }
}
