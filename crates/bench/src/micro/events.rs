//! Bottom halves and timers.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use coblk::{AioContext, BottomHalf, RemoteBottomHalf};

use crate::measure::{Contest, Lap, lap};
use crate::works::Work;

/// Bottom halves of the batch.
const BATCH: u64 = 64;

pub fn contest(work: Work) -> io::Result<Contest<'static>> {
    let contest = |bench| Contest::new(work.name(), work.unit(), bench);
    match work {
        Work::BhLocal => bh_local(1).map(contest),
        Work::BhLocalBatch => bh_local(BATCH).map(contest),
        Work::BhRemote => Ok(Contest::new(work.name(), work.unit(), bh_remote()?)),
        _ => Ok(Contest::new(work.name(), work.unit(), timer()?)),
    }
}

/// Schedules `batch` bottom halves and polls once.
fn bh_local(batch: u64) -> io::Result<impl FnMut(u64) -> io::Result<Lap>> {
    let ctx = AioContext::for_test()?;
    let ran = Rc::new(Cell::new(0u64));
    let halves: Vec<BottomHalf> = (0..batch)
        .map(|_| {
            let ran = Rc::clone(&ran);
            ctx.bottom_half("bench", move |_| ran.set(ran.get() + 1))
        })
        .collect();
    Ok(move |ops: u64| {
        let polls = ops.div_ceil(batch);
        ran.set(0);
        let lap = lap(polls * batch, || {
            for _ in 0..polls {
                halves.iter().for_each(BottomHalf::schedule);
                ctx.try_poll();
            }
        });
        check(ran.get(), lap)
    })
}

/// A timer that is due at once is armed; one poll fires it.
fn timer() -> io::Result<impl FnMut(u64) -> io::Result<Lap>> {
    let ctx = AioContext::for_test()?;
    let ran = Rc::new(Cell::new(0u64));
    let timer = {
        let ran = Rc::clone(&ran);
        ctx.timer(move |_| ran.set(ran.get() + 1))
    };
    Ok(move |ops: u64| {
        ran.set(0);
        let lap = lap(ops, || {
            for _ in 0..ops {
                timer.arm_at_ns(-1);
                ctx.try_poll();
            }
        });
        check(ran.get(), lap)
    })
}

/// How often a bottom half has run; alone on its cache line.
#[repr(align(128))]
#[derive(Default)]
struct Ran(AtomicU64);

/// Another thread schedules bottom halves in turn, each again when it has run. The loop sleeps
/// whenever it may.
fn bh_remote() -> io::Result<impl FnMut(u64) -> io::Result<Lap>> {
    let ctx = AioContext::for_test()?;
    let ran: Arc<[Ran]> = (0..BATCH).map(|_| Ran::default()).collect();
    let halves: Vec<BottomHalf> = (0..BATCH as usize)
        .map(|index| {
            let ran = Arc::clone(&ran);
            ctx.bottom_half("bench", move |_| {
                ran[index].0.fetch_add(1, Ordering::Release);
            })
        })
        .collect();
    Ok(move |ops: u64| {
        let rounds = ops.div_ceil(BATCH);
        ran.iter().for_each(|it| it.0.store(0, Ordering::Relaxed));
        let remotes: Vec<RemoteBottomHalf> = halves.iter().map(BottomHalf::remote).collect();
        let go = Arc::new(AtomicBool::new(false));
        let other = {
            let (ran, go) = (Arc::clone(&ran), Arc::clone(&go));
            thread::spawn(move || {
                wait_until(|| go.load(Ordering::Acquire));
                for round in 0..rounds {
                    for (remote, ran) in remotes.iter().zip(&*ran) {
                        wait_until(|| ran.0.load(Ordering::Acquire) >= round);
                        remote.schedule();
                    }
                }
            })
        };
        let lap = lap(rounds * BATCH, || {
            go.store(true, Ordering::Release);
            let last = &ran[BATCH as usize - 1].0;
            ctx.run_until(|| last.load(Ordering::Relaxed) == rounds);
        });
        other.join().map_err(|_| io::Error::other("the other thread panicked"))?;
        check(ran.iter().map(|it| it.0.load(Ordering::Relaxed)).sum(), lap)
    })
}

/// Spins for a short while, then lets others run.
fn wait_until(done: impl Fn() -> bool) {
    let mut spins = 0u32;
    while !done() {
        spins += 1;
        if spins < 200 { std::hint::spin_loop() } else { thread::yield_now() }
    }
}

fn check(ran: u64, lap: Lap) -> io::Result<Lap> {
    if ran == lap.ops {
        Ok(lap)
    } else {
        Err(io::Error::other(format!("{ran} callbacks ran instead of {}", lap.ops)))
    }
}
