//! When the requests of an open loop are due: [`Pace`]. They come at a fixed rate, whether those
//! before are done or not, as those of many users do.

use std::time::Duration;

/// How many are due, and when.
#[derive(Clone, Debug)]
pub struct Pace {
    begin_ns: u64,
    per_s: u64,
    count: u64,
    next: u64,
    end_ns: u64,
}

impl Pace {
    /// `per_s` requests a second for `time`, from `begin_ns` on.
    pub fn new(begin_ns: u64, per_s: u64, time: Duration) -> Pace {
        let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let count = u128::from(per_s) * u128::from(time_ns) / 1_000_000_000;
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        Pace { begin_ns, per_s, count, next: 0, end_ns: begin_ns.saturating_add(time_ns) }
    }

    /// When the next one was due, if that is not after `now_ns`.
    pub fn due(&self, now_ns: u64) -> Option<u64> {
        if self.next >= self.count {
            return None;
        }
        let after_ns = u128::from(self.next) * 1_000_000_000 / u128::from(self.per_s);
        let due_ns = self.begin_ns.saturating_add(u64::try_from(after_ns).unwrap_or(u64::MAX));
        (due_ns <= now_ns).then_some(due_ns)
    }

    /// The next one was made.
    pub fn advance(&mut self) {
        self.next += 1;
    }

    /// How many were made.
    pub fn made(&self) -> u64 {
        self.next
    }

    /// Whether no more are to be made.
    pub fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.end_ns
    }

    /// When those were due that were not made.
    pub fn missed(mut self) -> impl Iterator<Item = u64> {
        std::iter::from_fn(move || {
            let due_ns = self.due(self.end_ns)?;
            self.advance();
            Some(due_ns)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_even_distances() {
        let mut pace = Pace::new(500, 1000, Duration::from_millis(3));
        assert_eq!((pace.due(499), pace.due(500)), (None, Some(500)));
        pace.advance();
        assert_eq!((pace.due(1_000_499), pace.due(9_000_000)), (None, Some(1_000_500)));
        assert_eq!((pace.is_over(3_000_499), pace.is_over(3_000_500)), (false, true));
        assert_eq!(pace.clone().missed().collect::<Vec<_>>(), [1_000_500, 2_000_500]);
        pace.advance();
        pace.advance();
        assert_eq!((pace.made(), pace.due(u64::MAX)), (3, None));
    }

    #[test]
    fn none_are_due_at_no_rate() {
        let pace = Pace::new(0, 0, Duration::from_secs(1));
        assert_eq!(pace.due(u64::MAX), None);
        assert_eq!(pace.missed().count(), 0);
    }
}
