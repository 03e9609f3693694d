//! [`Recorder`]: the writing side, on a backend's home thread.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use coblk_aio::{AioContext, Co};

use super::Accounting;
use super::kind::RequestKind;
use super::statistics::{Clock, Counters, Extras, Shared, Statistics};

/// Counts the requests of a backend. Home thread only.
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    /// Those in `shared` as they were at a change, without a lock. No borrow is held across
    /// a call.
    extras: RefCell<(u64, Extras)>,
}

/// A request that is held.
pub(crate) struct Held<'a>(&'a Shared);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.subtract(1);
    }
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure,
    Invalid,
    /// Its parts are counted instead, or it is counted when it is sent again.
    Uncounted,
}

impl Recorder {
    pub(crate) fn new(ctx: &AioContext) -> Recorder {
        let now_ns = ctx.now_ns();
        let clock = match ctx.simulation() {
            Some(_) => Clock::Simulated,
            None => Clock::Real(Instant::now(), now_ns),
        };
        Recorder { shared: Arc::new(Shared::new(clock, now_ns)), extras: RefCell::default() }
    }

    pub(crate) fn statistics(&self) -> Statistics {
        Statistics { shared: Arc::clone(&self.shared) }
    }

    pub(crate) fn mode(&self) -> Accounting {
        self.shared.mode()
    }

    pub(crate) fn counters(&self, kind: RequestKind) -> &Counters {
        &self.shared.kinds[kind.index()]
    }

    pub(crate) fn reset_max_in_flight(&self) {
        self.shared.max_in_flight.set(self.shared.in_flight.get());
    }

    /// A request is held, as long as the value lives.
    pub(crate) fn hold(&self) -> Held<'_> {
        self.shared.held.add(1);
        Held(&self.shared)
    }

    /// A request begins. It ends with [`Recorded::succeed`] or [`Recorded::fail`]; dropped before that, it
    /// has failed.
    #[inline]
    pub(crate) fn begin<'a>(&'a self, co: &Co<'_>, kind: RequestKind, bytes: u64) -> Recorded<'a> {
        let mode = self.shared.mode();
        let begin_ns = if mode.has_time() { time(co, mode) } else { 0 };
        if mode != Accounting::Off {
            self.shared.enter();
        }
        Recorded { recorder: self, mode, kind, bytes, begin_ns, ended: false }
    }

    #[cold]
    fn record_extras(&self, kind: RequestKind, ns: u64, now_ns: i64) {
        let mut extras = self.extras.borrow_mut();
        let changes = self.shared.changes.load(Ordering::Acquire);
        if extras.0 != changes {
            *extras = (changes, self.shared.settings().extras.clone());
        }
        let (extras, kind) = (&extras.1, kind.index());
        if let Some(bins) = &extras.bins[kind] {
            bins.record(ns);
        }
        if let Some(percentiles) = &extras.percentiles[kind] {
            percentiles.record(ns);
        }
        extras.intervals.iter().for_each(|(_, averages)| averages[kind].account(ns, now_ns));
    }
}

/// A request that is being counted.
pub(crate) struct Recorded<'a> {
    recorder: &'a Recorder,
    mode: Accounting,
    kind: RequestKind,
    bytes: u64,
    begin_ns: i64,
    ended: bool,
}

/// The time as this way of accounting has it.
// Out of line: requests that are only counted pay one branch for those that are timed.
#[inline(never)]
fn time(co: &Co<'_>, mode: Accounting) -> i64 {
    match mode {
        Accounting::Exact => co.context().now_ns(),
        _ => co.context().turn_ns(),
    }
}

impl Recorded<'_> {
    /// It has succeeded.
    #[inline(always)]
    pub(crate) fn succeed(mut self, co: &Co<'_>) {
        self.ended = true;
        if self.mode == Accounting::Off {
            return;
        }
        let counters = self.recorder.counters(self.kind);
        counters.operations.add(1);
        counters.bytes.add(self.bytes);
        self.recorder.shared.in_flight.subtract(1);
        if self.mode.has_time() {
            self.count_time(co, Outcome::Success);
        }
    }

    /// It has ended otherwise.
    #[cold]
    pub(crate) fn fail(mut self, co: &Co<'_>, outcome: Outcome) {
        self.ended = true;
        if self.mode == Accounting::Off {
            return;
        }
        self.count_failed(outcome);
        if self.mode.has_time() && self.recorder.shared.counts_time_of(outcome) {
            self.count_time(co, outcome);
        }
    }

    #[inline(never)]
    fn count_time(&self, co: &Co<'_>, outcome: Outcome) {
        let now_ns = time(co, self.mode);
        self.recorder.shared.last_ns.store(now_ns, Ordering::Relaxed);
        if matches!(outcome, Outcome::Invalid | Outcome::Uncounted) {
            return;
        }
        let ns = u64::try_from(now_ns - self.begin_ns).unwrap_or(0);
        self.recorder.counters(self.kind).total_time_ns.add(ns);
        if self.recorder.shared.has_extras() {
            self.recorder.record_extras(self.kind, ns, now_ns);
        }
    }

    #[cold]
    fn count_failed(&self, outcome: Outcome) {
        let counters = self.recorder.counters(self.kind);
        match outcome {
            Outcome::Failure => counters.failed.add(1),
            Outcome::Invalid => counters.invalid.add(1),
            Outcome::Success | Outcome::Uncounted => {}
        }
        self.recorder.shared.in_flight.subtract(1);
    }
}

impl Drop for Recorded<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.ended && self.mode != Accounting::Off {
            self.count_failed(Outcome::Failure);
        }
    }
}
