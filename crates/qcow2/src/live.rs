//! [`LiveOptions`]: options that a reopen changes and requests read.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metadata::Metadata;
use crate::options::Qcow2Options;
use crate::refcount::Discard;

/// Bit of `discard-no-unref`, beside those of kinds of metadata.
const NO_UNREF: u64 = 1 << 32;
/// First bit of kinds of discards that are passed on.
const PASSED: u32 = 40;

/// Why clusters become free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freed {
    /// By a discard, or zeroes that may unmap.
    Request,
    /// With a snapshot.
    Snapshot,
    /// By a change of tables.
    Other,
    /// By a resize or a repair.
    Always,
    /// By a write that has taken others, or has failed.
    Never,
}

/// Options that a reopen changes, while the node is drained, in one word.
pub(crate) struct LiveOptions(AtomicU64);

impl LiveOptions {
    /// Those of a node.
    pub(crate) fn new(options: &Qcow2Options) -> LiveOptions {
        LiveOptions(AtomicU64::new(Self::word(options)))
    }

    fn word(options: &Qcow2Options) -> u64 {
        let mut word = options.checked_metadata().bits();
        if options.discard_no_unref == Some(true) {
            word |= NO_UNREF;
        }
        let passed = [
            // A node that ignores discards gets none.
            (Freed::Request, options.pass_discard_request.unwrap_or(true)),
            (Freed::Snapshot, options.pass_discard_snapshot.unwrap_or(true)),
            (Freed::Other, options.pass_discard_other.unwrap_or(false)),
            (Freed::Always, true),
        ];
        for (kind, _) in passed.into_iter().filter(|(_, is_on)| *is_on) {
            word |= 1 << (PASSED + kind as u32);
        }
        word
    }

    /// Changes places with other options.
    pub(crate) fn swap(&self, other: &LiveOptions) {
        let new = other.0.load(Ordering::Relaxed);
        other.0.store(self.0.swap(new, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The kinds of metadata that writes of data must not meet.
    #[inline]
    pub(crate) fn overlap(&self) -> Metadata {
        Metadata::from_bits_truncate(self.0.load(Ordering::Relaxed))
    }

    /// Whether discarded clusters keep their place.
    pub(crate) fn keeps_discarded(&self) -> bool {
        self.0.load(Ordering::Relaxed) & NO_UNREF != 0
    }

    /// What happens in the file to clusters that become free.
    pub(crate) fn discard(&self, freed: Freed) -> Discard {
        match self.0.load(Ordering::Relaxed) >> (PASSED + freed as u32) & 1 {
            0 => Discard::Keep,
            _ => Discard::Punch,
        }
    }
}
