//! A turn of the loop: one look at the clock for all that happens in it, and how often work asked to
//! hold it up.

use std::cell::Cell;

use super::AioContext;
use crate::thread_pool::owed;

/// The time was not asked for in this turn.
const UNASKED: i64 = i64::MIN;
/// No turn is going on: code runs that may take any time before it asks again.
const OUTSIDE: i64 = i64::MIN + 1;
/// How many times as often a batch may hold up a turn; docs/performance.md has the measurements.
const IN_BATCH: u32 = 4;

/// When a turn was first asked for the time, and how often to be held up. Home thread only.
pub(crate) struct TurnClock {
    asked_ns: Cell<i64>,
    hold_ups: Cell<u32>,
    /// Those of the last turn that had any.
    last_hold_ups: Cell<u32>,
    is_in_batch: Cell<bool>,
}

impl TurnClock {
    pub(crate) const fn new() -> TurnClock {
        TurnClock {
            asked_ns: Cell::new(OUTSIDE),
            hold_ups: Cell::new(0),
            last_hold_ups: Cell::new(0),
            is_in_batch: Cell::new(false),
        }
    }

    /// A turn goes on until what this returns is dropped, also by a panic. Its end
    /// settles the wake-ups that are owed to workers.
    #[inline]
    pub(crate) fn begin(&self) -> Turn<'_> {
        self.asked_ns.set(UNASKED);
        if self.hold_ups.get() > 0 {
            self.last_hold_ups.set(self.hold_ups.replace(0));
        }
        Turn(self)
    }

    /// Whether a turn goes on. One in which a nested poll has ended goes on, and is not known to.
    #[inline]
    pub(crate) fn goes_on(&self) -> bool {
        self.asked_ns.get() != OUTSIDE
    }
}

/// A turn that goes on.
#[must_use]
pub(crate) struct Turn<'a>(&'a TurnClock);

impl Drop for Turn<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.asked_ns.set(OUTSIDE);
        owed::settle();
    }
}

/// A batch that goes on; see [`AioContext::begin_batch`].
#[must_use]
#[derive(Debug)]
pub struct Batch<'a> {
    is_in_batch: &'a Cell<bool>,
    /// Whether it is part of another.
    was_in_batch: bool,
}

impl Drop for Batch<'_> {
    #[inline]
    fn drop(&mut self) {
        self.is_in_batch.set(self.was_in_batch);
    }
}

impl AioContext {
    /// [`now_ns`](Self::now_ns), asked for at most once between two waits of the loop: a time for
    /// statistics, that costs next to nothing. It may be as old as the turn is long.
    #[inline]
    pub fn turn_ns(&self) -> i64 {
        let known_ns = self.inner().turn.asked_ns.get();
        if known_ns > OUTSIDE { known_ns } else { self.ask_turn_ns() }
    }

    #[cold]
    fn ask_turn_ns(&self) -> i64 {
        let turn = &self.inner().turn.asked_ns;
        let now_ns = self.now_ns();
        if turn.get() == UNASKED {
            turn.set(now_ns);
        }
        now_ns
    }

    /// Whether work should hold up the loop for a moment, as a read of the page cache does, rather than
    /// go an asynchronous way that takes a batch in one system call. That is so in turns of the loop
    /// with at most `max` calls of this: false after `max` of them in this turn, and false from its
    /// beginning if the last turn that had any had more, because half a batch each way costs more than
    /// either way. All callers of a context are counted together. Calls outside of a turn count as the
    /// last one's.
    #[inline]
    pub fn may_hold_up_turn(&self, max: u32) -> bool {
        let turn = &self.inner().turn;
        let so_far = turn.hold_ups.get();
        turn.hold_ups.set(so_far.saturating_add(1));
        let max = if turn.is_in_batch.get() { max.saturating_mul(IN_BATCH) } else { max };
        so_far < max && turn.last_hold_ups.get() <= max
    }

    /// Begins a batch, which ends when the value is dropped: a device takes requests one after the other,
    /// and a requester elsewhere is shown those that have ended while the rest is served. A request that
    /// ends at once then leaves its stack to the next one, and its requester works meanwhile; so
    /// [`may_hold_up_turn`](Self::may_hold_up_turn) is true four times as often as its `max` says. Not for
    /// code that suspends before the batch ends. Home thread only.
    #[inline]
    pub fn begin_batch(&self) -> Batch<'_> {
        let is_in_batch = &self.inner().turn.is_in_batch;
        Batch { is_in_batch, was_in_batch: is_in_batch.replace(true) }
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

    /// What a turn with so many calls hears.
    fn turn_of(ctx: &AioContext, calls: usize, max: u32) -> Vec<bool> {
        let heard = Rc::new(Cell::new(Vec::new()));
        let tell = Rc::clone(&heard);
        ctx.schedule(move |ctx| {
            tell.set((0..calls).map(|_| ctx.may_hold_up_turn(max)).collect());
        });
        ctx.try_poll();
        heard.take()
    }

    #[test]
    fn small_turns_are_held_up_and_large_ones_are_not() {
        let ctx = AioContext::for_test().unwrap();
        for _ in 0..2 {
            assert_eq!(turn_of(&ctx, 2, 2), [true, true]);
            // A turn that grows too large goes the other way with the rest.
            assert_eq!(turn_of(&ctx, 4, 2), [true, true, false, false]);
            // Large ones after that do from their beginning on, and so does the small one after them;
            // turns without any are not asked.
            for calls in [4, 3, 1] {
                assert_eq!(turn_of(&ctx, calls, 2), vec![false; calls]);
                assert!(turn_of(&ctx, 0, 2).is_empty());
            }
        }
        assert_eq!(turn_of(&ctx, 2, 0), [false, false]);
        assert!(ctx.may_hold_up_turn(u32::MAX));
        assert!(!ctx.may_hold_up_turn(3), "outside of a turn calls count as the last one's");
        assert_eq!(turn_of(&ctx, 100, u32::MAX), [true; 100]);
    }

    #[test]
    fn a_batch_may_hold_up_the_turn_more_often() {
        let ctx = AioContext::for_test().unwrap();
        let turn_of = |calls, max| {
            let heard = Rc::new(Cell::new([0; 2]));
            let tell = Rc::clone(&heard);
            ctx.schedule(move |ctx| {
                let times = || (0..calls).filter(|_| ctx.may_hold_up_turn(max)).count();
                let batch = ctx.begin_batch();
                drop(ctx.begin_batch());
                let within = times();
                drop(batch);
                tell.set([within, times()]);
            });
            ctx.try_poll();
            heard.get()
        };
        assert_eq!(turn_of(5, 2), [5, 0]);
        assert_eq!(turn_of(4, 2), [0, 0], "the last one had ten");
        assert_eq!(turn_of(1, 2), [1, 0], "and this had eight");
        assert_eq!(turn_of(1, 2), [1, 1]);
        assert_eq!(turn_of(10, 2), [8, 0]);
        assert_eq!(turn_of(1, 0), [0, 0]);
        assert_eq!(turn_of(9, u32::MAX), [9, 9]);
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
