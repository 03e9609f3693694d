//! Leaky buckets, on an explicit clock.
//!
//! What passes is poured into a bucket that leaks at the average rate. While the bucket is fuller
//! than its size, nothing more may pass: a request waits until the excess has leaked away. So the
//! size is what may pass in a burst. A second, small bucket that leaks at the burst rate keeps a
//!
//! Levels are integers, in billionths of a byte or operation: what leaks in `n` nanoseconds is
//! `n * rate`, exactly.

use super::limits::{Rate, ThrottleLimits};

/// Levels count these parts of a unit.
const PARTS: u128 = 1_000_000_000;

/// The direction of a request, which decides the limits that it counts towards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

impl Direction {
    /// Its buckets in the list of [`ThrottleLimits::rates`]: of bytes, and of operations.
    fn buckets(self) -> [usize; 4] {
        match self {
            Direction::Read => [0, 1, 3, 4],
            Direction::Write => [0, 2, 3, 5],
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    level: u128,
    /// Of the second bucket; only with bursts longer than a second.
    burst_level: u128,
}

impl Bucket {
    fn leak(&mut self, elapsed_ns: u64) {
        let leaked = |rate: u64| u128::from(elapsed_ns) * u128::from(rate);
        self.level = self.level.saturating_sub(leaked(self.rate.avg));
        self.burst_level = self.burst_level.saturating_sub(leaked(self.rate.max));
    }

    fn pour(&mut self, parts: u128) {
        if self.rate.avg == 0 {
            return;
        }
        self.level = self.level.saturating_add(parts);
        if self.rate.burst_length_s > 1 {
            self.burst_level = self.burst_level.saturating_add(parts);
        }
    }

    /// How long until something may pass.
    fn wait_ns(&self) -> u64 {
        let Rate { avg, max, burst_length_s } = self.rate;
        let (avg, max) = (u128::from(avg), u128::from(max));
        if avg == 0 {
            return 0;
        }
        let size =
            if max == 0 { avg * PARTS / 10 } else { max * PARTS * u128::from(burst_length_s) };
        let wait_ns = self.level.saturating_sub(size).div_ceil(avg);
        if burst_length_s == 1 {
            return clamp(wait_ns);
        }
        let burst_size = max * PARTS / 10;
        clamp(wait_ns.max(self.burst_level.saturating_sub(burst_size).div_ceil(max)))
    }
}

fn clamp(ns: u128) -> u64 {
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// The buckets of a group.
pub(super) struct Buckets {
    buckets: [Bucket; 6],
    iops_size: u64,
    /// When they last leaked; not before they are first asked.
    leaked_ns: Option<i64>,
}

impl Buckets {
    /// Empty ones. `limits` have been checked.
    pub(super) fn new(limits: &ThrottleLimits) -> Buckets {
        let bucket = |(_, rate)| Bucket { rate, level: 0, burst_level: 0 };
        Buckets {
            buckets: limits.rates().map(bucket),
            iops_size: limits.iops_size,
            leaked_ns: None,
        }
    }

    /// How long until a request of this direction may pass; 0 for at once. Time that goes back
    /// stands still.
    pub(super) fn wait_ns(&mut self, direction: Direction, now_ns: i64) -> u64 {
        let leaked_ns = *self.leaked_ns.get_or_insert(now_ns);
        if now_ns > leaked_ns {
            let elapsed_ns = now_ns.abs_diff(leaked_ns);
            self.buckets.iter_mut().for_each(|bucket| bucket.leak(elapsed_ns));
            self.leaked_ns = Some(now_ns);
        }
        let waits = direction.buckets().map(|index| self.buckets[index].wait_ns());
        waits.into_iter().max().unwrap_or(0)
    }

    /// A request passes.
    pub(super) fn pour(&mut self, direction: Direction, bytes: u64) {
        let [bytes_total, bytes_own, ops_total, ops_own] = direction.buckets();
        let byte_parts = u128::from(bytes) * PARTS;
        let op_parts = if self.iops_size > 0 && bytes > self.iops_size {
            byte_parts / u128::from(self.iops_size)
        } else {
            PARTS
        };
        for (index, parts) in [
            (bytes_total, byte_parts),
            (bytes_own, byte_parts),
            (ops_total, op_parts),
            (ops_own, op_parts),
        ] {
            self.buckets[index].pour(parts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn iops(rate: Rate) -> Buckets {
        Buckets::new(&ThrottleLimits { iops_total: rate, ..ThrottleLimits::default() })
    }

    /// How many reads pass at this instant.
    fn burst_at(buckets: &mut Buckets, now_ns: i64) -> u64 {
        let mut passed = 0;
        while buckets.wait_ns(Direction::Read, now_ns) == 0 {
            buckets.pour(Direction::Read, 512);
            passed += 1;
        }
        passed
    }

    #[test]
    fn without_limits_nothing_waits() {
        let mut buckets = Buckets::new(&ThrottleLimits::default());
        buckets.pour(Direction::Write, u64::MAX);
        assert_eq!(buckets.wait_ns(Direction::Write, 0), 0);
    }

    #[test]
    fn an_average_is_kept_to_the_nanosecond() {
        // A tenth of a second's worth at once, one more that overflows, and then one each 10 ms.
        let mut buckets = iops(Rate::new(100));
        assert_eq!(burst_at(&mut buckets, 0), 11);
        for step in 1..1000 {
            let due_ns = step * SECOND / 100;
            assert_eq!(buckets.wait_ns(Direction::Read, due_ns - 1), 1, "step {step}");
            assert_eq!(burst_at(&mut buckets, due_ns), 1, "step {step}");
        }
    }

    #[test]
    fn a_rate_that_divides_nothing_loses_nothing() {
        // 7 a second, asked at odd instants, for an hour.
        let mut buckets = iops(Rate::new(7));
        let (mut passed, mut now_ns) = (burst_at(&mut buckets, 0), 0);
        while now_ns < 3600 * SECOND {
            now_ns += 33_333_331;
            passed += burst_at(&mut buckets, now_ns);
        }
        assert!((3600 * 7..3600 * 7 + 5).contains(&passed), "{passed}");
    }

    #[test]
    fn c89_a_spent_burst_makes_the_next_one_wait() {
        // Average 10, and 200 a second for 2 seconds. At that pace the bucket of 400 gains 190 a
        // second, and is full after 2.1 seconds.
        let mut buckets = iops(Rate::new(10).burst(200, 2));
        let mut passed = 0;
        let mut now_ns = 0;
        while buckets.wait_ns(Direction::Read, now_ns) == 0 {
            buckets.pour(Direction::Read, 512);
            passed += 1;
            now_ns += SECOND / 200;
        }
        assert!((420..=425).contains(&passed), "{passed}");
        let wait_ns = buckets.wait_ns(Direction::Read, now_ns);
        assert!(wait_ns > 0 && wait_ns <= 100_000_000, "{wait_ns}");
        // From here on it is the average.
        now_ns += wait_ns as i64;
        assert_eq!(burst_at(&mut buckets, now_ns), 1);
        assert_eq!(buckets.wait_ns(Direction::Read, now_ns), 100_000_000);
    }

    #[test]
    fn c89_a_long_burst_cannot_be_spent_at_once() {
        // A tenth of a second's worth of 200, and one more that overflows.
        let mut buckets = iops(Rate::new(10).burst(200, 2));
        assert_eq!(burst_at(&mut buckets, 0), 21);
        assert_eq!(buckets.wait_ns(Direction::Read, 0), SECOND as u64 / 200);
        // A burst of one second can.
        assert_eq!(burst_at(&mut iops(Rate::new(10).burst(200, 1)), 0), 201);
    }

    #[test]
    fn directions_share_the_total_only() {
        let limits = ThrottleLimits {
            bps_read: Rate::new(1000),
            iops_total: Rate::new(100),
            ..ThrottleLimits::default()
        };
        let mut buckets = Buckets::new(&limits);
        buckets.pour(Direction::Read, 1100);
        assert_eq!(buckets.wait_ns(Direction::Read, 0), SECOND as u64);
        assert_eq!(buckets.wait_ns(Direction::Write, 0), 0);
        for _ in 0..10 {
            buckets.pour(Direction::Write, 1 << 30);
        }
        assert_eq!(buckets.wait_ns(Direction::Write, 0), 10_000_000);
        // The longer of both.
        assert_eq!(buckets.wait_ns(Direction::Read, 0), SECOND as u64);
    }

    #[test]
    fn a_long_operation_counts_as_several() {
        let limits = ThrottleLimits {
            iops_write: Rate::new(10),
            iops_size: 4096,
            ..ThrottleLimits::default()
        };
        let mut buckets = Buckets::new(&limits);
        buckets.pour(Direction::Write, 4096 * 5 / 2);
        // 2.5 operations, 1.5 more than fit.
        assert_eq!(buckets.wait_ns(Direction::Write, 0), 150_000_000);
        assert_eq!(buckets.wait_ns(Direction::Write, SECOND), 0);
        buckets.pour(Direction::Write, 1);
        assert_eq!(buckets.wait_ns(Direction::Write, SECOND), 0, "a short one counts once");
    }

    #[test]
    fn time_that_goes_back_stands_still() {
        let mut buckets = iops(Rate::new(10));
        assert_eq!(burst_at(&mut buckets, SECOND), 2);
        assert_eq!(buckets.wait_ns(Direction::Read, 0), 100_000_000);
        assert_eq!(buckets.wait_ns(Direction::Read, SECOND + 100_000_000), 0);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let rate = Rate::new(1_000_000_000_000_000).burst(1_000_000_000_000_000, 1);
        let limits = ThrottleLimits { bps_total: rate, ..ThrottleLimits::default() };
        let mut buckets = Buckets::new(&limits);
        for _ in 0..1000 {
            buckets.pour(Direction::Read, u64::MAX);
        }
        assert!(buckets.wait_ns(Direction::Read, 0) > 1_000_000 * SECOND as u64);
        assert!(buckets.wait_ns(Direction::Read, i64::MAX) < u64::MAX);
    }
}
