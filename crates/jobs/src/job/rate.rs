//! [`Rate`]: how much a job may do in a time.
//!
//! Each chunk is paid for after it was sent: the next one goes out when the time that its bytes take at the
//! speed has passed since. So in no time more goes out than the speed allows and one chunk, and the
//! delay follows from the speed of the moment, which a user may change while a job sleeps.

use std::cell::Cell;
use std::time::Duration;

const NS_PER_SECOND: u128 = 1_000_000_000;

/// A chunk that goes out late by no more than this is taken to have gone out in time, so that the lateness of
/// timers does not add up.
const LATE_NS: i64 = 10_000_000;

/// The parts of a second that a chunk may take at most.
const CHUNKS_PER_SECOND: u64 = 40;

/// The speed limit of a job, and what was sent last.
#[derive(Debug, Default)]
pub struct Rate {
    /// In bytes a second; 0 is unlimited.
    speed: Cell<u64>,
    /// When the last chunk was due, in nanoseconds of the context's clock, and how many bytes it had.
    last: Cell<Option<(i64, u64)>>,
}

impl Rate {
    /// The limit, in bytes a second; 0 is none.
    pub fn speed(&self) -> u64 {
        self.speed.get()
    }

    /// Sets the limit. Returns whether work that waits may go on earlier.
    pub fn set_speed(&self, speed: u64) -> bool {
        let old = self.speed.replace(speed);
        old != 0 && (speed == 0 || speed > old)
    }

    /// The length of the next chunk, of `most` bytes at most and a granule at least: a fortieth of a second
    /// under a limit.
    pub fn chunk(&self, granule: u64, most: u64) -> u64 {
        match self.speed.get() {
            0 => most,
            speed => (speed / CHUNKS_PER_SECOND).clamp(granule, most.max(granule)),
        }
    }

    /// How long the next chunk has to wait; zero if it may go.
    pub fn delay(&self, now_ns: i64) -> Duration {
        let left = self.due_ns().map_or(0, |due| due.saturating_sub(now_ns));
        Duration::from_nanos(u64::try_from(left).unwrap_or(0))
    }

    /// When the time of the last chunk is over.
    fn due_ns(&self) -> Option<i64> {
        let (start, bytes) = self.last.get()?;
        let speed = u128::from(self.speed.get());
        let takes = (u128::from(bytes) * NS_PER_SECOND).checked_div(speed)?;
        Some(start.saturating_add(i64::try_from(takes).unwrap_or(i64::MAX)))
    }

    /// A chunk goes out.
    pub fn sent(&self, now_ns: i64, bytes: u64) {
        let start = match self.due_ns() {
            // Chunks that go out together are one.
            Some(due) if due > now_ns => {
                let (start, before) = self.last.get().unwrap_or((now_ns, 0));
                self.last.set(Some((start, before.saturating_add(bytes))));
                return;
            }
            Some(due) if now_ns - due <= LATE_NS => due,
            _ => now_ns,
        };
        self.last.set(Some((start, bytes)));
    }

    /// Some of a chunk was not needed after all.
    pub fn give_back(&self, bytes: u64) {
        if let Some((start, sent)) = self.last.get() {
            self.last.set(Some((start, sent.saturating_sub(bytes))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    /// The times at which chunks go out within a second, in milliseconds.
    fn times(rate: &Rate, chunk: u64) -> Vec<i64> {
        let (mut now, mut times) = (0, Vec::new());
        while now < 1000 * MS {
            times.push(now / MS);
            rate.sent(now, chunk);
            now += i64::try_from(rate.delay(now).as_nanos()).unwrap();
        }
        times
    }

    #[test]
    fn j35_no_more_goes_out_in_a_second_than_the_speed_says() {
        let rate = Rate::default();
        rate.set_speed(1 << 20);
        assert_eq!(rate.chunk(64 << 10, 1 << 20), 64 << 10);
        assert_eq!(times(&rate, 64 << 10).len(), 16);
        let rate = Rate::default();
        rate.set_speed(100 << 20);
        let chunk = rate.chunk(64 << 10, 16 << 20);
        assert_eq!(chunk, (100 << 20) / 40);
        assert_eq!(times(&rate, chunk).len(), 40);
        rate.set_speed(0);
        assert_eq!(rate.chunk(64 << 10, 16 << 20), 16 << 20);
    }

    #[test]
    fn j33_a_speed_of_one_byte_lets_one_chunk_out_and_rests() {
        let rate = Rate::default();
        rate.set_speed(1);
        assert_eq!(times(&rate, rate.chunk(64 << 10, 1 << 20)), [0]);
        assert!(rate.delay(1000 * MS) > Duration::from_secs(60_000));
    }

    #[test]
    fn j34_another_speed_holds_for_a_delay_that_has_begun() {
        let rate = Rate::default();
        assert!(!rate.set_speed(1 << 20), "there is nothing to be woken for");
        rate.sent(0, 1 << 20);
        assert_eq!(rate.delay(0), Duration::from_secs(1));
        assert!(rate.set_speed(2 << 20));
        assert_eq!(rate.delay(0), Duration::from_millis(500));
        assert!(!rate.set_speed(1 << 20));
        assert_eq!(rate.delay(0), Duration::from_secs(1));
        assert!(rate.set_speed(0));
        assert_eq!(rate.delay(0), Duration::ZERO);
    }

    #[test]
    fn lateness_is_made_up_for_and_idleness_is_not() {
        let rate = Rate::default();
        rate.set_speed(1_000_000);
        rate.sent(0, 100_000);
        rate.sent(105 * MS, 100_000);
        assert_eq!(rate.delay(105 * MS), Duration::from_millis(95));
        rate.sent(1000 * MS, 100_000);
        assert_eq!(rate.delay(1000 * MS), Duration::from_millis(100));
    }
}
