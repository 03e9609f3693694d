//! When a loop gives back the memory of idle stacks: once none has been needed for a second.
//!
//! A limit to each sleep would arm a timer of the kernel and disarm it each time that the loop sleeps. So
//! the loop has one such timer, which runs on while it sleeps and wakes, and is armed once in a second at
//! most. It only ends a sleep; whether stacks were needed meanwhile is found out before the next one.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;

use super::fd_handler::FdHandlers;
use crate::sys::{self, TimerFd};
use crate::trace_event;
use crate::waiting::WakeCost;

/// For how long no coroutine has begun when the memory of idle stacks is given back.
const PATIENCE_NS: i64 = 1_000_000_000;

/// How far the coarse clock may be behind the timer's: a tick of a kernel that ticks slowly.
const TICK_NS: i64 = 10_000_000;

/// The patience of one loop. Home thread only.
pub(crate) struct Patience {
    timer: TimerFd,
    /// Up to when the timer is armed, on the coarse clock.
    until_ns: Cell<i64>,
    /// The mark of the coroutines that had begun when it was armed; `None` if it is not.
    armed_at: Cell<Option<u64>>,
    /// When it goes off; 0 if it is not armed, or has gone off.
    due_ns: Cell<u64>,
}

impl Patience {
    /// `fds` is woken by the timer.
    pub(crate) fn new(fds: &FdHandlers) -> io::Result<Patience> {
        let timer = TimerFd::new()?;
        fds.watch_as_waker(timer.as_raw_fd())?;
        Ok(Patience {
            timer,
            until_ns: Cell::new(0),
            armed_at: Cell::new(None),
            due_ns: Cell::new(0),
        })
    }

    /// Called before a sleep that may be long: gives memory back, or sees to it that the sleep ends
    /// when it is time to. `coarse_ns` was read after the last wait, so that it is not before
    /// the timer if that has ended it.
    #[inline]
    pub(crate) fn before_sleep(&self, coarse_ns: i64) {
        if coarse_ns >= self.until_ns.get() && coblk_coroutine::has_idle_memory() {
            self.run_out(coarse_ns);
        }
    }

    /// Called after a sleep that began then. If the timer went off meanwhile, patience has run out, even if the
    /// coarse clock does not say so yet, and how late the loop runs is what a wake-up costs.
    #[inline]
    pub(crate) fn after_sleep(&self, since_ns: u64) {
        let due_ns = self.due_ns.get();
        if due_ns > since_ns && sys::clock_ns() >= due_ns {
            self.due_ns.set(0);
            self.until_ns.set(0);
            WakeCost::here().sample(sys::clock_ns() - due_ns);
        }
    }

    #[cold]
    fn run_out(&self, coarse_ns: i64) {
        let mark = coblk_coroutine::creation_mark();
        if self.armed_at.take() == Some(mark) {
            trace_event!("aio_release_idle_memory");
            // Coroutines that come next need the tops of their stacks, and these stay.
            coblk_coroutine::release_idle_memory();
            return;
        }
        let until_ns = coarse_ns.saturating_add(PATIENCE_NS);
        let due_ns = until_ns.saturating_add(TICK_NS);
        match self.timer.arm_at_ns(due_ns) {
            Ok(()) => {
                self.armed_at.set(Some(mark));
                self.due_ns.set(u64::try_from(due_ns).unwrap_or(0));
            }
            Err(error) => tracing::error!(%error, "arming the timer of idle stacks failed"),
        }
        self.until_ns.set(until_ns);
        trace_event!("aio_arm_idle_timer");
    }
}

#[cfg(test)]
mod tests {
    use coblk_coroutine::{Coroutine, has_idle_memory};

    use super::*;

    fn use_a_stack() {
        Coroutine::new("passing", |_| ()).resume();
        assert!(has_idle_memory());
    }

    #[test]
    fn a_coarse_clock_that_is_late_does_not_hold_memory_back() {
        let patience = Patience::new(&FdHandlers::new().unwrap()).unwrap();
        use_a_stack();
        patience.before_sleep(5_000_000_000);
        // The timer was due long ago, on the clock that counts.
        patience.after_sleep(0);
        patience.before_sleep(5_900_000_000);
        assert!(!has_idle_memory());
    }

    #[test]
    fn it_is_armed_once_in_a_second_and_gives_back_when_no_coroutine_began() {
        const S: i64 = 1_000_000_000;
        let patience = Patience::new(&FdHandlers::new().unwrap()).unwrap();
        let armed_until = |coarse_ns| {
            patience.before_sleep(coarse_ns);
            patience.until_ns.get()
        };
        use_a_stack();
        assert_eq!(armed_until(5 * S), 6 * S);
        // However often it sleeps within that second.
        for step in 0..1000 {
            use_a_stack();
            assert_eq!(armed_until(5 * S + step * S / 1000), 6 * S);
        }
        // Stacks were needed meanwhile.
        assert_eq!(armed_until(7 * S), 8 * S);
        assert!(has_idle_memory());
        // Now none was.
        assert_eq!(armed_until(8 * S), 8 * S);
        assert!(!has_idle_memory());
        // Nothing is left to wait for, until one is used again: then there is a second again.
        assert_eq!(armed_until(20 * S), 8 * S);
        use_a_stack();
        assert_eq!(armed_until(21 * S), 22 * S);
        assert!(has_idle_memory());
    }
}
