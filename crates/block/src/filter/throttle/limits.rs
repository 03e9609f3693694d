//! [`ThrottleLimits`]: what a throttle group allows, and which limits make sense.

use thiserror::Error;

/// The largest rate, and the largest burst, that is taken: no disk is that fast.
const MAX_RATE: u64 = 1_000_000_000_000_000;

/// How much may pass in a second, in bytes or operations.
///
/// `max` is reached in bursts: what was saved while less than `avg` passed may be spent at `max`
/// for `burst_length_s` seconds. Without `max`, a tenth of a second's worth of `avg` may pass at
/// once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run, in a second; 0 for no limit.
    pub avg: u64,
    /// In a burst, in a second; 0 for no bursts.
    pub max: u64,
    /// How many seconds a burst at `max` may last.
    pub burst_length_s: u64,
}

impl Default for Rate {
    /// No limit.
    fn default() -> Rate {
        Rate { avg: 0, max: 0, burst_length_s: 1 }
    }
}

impl Rate {
    /// `avg` in a second.
    pub fn new(avg: u64) -> Rate {
        Rate { avg, ..Rate::default() }
    }

    /// With bursts of `length_s` seconds at `max` a second.
    pub fn burst(self, max: u64, length_s: u64) -> Rate {
        Rate { max, burst_length_s: length_s, ..self }
    }
}

/// The limits of a throttle group, for all its members together. A limit in total excludes one for
/// reads
/// or writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottleLimits {
    /// Bytes, read and written.
    pub bps_total: Rate,
    /// Bytes read.
    pub bps_read: Rate,
    /// Bytes written, zeroed or discarded.
    pub bps_write: Rate,
    /// Operations.
    pub iops_total: Rate,
    /// Reads.
    pub iops_read: Rate,
    /// Writes, zeroes and discards.
    pub iops_write: Rate,
    /// A longer operation counts as several, of this many bytes each; 0: each counts once.
    pub iops_size: u64,
}

