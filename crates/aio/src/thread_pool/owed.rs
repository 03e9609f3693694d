//! Wake-ups that the calling thread owes to workers.
//!
//! A wake-up costs a system call, and on the loop's own CPU a switch to the worker and back. A turn of a loop
//! may submit many jobs; one wake-up is enough for all of them, as workers wake each other
//! ([`parking`](super::parking)). So a job that is submitted in a turn of its loop is queued, and the wake-up is
//! *owed*.
//!
//! # No job is left without a worker
//!
//! The invariant: **while jobs are queued, a worker was woken that has not looked into the queue since, or no
//! worker sleeps, or the thread that queued them owes the wake-up.** The thread *pays* when it wakes a
//! worker, or finds that one was woken, that none sleeps, or that no jobs are queued. It
//!
//! * owes only between the begin of a turn and its next wait. Outside of a turn it wakes a worker at once;
//! * [settles](settle) at the end of the turn, also when that is left by a panic, and before a nested poll: it pays,
//!   unless an awake worker will take the jobs sooner than one that has to be woken first. If no job comes home
//!   for as long as a wake-up takes, that was wrong, and it pays all the same;
//! * [pays](pay) before each of its waits: when any of its contexts sleeps, when it waits for a job or a request of
//!   a coroutine that is unwound, for a call to another context, for another thread's coroutine, for a
//!   thread that ends.
//!
//! So short jobs are left to the workers that are awake, and jobs that block get workers of their own at the
//! latest when the loop sleeps. A callback that blocks its thread in another way until a job has run waits for
//! itself (contract: C54).
//!
//! `models/parking.rs` runs this in every order of up to two workers.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::PoolState;
use crate::sys;
use crate::waiting::WakeCost;

/// What a thread owes.
struct Debt {
    owes: Cell<bool>,
    /// When it was first left to workers that are awake, or the last job came home after that. 0: unknown.
    left_at_ns: Cell<u64>,
}

thread_local! {
    static DEBT: Debt = const { Debt { owes: Cell::new(false), left_at_ns: Cell::new(0) } };
    /// To which pool it owes, or has owed last: kept, so that no reference is counted in each turn.
    static POOL: RefCell<Option<Arc<PoolState>>> = const { RefCell::new(None) };
}

/// Owes a wake-up to a worker of that pool. The calling thread is in a turn.
#[inline]
pub(super) fn owe(pool: &Arc<PoolState>) {
    let owed = POOL.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if !kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, pool)) {
            let other = kept.replace(Arc::clone(pool));
            if let Some(other) = other.filter(|_| DEBT.with(|debt| debt.owes.get())) {
                other.wake_worker();
            }
        }
        DEBT.with(|debt| debt.owes.set(true));
    });
    if owed.is_err() {
        // The thread is ending.
        pool.wake_worker();
    }
}

/// A job of a loop of the calling thread has come home: workers get on.
#[inline]
pub(crate) fn job_done() {
    DEBT.with(|debt| debt.left_at_ns.set(0));
}

/// Pays what the calling thread owes, unless a worker that is awake is as good. It does not wait before it
/// comes here again, or [pays](pay).
#[inline]
pub(crate) fn settle() {
    if DEBT.with(|debt| debt.owes.get()) {
        with_pool(|pool| {
            if !pool.is_attended() || DEBT.with(Debt::is_overdue) {
                pay();
            }
        });
    }
}

/// Pays what the calling thread owes: it is about to wait.
#[inline]
pub(crate) fn pay() {
    if DEBT.with(|debt| debt.owes.replace(false)) {
        DEBT.with(|debt| debt.left_at_ns.set(0));
        with_pool(|pool| pool.wake_worker());
    }
}

impl Debt {
    /// Whether no job has come home for as long as a wake-up takes.
    fn is_overdue(&self) -> bool {
        let now_ns = sys::clock_ns();
        if self.left_at_ns.get() == 0 {
            self.left_at_ns.set(now_ns);
        }
        now_ns - self.left_at_ns.get() > WakeCost::here().ns()
    }
}

fn with_pool(act: impl FnOnce(&PoolState)) {
    let _ = POOL.try_with(|pool| {
        // A child of a fork in a turn has inherited the debt, but none of the workers.
        if let Some(pool) = pool.borrow().as_ref().filter(|pool| pool.process.is_here()) {
            act(pool);
        }
    });
}

/// Forgets the pool: the thread has no more loops, perhaps.
pub(crate) fn forget() {
    pay();
    // The last one to know a pool frees it, so not while it is borrowed.
    let pool = POOL.try_with(RefCell::take);
    drop(pool);
}
