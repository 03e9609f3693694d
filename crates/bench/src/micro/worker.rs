//! A job that does nothing goes from a coroutine to a worker thread and back.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use coblk::AioContext;
use coblk::aio::ThreadPool;

use crate::floors::hand_over::{HandOver, Way};
use crate::measure::{Contest, Lap, lap};
use crate::peers::stranger::Stranger;
use crate::sys::{self, OnOneCpu};
use crate::workload::stopwatch::RoundTrips;
use crate::works::Work;

/// `depth` coroutines submit one job after the other each. A bare hand-over is the floor, with
/// as many jobs under way.
pub fn contest(work: Work, depth: u64) -> io::Result<Contest<'static>> {
    // Threads begin where the one is that starts them, so a pool that has threads would not do.
    let one_cpu = (work == Work::WorkerOneCpu).then(OnOneCpu::new).transpose()?;
    let pool = ThreadPool::new(0, 64).map_err(io::Error::other)?;
    let ctx = AioContext::test_builder().thread_pool(pool).build()?;
    // What is waited for there is long beside a look at the clock.
    let timed = matches!(work, Work::WorkerOneCpu | Work::WorkerTaken);
    let round_trips = timed.then(|| Rc::new(RefCell::new(RoundTrips::new())));
    let ours = move |ops| submit(&ctx, depth, ops, round_trips.as_ref());
    let mut contest = Contest::new(work.name(), work.unit(), ours);
    for way in Way::ALL {
        let mut hand_over = HandOver::new(way, |_| Ok(()))?.batch(depth).timed(timed);
        contest = contest.peer(way.name(), move |ops| hand_over.run(ops));
    }
    if work == Work::WorkerTaken {
        contest = contest.beside(Stranger::take(sys::cpus()?[0])?);
    }
    Ok(contest.beside(one_cpu))
}

fn submit(
    ctx: &AioContext,
    depth: u64,
    ops: u64,
    round_trips: Option<&Rc<RefCell<RoundTrips>>>,
) -> io::Result<Lap> {
    let each = ops.div_ceil(depth);
    let running = Rc::new(Cell::new(depth));
    let lap = lap(each * depth, || {
        if let Some(round_trips) = round_trips {
            round_trips.borrow_mut().begin();
        }
        for _ in 0..depth {
            let (running, round_trips) = (Rc::clone(&running), round_trips.cloned());
            ctx.spawn("bench", move |co| {
                let pool = co.context().thread_pool();
                for _ in 0..each {
                    pool.submit_co(co, || ());
                    if let Some(round_trips) = &round_trips {
                        round_trips.borrow_mut().end();
                    }
                }
                running.set(running.get() - 1);
            });
        }
        ctx.run_until(|| running.get() == 0);
    });
    let latency = round_trips.and_then(|round_trips| round_trips.borrow_mut().take());
    Ok(Lap { latency, ..lap })
}
