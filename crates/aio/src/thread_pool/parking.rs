//! Where workers sleep, and who wakes them: as few wake-ups as the work allows (decision D8).
//!
//! Waking a sleeping thread costs far more than a short job. So a submitter wakes no worker while one
//! is *searching*, that is, woken and about to look into the queue. A searcher that finds a
//! message, and leaves others behind, wakes the next one: under load jobs are taken by the workers that are
//! awake, and if jobs block, the workers they need are woken one by the other. The worker that
//! fell asleep last is woken first, so that those which are not needed stay asleep, and end.
//!
//! A worker that *spins* looks for its next message without having been woken. It wakes no other worker for
//! what it leaves behind, so no thread may rely on it for longer than it watches itself
//! ([`owed`](super::owed)). There is one at most.
//!
//! # No message is left behind
//!
//! ```text
//! submitter                             worker that finds nothing
//! ---------                             -------------------------
//! queue messages             (a)        join the sleepers            (c)
//! does any worker sleep?     (b)        if it was woken: searching -= 1  (d)
//!   yes: is any searching?              look into the queue again    (e)
//!     no: any messages left?
//!       yes: wake a sleeper
//! ```
//!
//! All are sequentially consistent. If one of the submitter's looks is before the worker's (c) or (d) that would
//! have changed what it sees, then (a) is before (e), and the worker finds the message. If both are after,
//! the submitter sees no worker searching, and finds the worker among the sleepers. A worker that runs a job
//! looks into the queue after it, so while no worker sleeps no worker needs waking. If no messages are
//! left, workers have taken all that were queued in (a).
//!
//! Between (a) and (b) a submitter may do other things; until then it owes the wake-up ([`owed`](super::owed)).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use super::lock;
use crate::loom::{
    AtomicBool, AtomicUsize, Mutex, Ordering, Thread, current_thread, model_fence, park_timeout,
};
use crate::sys::clock_ns;
use crate::waiting::WakeStamp;

/// The sleepers of one pool.
pub(crate) struct Parking {
    /// Workers that were woken and are about to look into the queue, counted from when they are woken.
    searching: CachePadded<AtomicUsize>,
    /// How many `sleepers` there are. Changed under the lock, read without it.
    asleep: AtomicUsize,
    sleepers: Mutex<Vec<Arc<Sleeper>>>,
    /// A worker spins.
    spinning: CachePadded<AtomicBool>,
}

/// A worker's place among the sleepers.
pub(crate) struct Sleeper {
    thread: Thread,
    woken: AtomicBool,
    /// When it was woken, and from where.
    stamp: WakeStamp,
}

/// How a worker's sleep ended.
pub(crate) enum Wakeup<M> {
    /// It did not sleep: there was a message after all. It does not search.
    Found(M),
    /// It was woken. It searches.
    Woken,
    /// The time was up. It does not search, and no thread will wake it.
    TimedOut,
}

impl Parking {
    pub(crate) fn new() -> Parking {
        Parking {
            searching: CachePadded::new(AtomicUsize::new(0)),
            asleep: AtomicUsize::new(0),
            sleepers: Mutex::new(Vec::new()),
            spinning: CachePadded::new(AtomicBool::new(false)),
        }
    }

    /// A place for the calling thread.
    pub(crate) fn sleeper() -> Arc<Sleeper> {
        Arc::new(Sleeper {
            thread: current_thread(),
            woken: AtomicBool::new(false),
            stamp: WakeStamp::new(),
        })
    }

    /// After messages were queued, by this thread or before what this thread has seen: sees to it that some
    /// worker looks. `has_messages` says whether any are left.
    #[inline]
    pub(crate) fn notify(&self, has_messages: impl Fn() -> bool) {
        model_fence();
        // Rarely changed, so it comes first: a worker that spins writes `searching` with each job.
        if self.asleep.load(Ordering::SeqCst) > 0
            && self.searching.load(Ordering::SeqCst) == 0
            && has_messages()
        {
            self.wake_one();
        }
    }

