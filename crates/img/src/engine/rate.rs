//! [`Rate`]: a limit of bytes a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use coblk::Co;

/// At most so many bytes a second, by all workers together. Any thread.
pub(crate) struct Rate {
    bytes_a_second: u64,
    /// When what was let through so far is over.
    until: Mutex<Instant>,
}

impl Rate {
    /// A limit; at least a byte a second.
    pub(crate) fn new(bytes_a_second: u64) -> Rate {
        Rate { bytes_a_second: bytes_a_second.max(1), until: Instant::now().into() }
    }

    /// Waits until so many bytes may be moved. Returns as soon as it is `stopped`.
    pub(crate) fn co_wait(&self, co: &Co<'_>, bytes: u64, stopped: impl Fn() -> bool) {
        const LOOK_EVERY: Duration = Duration::from_millis(100);
        let begin = {
            let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = (*until).max(Instant::now());
            *until = begin + Duration::from_secs_f64(bytes as f64 / self.bytes_a_second as f64);
            begin
        };
        loop {
            let left = begin.saturating_duration_since(Instant::now());
            if left.is_zero() || stopped() {
                return;
            }
            co.sleep(left.min(LOOK_EVERY));
        }
    }
}
