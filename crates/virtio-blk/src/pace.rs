//! How fast answers of a kick come, and when that is worth an early interrupt: [`Pace`].

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A group that takes longer is slow: a driver has taken all of it, and sleeps, before the next is done.
const SLOW_GROUP: Duration = Duration::from_micros(2);
/// Between early interrupts of slow groups: about what waking a halted CPU costs.
const APART: Duration = Duration::from_micros(30);

/// How fast requests of a queue are done at once. Clocks are read from the second group of a kick on.
#[derive(Default)]
pub(crate) struct Pace {
    /// When the last group of this kick was done.
    group_at: Cell<Option<Instant>>,
    /// When the driver was last told of a slow group of this kick.
    told_at: Cell<Option<Instant>>,
    /// Whether the last group was slow, in this kick or an earlier one.
    is_slow: Cell<bool>,
}

impl Pace {
    /// The first request of a kick is done.
    pub(crate) fn begin(&self) {
        self.group_at.set(None);
        self.told_at.set(None);
    }

    /// A group is done at `now`: whether it is time for an interrupt.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        if let Some(before) = self.group_at.replace(Some(now)) {
            self.is_slow.set(now - before > SLOW_GROUP);
        }
        if !self.is_slow.get() {
            return true;
        }
        let told_at = self.told_at.get();
        let is_due = told_at.is_some_and(|told_at| now - told_at >= APART);
        if is_due || told_at.is_none() {
            self.told_at.set(Some(now));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of `groups` groups, each of `group` long, the driver is told of.
    fn told(pace: &Pace, groups: u32, group: Duration) -> Vec<u32> {
        pace.begin();
        let begin = Instant::now();
        (0..groups).filter(|index| pace.is_due(begin + group * *index)).collect()
    }

    #[test]
    fn fast_groups_are_all_told_and_slow_ones_far_apart() {
        let pace = Pace::default();
        assert_eq!(told(&pace, 8, Duration::from_nanos(500)), [0, 1, 2, 3, 4, 5, 6, 7]);
        // The pace is not known before the second group; then it is remembered.
        assert_eq!(told(&pace, 8, Duration::from_micros(5)), [0, 7]);
        assert_eq!(told(&pace, 14, Duration::from_micros(5)), [6, 12]);
        assert_eq!(told(&pace, 4, Duration::from_nanos(500)), [1, 2, 3]);
        assert_eq!(told(&pace, 2, Duration::from_nanos(500)), [0, 1]);
    }
}
