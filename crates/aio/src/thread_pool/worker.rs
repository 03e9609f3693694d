//! One worker thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::RecvTimeoutError;

use super::job::JobHeader;
use super::{Message, PoolState, lock};
use crate::shared::Shared;
use crate::sys;
use crate::trace_event;

/// Takes jobs until the pool has one worker too many, or stops.
pub(super) fn run(state: &PoolState) {
    sys::block_signals();
    trace_event!("thread_pool_worker_start");
    // The context that the last job went to, kept so that most jobs touch no reference count.
    let mut home = None;
    state.available.fetch_add(1, Ordering::AcqRel);
    while let Some(message) = next(state, &mut home) {
        state.refill_if_overflowing();
        match message {
            // SAFETY: taken from the channel, so it is ours to run.
            Message::Job(job) => unsafe { JobHeader::run(job, &mut home) },
            Message::Recheck => {}
            Message::Stop => break,
        }
        // Ready again. Before the check for a surplus, which takes it back.
        state.available.fetch_add(1, Ordering::AcqRel);
        if state.over_max.load(Ordering::Relaxed) && leave_if_above_max(state) {
            break;
        }
    }
    trace_event!("thread_pool_worker_end");
}

/// The next message, or `None` when this worker shall end. It has left the books then.
fn next(state: &PoolState, home: &mut Option<Arc<Shared>>) -> Option<Message> {
    loop {
        if let Ok(message) = state.receiver.try_recv() {
            return Some(message);
        }
        // Nothing to do: do not keep a context's memory meanwhile.
        *home = None;
        match state.receiver.recv_timeout(state.idle_timeout) {
            Ok(message) => return Some(message),
            Err(RecvTimeoutError::Timeout) if leave_if_idle(state) => return None,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Idle for long (contract: C58). Stays if the pool is at its minimum, or if a job is already on
/// its way to this worker.
fn leave_if_idle(state: &PoolState) -> bool {
    let mut limits = lock(&state.limits);
    limits.threads > limits.min && leave(state, &mut limits)
}

/// The maximum was lowered (contract: C59).
fn leave_if_above_max(state: &PoolState) -> bool {
    let mut limits = lock(&state.limits);
    limits.threads > limits.max && leave(state, &mut limits)
}

/// Takes this worker off the books, unless that would leave a job without one.
fn leave(state: &PoolState, limits: &mut super::Limits) -> bool {
    let available = state.available.fetch_sub(1, Ordering::AcqRel);
    if available <= 0 && limits.threads <= limits.max {
        // A job has claimed the place we hold.
        state.available.fetch_add(1, Ordering::AcqRel);
        return false;
    }
    limits.threads -= 1;
    state.publish(limits);
    true
}
