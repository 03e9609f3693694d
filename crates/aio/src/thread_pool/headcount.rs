//! How many workers there are, how many are idle, and who may start or leave.
//!
//! `available` counts workers that are ready to take a job, less jobs that are on their way to
//! one. Submitting takes one off before it sends; a worker adds one before it waits. So a worker
//! that has been signalled no longer counts as idle, and a burst of jobs starts as many threads as
//! it can use (contract: C57).
//!
//! # No job is left without a worker
//!
//! A submitter starts no worker if one is available, or if the pool is full. A worker that leaves
//! may make either untrue at that very moment:
//!
//! ```text
//! submitter                                 worker that wants to leave (holds the lock)
//! ---------                                 ------------------------------------------
//! available -= 1; was it > 0?     (a)       full = false                            (c)
//! is the pool full?               (b)       available -= 1; was it > 0?             (d)
//!   neither: start a worker                   no: take both back and stay
//! ```
//!
//! (a) and (d) change one counter, so one of them is first. If it is (a), then (d) finds the job
//! counted, and the worker stays for it. If it is (d), then (a), which reads what (d) wrote, has
//! seen (c) as well, so (b) does not find the pool full because of this worker.
//!
//! A worker that leaves because the maximum was lowered does not stay for a job: there are more
//! workers than the maximum, so at least one remains, and it counts as full until then.
//!
//! `models/headcount.rs` runs this file in every order of up to two submitters and two workers.

use super::lock;
use crate::loom::{AtomicBool, AtomicIsize, AtomicUsize, Mutex, Ordering};

/// What [`ThreadPool::set_limits`](super::ThreadPool::set_limits) sets, and the count it limits.
#[derive(Clone, Copy)]
struct Limits {
    min: usize,
    max: usize,
    /// Threads that run or are being started.
    threads: usize,
    /// Threads above the maximum, which jobs have got that are the first of their share. They stay as
    /// long as they have something to do.
    extra: usize,
}

impl Limits {
    fn most(&self) -> usize {
        self.max.saturating_add(self.extra)
    }
}

pub(crate) struct Headcount {
    /// See the head of this file. Negative: more jobs than workers.
    available: AtomicIsize,
    /// Workers that have begun and not left. Less `available`, that is the number of jobs.
    started: AtomicIsize,
    /// The maximum, read without the lock. Changed under the lock only.
    max: AtomicUsize,
    limits: Mutex<Limits>,
    /// `threads >= max + extra`, so that a submit under load takes no lock. Changed under the lock only.
    full: AtomicBool,
    /// `threads > max + extra`: a worker has to look at the limits before it takes the next job.
    over_max: AtomicBool,
}

/// Why a worker asks whether it may leave.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It had nothing to do for long (contract: C58).
    Idle,
    /// There may be more workers than the maximum (contract: C59).
    AboveMax,
}

impl Headcount {
    pub(crate) fn new() -> Headcount {
        Headcount {
            available: AtomicIsize::new(0),
            started: AtomicIsize::new(0),
            max: AtomicUsize::new(1),
            limits: Mutex::new(Limits { min: 0, max: 1, threads: 0, extra: 0 }),
            full: AtomicBool::new(false),
            over_max: AtomicBool::new(false),
        }
    }

    /// A job is about to be sent. Whether a worker should be started for it, after it was sent: for one
    /// that is the first of its share also if the pool is full, as the workers there may never be
    /// done.
    #[inline]
    pub(crate) fn job_submitted(&self, is_first: bool) -> bool {
        let is_left_over = self.available.fetch_sub(1, Ordering::AcqRel) <= 0;
        is_left_over && (is_first || !self.full.load(Ordering::Relaxed))
    }

    /// Jobs that are with workers or on their way to one, as of a moment.
    #[inline]
    pub(crate) fn jobs(&self) -> usize {
        let (started, available) =
            (self.started.load(Ordering::Relaxed), self.available.load(Ordering::Relaxed));
        usize::try_from(started - available).unwrap_or(0)
    }

    /// The maximum.
    #[inline]
    pub(crate) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Some other message for one worker is about to be sent.
    pub(crate) fn message_sent(&self) {
        self.available.fetch_sub(1, Ordering::AcqRel);
    }

