//! [`TimedAverage`]: minimum, average and maximum over the last while, on an explicit clock.
//!
//! Two windows of the same length overlap by half; each forgets everything when its time is up.
//! The one that began earlier has seen at least half of the length, and answers.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Minimum, mean and maximum of the values in an interval; 0 if there were none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Average {
    /// The smallest.
    pub min: u64,
    /// The mean.
    pub avg: u64,
    /// The largest.
    pub max: u64,
    /// How many.
    pub count: u64,
}

/// One thread writes; any may read.
struct Window {
    begin_ns: AtomicI64,
    end_ns: AtomicI64,
    min: AtomicU64,
    max: AtomicU64,
    sum: AtomicU64,
    count: AtomicU64,
}

impl Window {
    fn new(begin_ns: i64, end_ns: i64) -> Window {
        Window {
            begin_ns: AtomicI64::new(begin_ns),
            end_ns: AtomicI64::new(end_ns),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            count: AtomicU64::new(0),
        }
    }

    fn is_over(&self, now_ns: i64) -> bool {
        now_ns >= self.end_ns.load(Ordering::Relaxed)
    }

    /// Begins anew if its time is up, in step with the other window.
    fn renew(&self, now_ns: i64, length_ns: i64) {
        if !self.is_over(now_ns) {
            return;
        }
        let end_ns = self.end_ns.load(Ordering::Relaxed);
        let lengths = now_ns.saturating_sub(end_ns) / length_ns + 1;
        self.count.store(0, Ordering::Relaxed);
        self.sum.store(0, Ordering::Relaxed);
        self.min.store(u64::MAX, Ordering::Relaxed);
        self.max.store(0, Ordering::Relaxed);
        let end_ns = end_ns.saturating_add(lengths.saturating_mul(length_ns));
        self.begin_ns.store(end_ns.saturating_sub(length_ns), Ordering::Relaxed);
        self.end_ns.store(end_ns, Ordering::Relaxed);
    }

    fn account(&self, value: u64) {
        let change = |cell: &AtomicU64, to: &dyn Fn(u64) -> u64| {
            cell.store(to(cell.load(Ordering::Relaxed)), Ordering::Relaxed);
        };
        change(&self.min, &|min| min.min(value));
        change(&self.max, &|max| max.max(value));
        change(&self.sum, &|sum| sum.wrapping_add(value));
        change(&self.count, &|count| count + 1);
    }

    fn read(&self) -> Average {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return Average::default();
        }
        Average {
            min: self.min.load(Ordering::Relaxed),
            avg: self.sum.load(Ordering::Relaxed) / count,
            max: self.max.load(Ordering::Relaxed),
            count,
        }
    }
}

pub(super) struct TimedAverage {
    length_ns: i64,
    windows: [Window; 2],
}

impl TimedAverage {
    /// Over the last `length_ns`, and at least over half of that.
    pub(super) fn new(length_ns: i64, now_ns: i64) -> TimedAverage {
        let length_ns = length_ns.max(2);
        let end_ns = now_ns.saturating_add(length_ns);
        let windows = [end_ns, end_ns - length_ns / 2].map(|end_ns| Window::new(now_ns, end_ns));
        TimedAverage { length_ns, windows }
    }

    pub(super) fn account(&self, value: u64, now_ns: i64) {
        for window in &self.windows {
            window.renew(now_ns, self.length_ns);
            window.account(value);
        }
    }

    pub(super) fn read(&self, now_ns: i64) -> Average {
        self.oldest(now_ns).map_or_else(Average::default, Window::read)
    }

    /// The sum of the values by the time that has passed: of durations, how many there were at once.
    pub(super) fn concurrency(&self, now_ns: i64) -> f64 {
        self.oldest(now_ns).map_or(0.0, |window| {
            let passed_ns = now_ns.saturating_sub(window.begin_ns.load(Ordering::Relaxed));
            window.sum.load(Ordering::Relaxed) as f64 / passed_ns.max(1) as f64
        })
    }

    fn oldest(&self, now_ns: i64) -> Option<&Window> {
        let running = self.windows.iter().filter(|window| !window.is_over(now_ns));
        running.min_by_key(|window| window.end_ns.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn c88_a_timed_average_has_minimum_average_and_maximum() {
        let average = TimedAverage::new(SECOND, 0);
        assert_eq!(average.read(0), Average::default());
        for value in [1, 5, 2, 4, 3] {
            average.account(value, 0);
        }
        assert_eq!(average.read(0), Average { min: 1, avg: 3, max: 5, count: 5 });
    }

    #[test]
    fn c88_a_timed_average_is_zero_after_100_idle_seconds() {
        let average = TimedAverage::new(SECOND, 0);
        for value in [1, 5, 2, 4, 3] {
            average.account(value, 0);
        }
        assert_eq!(average.read(100 * SECOND), Average::default());
        average.account(7, 100 * SECOND);
        assert_eq!(average.read(100 * SECOND), Average { min: 7, avg: 7, max: 7, count: 1 });
    }

    #[test]
    fn values_stay_for_half_the_length_at_least_and_not_longer_than_it() {
        for begin_ns in (0..5 * SECOND).step_by(77_000_000) {
            let average = TimedAverage::new(SECOND, 0);
            average.account(9, begin_ns);
            assert_eq!(average.read(begin_ns + SECOND / 2 - 1).max, 9, "from {begin_ns}");
            assert_eq!(average.read(begin_ns + SECOND).max, 0, "from {begin_ns}");
        }
    }

    #[test]
    fn concurrency_is_the_sum_by_the_time_that_has_passed() {
        let average = TimedAverage::new(SECOND, 0);
        assert_eq!(average.concurrency(0), 0.0);
        // Three at once from the start, each a tenth of a second, one after the other.
        for tenth in 1..=40 {
            let now_ns = tenth * SECOND / 10;
            (0..3).for_each(|_| average.account(SECOND as u64 / 10, now_ns));
            let depth = average.concurrency(now_ns);
            // A request at the edge of a window counts as a whole.
            assert!((3.0..=3.7).contains(&depth), "{depth} after {tenth} tenths");
        }
        assert_eq!(average.concurrency(100 * SECOND), 0.0);
    }
}
