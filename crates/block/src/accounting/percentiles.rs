//! [`LatencyPercentiles`]: how long most requests took, and the slowest.
//!
//! hdrhistogram says where bins meet and finds the percentiles. The counting in between is that of
//! [`Bins`], without a lock: readers must not make the home thread wait.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use hdrhistogram::Histogram;

use super::histogram::Bins;

/// Longer latencies are told apart by the maximum only.
const LONGEST_NS: u64 = 100_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 2;

/// How long requests took, in nanoseconds: half of them not longer than `p50_ns`, and so on. All 0
/// if there were none.
///
/// Percentiles have two significant digits, are rounded up, and end at 100 s; the maximum is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyPercentiles {
    /// How many requests were counted.
    pub count: u64,
    /// The median: 50 % of the requests took no longer.
    pub p50_ns: u64,
    /// 90 % of the requests took no longer.
    pub p90_ns: u64,
    /// 99 % of the requests took no longer.
    pub p99_ns: u64,
    /// 99.9 % of the requests took no longer.
    pub p999_ns: u64,
    /// The slowest request.
    pub max_ns: u64,
}

/// The percentiles while they are counted: 31 KiB. One thread writes.
pub(super) struct Percentiles {
    bins: Bins,
    max_ns: AtomicU64,
}

fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, SIGNIFICANT_DIGITS).expect("the bounds are sound")
}

/// Where the bins of hdrhistogram meet.
static BOUNDARIES_NS: LazyLock<Arc<[u64]>> = LazyLock::new(|| {
    let histogram = empty_histogram();
    let next = |boundary: &u64| Some(histogram.next_non_equivalent(*boundary));
    let boundaries = std::iter::successors(next(&0), next);
    boundaries.take_while(|boundary| *boundary <= LONGEST_NS).collect()
});

impl Percentiles {
    pub(super) fn new() -> Percentiles {
        Percentiles { bins: Bins::between(Arc::clone(&BOUNDARIES_NS)), max_ns: AtomicU64::new(0) }
    }

    pub(super) fn record(&self, latency_ns: u64) {
        self.bins.record(latency_ns);
        let max_ns = self.max_ns.load(Ordering::Relaxed).max(latency_ns);
        self.max_ns.store(max_ns, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> LatencyPercentiles {
        let mut histogram = empty_histogram();
        for (lowest_ns, count) in self.bins.counts() {
            histogram.saturating_record_n(lowest_ns, count);
        }
        let max_ns = self.max_ns.load(Ordering::Relaxed);
        // The upper end of a bin can be above all that is in it.
        let at = |quantile| histogram.value_at_quantile(quantile).min(max_ns);
        LatencyPercentiles {
            count: histogram.len(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_two_digits_of_a_sorted_list() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20 {
            let percentiles = Percentiles::new();
            let scale = 10u64.pow(random.u32(1..11));
            let mut sorted: Vec<u64> = (0..5000).map(|_| random.u64(0..scale)).collect();
            sorted.iter().for_each(|latency_ns| percentiles.record(*latency_ns));
            sorted.sort_unstable();
            let read = percentiles.read();
            assert_eq!((read.count, read.max_ns), (5000, sorted[4999]));
            let found = [read.p50_ns, read.p90_ns, read.p99_ns, read.p999_ns];
            for (found, rank) in found.into_iter().zip([2500, 4500, 4950, 4995]) {
                let exact = sorted[rank - 1];
                assert!((exact..=exact + exact / 100).contains(&found), "{found} for {exact}");
            }
        }
    }

    #[test]
    fn what_took_too_long_is_in_the_last_bin_and_the_maximum() {
        let percentiles = Percentiles::new();
        assert_eq!(percentiles.read(), LatencyPercentiles::default());
        percentiles.record(0);
        assert_eq!(percentiles.read(), LatencyPercentiles { count: 1, ..Default::default() });
        percentiles.record(u64::MAX);
        let read = percentiles.read();
        assert_eq!((read.count, read.p50_ns, read.max_ns), (2, 0, u64::MAX));
        let longest = LONGEST_NS - LONGEST_NS / 100..=LONGEST_NS + LONGEST_NS / 100;
        assert!(longest.contains(&read.p99_ns), "{}", read.p99_ns);
    }

    #[test]
    fn the_memory_is_bounded() {
        assert!(BOUNDARIES_NS.len() < 4096, "{}", BOUNDARIES_NS.len());
    }
}