    /// Workers that have begun and not left, as of a moment.
    #[inline]
    pub(crate) fn started(&self) -> usize {
        usize::try_from(self.started.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// A worker has started, and is ready for its first message.
    pub(crate) fn worker_started(&self) {
        // Together, for those who look at both.
        let _limits = lock(&self.limits);
        self.started.fetch_add(1, Ordering::AcqRel);
        self.worker_ready();
    }

    /// A worker is ready for its next message.
    #[inline]
    pub(crate) fn worker_ready(&self) {
        self.available.fetch_add(1, Ordering::AcqRel);
    }

    /// Workers that wait, less messages that are on their way to them.
    pub(crate) fn idle(&self) -> usize {
        usize::try_from(self.available.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// Registers a new worker if the maximum allows it, or if it is for the first job of a share and
    /// all others are busy. It is then to be started.
    pub(crate) fn add_worker(&self, is_first: bool) -> bool {
        let mut limits = lock(&self.limits);
        let allowed = limits.threads < limits.most() || (is_first && self.all_are_busy(&limits));
        if allowed {
            // Those above a maximum that was lowered are on their way out.
            limits.extra += usize::from(limits.threads >= limits.most());
            limits.threads += 1;
            self.publish(&limits);
        }
        allowed
    }

    /// Whether jobs remain when each worker that has not begun yet has taken one.
    fn all_are_busy(&self, limits: &Limits) -> bool {
        let started = usize::try_from(self.started.load(Ordering::Acquire)).unwrap_or(0);
        let coming = isize::try_from(limits.threads.saturating_sub(started)).unwrap_or(isize::MAX);
        self.available.load(Ordering::Acquire).saturating_add(coming) < 0
    }

    /// A worker that was registered could not be started. Returns how many remain.
    pub(crate) fn worker_failed(&self) -> usize {
        let mut limits = lock(&self.limits);
        limits.threads -= 1;
        limits.extra = limits.extra.min(limits.threads.saturating_sub(limits.max));
        self.publish(&limits);
        limits.threads
    }

    /// Cheap: whether a worker should ask [`try_leave`](Self::try_leave).
    #[inline]
    pub(crate) fn over_max(&self) -> bool {
        self.over_max.load(Ordering::Relaxed)
    }

    /// A worker that is ready wants to end. If this says yes, it is deregistered.
    pub(crate) fn try_leave(&self, why: Leave) -> bool {
        let mut limits = lock(&self.limits);
        let above_max = limits.threads > limits.most();
        if !above_max && (why == Leave::AboveMax || limits.threads <= limits.min) {
            return false;
        }
        // This order, and the ordering of the second: see the head of this file.
        limits.threads -= 1;
        self.publish(&limits);
        if self.available.fetch_sub(1, Ordering::AcqRel) <= 0 && !above_max {
            // A job has claimed the place we hold.
            limits.threads += 1;
            self.publish(&limits);
            self.available.fetch_add(1, Ordering::AcqRel);
            return false;
        }
        self.started.fetch_sub(1, Ordering::AcqRel);
        limits.extra = limits.extra.min(limits.threads.saturating_sub(limits.max));
        self.publish(&limits);
        true
    }

    /// Returns how many workers to start, and how many have to look whether they may leave.
    pub(crate) fn set_limits(&self, min: usize, max: usize) -> (usize, usize) {
        let mut limits = lock(&self.limits);
        // One that stays only because of the minimum sleeps for long.
        let free_to_go = limits.min.min(limits.threads).saturating_sub(min);
        (limits.min, limits.max) = (min, max);
        self.publish(&limits);
        let surplus = limits.threads.saturating_sub(limits.most()).max(free_to_go);
        (min.saturating_sub(limits.threads), surplus)
    }

    /// The minimum and the maximum.
    pub(crate) fn limits(&self) -> (usize, usize) {
        let limits = lock(&self.limits);
        (limits.min, limits.max)
    }

    pub(crate) fn threads(&self) -> usize {
        lock(&self.limits).threads
    }

    /// Recomputes the flags that the hot path reads instead of the limits.
    fn publish(&self, limits: &Limits) {
        self.max.store(limits.max, Ordering::Relaxed);
        self.full.store(limits.threads >= limits.most(), Ordering::Relaxed);
        self.over_max.store(limits.threads > limits.most(), Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_has_not_begun_yet_is_enough_for_the_first_job_of_a_share() {
        let headcount = Headcount::new();
        assert_eq!(headcount.set_limits(1, 1).0, 1);
        assert!(headcount.add_worker(false));
        assert!(headcount.job_submitted(true));
        assert!(!headcount.add_worker(true), "it takes the job as soon as it has begun");
        headcount.worker_started();
        // Nor is there one to spare: the next share's first job has nothing to wait for but that job.
        assert!(headcount.job_submitted(true));
        assert!(headcount.add_worker(true));
        assert!(headcount.job_submitted(true));
        assert!(headcount.add_worker(true), "the one that comes has a job already");
        assert_eq!(headcount.threads(), 3);
    }
}
