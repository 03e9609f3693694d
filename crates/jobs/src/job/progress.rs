//! [`Progress`]: how far a job has come, for any thread to add to.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a job has done, and what is left, in a unit of the job's, such as bytes. What is done only grows;
/// what is left goes both ways. Any thread.
#[derive(Debug, Default)]
pub struct Progress {
    current: AtomicU64,
    rest: AtomicU64,
}

impl Progress {
    /// What is done.
    pub fn current(&self) -> u64 {
        self.current.load(Ordering::Relaxed)
    }

    /// What is left.
    pub fn rest(&self) -> u64 {
        self.rest.load(Ordering::Relaxed)
    }

    /// Adds to what is done, and leaves the rest alone.
    pub fn add(&self, amount: u64) {
        self.current.fetch_add(amount, Ordering::Relaxed);
    }

    /// Sets what is left.
    pub fn set_rest(&self, rest: u64) {
        self.rest.store(rest, Ordering::Relaxed);
    }
}
