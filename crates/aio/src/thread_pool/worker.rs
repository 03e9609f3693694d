//! One worker thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::headcount::Leave;
use super::job::JobHeader;
use super::job_time::JobTimer;
use super::parking::{Parking, Sleeper, Wakeup};
use super::{AbortOnUnwind, IDLE_TIMEOUT, Message, PoolState};
use crate::home::Home;
use crate::trace_event;
use crate::waiting::{Presence, WaitRule, WakeCost, may_spin, spin};

/// Takes jobs until the pool has one worker too many, or stops.
pub(super) fn run(state: &PoolState) {
    // Jobs catch their panics. What panics elsewhere, such as a subscriber for events, would take
    // a job with it, and its submitter would wait forever.
    let no_unwinding = AbortOnUnwind("a worker thread runs");
    trace_event!("thread_pool_worker_start");
    let mut worker = Worker::new(state);
    state.headcount.worker_started();
    while let Some(message) = worker.next() {
        state.refill_if_overflowing();
        // Ready again: before the job is home, so that its submitter finds this worker and
        // starts no other for what comes next; and before the check for a surplus, which takes it
        // back.
        let ready = || state.headcount.worker_ready();
        match message {
            Message::Job(job) => {
                let begin = worker.timer.begin(&state.job_time);
                // SAFETY: taken from the channel, so it is ours to run.
                worker.loop_slept = unsafe { JobHeader::run(job, &mut worker.home, ready) };
                worker.timer.end(&state.job_time, begin);
            }
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

/// How a worker waits for its next message. Belongs to its thread.
struct Worker<'a> {
    state: &'a PoolState,
    sleeper: Arc<Sleeper>,
    /// The context that the last job went to, kept so that most jobs touch no reference count.
    home: Option<Arc<Home>>,
    /// Whether the loop slept when that job came home.
    loop_slept: bool,
    rule: WaitRule,
    timer: JobTimer,
    presence: Presence,
}

impl Worker<'_> {
    fn new(state: &PoolState) -> Worker<'_> {
        let presence = Presence::new();
        presence.wakes();
        Worker {
            state,
            sleeper: Parking::sleeper(),
            home: None,
            loop_slept: false,
            rule: WaitRule::new(),
            timer: JobTimer::new(),
            presence,
        }
    }

    /// The next message, or `None` when this worker shall end. It is deregistered then.
    fn next(&mut self) -> Option<Message> {
        let state = self.state;
        if let Ok(message) = state.receiver.try_recv() {
            return Some(message);
        }
        let start = Instant::now();
        let mut limit_ns = 0;
        // While one spins, another one's spinning would be in vain.
        if self.may_look() && state.parking.begin_spin() {
            limit_ns = self.rule.limit_ns(WakeCost::here());
            let message = self.look(start, Duration::from_nanos(limit_ns));
            state.parking.end_spin();
            if message.is_some() {
                self.rule.found(nanos_since(start), WakeCost::here());
                if !state.job_time.is_short() {
                    state.wake_worker();
                }
                return message;
            }
        }
        // Do not keep a context's memory while there is nothing to do.
        self.home = None;
        let message = self.sleep()?;
        self.rule.slept(limit_ns, nanos_since(start), WakeCost::here());
        Some(message)
    }

    /// Whether it may look for its next message: for one of the loop that it has worked for last, if that is on
    /// another CPU, and awake. A loop that slept meanwhile has first to be woken, which takes as long as
    /// the worker may look; and it sleeps because its jobs take longer than that.
    fn may_look(&self) -> bool {
        !self.loop_slept && self.home.as_ref().is_some_and(|home| may_spin(Some(&home.place)))
    }

    /// Looks for a while: work often comes right after work, and then no worker has to be woken.
    fn look(&self, start: Instant, limit: Duration) -> Option<Message> {
        let of_loop = self.home.as_ref().map(|home| &home.place);
        spin(start, limit, of_loop, || self.state.receiver.try_recv().ok())
    }

    /// Sleeps until there is a message.
    #[cold]
    fn sleep(&self) -> Option<Message> {
        let state = self.state;
        let (mut patience, mut searches) = (state.idle_timeout, false);
        loop {
            self.presence.sleeps();
            let look = || state.receiver.try_recv().ok();
            let wakeup = state.parking.sleep(&self.sleeper, searches, patience, look);
            self.presence.wakes();
            searches = false;
            match wakeup {
                Wakeup::Found(message) => {
                    state.wake_worker();
                    return Some(message);
                }
                Wakeup::Woken => {
                    if let Some(message) = look() {
                        state.parking.end_search(|| state.has_messages());
                        return Some(message);
                    }
                    searches = true;
                }
                Wakeup::TimedOut if state.headcount.try_leave(Leave::Idle) => return None,
                // It has to stay, so it does not ask again at once, however short the time is.
                Wakeup::TimedOut => patience = patience.max(IDLE_TIMEOUT),
            }
        }
    }
}

fn nanos_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