    #[cold]
    fn wake_one(&self) {
        loop {
            // Counted on behalf of the one that will be woken; so of many submitters one wakes.
            if self.searching.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                return;
            }
            if let Some(sleeper) = self.take_last() {
                sleeper.stamp.set();
                sleeper.thread.unpark();
                return;
            }
            // No worker to wake. Another submitter may have relied on our count in the meantime, and
            // a worker may have fallen asleep: look again.
            self.searching.fetch_sub(1, Ordering::SeqCst);
            model_fence();
            if self.asleep.load(Ordering::SeqCst) == 0 {
                return;
            }
        }
    }

    /// Workers that search, for models.
    #[cfg(loom)]
    pub(crate) fn searching(&self) -> usize {
        self.searching.load(Ordering::SeqCst)
    }

    fn take_last(&self) -> Option<Arc<Sleeper>> {
        let mut sleepers = lock(&self.sleepers);
        let sleeper = sleepers.pop();
        // Under the lock: one that finds itself gone from the list has been woken. Later this could
        // be taken for the end of its next sleep.
        if let Some(sleeper) = &sleeper {
            sleeper.woken.store(true, Ordering::Release);
        }
        self.asleep.store(sleepers.len(), Ordering::SeqCst);
        sleeper
    }

    /// How many workers sleep.
    #[inline]
    pub(crate) fn asleep(&self) -> usize {
        self.asleep.load(Ordering::SeqCst)
    }

    /// Whether a worker spins, as of a moment.
    #[inline]
    pub(crate) fn is_spinning(&self) -> bool {
        self.spinning.load(Ordering::Relaxed)
    }

    /// The calling worker begins to spin. False if another one does.
    pub(crate) fn begin_spin(&self) -> bool {
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        !self.is_spinning() && self.spinning.compare_exchange(false, true, success, failure).is_ok()
    }

    /// It spins no more.
    #[inline]
    pub(crate) fn end_spin(&self) {
        self.spinning.store(false, Ordering::Relaxed);
    }

    /// The calling worker searched, and has found a message. `has_messages` says whether it leaves others behind.
    pub(crate) fn end_search(&self, has_messages: impl Fn() -> bool) {
        self.searching.fetch_sub(1, Ordering::SeqCst);
        self.notify(has_messages);
    }

    /// Sleeps until it is woken, or for `timeout`. `searches`: the calling worker was woken, and has found
    /// nothing. `look` looks into the queue once more.
    pub(crate) fn sleep<M>(
        &self,
        me: &Arc<Sleeper>,
        searches: bool,
        timeout: Duration,
        look: impl Fn() -> Option<M>,
    ) -> Wakeup<M> {
        me.woken.store(false, Ordering::Relaxed);
        {
            let mut sleepers = lock(&self.sleepers);
            sleepers.push(Arc::clone(me));
            self.asleep.store(sleepers.len(), Ordering::SeqCst);
        }
        if searches {
            self.searching.fetch_sub(1, Ordering::SeqCst);
        }
        model_fence();
        if let Some(message) = look() {
            if !self.leave(me) {
                // Woken in the meantime, so counted as searching.
                self.searching.fetch_sub(1, Ordering::SeqCst);
            }
            return Wakeup::Found(message);
        }
        let (start, since_ns) = (Instant::now(), clock_ns());
        while !me.woken.load(Ordering::Acquire) {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return if self.leave(me) { Wakeup::TimedOut } else { Wakeup::Woken };
            }
            park_timeout(left);
        }
        me.stamp.take(since_ns);
        Wakeup::Woken
    }

    /// Takes a worker from the sleepers; false if another thread has, which wakes it.
    fn leave(&self, me: &Arc<Sleeper>) -> bool {
        let mut sleepers = lock(&self.sleepers);
        let place = sleepers.iter().position(|sleeper| Arc::ptr_eq(sleeper, me));
        if let Some(place) = place {
            sleepers.remove(place);
            self.asleep.store(sleepers.len(), Ordering::SeqCst);
        }
        place.is_some()
    }
}
