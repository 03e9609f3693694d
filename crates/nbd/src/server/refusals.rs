//! [`Refusals`]: clients that are refused must not fill the log.

use std::cell::Cell;

/// After one was logged, for how long others are only counted.
const QUIET_NS: i64 = 1_000_000_000;

/// When a refusal was logged, and how many were not since.
#[derive(Default)]
pub struct Refusals {
    logged_at_ns: Cell<Option<i64>>,
    unlogged: Cell<u64>,
}

impl Refusals {
    /// A client is refused at `now_ns`. If that is to be logged: how many were not, since the last one that
    /// was.
    pub fn admit(&self, now_ns: i64) -> Option<u64> {
        let since = self.logged_at_ns.get().map(|logged_at_ns| now_ns.saturating_sub(logged_at_ns));
        if since.is_some_and(|since| since < QUIET_NS) {
            self.unlogged.set(self.unlogged.get() + 1);
            return None;
        }
        self.logged_at_ns.set(Some(now_ns));
        Some(self.unlogged.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_second_is_logged_and_the_rest_is_counted() {
        let refusals = Refusals::default();
        let ends = [0, 1, QUIET_NS - 1, QUIET_NS, QUIET_NS + 1, 3 * QUIET_NS, 9 * QUIET_NS];
        let logged = ends.map(|now_ns| refusals.admit(now_ns));
        assert_eq!(logged, [Some(0), None, None, Some(2), None, Some(1), Some(0)]);
    }
}
