//! How long a loop looks, and what it learns from each wait (contract: C46).

use std::array;
use std::cell::Cell;
use std::time::Duration;

use super::PollParams;
use crate::waiting::{WaitRule, WakeCost};

/// The first polling time of one that grows.
const POLL_START_NS: u64 = 4_000;
/// Factor by which the polling time grows, unless told otherwise.
const POLL_GROW: u64 = 2;

/// What a loop waits for, as waits of one kind are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitFor {
    /// A job is with the workers.
    Worker,
    /// A request is in the ring.
    Ring,
    /// Other threads and other processes alone.
    Others,
}

/// How often a loop had to wait, and how; see [`AioContext::wait_stats`](crate::AioContext::wait_stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaitStats {
    /// Waits that ended while the loop looked for work by itself.
    pub active: u64,
    /// Sleeps.
    pub slept: u64,
    /// How long the loop has looked in vain in all.
    pub in_vain: Duration,
    /// What a wake-up costs here, as measured by the threads of this process.
    pub wake_cost: Duration,
    /// How long a look takes at most: what was set, or what pays at that cost.
    pub max: Duration,
}

/// What decides how long a look may take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// What a wake-up costs.
    Measured,
    /// A maximum that was set.
    Steps,
    Never,
}

/// The rules of one loop.
pub(super) struct Rules {
    mode: Cell<Mode>,
    measured: [WaitRule; 3],
    steps: Steps,
    active: Cell<u64>,
    slept: Cell<u64>,
    in_vain_ns: Cell<u64>,
}

impl Rules {
    pub(super) fn new(params: PollParams) -> Rules {
        let rules = Rules {
            mode: Cell::new(Mode::Never),
            measured: array::from_fn(|_| WaitRule::new()),
            steps: Steps::default(),
            active: Cell::new(0),
            slept: Cell::new(0),
            in_vain_ns: Cell::new(0),
        };
        rules.set(params);
        rules
    }

    pub(super) fn set(&self, params: PollParams) {
        self.steps.set(params);
        self.mode.set(match params.max {
            None => Mode::Measured,
            Some(Duration::ZERO) => Mode::Never,
            Some(_) => Mode::Steps,
        });
    }

    #[inline]
    pub(super) fn is_enabled(&self) -> bool {
        self.mode.get() != Mode::Never
    }

    /// Whether other threads of ours that need a CPU come first.
    #[inline]
    pub(super) fn minds_others(&self) -> bool {
        self.mode.get() == Mode::Measured
    }

    /// How long any look takes at most, in nanoseconds.
    pub(super) fn max_ns(&self) -> u64 {
        match self.mode.get() {
            Mode::Measured => WaitRule::longest_ns(WakeCost::here()),
            Mode::Steps | Mode::Never => self.steps.max_ns.get(),
        }
    }

    /// How long the look of the wait that begins now takes at most, in nanoseconds. Asked once a wait.
    #[inline]
    pub(super) fn limit_ns(&self, what: WaitFor) -> u64 {
        match self.mode.get() {
            Mode::Measured => {
                let rule = &self.measured[what as usize];
                with_cost(what, |cost| rule.limit_ns(cost))
            }
            Mode::Steps | Mode::Never => self.steps.now_ns.get(),
        }
    }

    /// What [`limit_ns`](Self::limit_ns) would say while nothing is with workers or in the ring.
    pub(super) fn current_ns(&self) -> u64 {
        match self.mode.get() {
            Mode::Measured => self.measured[WaitFor::Others as usize].peek_ns(WakeCost::here()),
            Mode::Steps | Mode::Never => self.steps.now_ns.get(),
        }
    }

    /// A wait is over that took `waited_ns`. `looked_ns` of it were spent looking; `slept`: then the loop
    /// slept.
    #[inline]
    pub(super) fn learn(&self, what: WaitFor, looked_ns: u64, waited_ns: u64, slept: bool) {
        if self.mode.get() == Mode::Steps {
            self.steps.adapt(waited_ns);
        }
        let rule = &self.measured[what as usize];
        if slept {
            self.in_vain_ns.set(self.in_vain_ns.get() + looked_ns);
            with_cost(what, |cost| rule.slept(looked_ns, waited_ns, cost));
        } else if looked_ns > 0 {
            self.active.set(self.active.get() + 1);
            with_cost(what, |cost| rule.found(waited_ns, cost));
        }
    }

    #[inline]
    pub(super) fn count_sleep(&self) {
        self.slept.set(self.slept.get() + 1);
    }

    pub(super) fn stats(&self) -> WaitStats {
        WaitStats {
            active: self.active.get(),
            slept: self.slept.get(),
            in_vain: Duration::from_nanos(self.in_vain_ns.get()),
            wake_cost: Duration::from_nanos(WakeCost::here().ns()),
            max: Duration::from_nanos(self.max_ns()),
        }
    }
}

