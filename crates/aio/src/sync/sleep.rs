//! Sleeping, and waiting for something with a limit.

use std::any::Any;
use std::cell::Cell;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::waiters::lock;
use crate::co::{Co, CoWaker};

/// A sleep that any thread can cut short (contract: C71). A handle: clones are the same sleep.
#[derive(Clone, Debug, Default)]
pub struct CoSleep {
    sleeper: Arc<Mutex<Sleeper>>,
}

#[derive(Debug, Default)]
struct Sleeper {
    waker: Option<CoWaker>,
    /// Which sleep it is.
    number: u64,
    /// The last one that ended because its time was up.
    timed_out: u64,
}

impl CoSleep {
    /// A sleep that has not begun.
    pub fn new() -> CoSleep {
        CoSleep::default()
    }

    /// Suspends for `duration`, or until [`wake`](Self::wake). Returns whether it was woken early.
    ///
    /// # Panics
    /// If another coroutine sleeps here.
    pub fn sleep(&self, co: &Co<'_>, duration: Duration) -> bool {
        let number = {
            let mut sleeper = lock(&self.sleeper);
            assert!(sleeper.waker.is_none(), "'{}' sleeps where somebody does already", co.name());
            sleeper.number += 1;
            sleeper.number
        };
        let own = self.clone();
        // It may fire when this sleep has been cut short and another one has begun.
        let timer = co.context().timer(move |_| own.time_is_up(number));
        timer.arm_after(duration);
        let guard = ForgetOnUnwind { sleep: self, number };
        co.suspend_with(|waker| {
            let previous = lock(&self.sleeper).waker.replace(waker);
            drop(previous);
        });
        std::mem::forget(guard);
        lock(&self.sleeper).timed_out != number
    }

    fn time_is_up(&self, number: u64) {
        let mut sleeper = lock(&self.sleeper);
        if sleeper.number != number {
            return;
        }
        let waker = sleeper.waker.take();
        if waker.is_some() {
            sleeper.timed_out = number;
        }
        drop(sleeper);
        waker.into_iter().for_each(CoWaker::wake);
    }

    /// Ends the sleep. Without effect if no coroutine sleeps. Any thread.
    pub fn wake(&self) {
        // In two steps: the lock is released before the coroutine runs.
        let sleeper = lock(&self.sleeper).waker.take();
        sleeper.into_iter().for_each(CoWaker::wake);
    }
}

/// Takes back a waker that is of no use any more, so that another coroutine can sleep here.
struct ForgetOnUnwind<'a> {
    sleep: &'a CoSleep,
    number: u64,
}

impl Drop for ForgetOnUnwind<'_> {
    fn drop(&mut self) {
        let mut sleeper = lock(&self.sleep.sleeper);
        let own = if sleeper.number == self.number { sleeper.waker.take() } else { None };
        drop(sleeper);
        drop(own);
    }
}

/// What [`Co::timeout`] waited for was not done in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("timed out")
    }
}

impl std::error::Error for TimedOut {}

impl From<TimedOut> for std::io::Error {
    fn from(_: TimedOut) -> std::io::Error {
        std::io::Error::from_raw_os_error(libc::ETIMEDOUT)
    }
}

/// What the coroutine that waits and the one that works share.
struct Timed<R> {
    result: Cell<Option<Result<R, Box<dyn Any + Send>>>>,
    waits: Cell<bool>,
    sleep: CoSleep,
}

impl Co<'_> {
    /// Suspends for `duration`. A duration of 0 lets the loop do one round.
    pub fn sleep(&self, duration: Duration) {
        CoSleep::new().sleep(self, duration);
    }

    /// Runs `entry` in a coroutine of its own and waits for its result, but no longer than
    /// `limit`. A limit of 0 means none: `entry` then runs in line (contract: C71).
    ///
    /// When the time is up, `entry` is not cancelled: it goes on, and its result is dropped. So
    /// it must not borrow. A panic of `entry` goes on here, or, when no caller waits here any more,
    /// in the poll that runs it.
    ///
    /// # Errors
    /// [`TimedOut`] if `entry` has not ended in time.
    pub fn timeout<R: 'static>(
        &self,
        limit: Duration,
        name: &'static str,
        entry: impl FnOnce(&Co<'_>) -> R + 'static,
    ) -> Result<R, TimedOut> {
        if limit.is_zero() {
            return Ok(entry(self));
        }
        let shared = Rc::new(Timed {
            result: Cell::new(None),
            waits: Cell::new(true),
            sleep: CoSleep::new(),
        });
        let worker = Rc::clone(&shared);
        self.context().spawn(name, move |co| {
            let result = co.catch_unwind(|| entry(co));
            if worker.waits.get() {
                worker.result.set(Some(result));
                worker.sleep.wake();
            } else if let Err(panic) = result {
                resume_unwind(panic);
            }
        });
        // Also when this coroutine is unwound.
        let gone = GoneOnDrop(&shared.waits);
        let mut result = shared.result.take();
        if result.is_none() {
            shared.sleep.sleep(self, limit);
            result = shared.result.take();
        }
        drop(gone);
        match result {
            Some(Ok(value)) => Ok(value),
            Some(Err(panic)) => resume_unwind(panic),
            None => Err(TimedOut),
        }
    }
}

struct GoneOnDrop<'a>(&'a Cell<bool>);

impl Drop for GoneOnDrop<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
