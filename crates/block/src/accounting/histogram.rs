//! [`LatencyHistogram`]: how many requests took how long, in bins that the user chose.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use super::kind::RequestKind;

/// A histogram of latencies: how many requests took how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyHistogram {
    /// Boundaries between bins in nanoseconds, ascending.
    pub boundaries_ns: Vec<u64>,
    /// Requests a bin: below the first boundary, from each boundary up to the next, and from the
    /// last on.
    pub bins: Vec<u64>,
}

/// Boundaries that are refused: they do not ascend, or the first is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("boundaries of {} latency bins must ascend from above 0", kind.name())]
pub struct BinsError {
    /// The kind of requests that they were for.
    pub kind: RequestKind,
}

/// The bins while they are counted. One thread writes.
pub(super) struct Bins {
    boundaries_ns: Arc<[u64]>,
    counts: Vec<AtomicU64>,
}

impl Bins {
    pub(super) fn new(kind: RequestKind, boundaries_ns: &[u64]) -> Result<Bins, BinsError> {
        if boundaries_ns.first() == Some(&0) || !boundaries_ns.is_sorted_by(|a, b| a < b) {
            return Err(BinsError { kind });
        }
        Ok(Bins::between(boundaries_ns.into()))
    }

    /// Between boundaries that ascend from above 0.
    pub(super) fn between(boundaries_ns: Arc<[u64]>) -> Bins {
        let counts = (0..=boundaries_ns.len()).map(|_| AtomicU64::new(0)).collect();
        Bins { boundaries_ns, counts }
    }

    pub(super) fn record(&self, latency_ns: u64) {
        let bin = self.boundaries_ns.partition_point(|boundary| *boundary <= latency_ns);
        let count = &self.counts[bin];
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The lowest latency of each bin that is not empty, and how many are in there.
    pub(super) fn counts(&self) -> impl Iterator<Item = (u64, u64)> {
        let lowest_ns = std::iter::once(0).chain(self.boundaries_ns.iter().copied());
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        lowest_ns.zip(counts).filter(|(_, count)| *count > 0)
    }

    pub(super) fn read(&self) -> LatencyHistogram {
        LatencyHistogram {
            boundaries_ns: self.boundaries_ns.to_vec(),
            bins: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundary_belongs_to_the_bin_above() {
        let bins = Bins::new(RequestKind::Read, &[10, 50, 100]).unwrap();
        for latency_ns in [0, 9, 10, 49, 50, 99, 100, u64::MAX] {
            bins.record(latency_ns);
        }
        assert_eq!(bins.read().bins, [2, 2, 2, 2]);
    }

    #[test]
    fn boundaries_ascend_from_above_zero() {
        assert!(Bins::new(RequestKind::Read, &[0, 10]).is_err());
        assert!(Bins::new(RequestKind::Read, &[10, 10]).is_err());
        assert!(Bins::new(RequestKind::Read, &[10, 5]).is_err());
        assert_eq!(Bins::new(RequestKind::Read, &[]).unwrap().read().bins, [0]);
    }
}