/// Calls `ask` with what it costs to be woken for that.
#[inline]
fn with_cost<R>(what: WaitFor, ask: impl FnOnce(&WakeCost) -> R) -> R {
    match what {
        WaitFor::Ring => ask(&WakeCost::of_device()),
        WaitFor::Worker | WaitFor::Others => ask(WakeCost::here()),
    }
}

/// A time that grows in steps while it is too short, and shrinks when its maximum is.
#[derive(Default)]
struct Steps {
    max_ns: Cell<u64>,
    grow: Cell<u64>,
    /// 0: start again from nothing when polling does not pay.
    shrink: Cell<u64>,
    /// How long the next look takes at most.
    now_ns: Cell<u64>,
}

impl Steps {
    fn set(&self, params: PollParams) {
        let max = params.max.unwrap_or_default();
        self.max_ns.set(u64::try_from(max.as_nanos()).unwrap_or(u64::MAX));
        self.grow.set(if params.grow == 0 { POLL_GROW } else { u64::from(params.grow) });
        self.shrink.set(u64::from(params.shrink));
        self.now_ns.set(0);
    }

    /// Adapts to a wait that took `waited_ns` in all.
    fn adapt(&self, waited_ns: u64) {
        let (now_ns, max_ns) = (self.now_ns.get(), self.max_ns.get());
        if waited_ns <= now_ns {
            // Polling was long enough.
        } else if waited_ns > max_ns {
            // Even the longest polling would have been in vain.
            self.now_ns.set(now_ns.checked_div(self.shrink.get()).unwrap_or(0));
        } else {
            let longer = now_ns.saturating_mul(self.grow.get()).max(POLL_START_NS);
            self.now_ns.set(longer.min(max_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(params: PollParams) -> impl Fn(u64) -> u64 {
        let rules = Rules::new(params);
        assert_eq!(rules.current_ns(), 0);
        move |waited_ns| {
            rules.learn(WaitFor::Others, 0, waited_ns, false);
            rules.current_ns()
        }
    }

    #[test]
    fn c46_a_polling_time_that_was_set_starts_at_4us_doubles_to_the_maximum_and_resets() {
        let after = rules(PollParams::new(Duration::from_nanos(20_000)));
        let seen: Vec<u64> = (0..5).map(|_| after(19_999)).collect();
        assert_eq!(seen, [4_000, 8_000, 16_000, 20_000, 20_000]);
        assert_eq!(after(1_000), 20_000, "it paid");
        assert_eq!(after(1_000_000), 0, "it did not pay");
    }

    #[test]
    fn c46_polling_time_grows_and_shrinks_by_the_factors_given() {
        let after = rules(PollParams::new(Duration::from_nanos(100_000)).grow(3).shrink(2));
        after(50_000);
        assert_eq!(after(50_000), 12_000);
        assert_eq!(after(1_000_000_000), 6_000);
    }

    #[test]
    fn c46_waits_of_one_kind_leave_those_of_another_alone() {
        let rules = Rules::new(PollParams::default());
        let longest = |rules: &Rules| rules.max_ns();
        assert!(
            (1..longest(&rules)).contains(&rules.limit_ns(WaitFor::Ring)),
            "a device wakes for less"
        );
        for _ in 0..20 {
            rules.learn(WaitFor::Ring, 0, 1_000_000_000, true);
        }
        assert_eq!(rules.limit_ns(WaitFor::Ring), 0, "a slow disk is not waited for actively");
        assert_eq!(rules.limit_ns(WaitFor::Worker), longest(&rules));
        assert_eq!(rules.current_ns(), longest(&rules));
    }

    #[test]
    fn c46_a_maximum_of_zero_never_looks() {
        let rules = Rules::new(PollParams::never());
        for _ in 0..20 {
            rules.learn(WaitFor::Others, 0, 1, false);
            assert_eq!((rules.is_enabled(), rules.limit_ns(WaitFor::Others)), (false, 0));
        }
    }

    #[test]
    fn waits_are_counted_by_how_they_end() {
        let rules = Rules::new(PollParams::default());
        rules.learn(WaitFor::Others, 2_000, 2_000, false);
        rules.learn(WaitFor::Worker, 30_000, 90_000, true);
        rules.count_sleep();
        let stats = rules.stats();
        assert_eq!((stats.active, stats.slept), (1, 1));
        assert_eq!(stats.in_vain, Duration::from_micros(30));
        assert!(stats.wake_cost >= Duration::from_micros(8), "{:?}", stats.wake_cost);
    }
}
