//! [`Pace`]: how fast a job copies beside guests whose requests are to stay fast.
//!
//! The filter above the source tells how long each request of a guest takes. In each window of time the job looks
//! whether more than one of twenty took longer than the limit. If so it does half as much at once from then on: fewer
//! copies, then shorter ones, then pauses between them. When none did, in four windows, it does twice as much again. So
//! it settles between two steps, of which it is longer in the one that guests bear.
//!
//! A backup without a limit looks at the waits of guests for copies of old bytes alone, which cost more than a look at
//! the clock: what it has under way at a slow target is what they wait for there. It does no less than a few copies at
//! once for that: a target may be far away, and then it is not slower for more of them.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coblk_aio::Co;

/// How long requests are looked at before a decision.
const WINDOW_NS: i64 = 50_000_000;
/// After that many good windows more is done.
const GOOD_WINDOWS: u32 = 4;
/// One of so many requests may take longer.
const MAY_BE_LONG: u64 = 20;
/// How long guests may wait for copies of old bytes without a limit.
const COPIES_LIMIT: Duration = Duration::from_millis(20);
/// Copies at once, at least, where that is all that they are looked at for.
const FEW: u64 = 4;
/// The shortest pause between copies, and how often it is doubled at most.
const PAUSE_NS: i64 = 1_000_000;
const MAX_DOUBLED: u32 = 7;

/// How long guests' requests take, against a limit. Any thread.
pub(crate) struct Latency {
    limit_ns: i64,
    /// Whether all is done for it that helps.
    is_wanted: bool,
    /// Those that have not ended.
    under_way: AtomicU32,
    /// Those that have, since the last look.
    requests: AtomicU32,
    long: AtomicU32,
}

impl Latency {
    /// Of requests that are to take no longer than that.
    pub(crate) fn new(limit: Duration) -> Arc<Latency> {
        Latency::of_limit(limit, true)
    }

    /// Of waits for copies of old bytes.
    pub(crate) fn of_copies() -> Arc<Latency> {
        Latency::of_limit(COPIES_LIMIT, false)
    }

    fn of_limit(limit: Duration, is_wanted: bool) -> Arc<Latency> {
        let limit_ns = i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX);
        let (under_way, requests, long) = Default::default();
        Arc::new(Latency { limit_ns, is_wanted, under_way, requests, long })
    }

    /// Does a request of a guest.
    pub(crate) fn of<R>(
        latency: Option<&Arc<Latency>>,
        co: &Co<'_>,
        request: impl FnOnce() -> R,
    ) -> R {
        let Some(latency) = latency else { return request() };
        let begin_ns = co.context().now_ns();
        let _under_way = UnderWay::new(latency);
        let result = request();
        latency.took(co.context().now_ns() - begin_ns);
        result
    }

    fn took(&self, ns: i64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if ns > self.limit_ns {
            self.long.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests since the last call, and those of them that took longer than the limit.
    fn take(&self) -> (u32, u32) {
        (self.requests.swap(0, Ordering::Relaxed), self.long.swap(0, Ordering::Relaxed))
    }
}

/// A request that has not ended.
struct UnderWay<'a>(&'a Latency);

impl UnderWay<'_> {
    fn new(latency: &Latency) -> UnderWay<'_> {
        latency.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(latency)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How much a job does at once. Home thread.
pub(super) struct Pace {
    latency: Option<Arc<Latency>>,
    /// Copies at once, and bytes of a copy, at most; bytes of the shortest one.
    workers: u64,
    chunk: u64,
    least: u64,
    /// How often that is halved.
    halved: Cell<u32>,
    good: Cell<u32>,
    window_ns: Cell<i64>,
    /// Requests were under way when the window began.
    was_under_way: Cell<bool>,
    /// No copy begins before.
    next_ns: Cell<i64>,
}

impl Pace {
    pub(super) fn new(
        latency: Option<Arc<Latency>>,
        (workers, chunk, least): (u64, u64, u64),
    ) -> Pace {
        let (halved, good, window_ns, was_under_way, next_ns) = Default::default();
        Pace { latency, workers, chunk, least, halved, good, window_ns, was_under_way, next_ns }
    }

    /// Whether it does all that it may.
    pub(super) fn is_full(&self) -> bool {
        self.halved.get() == 0
    }

    /// Looks at the window, if that is over.
    pub(super) fn look(&self, now_ns: i64) {
        let Some(latency) = &self.latency else { return };
        let took_ns = now_ns - self.window_ns.get();
        if took_ns < WINDOW_NS {
            return;
        }
        self.window_ns.set(now_ns);
        let (requests, long) = latency.take();
        let is_under_way = latency.under_way.load(Ordering::Relaxed) > 0;
        let was_under_way = self.was_under_way.replace(is_under_way);
        let (halved, most) = (self.halved.get(), self.max_halved(latency.is_wanted));
        // Where none has ended, those of the beginning have taken the whole window. It may be as long as a pause of
        // the job.
        let is_stuck = requests == 0 && was_under_way && took_ns > latency.limit_ns;
        if is_stuck || u64::from(long) * MAY_BE_LONG > u64::from(requests) {
            self.good.set(0);
            self.halved.set((halved + 1).min(most));
        } else if long == 0 && halved > 0 && (requests > 0 || !is_under_way) {
            self.good.set(self.good.get() + 1);
            if self.good.get() >= GOOD_WINDOWS {
                self.good.set(0);
                self.halved.set(halved - 1);
            }
        }
    }

