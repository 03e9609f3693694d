//! Wake-ups that the calling thread owes to workers.
//!
//! A wake-up costs a system call, and on the loop's own CPU a switch to the worker and back. A turn of a loop
//! may submit many jobs; one wake-up is enough for all of them, as workers wake each other
//! ([`parking`](super::parking)). So a job that is submitted in a turn of its loop is queued, and the wake-up is
//! *owed*, until the turn ends or the thread is about to wait for anything else.
//!
//! # No job is left without a worker
//!
//! The invariant: **while jobs are queued, some worker is awake and will look into the queue, or no worker
//! sleeps, or the thread that queued them owes the wake-up and has not waited since.** A thread
//!
//! * owes only between the begin and the end of a turn. Outside of one it wakes a worker at once;
//! * pays at the end of the turn, also when that is left by a panic;
//! * pays before each of its waits in a turn: a nested poll of any of its contexts, the wait for a job or a
//!   request of a coroutine that is unwound, for a call to another context, for another thread's coroutine,
//!   for a thread that ends.
//!
//! A callback that blocks its thread in another way until a job has run waits for itself (contract: C54).
//!
//! A worker that looks by itself may have taken the jobs before the wake-up is due. So paying looks into the queue
//! first: jobs that are gone need no worker. All of them are: what this thread has queued before the
//! look is seen by it.
//!
//! `models/parking.rs` runs this in every order of up to two workers.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::PoolState;

thread_local! {
    /// Whether the thread owes.
    static OWES: Cell<bool> = const { Cell::new(false) };
    /// To which pool it owes, or has owed last: kept, so that no reference is counted in each turn.
    static POOL: RefCell<Option<Arc<PoolState>>> = const { RefCell::new(None) };
}

/// Owes a wake-up to a worker of that pool. The calling thread is in a turn.
#[inline]
pub(super) fn owe(pool: &Arc<PoolState>) {
    let owed = POOL.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if !kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, pool)) {
            if let Some(other) = kept.replace(Arc::clone(pool)).filter(|_| OWES.get()) {
                other.wake_worker();
            }
        }
        OWES.set(true);
    });
    if owed.is_err() {
        // The thread is ending.
        pool.wake_worker();
    }
}

/// Wakes the worker that the calling thread owes a wake-up to, if it does.
#[inline]
pub(crate) fn pay() {
    if OWES.get() {
        pay_now();
    }
}

fn pay_now() {
    OWES.set(false);
    let _ = POOL.try_with(|pool| {
        // A child of a fork in a turn has inherited the debt, but none of the workers.
        if let Some(pool) = pool.borrow().as_ref().filter(|pool| pool.process.is_here()) {
            pool.wake_worker();
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
