//! What nodes remember of what their drivers say.
//!
//! A filter is as long as its child, and read-only as its child is, so to ask for that goes down a chain. Each
//! level of a request asks, and an edge costs more than the rest of a level: so a node remembers the answer
//! for as long as nothing in the process may have changed one. That is counted, in one number that is seldom
//! written: where the graph is changed, nodes are reopened, drained sections end, or a length was set or
//! looked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How often answers may have changed. Begins behind what a new node has.
static CHANGES: AtomicU64 = AtomicU64::new(1);

/// An answer may be another from now on. Called after it has changed.
pub(crate) fn answers_may_have_changed() {
    CHANGES.fetch_add(1, Ordering::SeqCst);
}

/// An answer of a node's driver, as it was last. Any thread.
#[derive(Default)]
pub(crate) struct Known {
    /// What [`CHANGES`] was before the driver was asked.
    as_of: AtomicU64,
    answer: AtomicU64,
    /// Held while the driver is asked, so that the last answer stored is the newest.
    asking: Mutex<()>,
}

impl Known {
    /// What was remembered, or what `ask` says.
    #[inline]
    pub(crate) fn get(&self, ask: impl FnOnce() -> u64) -> u64 {
        // The answer is stored before the number: what is read behind it is of that time, or newer.
        if self.as_of.load(Ordering::Acquire) == CHANGES.load(Ordering::Acquire) {
            return self.answer.load(Ordering::Relaxed);
        }
        self.ask(ask)
    }

    #[cold]
    #[inline(never)]
    fn ask(&self, ask: impl FnOnce() -> u64) -> u64 {
        let _one = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let as_of = CHANGES.load(Ordering::SeqCst);
        let answer = ask();
        self.answer.store(answer, Ordering::Relaxed);
        self.as_of.store(as_of, Ordering::Release);
        answer
    }
}