    fn max_halved(&self, is_wanted: bool) -> u32 {
        match is_wanted {
            true => self.without_pauses() + MAX_DOUBLED + 1,
            false => (self.workers / FEW).max(1).ilog2(),
        }
    }

    /// How often it is halved until one copy at a time is the shortest.
    fn without_pauses(&self) -> u32 {
        self.workers.ilog2() + (self.chunk / self.least).max(1).ilog2()
    }

    /// Copies at once.
    pub(super) fn workers(&self) -> u64 {
        (self.workers >> self.halved.get().min(63)).max(1)
    }

    /// Bytes of a copy, at most.
    pub(super) fn chunk(&self) -> u64 {
        let halved = self.halved.get().saturating_sub(self.workers.ilog2());
        (self.chunk >> halved.min(63)).max(self.least).min(self.chunk)
    }

    /// A copy begins.
    pub(super) fn sent(&self, now_ns: i64) {
        let pauses = self.halved.get().saturating_sub(self.without_pauses());
        if pauses > 0 {
            self.next_ns.set(now_ns + (PAUSE_NS << (pauses - 1).min(MAX_DOUBLED)));
        }
    }

    /// When the next copy may begin.
    pub(super) fn next_ns(&self) -> i64 {
        self.next_ns.get()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn pace() -> (Pace, Arc<Latency>) {
        let latency = Latency::new(Duration::from_millis(2));
        (Pace::new(Some(Arc::clone(&latency)), (16, 1 << 20, 64 << 10)), latency)
    }

    /// Windows in which each request takes so long, and what is done at once after each.
    fn windows(pace: &Pace, latency: &Latency, from: i64, took: &[i64]) -> Vec<(u64, u64)> {
        let window = |(index, took): (usize, &i64)| {
            (0..10).for_each(|_| latency.took(*took));
            pace.look((from + index as i64 + 1) * WINDOW_NS);
            (pace.workers(), pace.chunk() >> 10)
        };
        took.iter().enumerate().map(window).collect()
    }

    #[test]
    fn j128_a_job_does_half_as_much_while_guests_suffer() {
        let (pace, latency) = pace();
        assert!(pace.is_full());
        let suffered = windows(&pace, &latency, 0, &[3 * MS; 9]);
        let expected = [
            (8, 1024),
            (4, 1024),
            (2, 1024),
            (1, 1024),
            (1, 512),
            (1, 256),
            (1, 128),
            (1, 64),
            (1, 64),
        ];
        assert_eq!(suffered, expected);
        pace.sent(0);
        assert_eq!(pace.next_ns(), MS);
        windows(&pace, &latency, 9, &[3 * MS; 100]);
        pace.sent(0);
        assert_eq!(pace.next_ns(), 128 * MS, "it goes on, however guests suffer");
    }

    #[test]
    fn j128_a_job_does_more_again_when_guests_bear_it() {
        let (pace, latency) = pace();
        windows(&pace, &latency, 0, &[3 * MS; 2]);
        let recovered = windows(&pace, &latency, 2, &[MS; 9]);
        assert_eq!(
            recovered.iter().map(|it| it.0).collect::<Vec<_>>(),
            [4, 4, 4, 8, 8, 8, 8, 16, 16]
        );
        // Without guests.
        pace.look(100 * WINDOW_NS);
        assert!(pace.is_full());
    }

    #[test]
    fn j128_a_job_copies_a_few_at_once_whatever_copies_of_old_bytes_take() {
        let latency = Latency::of_copies();
        let pace = Pace::new(Some(Arc::clone(&latency)), (64, 1 << 20, 64 << 10));
        let done = windows(&pace, &latency, 0, &[30 * MS; 20]);
        assert_eq!([done[0], done[3], done[19]], [(32, 1024), (4, 1024), (4, 1024)]);
        assert_eq!(windows(&pace, &latency, 20, &[MS; 4])[3], (8, 1024));
        let one = Pace::new(Some(Arc::clone(&latency)), (2, 1 << 20, 64 << 10));
        assert_eq!(windows(&one, &latency, 0, &[30 * MS; 5])[4], (2, 1024));
    }

    #[test]
    fn j128_requests_that_do_not_end_are_long() {
        let (pace, latency) = pace();
        windows(&pace, &latency, 0, &[3 * MS]);
        let under_way = UnderWay::new(&latency);
        let looks = |from: i64, count: i64| {
            (from..from + count).for_each(|it| pace.look(it * WINDOW_NS));
            pace.workers()
        };
        // It may just have begun.
        assert_eq!((looks(2, 1), looks(3, 1), looks(4, 1)), (8, 4, 2));
        latency.took(200 * MS);
        drop(under_way);
        assert_eq!((looks(5, 5), looks(10, 4)), (2, 4), "there are none");
    }

    #[test]
    fn j128_a_window_may_have_any_number_of_requests() {
        let (pace, latency) = pace();
        latency.requests.store(u32::MAX, Ordering::Relaxed);
        latency.long.store(1 << 31, Ordering::Relaxed);
        pace.look(WINDOW_NS);
        assert_eq!(pace.workers(), 8);
    }

    #[test]
    fn j128_a_few_slow_requests_change_nothing() {
        let (pace, latency) = pace();
        (0..100).for_each(|index| latency.took(if index < 5 { 9 * MS } else { MS }));
        pace.look(WINDOW_NS);
        assert!(pace.is_full());
        (0..100).for_each(|index| latency.took(if index < 6 { 9 * MS } else { MS }));
        pace.look(2 * WINDOW_NS);
        assert_eq!(pace.workers(), 8);
    }
}
