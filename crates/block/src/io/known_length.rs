//! Lengths that nodes remember.
//!
//! A filter is as long as its child, so to ask for a length goes down a chain. Each level of a request asks,
//! and an edge costs more than the rest of a level: so a node remembers the answer for as long as nothing in
//! the process may have changed a length. That is counted, in one number that is seldom written: where the
//! graph is changed, drained sections end, or a length was set or looked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How often lengths may have changed. Begins behind what a new node has.
static CHANGES: AtomicU64 = AtomicU64::new(1);

/// A length may be another from now on. Called after it has changed.
pub(crate) fn lengths_may_have_changed() {
    CHANGES.fetch_add(1, Ordering::SeqCst);
}

/// The length of a node, as its driver said last. Any thread.
#[derive(Default)]
pub(crate) struct KnownLength {
    /// The value of [`CHANGES`] before the driver was asked.
    as_of: AtomicU64,
    bytes: AtomicU64,
    /// Held while the driver is asked, so that the last answer stored is the newest.
    asking: Mutex<()>,
}

impl KnownLength {
    /// The length that was remembered, or else the one that `ask` returns.
    #[inline]
    pub(crate) fn get(&self, ask: impl FnOnce() -> u64) -> u64 {
        // Bytes are stored before the number: what is read behind it is of that time, or newer.
        if self.as_of.load(Ordering::Acquire) == CHANGES.load(Ordering::Acquire) {
            return self.bytes.load(Ordering::Relaxed);
        }
        self.ask(ask)
    }

    #[cold]
    #[inline(never)]
    fn ask(&self, ask: impl FnOnce() -> u64) -> u64 {
        let _one = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let as_of = CHANGES.load(Ordering::SeqCst);
        let bytes = ask();
        self.bytes.store(bytes, Ordering::Relaxed);
        self.as_of.store(as_of, Ordering::Release);
        bytes
    }
}
