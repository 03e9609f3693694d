//! [`BlockStats`]: the numbers of a moment, as `query-blockstats` has them.

use std::time::Duration;

use super::histogram::LatencyHistogram;
use super::kind::RequestKind;
use super::statistics::{KindStatistics, Statistics};
use super::timed_average::Average;

/// The counters of a backend at one moment. Zeroes are among the writes, as in QEMU. Without a
/// clock ([`Accounting`](super::Accounting)) times are 0.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BlockStats {
    /// `rd_bytes`, `rd_operations`, and so on.
    pub read: KindStatistics,
    /// `wr_bytes`, and so on.
    pub write: KindStatistics,
    /// `flush_operations`, and so on.
    pub flush: KindStatistics,
    /// `unmap_bytes`, and so on.
    pub unmap: KindStatistics,
    /// `idle_time_ns`.
    pub idle_time: Duration,
    /// `account_failed`.
    pub account_failed: bool,
    /// `account_invalid`.
    pub account_invalid: bool,
    /// `timed_stats`.
    pub timed: Vec<TimedStats>,
    /// `rd_latency_histogram`.
    pub read_latencies: Option<LatencyHistogram>,
    /// `wr_latency_histogram`.
    pub write_latencies: Option<LatencyHistogram>,
    /// `flush_latency_histogram`.
    pub flush_latencies: Option<LatencyHistogram>,
}

/// Averages over one interval.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct TimedStats {
    /// `interval_length`.
    pub interval: Duration,
    /// `min_rd_latency_ns`, and so on.
    pub read: Average,
    /// `min_wr_latency_ns`, and so on.
    pub write: Average,
    /// `min_flush_latency_ns`, and so on.
    pub flush: Average,
    /// `avg_rd_queue_depth`.
    pub read_depth: f64,
    /// `avg_wr_queue_depth`.
    pub write_depth: f64,
}

const WRITES: [RequestKind; 2] = [RequestKind::Write, RequestKind::WriteZeroes];

impl Statistics {
    /// Takes the counters of this moment. Requests go on meanwhile, so two of them may be a request
    /// apart. Any thread.
    pub fn snapshot(&self) -> BlockStats {
        let (account_failed, account_invalid) = self.shared.account();
        let writes = WRITES.map(|kind| self.of(kind));
        let write_latencies = WRITES.into_iter().filter_map(|kind| self.latencies(kind));
        BlockStats {
            read: self.of(RequestKind::Read),
            write: writes[0].and(writes[1]),
            flush: self.of(RequestKind::Flush),
            unmap: self.of(RequestKind::Discard),
            idle_time: self.idle_time(),
            account_failed,
            account_invalid,
            timed: self.timed(),
            read_latencies: self.latencies(RequestKind::Read),
            write_latencies: write_latencies.reduce(LatencyHistogram::and),
            flush_latencies: self.latencies(RequestKind::Flush),
        }
    }

    fn timed(&self) -> Vec<TimedStats> {
        let now_ns = self.now_ns();
        let averages = |kind| self.averages_at(kind, now_ns);
        let depths = |kind| self.average_queue_depths_at(kind, now_ns);
        let [written, zeroed] = WRITES.map(averages);
        let [written_depth, zeroed_depth] = WRITES.map(depths);
        let (flush, read_depth) = (averages(RequestKind::Flush), depths(RequestKind::Read));
        // An interval may be added while we look: only those that all know.
        let known = averages(RequestKind::Read).into_iter().enumerate();
        let timed = known.filter_map(|(index, (interval, read))| {
            Some(TimedStats {
                interval,
                read,
                write: written.get(index)?.1.and(zeroed.get(index)?.1),
                flush: flush.get(index)?.1,
                read_depth: read_depth.get(index)?.1,
                write_depth: written_depth.get(index)?.1 + zeroed_depth.get(index)?.1,
            })
        });
        timed.collect()
    }
}

impl KindStatistics {
    fn and(self, other: KindStatistics) -> KindStatistics {
        KindStatistics {
            operations: self.operations + other.operations,
            bytes: self.bytes + other.bytes,
            total_time_ns: self.total_time_ns + other.total_time_ns,
            failed: self.failed + other.failed,
            invalid: self.invalid + other.invalid,
            merged: self.merged + other.merged,
        }
    }
}

impl Average {
    fn and(self, other: Average) -> Average {
        if self.count == 0 || other.count == 0 {
            return if self.count == 0 { other } else { self };
        }
        let count = self.count + other.count;
        let sum = |it: Average| u128::from(it.avg) * u128::from(it.count);
        Average {
            min: self.min.min(other.min),
            avg: ((sum(self) + sum(other)) / u128::from(count)) as u64,
            max: self.max.max(other.max),
            count,
        }
    }
}

impl LatencyHistogram {
    /// The first one's bins, with the other's requests if these are counted in the same bins.
    fn and(mut self, other: LatencyHistogram) -> LatencyHistogram {
        if self.boundaries_ns == other.boundaries_ns {
            self.bins.iter_mut().zip(other.bins).for_each(|(bin, more)| *bin += more);
        }
        self
    }
}
