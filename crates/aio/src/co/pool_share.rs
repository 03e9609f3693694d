//! [`PoolShare`]: what one user of a worker pool may have of it, so that calls that hang leave threads for
//! others.
//!
//! A disk that does not answer keeps every thread that calls it. So a share gets no more than three
//! quarters of the threads that the others leave it, and each has one thread of its own, beyond the
//! pool's maximum if need be: 64 threads are 48 for the first dead disk, 12 for the second, and one
//! for each after the fourth, while the next disk still has its own. What a share may not have yet
//! waits in its own queue, first come first served, and never in the pool's, where it would be in
//! the way of others.
//!
//! # What it costs
//!
//! Shares are counted for each context, by its own thread: plain loads and stores. How many jobs the
//! whole pool has follows from what the headcount counts anyway, so that is two more loads. Where
//! several contexts use one pool they may exceed its maximum by a job each, as they look at the same
//! moment.
//!
//! # Nothing waits forever
//!
//! A share without jobs is always let in. One that waits has jobs in the pool, and looks again when any
//! job of a share of its context ends, and every [`LOOK_AGAIN`], as other contexts may have freed threads.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;

use slab::Slab;

use super::Co;
use crate::context::AioContext;
use crate::context::Timer;
use crate::loom::lock;
use crate::sync::CoQueue;
use crate::thread_pool::ThreadPool;

/// When a share that waits looks again though no job of its context has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The numbers in use. They are used again, so that they stay small.
static NUMBERS: Mutex<Slab<()>> = Mutex::new(Slab::new());

/// A share of the worker pools: that of a disk, for instance. Any thread.
///
/// Jobs that are submitted through it wait for each other, and leave threads for those of other shares,
/// however long they take.
pub struct PoolShare {
    number: usize,
}

impl Default for PoolShare {
    fn default() -> PoolShare {
        PoolShare::new()
    }
}

impl fmt::Debug for PoolShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PoolShare").field(&self.number).finish()
    }
}

impl PoolShare {
    /// A share of its own.
    pub fn new() -> PoolShare {
        let mut numbers = lock(&NUMBERS);
        PoolShare { number: numbers.insert(()) }
    }

    /// [`ThreadPool::submit_co`] to the pool of the coroutine's context, when this share may have another
    /// thread of it. Allocates nothing, unless it has to wait.
    #[inline]
    pub fn submit_co<F, R>(&self, co: &Co<'_>, function: F) -> R
    where
        F: FnOnce() -> R + Send,
        R: Send,
    {
        let ctx = co.context();
        if ctx.inner().calls_in_place || ctx.simulation().is_some() {
            // There are no threads, and what others do with theirs must not be seen.
            return ctx.thread_pool().submit_co(co, function);
        }
        let turn = ctx.inner().shares.enter(co, self.number);
        ctx.thread_pool().submit_job(co, function, turn.is_first)
    }

    /// Runs `function` on a worker as a share of its own: for calls that change or ask something, and must
    /// get through although everything else hangs. Such calls are few.
    pub fn once<F, R>(co: &Co<'_>, function: F) -> R
    where
        F: FnOnce() -> R + Send,
        R: Send,
    {
        PoolShare::new().submit_co(co, function)
    }
}

impl Drop for PoolShare {
    fn drop(&mut self) {
        // Its jobs have borrowed it, so there are none: the next share of the number begins anew.
        lock(&NUMBERS).remove(self.number);
    }
}

/// The shares of one context. Home thread only.
#[derive(Default)]
pub(crate) struct Shares {
    lanes: RefCell<Vec<Rc<Lane>>>,
    /// Coroutines that wait, in all lanes.
    waiting: Cell<usize>,
    look_again: OnceCell<Timer>,
}

/// One share in one context.
#[derive(Default)]
struct Lane {
    /// Jobs in the pool, and coroutines that were let in and have not run yet.
    jobs: Cell<usize>,
    waiting: Cell<usize>,
    queue: CoQueue,
}

/// A job's place in the pool.
struct Turn<'a> {
    ctx: &'a AioContext,
    lane: Rc<Lane>,
    /// It is the only one of its share: a thread of its own is there for it.
    is_first: bool,
}

impl Shares {
    #[inline]
    fn enter<'a>(&self, co: &'a Co<'_>, number: usize) -> Turn<'a> {
        let ctx = co.context();
        let lane = self.lane(number);
        let lane = lane.unwrap_or_else(|| self.make_lane(number));
        if lane.waiting.get() > 0 || !lane.may_have_one(ctx.thread_pool()) {
            self.wait(co, &lane);
        } else {
            lane.jobs.set(lane.jobs.get() + 1);
        }
        let is_first = lane.jobs.get() == 1;
        Turn { ctx, lane, is_first }
    }

