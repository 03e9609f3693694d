//! A job that does nothing goes from a coroutine to a worker thread and back.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use coblk::AioContext;

use crate::floors::hand_over::{HandOver, Way};
use crate::measure::{Contest, Lap, lap};
use crate::peers::stranger::Stranger;
use crate::sys;
use crate::works::Work;

/// `depth` coroutines submit one job after the other each. With one, a bare hand-over is the floor.
pub fn contest(work: Work, depth: u64) -> io::Result<Contest<'static>> {
    let ctx = AioContext::for_test()?;
    let ours = move |ops| round_trips(&ctx, depth, ops);
    let mut contest = Contest::new(work.name(), work.unit(), ours);
    if depth == 1 {
        for way in Way::ALL {
            let mut hand_over = HandOver::new(way, |_| Ok(()))?;
            contest = contest.peer(way.name(), move |ops| hand_over.run(ops));
        }
    }
    match work {
        Work::WorkerTaken => Ok(contest.beside(Stranger::take(sys::cpus()?[0])?)),
        _ => Ok(contest),
    }
}

fn round_trips(ctx: &AioContext, depth: u64, ops: u64) -> io::Result<Lap> {
    let each = ops.div_ceil(depth);
    let running = Rc::new(Cell::new(depth));
    Ok(lap(each * depth, || {
        for _ in 0..depth {
            let running = Rc::clone(&running);
            ctx.spawn("bench", move |co| {
                let pool = co.context().thread_pool();
                for _ in 0..each {
                    pool.submit_co(co, || ());
                }
                running.set(running.get() - 1);
            });
        }
        ctx.run_until(|| running.get() == 0);
    }))
}
