//! The time of a turn of the loop: one look at the clock, for all that happens in it.

use std::cell::Cell;

use super::AioContext;
use crate::thread_pool::owed;

/// The time was not asked for in this turn.
const UNASKED: i64 = i64::MIN;
/// No turn is going on: code runs that may take any time before it asks again.
const OUTSIDE: i64 = i64::MIN + 1;

/// When a turn was first asked for the time. Home thread only.
pub(crate) struct TurnClock(Cell<i64>);

impl TurnClock {
    pub(crate) const fn new() -> TurnClock {
        TurnClock(Cell::new(OUTSIDE))
    }

    /// A turn goes on until what this returns is dropped, also by a panic.
    /// Its end pays for the wake-ups of workers that are owed then.
    #[inline]
    pub(crate) fn begin(&self) -> Turn<'_> {
        self.0.set(UNASKED);
        Turn(self)
    }

    /// Whether a turn goes on. One in which a nested poll has ended goes on, and is not known to.
    #[inline]
    pub(crate) fn goes_on(&self) -> bool {
        self.0.get() != OUTSIDE
    }
}

/// A turn that goes on.
#[must_use]
pub(crate) struct Turn<'a>(&'a TurnClock);

impl Drop for Turn<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.0.set(OUTSIDE);
        owed::settle();
    }
}

impl AioContext {
    /// [`now_ns`](Self::now_ns), asked for at most once between two waits of the loop: a time for
    /// statistics, that costs next to nothing. It may be as old as the turn is long.
    #[inline]
    pub fn turn_ns(&self) -> i64 {
        let known_ns = self.inner().turn.0.get();
        if known_ns > OUTSIDE { known_ns } else { self.ask_turn_ns() }
    }

    #[cold]
    fn ask_turn_ns(&self) -> i64 {
        let turn = &self.inner().turn.0;
        let now_ns = self.now_ns();
        if turn.get() == UNASKED {
            turn.set(now_ns);
        }
        now_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimulationOptions;
    use std::rc::Rc;
    use std::time::Duration;

    #[test]
    fn a_turn_has_one_time_and_the_next_another() {
        let ctx = AioContext::for_test().unwrap();
        let seen = Rc::new(Cell::new(0));
        for _ in 0..3 {
            let seen = Rc::clone(&seen);
            ctx.schedule(move |ctx| {
                let first_ns = ctx.turn_ns();
                std::thread::sleep(Duration::from_millis(1));
                assert_eq!(ctx.turn_ns(), first_ns);
                assert!(seen.get() == 0 || seen.get() == first_ns);
                seen.set(first_ns);
            });
        }
        ctx.try_poll();
        // Outside of a turn it is the present.
        let outside_ns = ctx.turn_ns();
        assert!(outside_ns >= seen.get() + 3_000_000);
        std::thread::sleep(Duration::from_millis(1));
        assert!(ctx.turn_ns() > outside_ns);
        ctx.run(|co| assert!(co.context().turn_ns() > outside_ns));
    }

    #[test]
    fn a_timer_sees_the_time_after_the_wait() {
        let options = SimulationOptions::new(1);
        let ctx = AioContext::test_builder().simulated(options).build().unwrap();
        let timer = ctx.timer(|ctx| assert_eq!(ctx.turn_ns(), 5_000_000_000));
        timer.arm_after(Duration::from_secs(5));
        ctx.schedule(|ctx| assert_eq!(ctx.turn_ns(), 0));
        ctx.run_until(|| !timer.is_armed());
    }
}
