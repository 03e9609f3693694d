//! An interrupt for a driver that lives on another thread: it can wait for it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

const IDLE: u8 = 0;
/// A thread waits, or is about to.
const WAITING: u8 = 1;
/// Raised, and not yet seen.
const RAISED: u8 = 2;

/// An interrupt line that one thread at a time waits on. Raising it costs a system call only if
/// that thread sleeps.
#[derive(Debug, Default)]
pub struct InterruptLine {
    state: AtomicU8,
    waiter: Mutex<Option<Thread>>,
}

impl InterruptLine {
    /// Raises it. Any thread.
    pub fn raise(&self) {
        if self.state.swap(RAISED, Ordering::AcqRel) == WAITING {
            let waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(thread) = waiter {
                thread.unpark();
            }
        }
    }

    /// Waits until it was raised since the last wait; false if `timeout` ran out before.
    pub fn wait(&self, timeout: Duration) -> bool {
        if self.state.swap(IDLE, Ordering::AcqRel) == RAISED {
            return true;
        }
        let deadline = Instant::now() + timeout;
        *self.waiter.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        // Fails if it was raised just now; the loop sees that.
        let _ = self.state.compare_exchange(IDLE, WAITING, Ordering::AcqRel, Ordering::Relaxed);
        while self.state.load(Ordering::Acquire) != RAISED {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::park_timeout(left);
        }
        self.state.swap(IDLE, Ordering::AcqRel) == RAISED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_raise_is_never_lost() {
        let there = Arc::new(InterruptLine::default());
        let back = Arc::new(InterruptLine::default());
        let other = thread::spawn({
            let (there, back) = (Arc::clone(&there), Arc::clone(&back));
            move || {
                for _ in 0..2000 {
                    assert!(there.wait(Duration::from_secs(30)));
                    back.raise();
                }
            }
        });
        for _ in 0..2000 {
            there.raise();
            assert!(back.wait(Duration::from_secs(30)));
        }
        other.join().unwrap();
    }

    #[test]
    fn waiting_times_out() {
        let line = InterruptLine::default();
        assert!(!line.wait(Duration::from_millis(1)));
        line.raise();
        assert!(line.wait(Duration::ZERO));
    }
}
