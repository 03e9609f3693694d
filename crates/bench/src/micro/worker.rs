//! A job that does nothing goes from a coroutine to a worker thread and back.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use coblk::AioContext;

use crate::measure::{Contest, Lap, lap};
use crate::works::Work;

/// `depth` coroutines submit one job after the other each.
pub fn contest(work: Work, depth: u64) -> io::Result<Contest<'static>> {
    let ctx = AioContext::for_test()?;
    Ok(Contest::new(work.name(), work.unit(), move |ops| round_trips(&ctx, depth, ops)))
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
