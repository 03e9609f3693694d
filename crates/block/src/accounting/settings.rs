//! Settings of what is counted, changed while requests run, from any thread.

use std::sync::Arc;
use std::time::Duration;

use super::Accounting;
use super::histogram::{Bins, BinsError};
use super::kind::RequestKind;
use super::percentiles::Percentiles;
use super::statistics::Statistics;
use super::timed_average::TimedAverage;

/// Where bins of latencies meet, in nanoseconds, as `block-latency-histogram-set` has it.
///
/// ```
/// # use coblk_aio::AioContext;
/// # use coblk_block::{BlockBackend, BlockNode, drivers::Null};
/// use coblk_block::accounting::LatencyBoundaries;
///
/// # let ctx = AioContext::new()?;
/// # let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", Null::new(1 << 20)));
/// let all = Some(vec![10_000, 100_000, 1_000_000]);
/// backend.statistics().set_latency_boundaries(&LatencyBoundaries { all, ..Default::default() })?;
/// backend.flush(&ctx)?;
/// let flushes = backend.statistics().snapshot().flush_latencies.unwrap();
/// assert_eq!(flushes.bins.iter().sum::<u64>(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencyBoundaries {
    /// `boundaries`: of all kinds that have none of their own here.
    pub all: Option<Vec<u64>>,
    /// `boundaries-read`.
    pub read: Option<Vec<u64>>,
    /// `boundaries-write`: of writes, and of zeroes.
    pub write: Option<Vec<u64>>,
    /// `boundaries-flush`.
    pub flush: Option<Vec<u64>>,
}

/// Settings. They hold for requests that begin from now on.
impl Statistics {
    /// The setting of how much is counted.
    pub fn accounting(&self) -> Accounting {
        self.shared.settings().accounting
    }

    /// Changes how much is counted. Requests in flight keep what they began with.
    pub fn set_accounting(&self, accounting: Accounting) {
        self.shared.change(|settings| settings.accounting = accounting);
    }

    /// Adds averages over the last `length`; see [`averages`](Self::averages). They need a clock,
    /// as bins do.
    pub fn add_interval(&self, length: Duration) {
        self.add_interval_from(length, self.now_ns());
    }

    pub(crate) fn add_interval_from(&self, length: Duration, now_ns: i64) {
        let length_ns = i64::try_from(length.as_nanos()).unwrap_or(i64::MAX);
        let averages = std::array::from_fn(|_| TimedAverage::new(length_ns, now_ns));
        let interval = (length, Arc::new(averages));
        self.shared.change(|settings| settings.extras.intervals.push(interval));
    }

    /// Counts, from zero, how many requests of a kind took how long, in bins with these boundaries
    /// in nanoseconds; `None` ends that. See [`latencies`](Self::latencies).
    ///
    /// Needs a clock: with latencies, [`Accounting::Counts`] is as dear as
    /// [`Accounting::Exact`], two looks at the clock a request. Then a search among the boundaries.
    ///
    /// # Errors
    /// If the boundaries do not ascend, or the first is 0.
    pub fn set_latency_bins(
        &self,
        kind: RequestKind,
        boundaries_ns: Option<&[u64]>,
    ) -> Result<(), BinsError> {
        let bins = boundaries_ns.map(|it| Bins::new(kind, it)).transpose()?.map(Arc::new);
        self.shared.change(|settings| settings.extras.bins[kind.index()] = bins);
        Ok(())
    }

    /// Sets the bins of several kinds, as `block-latency-histogram-set` does: a kind without
    /// boundaries stays as it is, but if none has any, all bins go. See
    /// [`set_latency_bins`](Self::set_latency_bins).
    ///
    /// # Errors
    /// If boundaries do not ascend, or the first is 0. Nothing has changed then.
    pub fn set_latency_boundaries(&self, boundaries: &LatencyBoundaries) -> Result<(), BinsError> {
        let LatencyBoundaries { all, read, write, flush } = boundaries;
        let kinds = [
            (RequestKind::Read, read),
            (RequestKind::Write, write),
            (RequestKind::WriteZeroes, write),
            (RequestKind::Flush, flush),
        ];
        let mut new = Vec::new();
        for (kind, own) in kinds {
            if let Some(boundaries_ns) = own.as_ref().or(all.as_ref()) {
                new.push((kind, Arc::new(Bins::new(kind, boundaries_ns)?)));
            }
        }
        self.shared.change(|settings| {
            let bins = &mut settings.extras.bins;
            if new.is_empty() {
                bins.fill(None);
            }
            for (kind, new) in new {
                bins[kind.index()] = Some(new);
            }
        });
        Ok(())
    }

    /// Keeps, from zero, percentiles of the latencies of a kind of requests, or ends that. Costs 31
    /// KiB a kind, and a clock as bins do. See [`percentiles`](Self::percentiles).
    pub fn set_percentiles(&self, kind: RequestKind, enabled: bool) {
        let percentiles = enabled.then(|| Arc::new(Percentiles::new()));
        self.shared.change(|settings| settings.extras.percentiles[kind.index()] = percentiles);
    }

    /// Sets whether failed requests are in latencies and end an idle time, and whether invalid
    /// requests end one: QEMU's `stats-account-failed` and `stats-account-invalid`. Both are on at
    /// first.
    pub fn set_account(&self, failed: bool, invalid: bool) {
        self.shared.set_account(failed, invalid);
    }
}
