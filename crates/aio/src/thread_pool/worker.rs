//! One worker thread.

use std::sync::Arc;

use crossbeam_utils::Backoff;

use super::headcount::Leave;
use super::job::JobHeader;
use super::parking::{Parking, Sleeper, Wakeup};
use super::{AbortOnUnwind, IDLE_TIMEOUT, Message, PoolState};
use crate::home::Home;
use crate::trace_event;

/// Takes jobs until the pool has one worker too many, or stops.
pub(super) fn run(state: &PoolState) {
    // Jobs catch their panics. What panics elsewhere, such as a subscriber for events, would take
    // a job with it, and its submitter would wait forever.
    let no_unwinding = AbortOnUnwind("a worker thread runs");
    trace_event!("thread_pool_worker_start");
    let sleeper = Parking::sleeper();
    // The context that the last job went to, kept so that most jobs touch no reference count.
    let mut home = None;
    state.headcount.worker_started();
    while let Some(message) = next(state, &sleeper, &mut home) {
        state.refill_if_overflowing();
        // Ready again: before the job is home, so that its submitter finds this worker and
        // starts no other for what comes next; and before the check for a surplus, which takes it
        // back.
        let ready = || state.headcount.worker_ready();
        match message {
            // SAFETY: taken from the channel, so it is ours to run.
            Message::Job(job) => unsafe { JobHeader::run(job, &mut home, ready) },
            Message::Recheck => ready(),
            Message::Stop => break,
        }
        if state.headcount.over_max() && state.headcount.try_leave(Leave::AboveMax) {
            break;
        }
    }
    // A submitter may have counted on this worker to look into the queue once more.
    state.wake_worker();
    trace_event!("thread_pool_worker_end");
    std::mem::forget(no_unwinding);
}

/// The next message, or `None` when this worker shall end. It is deregistered then.
fn next(
    state: &PoolState,
    sleeper: &Arc<Sleeper>,
    home: &mut Option<Arc<Home>>,
) -> Option<Message> {
    if let Ok(message) = state.receiver.try_recv() {
        return Some(message);
    }
    // Nothing to do: do not keep a context's memory meanwhile.
    *home = None;
    let mut patience = state.idle_timeout;
    state.parking.begin_search();
    loop {
        if let Some(message) = search(state) {
            state.parking.end_search(|| state.has_messages());
            return Some(message);
        }
        match state.parking.sleep(sleeper, patience, || state.receiver.try_recv().ok()) {
            Wakeup::Found(message) => {
                state.wake_worker();
                return Some(message);
            }
            Wakeup::Woken => {}
            Wakeup::TimedOut if state.headcount.try_leave(Leave::Idle) => return None,
            Wakeup::TimedOut => {
                // It has to stay, so it does not ask again at once, however short the time is.
                patience = patience.max(IDLE_TIMEOUT);
                state.parking.begin_search();
            }
        }
    }
}

/// Looks for a while: work often comes right after work, and then no worker has to be woken.
fn search(state: &PoolState) -> Option<Message> {
    let patience = Backoff::new();
    loop {
        if let Ok(message) = state.receiver.try_recv() {
            return Some(message);
        }
        if patience.is_completed() {
            return None;
        }
        patience.snooze();
    }
}