    #[inline]
    fn lane(&self, number: usize) -> Option<Rc<Lane>> {
        self.lanes.borrow().get(number).cloned()
    }

    #[cold]
    fn make_lane(&self, number: usize) -> Rc<Lane> {
        let mut lanes = self.lanes.borrow_mut();
        while lanes.len() <= number {
            lanes.push(Rc::default());
        }
        Rc::clone(&lanes[number])
    }

    /// Waits until it is let in, and counted.
    #[cold]
    fn wait(&self, co: &Co<'_>, lane: &Lane) {
        lane.waiting.set(lane.waiting.get() + 1);
        self.waiting.set(self.waiting.get() + 1);
        let look_again = self.look_again.get_or_init(|| {
            co.context().timer(|ctx| {
                ctx.inner().shares.let_in(ctx);
            })
        });
        if !look_again.is_armed() {
            look_again.arm_after(LOOK_AGAIN);
        }
        lane.queue.wait(co);
    }

    /// Lets in coroutines that may have a thread now, each lane's first one first.
    #[cold]
    fn let_in(&self, ctx: &AioContext) {
        let mut number = 0;
        // By number, as a coroutine that goes on may make lanes; a copy of all would be an allocation
        // with each job that ends.
        while let Some(lane) = self.lane(number) {
            number += 1;
            while lane.waiting.get() > 0 && lane.may_have_one(ctx.thread_pool()) {
                // Counted here, as it runs only later. One that is unwound instead lets the next one have
                // its place.
                lane.waiting.set(lane.waiting.get() - 1);
                self.waiting.set(self.waiting.get() - 1);
                lane.jobs.set(lane.jobs.get() + 1);
                lane.queue.wake_one();
            }
        }
        if let (true, Some(timer)) = (self.waiting.get() > 0, self.look_again.get()) {
            timer.arm_after(LOOK_AGAIN);
        }
    }
}

impl Lane {
    #[inline]
    fn may_have_one(&self, pool: &ThreadPool) -> bool {
        let own = self.jobs.get();
        own == 0 || own < most(pool.max_threads(), pool.jobs().saturating_sub(own))
    }
}

/// How many jobs a share may have while others have so many.
#[inline]
fn most(max_threads: usize, of_others: usize) -> usize {
    (max_threads.saturating_sub(of_others) * 3).div_ceil(4)
}

impl Drop for Turn<'_> {
    #[inline]
    fn drop(&mut self) {
        self.lane.jobs.set(self.lane.jobs.get() - 1);
        let shares = &self.ctx.inner().shares;
        if shares.waiting.get() > 0 {
            shares.let_in(self.ctx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dead_disk_leaves_threads_for_the_next() {
        let mut taken = 0;
        let shares: Vec<usize> = (0..5)
            .map(|_| {
                let share = most(64, taken).max(1);
                taken += share;
                share
            })
            .collect();
        assert_eq!(shares, [48, 12, 3, 1, 1]);
        assert_eq!([most(1, 0), most(2, 0), most(4, 0)], [1, 2, 3]);
    }
}
