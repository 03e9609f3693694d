//! A coroutine wakes one that belongs to another context.
//!
//! A pair of coroutines, one on each context, plays ping-pong over a slot that holds the waker of
//! the one that waits: the other takes it out, puts its own in, and wakes the first. So each
//! wake-up goes to the other thread.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use coblk::{AioContext, AioHandle, Co, CoWaker};

use crate::floors::hand_over::{HandOver, Way};
use crate::measure::{Contest, Lap, lap};
use crate::works::Work;

/// `pairs` pairs at once. An operation is one wake-up. The floor is a bare hand-over,
/// with as many under way.
pub fn contest(work: Work, pairs: u64) -> io::Result<Contest<'static>> {
    let ctx = AioContext::for_test()?;
    let mut contest =
        Contest::new(work.name(), work.unit(), move |ops| ping_pong(&ctx, pairs, ops));
    for way in Way::ALL {
        let mut hand_over = HandOver::new(way, |_| Ok(()))?.batch(pairs);
        // A round trip is two wake-ups.
        contest = contest.peer(way.name(), move |ops| {
            let lap = hand_over.run(ops.div_ceil(2))?;
            Ok(Lap { ops: 2 * lap.ops, ..lap })
        });
    }
    Ok(contest)
}

/// Where the two of a pair meet.
#[derive(Default)]
struct Pair {
    waiting: Mutex<Option<CoWaker>>,
    /// The ping side has gone home.
    over: AtomicBool,
}

impl Pair {
    fn swap(&self, waker: Option<CoWaker>) -> Option<CoWaker> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *waiting, waker)
    }

    /// Wakes the other one and waits for it to do the same.
    fn turn(&self, co: &Co<'_>) {
        co.suspend_with(|waker| {
            if let Some(other) = self.swap(Some(waker)) {
                other.wake();
            }
        });
    }
}

fn ping_pong(ctx: &AioContext, count: u64, ops: u64) -> io::Result<Lap> {
    let turns = ops.div_ceil(2 * count);
    let pairs: Vec<Arc<Pair>> = (0..count).map(|_| Arc::default()).collect();
    let (tell, hear) = mpsc::channel();
    let other = {
        let pairs = pairs.clone();
        thread::spawn(move || pong_side(&pairs, &tell))
    };
    let Ok(stop) = hear.recv() else { return Err(io::Error::other("no second context")) };

    let playing = Rc::new(Cell::new(count));
    let lap = lap(2 * turns * count, || {
        for pair in pairs {
            let playing = Rc::clone(&playing);
            ctx.spawn("ping", move |co| {
                (0..turns).for_each(|_| pair.turn(co));
                pair.over.store(true, Ordering::Release);
                // The other one waits again, for it was it that woke us.
                if let Some(other) = pair.swap(None) {
                    other.wake();
                }
                playing.set(playing.get() - 1);
            });
        }
        ctx.run_until(|| playing.get() == 0);
    });
    stop.notify();
    other.join().map_err(|_| io::Error::other("the other context panicked"))??;
    Ok(lap)
}

fn pong_side(pairs: &[Arc<Pair>], tell: &mpsc::Sender<AioHandle>) -> io::Result<()> {
    let ctx = AioContext::test_builder().name("pong").build()?;
    let playing = Rc::new(Cell::new(pairs.len()));
    for pair in pairs {
        let (pair, playing) = (Arc::clone(pair), Rc::clone(&playing));
        ctx.spawn("pong", move |co| {
            while !pair.over.load(Ordering::Acquire) {
                pair.turn(co);
            }
            playing.set(playing.get() - 1);
        });
    }
    tell.send(ctx.handle()).map_err(io::Error::other)?;
    ctx.run_until(|| playing.get() == 0);
    Ok(())
}
