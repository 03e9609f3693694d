//! [`Rewrites`]: changes of the file beside a node that has its image open.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often the tables of the file have been changed beside the node: odd while they are. What was read before, and
/// is used after that, is read again; what is in memory meanwhile is not written.
#[derive(Default)]
pub(crate) struct Rewrites(AtomicU64);

impl Rewrites {
    /// A change begins, or ends.
    pub(crate) fn step(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Changes with each beginning and end.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether tables are being changed.
    pub(crate) fn is_active(&self) -> bool {
        self.count() % 2 == 1
    }
}
