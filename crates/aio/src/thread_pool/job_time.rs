//! How long jobs take: whether a queued one is sooner begun by a worker that is busy, or by one that has
//! to be woken.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::waiting::WakeCost;

/// While jobs are short, so many go by unmeasured between two that are.
const UNMEASURED: u32 = 15;
/// The mean is over about so many measured jobs.
const WINDOW: u64 = 8;
/// A long job counts as so many wake-ups, so that it is forgotten soon.
const LONG: u64 = 4;

/// The mean of a pool's jobs of late. Relaxed loads and stores: a job that gets lost between two workers is not
/// missed.
pub(super) struct JobTime {
    mean_ns: AtomicU64,
}

/// One worker's share in it.
pub(super) struct JobTimer {
    unmeasured: u32,
}

impl JobTime {
    /// Jobs are taken for long ones at first.
    pub(super) const fn new() -> JobTime {
        JobTime { mean_ns: AtomicU64::new(u64::MAX) }
    }

    /// Whether jobs take less than a wake-up does.
    #[inline]
    pub(super) fn is_short(&self) -> bool {
        self.mean_ns.load(Ordering::Relaxed) < WakeCost::here().ns()
    }

    fn learn(&self, took_ns: u64) {
        let longest_ns = LONG * WakeCost::here().ns();
        let mean_ns = self.mean_ns.load(Ordering::Relaxed).min(longest_ns);
        let mean_ns = (mean_ns * (WINDOW - 1) + took_ns.min(longest_ns)) / WINDOW;
        self.mean_ns.store(mean_ns, Ordering::Relaxed);
    }
}

impl JobTimer {
    pub(super) fn new() -> JobTimer {
        JobTimer { unmeasured: 0 }
    }

    /// A job begins. To look at the clock would take a part of a short one, so most are not measured.
    #[inline]
    pub(super) fn begin(&mut self, times: &JobTime) -> Option<Instant> {
        if self.unmeasured > 0 && times.is_short() {
            self.unmeasured -= 1;
            return None;
        }
        self.unmeasured = UNMEASURED;
        Some(Instant::now())
    }

    /// The job has ended.
    #[inline]
    pub(super) fn end(&self, times: &JobTime, begin: Option<Instant>) {
        if let Some(begin) = begin {
            times.learn(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_long_until_they_are_known_to_be_short_and_again_after_some_that_are_long() {
        let times = JobTime::new();
        assert!(!times.is_short());
        let learn = |took_ns| {
            let mut count = 0;
            let before = times.is_short();
            while times.is_short() == before {
                times.learn(took_ns);
                count += 1;
            }
            count
        };
        assert!((5..20).contains(&learn(500)));
        // One job that blocks for long is not enough; a few are.
        (0..50).for_each(|_| times.learn(0));
        assert!((2..8).contains(&learn(u64::MAX)));
    }

    #[test]
    fn long_jobs_are_measured_each_and_short_ones_now_and_then() {
        let (times, mut timer) = (JobTime::new(), JobTimer::new());
        assert!((0..100).all(|_| timer.begin(&times).is_some()));
        (0..100).for_each(|_| times.learn(0));
        let measured = (0..160).filter(|_| timer.begin(&times).is_some()).count();
        assert_eq!(measured, 10);
    }
}
