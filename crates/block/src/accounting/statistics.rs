//! [`Statistics`]: the numbers, as other threads see them.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Accounting;
use super::histogram::{Bins, LatencyHistogram};
use super::kind::RequestKind;
use super::percentiles::{LatencyPercentiles, Percentiles};
use super::recorder::Outcome;
use super::timed_average::{Average, TimedAverage};

/// The counters of a backend, and the settings of what is counted. A handle: clones show the same
/// numbers. Any thread.
#[derive(Clone)]
pub struct Statistics {
    pub(crate) shared: Arc<Shared>,
}

/// The counters of one kind of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindStatistics {
    /// Requests that succeeded.
    pub operations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long they and those that failed took together, in nanoseconds.
    pub total_time_ns: u64,
    /// Requests that failed on their way.
    pub failed: u64,
    /// Invalid requests: past the end, a write to a read-only node, no medium.
    pub invalid: u64,
    /// Requests that were merged into others before they came here.
    pub merged: u64,
}

/// A number that one thread changes: no read-modify-write is needed.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, change: u64) {
        self.set(self.get().wrapping_add(change));
    }

    #[inline]
    pub(crate) fn subtract(&self, change: u64) {
        self.set(self.get().wrapping_sub(change));
    }

    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) operations: Counter,
    pub(crate) bytes: Counter,
    pub(crate) total_time_ns: Counter,
    pub(crate) failed: Counter,
    pub(crate) invalid: Counter,
    pub(crate) merged: Counter,
}

/// Counters that the home thread writes and any thread reads.
pub(crate) struct Shared {
    pub(crate) in_flight: Counter,
    pub(crate) max_in_flight: Counter,
    pub(crate) held: Counter,
    pub(crate) kinds: [Counters; RequestKind::COUNT],
    /// When a request last ended, on the context's clock.
    pub(crate) last_ns: AtomicI64,
    clock: Clock,
    settings: Mutex<Settings>,
    /// How often these were changed. The following says of them what a request looks at.
    pub(crate) changes: AtomicU64,
    mode: AtomicU8,
    has_extras: AtomicBool,
    account_failed: AtomicBool,
    account_invalid: AtomicBool,
}

/// Settings. Any thread writes them, under a lock.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    pub(crate) accounting: Accounting,
    pub(crate) extras: Extras,
}

/// The context's clock, for other threads.
pub(crate) enum Clock {
    /// An instant, and what the context's clock said then.
    Real(Instant, i64),
    /// It stands still between requests, as seen from elsewhere.
    Simulated,
}

/// Counters that exist only on demand.
#[derive(Clone, Default)]
pub(crate) struct Extras {
    pub(super) intervals: Vec<(Duration, Arc<[TimedAverage; RequestKind::COUNT]>)>,
    pub(super) bins: [Option<Arc<Bins>>; RequestKind::COUNT],
    pub(super) percentiles: [Option<Arc<Percentiles>>; RequestKind::COUNT],
}

impl Extras {
    pub(crate) fn is_empty(&self) -> bool {
        let has_bins = self.bins.iter().any(Option::is_some);
        self.intervals.is_empty() && !has_bins && self.percentiles.iter().all(Option::is_none)
    }
}

impl Shared {
    pub(crate) fn new(clock: Clock, now_ns: i64) -> Shared {
        Shared {
            in_flight: Counter::default(),
            max_in_flight: Counter::default(),
            held: Counter::default(),
            kinds: Default::default(),
            last_ns: AtomicI64::new(now_ns),
            clock,
            settings: Mutex::default(),
            changes: AtomicU64::new(0),
            mode: AtomicU8::new(Accounting::default() as u8),
            has_extras: AtomicBool::new(false),
            account_failed: AtomicBool::new(true),
            account_invalid: AtomicBool::new(true),
        }
    }

    /// One more request is on its way.
    #[inline]
    pub(crate) fn enter(&self) {
        let in_flight = self.in_flight.get().wrapping_add(1);
        self.in_flight.set(in_flight);
        if in_flight > self.max_in_flight.get() {
            self.max_in_flight.set(in_flight);
        }
    }

    pub(crate) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has requests that begin from now on go by other settings.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.settings();
        change(&mut settings);
        let has_extras = !settings.extras.is_empty();
        let mode = match settings.accounting {
            // Latencies need a clock.
            Accounting::Counts if has_extras => Accounting::Exact,
            accounting => accounting,
        };
        self.mode.store(mode as u8, Ordering::Relaxed);
        self.has_extras.store(has_extras, Ordering::Relaxed);
        self.changes.fetch_add(1, Ordering::Release);
    }

    #[inline]
    pub(crate) fn mode(&self) -> Accounting {
        const OFF: u8 = Accounting::Off as u8;
        const COUNTS: u8 = Accounting::Counts as u8;
        const TURNS: u8 = Accounting::Turns as u8;
        match self.mode.load(Ordering::Relaxed) {
            OFF => Accounting::Off,
            COUNTS => Accounting::Counts,
            TURNS => Accounting::Turns,
            _ => Accounting::Exact,
        }
    }

    #[inline]
    pub(crate) fn has_extras(&self) -> bool {
        self.has_extras.load(Ordering::Relaxed)
    }

    pub(crate) fn set_account(&self, failed: bool, invalid: bool) {
        self.account_failed.store(failed, Ordering::Relaxed);
        self.account_invalid.store(invalid, Ordering::Relaxed);
    }

    /// Whether requests that failed are in latencies and idle time, and those that could not be in
    /// the latter.
    pub(crate) fn account(&self) -> (bool, bool) {
        let [failed, invalid] = [&self.account_failed, &self.account_invalid];
        (failed.load(Ordering::Relaxed), invalid.load(Ordering::Relaxed))
    }

    #[cold]
    pub(crate) fn counts_time_of(&self, outcome: Outcome) -> bool {
        let (failed, invalid) = self.account();
        match outcome {
            Outcome::Failure => failed,
            Outcome::Invalid => invalid,
            Outcome::Success | Outcome::Uncounted => true,
        }
    }
}

