//! The same job on several contexts at once, each with its own thread and all on one node: fio's
//! `numjobs=`.

use std::io;
use std::sync::{Arc, Barrier};
use std::thread;

use coblk::{AioContext, BlockBackend, BlockNode};
use hdrhistogram::Histogram;

use super::{Generator, Job, Until, new_histogram};
use crate::measure::{self, Lap};

/// What all contexts did together.
pub struct Outcome {
    /// From the moment all were ready until the last was done.
    pub lap: Lap,
    /// Latencies in nanoseconds, if the job asked for them.
    pub latency: Histogram<u64>,
}

/// Runs a job on `contexts` contexts. A count is shared out among them. Each first makes `warm_up`
/// requests, which count for nothing.
///
/// # Errors
/// The first error of any.
pub fn run(
    node: &Arc<BlockNode>,
    job: &Job,
    contexts: usize,
    until: Until,
    warm_up: u64,
) -> io::Result<Outcome> {
    let until = match until {
        Until::Count(count) => Until::Count(count.div_ceil(contexts as u64)),
        time => time,
    };
    let ready = Barrier::new(contexts + 1);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..contexts)
            .map(|index| {
                let job = Job { seed: job.seed + index as u64, ..job.clone() };
                let ready = &ready;
                scope.spawn(move || one_context(node, &job, until, warm_up, ready))
            })
            .collect();
        ready.wait();
        let mut results = Vec::new();
        let mut lap = measure::lap(0, || {
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            results.extend(threads.into_iter().map(join));
        });
        let mut latency = new_histogram();
        for result in results {
            let (done, histogram): (u64, Histogram<u64>) = result?;
            lap.ops += done;
            latency.add(histogram).map_err(io::Error::other)?;
        }
        Ok(Outcome { lap, latency })
    })
}

fn one_context(
    node: &Arc<BlockNode>,
    job: &Job,
    until: Until,
    warm_up: u64,
    ready: &Barrier,
) -> io::Result<(u64, Histogram<u64>)> {
    let set_up = || {
        let ctx = AioContext::test_builder().name("bench").build()?;
        let backend = BlockBackend::new(&ctx, "bench", Arc::clone(node));
        let generator = Generator::new(backend, job)?;
        generator.run(&ctx, Until::Count(warm_up))?;
        generator.reset_latency();
        Ok((ctx, generator))
    };
    let set_up: io::Result<_> = set_up();
    // Also after an error: the others wait for us here.
    ready.wait();
    let (ctx, generator) = set_up?;
    let done = generator.run(&ctx, until)?;
    Ok((done, generator.latency()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use coblk::drivers::Null;

    #[test]
    fn contexts_share_the_count() {
        let node = BlockNode::new("null", Null::new(1 << 20));
        let job = Job { latency: true, ..Job::sequential_reads(4, u64::MAX) };
        let outcome = run(&node, &job, 2, Until::Count(1001), 10).unwrap();
        assert_eq!((outcome.lap.ops, outcome.latency.len()), (1002, 1002));
    }

    #[test]
    fn an_error_ends_all() {
        let node = BlockNode::new("null", Null::new(512));
        assert!(run(&node, &Job::sequential_reads(4, u64::MAX), 2, Until::Count(9), 1).is_err());
    }
}
