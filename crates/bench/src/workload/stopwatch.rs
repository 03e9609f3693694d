//! Latencies of a client's requests: [`Stopwatch`]; and of one after the other: [`RoundTrips`]. A
//! stopwatch looks at the clock once a turn, not once a request: a client with many in flight takes and
//! makes many in a turn.

use std::time::Instant;

use hdrhistogram::Histogram;

use super::{MAX_LATENCY_NS, new_histogram};
use crate::stats::Percentiles;

/// When each request began, by the place of it, and how long those that ended took.
pub struct Stopwatch {
    zero: Instant,
    now_ns: u64,
    begun_ns: Vec<u64>,
    histogram: Histogram<u64>,
}

impl Stopwatch {
    /// A stopwatch for as many requests at a time.
    pub fn new(places: usize) -> Stopwatch {
        let (zero, begun_ns) = (Instant::now(), vec![0; places]);
        Stopwatch { zero, now_ns: 0, begun_ns, histogram: new_histogram() }
    }

    /// Looks at the clock; the time in nanoseconds, which is that of all that follows.
    pub fn look(&mut self) -> u64 {
        self.now_ns = u64::try_from(self.zero.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.now_ns
    }

    /// A request begins.
    pub fn begin(&mut self, place: usize) {
        self.begun_ns[place] = self.now_ns;
    }

    /// A request begins that should have at `due_ns`: what it waited before counts.
    pub fn begin_due(&mut self, place: usize, due_ns: u64) {
        self.begun_ns[place] = due_ns;
    }

    /// A request has ended.
    pub fn end(&mut self, place: usize) {
        self.record_since(self.begun_ns[place]);
    }

    /// A request has waited since then.
    pub fn record_since(&mut self, begun_ns: u64) {
        let ns = self.now_ns.saturating_sub(begun_ns);
        self.histogram.saturating_record(ns.min(MAX_LATENCY_NS));
    }

    /// The latencies since this was asked last, in nanoseconds.
    pub fn take(&mut self) -> Histogram<u64> {
        std::mem::replace(&mut self.histogram, new_histogram())
    }
}

/// How long round trips take that follow each other without a pause: the end of one is the beginning of
/// the next, so one look at the clock serves both.
pub struct RoundTrips(Stopwatch);

impl RoundTrips {
    /// Without any.
    pub fn new() -> RoundTrips {
        RoundTrips(Stopwatch::new(1))
    }

    /// The first begins.
    pub fn begin(&mut self) {
        self.0.look();
        self.0.begin(0);
    }

    /// One has ended, and the next begins.
    pub fn end(&mut self) {
        self.0.look();
        self.0.end(0);
        self.0.begin(0);
    }

    /// Those since this was asked last.
    pub fn take(&mut self) -> Option<Percentiles> {
        Percentiles::of(&self.0.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_when_a_request_was_due() {
        let mut watch = Stopwatch::new(2);
        watch.now_ns = 1000;
        watch.begin(0);
        watch.begin_due(1, 400);
        watch.now_ns = 1500;
        watch.end(1);
        watch.end(0);
        watch.record_since(2000);
        let taken = watch.take();
        assert_eq!((taken.len(), taken.max(), taken.min()), (3, 1100, 0));
        assert_eq!(taken.value_at_quantile(0.5), 500);
        assert!(watch.take().is_empty());
    }
}