/// Limits that make no sense, by the name of the option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ThrottleError {
    /// Both in total and for a direction.
    #[error("{total} and {part} exclude each other")]
    Conflict {
        /// The limit in total.
        total: &'static str,
        /// The other one.
        part: &'static str,
    },
    /// Bursts without an average.
    #[error("{0}-max needs {0}")]
    MaxWithoutAvg(&'static str),
    /// Bursts slower than the average.
    #[error("{0}-max must not be below {0}")]
    MaxBelowAvg(&'static str),
    /// More than can be counted.
    #[error("{0} and {0}-max must not be above {MAX_RATE}")]
    TooLarge(&'static str),
    /// Bursts without length.
    #[error("{0}-max-length must be at least 1")]
    NoBurstLength(&'static str),
    /// A length of no bursts.
    #[error("{0}-max-length needs {0}-max")]
    BurstLengthWithoutMax(&'static str),
    /// A longer burst than can be counted.
    #[error("{0}-max times {0}-max-length must not be above {MAX_RATE}")]
    BurstTooLong(&'static str),
    /// Operations are counted by size, but not limited.
    #[error("iops-size needs a limit on operations")]
    SizeWithoutIops,
}

impl ThrottleLimits {
    /// All six, with their options' names: bytes before operations; total, read, write.
    pub(super) fn rates(&self) -> [(&'static str, Rate); 6] {
        [
            ("bps-total", self.bps_total),
            ("bps-read", self.bps_read),
            ("bps-write", self.bps_write),
            ("iops-total", self.iops_total),
            ("iops-read", self.iops_read),
            ("iops-write", self.iops_write),
        ]
    }

    /// Whether they make sense (contract: C89).
    ///
    /// # Errors
    /// The limits that make no sense, and the option that they are in.
    pub fn check(&self) -> Result<(), ThrottleError> {
        let rates = self.rates();
        for (name, rate) in rates {
            check_rate(name, rate)?;
        }
        for unit in rates.chunks(3) {
            let (total, parts) = (unit[0], &unit[1..]);
            let part = parts.iter().find(|(_, part)| part.avg > 0);
            if let Some((part, _)) = part.filter(|_| total.1.avg > 0) {
                return Err(ThrottleError::Conflict { total: total.0, part });
            }
        }
        let limits_iops = rates[3..].iter().any(|(_, rate)| rate.avg > 0);
        if self.iops_size > 0 && !limits_iops {
            return Err(ThrottleError::SizeWithoutIops);
        }
        Ok(())
    }
}

fn check_rate(name: &'static str, rate: Rate) -> Result<(), ThrottleError> {
    let Rate { avg, max, burst_length_s } = rate;
    if avg > MAX_RATE || max > MAX_RATE {
        return Err(ThrottleError::TooLarge(name));
    }
    if burst_length_s == 0 {
        return Err(ThrottleError::NoBurstLength(name));
    }
    if burst_length_s > 1 && max == 0 {
        return Err(ThrottleError::BurstLengthWithoutMax(name));
    }
    if max.checked_mul(burst_length_s).is_none_or(|burst| burst > MAX_RATE) {
        return Err(ThrottleError::BurstTooLong(name));
    }
    if max > 0 && avg == 0 {
        return Err(ThrottleError::MaxWithoutAvg(name));
    }
    if max > 0 && max < avg {
        return Err(ThrottleError::MaxBelowAvg(name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut ThrottleLimits)) -> Result<(), ThrottleError> {
        let mut limits = ThrottleLimits::default();
        change(&mut limits);
        limits.check()
    }

    #[test]
    fn c89_a_total_excludes_read_and_write_limits() {
        let conflict = |total, part| Err(ThrottleError::Conflict { total, part });
        let rate = Rate::new(100);
        let bps_read = check(|it| (it.bps_total, it.bps_read) = (rate, rate));
        assert_eq!(bps_read, conflict("bps-total", "bps-read"));
        let bps_write = check(|it| (it.bps_total, it.bps_write) = (rate, rate));
        assert_eq!(bps_write, conflict("bps-total", "bps-write"));
        let iops_write = check(|it| (it.iops_total, it.iops_write) = (rate, rate));
        assert_eq!(iops_write, conflict("iops-total", "iops-write"));
        // Bytes and operations do not exclude each other, nor do reads and writes.
        assert_eq!(check(|it| (it.bps_total, it.iops_read) = (rate, rate)), Ok(()));
        assert_eq!(check(|it| (it.bps_read, it.bps_write) = (rate, rate)), Ok(()));
        assert_eq!(check(|_| ()), Ok(()));
    }

    #[test]
    fn c89_a_burst_needs_an_average_below_it() {
        let max_only = check(|it| it.iops_read.max = 10);
        assert_eq!(max_only, Err(ThrottleError::MaxWithoutAvg("iops-read")));
        let below = check(|it| it.bps_write = Rate::new(10).burst(9, 1));
        assert_eq!(below, Err(ThrottleError::MaxBelowAvg("bps-write")));
        assert_eq!(check(|it| it.bps_write = Rate::new(10).burst(10, 1)), Ok(()));
    }

    #[test]
    fn c89_the_length_of_a_burst_is_bounded() {
        let burst = |max, length| check(|it| it.iops_total = Rate::new(10).burst(max, length));
        assert_eq!(burst(200, 2), Ok(()));
        assert_eq!(burst(MAX_RATE, 1), Ok(()));
        assert_eq!(burst(MAX_RATE / 2, 3), Err(ThrottleError::BurstTooLong("iops-total")));
        assert_eq!(burst(1 << 40, u64::MAX), Err(ThrottleError::BurstTooLong("iops-total")));
        assert_eq!(burst(200, 0), Err(ThrottleError::NoBurstLength("iops-total")));
        assert_eq!(burst(0, 2), Err(ThrottleError::BurstLengthWithoutMax("iops-total")));
        let too_large = check(|it| it.bps_total = Rate::new(MAX_RATE + 1));
        assert_eq!(too_large, Err(ThrottleError::TooLarge("bps-total")));
    }

    #[test]
    fn a_size_of_operations_needs_a_limit_on_them() {
        assert_eq!(check(|it| it.iops_size = 4096), Err(ThrottleError::SizeWithoutIops));
        assert_eq!(check(|it| (it.iops_size, it.iops_read.avg) = (4096, 1)), Ok(()));
    }

    #[test]
    fn errors_name_the_option() {
        let error = check(|it| it.iops_read.max = 10).expect_err("a burst without an average");
        assert_eq!(error.to_string(), "iops-read-max needs iops-read");
    }
}
