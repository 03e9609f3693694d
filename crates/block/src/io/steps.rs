//! [`Steps`]: how much of a long request a driver is given at a time.
//!
//! Zeroes and discards may be of 2^63 bytes, and whether they are done at once or in days is for the driver to
//! know. Between two steps a request ends that is [not wanted](Co::is_wanted) any more: its client has gone, its
//! export is removed, the daemon ends. A driver that is quick gets more each time, so that it is asked some
//! thirty times and not a billion times.

use coblk_aio::Co;

/// The first step in bytes. QEMU gives drivers twice as much.
const FIRST_BYTES: u64 = 1 << 30;
/// A step that is done within this time is followed by one of twice the length.
const QUICK_NS: i64 = 10_000_000;

/// The steps of one request.
pub(super) struct Steps {
    /// The most that the driver takes.
    max_bytes: u64,
    bytes: u64,
    began_ns: i64,
}

impl Steps {
    /// Steps of whole units, of which the driver takes no more than `max_bytes` at once.
    pub(super) fn new(unit: u32, max_bytes: u64) -> Steps {
        let whole = |bytes: u64| (bytes / u64::from(unit)).max(1) * u64::from(unit);
        let max_bytes = whole(max_bytes);
        Steps { max_bytes, bytes: max_bytes.min(whole(FIRST_BYTES)), began_ns: 0 }
    }

    /// The length of the next step, if so much is left. Both are whole units.
    pub(super) fn next(&mut self, co: &Co<'_>, left: u64) -> u64 {
        if left > self.bytes {
            self.began_ns = co.context().now_ns();
        }
        left.min(self.bytes)
    }

    /// It is done, and was not the last.
    pub(super) fn done(&mut self, co: &Co<'_>) {
        if self.bytes < self.max_bytes && co.context().now_ns() - self.began_ns < QUICK_NS {
            self.bytes = self.bytes.saturating_mul(2).min(self.max_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use coblk_aio::AioContext;

    use super::*;

    #[test]
    fn steps_are_whole_units_within_the_limit() {
        let ctx = AioContext::for_test().unwrap();
        ctx.run(|co| {
            for (unit, max, first) in [
                (1, u64::MAX, FIRST_BYTES),
                (3 << 20, u64::MAX, 341 * (3 << 20)),
                (512, 1000, 512),
                (4096, 100, 4096),
            ] {
                let mut steps = Steps::new(unit, max);
                assert_eq!(steps.next(co, u64::MAX / u64::from(unit) * u64::from(unit)), first);
                assert_eq!(steps.next(co, u64::from(unit)), u64::from(unit));
                for _ in 0..70 {
                    steps.done(co);
                    assert!(steps.bytes.is_multiple_of(u64::from(unit)));
                    assert!(steps.bytes <= max.max(u64::from(unit)));
                }
            }
        });
    }
}
