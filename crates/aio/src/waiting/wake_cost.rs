//! What it costs to wake a thread, here and now.
//!
//! Samples are taken of threads that were woken anyway. The waker stamps the time just before the system call;
//! the woken thread takes the stamp as the first thing it does. Only wake-ups from one CPU to another count: on
//! one CPU they cost a tenth, and there no thread spins. The timer that a loop has anyway gives a sample, too:
//! how late it is.
//!
//! A wake-up may take milliseconds when a stranger has the CPU. So this is no mean: each sample moves the
//! estimate by one step towards itself, however far away it is, which ends at the median.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Place;
use crate::sys;

/// The range of what is believed. Below it to look and to sleep cost about the same; above it the
/// machine has other troubles.
const RANGE_NS: std::ops::RangeInclusive<u64> = 8_000..=100_000;
/// Before the first sample: between the 5 us of bare metal and the 50 us of a virtual machine.
const FIRST_NS: u32 = 30_000;
/// Samples that move the estimate in long steps, as it is a guess at first.
const FIRST_SAMPLES: u32 = 12;

/// The estimate. Relaxed loads and stores: a sample that gets lost between two threads is not missed.
#[derive(Debug)]
pub(crate) struct WakeCost {
    estimate_ns: AtomicU32,
    samples: AtomicU32,
}

static HERE: WakeCost = WakeCost::new();

impl WakeCost {
    const fn new() -> WakeCost {
        WakeCost { estimate_ns: AtomicU32::new(FIRST_NS), samples: AtomicU32::new(0) }
    }

    /// One that is known.
    #[cfg(test)]
    pub(super) fn of(ns: u64) -> WakeCost {
        WakeCost { estimate_ns: AtomicU32::new(ns as u32), samples: AtomicU32::new(u32::MAX) }
    }

    /// That of this process.
    #[inline]
    pub(crate) fn here() -> &'static WakeCost {
        &HERE
    }

    /// That of a wake-up by a device: its interrupt comes to the CPU that sleeps, which needs no other CPU to
    /// call it. About a quarter: a read of a disk takes 43 us asleep and 36 us awake where a thread needs
    /// 30 us to wake another.
    #[inline]
    pub(crate) fn of_device() -> WakeCost {
        let ns = HERE.estimate_ns.load(Ordering::Relaxed) / 4;
        WakeCost { estimate_ns: AtomicU32::new(ns), samples: AtomicU32::new(0) }
    }

    /// The cost of a wake-up in nanoseconds.
    #[inline]
    pub(crate) fn ns(&self) -> u64 {
        u64::from(self.estimate_ns.load(Ordering::Relaxed))
    }

    /// A thread ran so long after it was woken.
    pub(crate) fn sample(&self, took_ns: u64) {
        let (now, samples) = (self.ns(), self.samples.load(Ordering::Relaxed));
        let step = if samples < FIRST_SAMPLES { now / 4 } else { now / 16 };
        let next = took_ns.clamp(now - step, now + step);
        let next = next.clamp(*RANGE_NS.start(), *RANGE_NS.end());
        // The range fits.
        self.estimate_ns.store(next as u32, Ordering::Relaxed);
        self.samples.store(samples.saturating_add(1), Ordering::Relaxed);
    }
}

/// When a sleeping thread was woken, and from where.
#[derive(Debug)]
pub(crate) struct WakeStamp {
    /// 0: it was not.
    at_ns: AtomicU64,
    waker: Place,
}

impl WakeStamp {
    pub(crate) const fn new() -> WakeStamp {
        WakeStamp { at_ns: AtomicU64::new(0), waker: Place::new() }
    }

    /// The calling thread is about to wake the other.
    #[inline]
    pub(crate) fn set(&self) {
        self.waker.publish();
        self.at_ns.store(sys::clock_ns(), Ordering::Relaxed);
    }

    /// The calling thread runs again, and has slept since then. Takes the stamp, and a sample if it was woken in
    /// that time from another CPU.
    #[inline]
    pub(crate) fn take(&self, asleep_since_ns: u64) {
        let at_ns = self.at_ns.load(Ordering::Relaxed);
        if at_ns == 0 {
            return;
        }
        self.at_ns.store(0, Ordering::Relaxed);
        if at_ns >= asleep_since_ns && !self.waker.is_here() {
            WakeCost::here().sample(sys::clock_ns().saturating_sub(at_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_does_not_drag_the_cost_of_a_wake_up() {
        let cost = WakeCost::new();
        for _ in 0..30 {
            cost.sample(20_000);
        }
        assert_eq!(cost.ns(), 20_000, "it has settled");
        // A stranger had the CPU for 2 ms.
        cost.sample(2_000_000);
        assert_eq!(cost.ns(), 21_250);
        cost.sample(20_000);
        assert_eq!(cost.ns(), 20_000);
        // One wake-up in five does not change what most take.
        for round in 0..100 {
            cost.sample(if round % 5 == 0 { 2_000_000 } else { 20_000 });
            assert!((20_000..22_000).contains(&cost.ns()), "{} ns", cost.ns());
        }
    }

    #[test]
    fn the_cost_of_a_wake_up_follows_the_machine_within_its_range() {
        let cost = WakeCost::new();
        let settle = |ns| {
            (0..60).for_each(|_| cost.sample(ns));
            cost.ns()
        };
        assert_eq!(settle(45_000), 45_000);
        assert_eq!(settle(12_000), 12_000);
        assert_eq!(settle(1), 8_000);
        assert_eq!(settle(u64::MAX), 100_000);
    }

    #[test]
    fn a_stamp_counts_once_and_only_for_the_sleep_that_it_ended() {
        let stamp = WakeStamp::new();
        stamp.set();
        stamp.take(u64::MAX);
        assert_eq!(
            stamp.at_ns.load(Ordering::Relaxed),
            0,
            "it was for an earlier sleep, and is gone"
        );
    }
}