impl Statistics {
    /// The counters of one kind of requests.
    pub fn of(&self, kind: RequestKind) -> KindStatistics {
        let counters = &self.shared.kinds[kind.index()];
        KindStatistics {
            operations: counters.operations.get(),
            bytes: counters.bytes.get(),
            total_time_ns: counters.total_time_ns.get(),
            failed: counters.failed.get(),
            invalid: counters.invalid.get(),
            merged: counters.merged.get(),
        }
    }

    /// How many requests have begun and not ended, held ones included.
    pub fn queue_depth(&self) -> u64 {
        self.shared.in_flight.get()
    }

    /// How many requests wait because an error has stopped the backend
    /// ([`BlockBackend::resume`](crate::BlockBackend::resume)). [`queue_depth`](Self::queue_depth)
    /// includes them.
    pub fn held_requests(&self) -> u64 {
        self.shared.held.get()
    }

    /// The highest [`queue_depth`](Self::queue_depth) since the last
    /// [reset](crate::BlockBackend::reset_max_queue_depth).
    pub fn max_queue_depth(&self) -> u64 {
        self.shared.max_in_flight.get()
    }

    /// The average queue depth of a kind, over each interval that was
    /// [added](crate::BlockBackend::add_interval): the time of all requests that ended in it,
    /// divided by the time that has passed. Too high for a while after long requests have ended.
    pub fn average_queue_depths(&self, kind: RequestKind) -> Vec<(Duration, f64)> {
        self.average_queue_depths_at(kind, self.now_ns())
    }

    /// [`average_queue_depths`](Self::average_queue_depths) as of an instant on the context's clock.
    pub fn average_queue_depths_at(&self, kind: RequestKind, now_ns: i64) -> Vec<(Duration, f64)> {
        self.read_intervals(kind, |average| average.concurrency(now_ns))
    }

    /// The time since the last request ended; since the backend was made, if none has. In a
    /// simulated context time stands still between requests.
    pub fn idle_time(&self) -> Duration {
        let idle_ns = self.now_ns().saturating_sub(self.shared.last_ns.load(Ordering::Relaxed));
        Duration::from_nanos(u64::try_from(idle_ns).unwrap_or(0))
    }

    /// How long requests took, those that failed included, over each interval that was
    /// [added](crate::BlockBackend::add_interval), in nanoseconds.
    pub fn averages(&self, kind: RequestKind) -> Vec<(Duration, Average)> {
        self.averages_at(kind, self.now_ns())
    }

    /// [`averages`](Self::averages) as of an instant on the context's clock.
    pub fn averages_at(&self, kind: RequestKind, now_ns: i64) -> Vec<(Duration, Average)> {
        self.read_intervals(kind, |average| average.read(now_ns))
    }

    fn read_intervals<T>(
        &self,
        kind: RequestKind,
        read: impl Fn(&TimedAverage) -> T,
    ) -> Vec<(Duration, T)> {
        let settings = self.shared.settings();
        let read = |averages: &[TimedAverage]| read(&averages[kind.index()]);
        let intervals = settings.extras.intervals.iter();
        intervals.map(|(length, averages)| (*length, read(&**averages))).collect()
    }

    /// How many requests took how long, those that failed included; `None` unless
    /// [asked for](crate::BlockBackend::set_latency_bins).
    pub fn latencies(&self, kind: RequestKind) -> Option<LatencyHistogram> {
        self.shared.settings().extras.bins[kind.index()].as_ref().map(|bins| bins.read())
    }

    /// Percentiles of how long requests took, those that failed included; `None` unless
    /// [asked for](crate::BlockBackend::set_percentiles). Takes some microseconds, and does not hold
    /// up the home thread.
    pub fn percentiles(&self, kind: RequestKind) -> Option<LatencyPercentiles> {
        let percentiles = self.shared.settings().extras.percentiles[kind.index()].clone();
        percentiles.map(|percentiles| percentiles.read())
    }

    pub(crate) fn now_ns(&self) -> i64 {
        match self.shared.clock {
            Clock::Real(instant, then_ns) => {
                let since_ns = i64::try_from(instant.elapsed().as_nanos()).unwrap_or(i64::MAX);
                then_ns.saturating_add(since_ns)
            }
            Clock::Simulated => self.shared.last_ns.load(Ordering::Relaxed),
        }
    }
}
