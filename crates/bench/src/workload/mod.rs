//! A generator of requests: keeps a number of them in flight on one backend, through the callback
//! door.

pub mod nbd;
mod pace;
pub mod pattern;
pub mod stopwatch;
pub mod threads;
pub mod vhost_user;
pub mod virtio;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use coblk::{AioContext, AlignedBuffer, BlockBackend, WriteFlags};
use hdrhistogram::Histogram;

use pattern::{Kind, Offsets};
pub use pattern::{Pattern, ReadWrite};

/// Longest latency that is told apart, in nanoseconds.
const MAX_LATENCY_NS: u64 = 60_000_000_000;

/// What requests to make.
#[derive(Clone, Debug)]
pub struct Job {
    /// Their kind and order.
    pub pattern: Pattern,
    /// Length of each in bytes.
    pub block_bytes: usize,
    /// How many are in flight.
    pub depth: usize,
    /// Requests go to the first so many bytes.
    pub range_bytes: u64,
    /// Bytes from the beginning of a request to that of the next, where one goes after the other; not less than
    /// a block.
    pub step_bytes: u64,
    /// Whether to measure each one's latency, which costs two looks at the clock.
    pub latency: bool,
    /// For random offsets.
    pub seed: u64,
}

impl Job {
    /// Reads of 4 KiB one after the other.
    pub fn sequential_reads(depth: usize, range_bytes: u64) -> Job {
        Job {
            pattern: Pattern { kind: ReadWrite::Read, read_percent: 100 },
            block_bytes: 4096,
            depth,
            range_bytes,
            step_bytes: 0,
            latency: false,
            seed: 1,
        }
    }
}

impl Job {
    /// Writes of 4 KiB one after the other.
    pub fn sequential_writes(depth: usize, range_bytes: u64) -> Job {
        Job {
            pattern: Pattern { kind: ReadWrite::Write, read_percent: 0 },
            ..Job::sequential_reads(depth, range_bytes)
        }
    }
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so many requests.
    Count(u64),
    /// After so long.
    Elapsed(Duration),
}

/// Makes requests on one context. Keeps its buffers from run to run.
pub struct Generator {
    state: Rc<State>,
}

struct State {
    backend: BlockBackend,
    block_bytes: usize,
    offsets: RefCell<Offsets>,
    /// Still to be submitted.
    left: Cell<u64>,
    deadline: Cell<Option<Instant>>,
    in_flight: Cell<usize>,
    done: Cell<u64>,
    error: Cell<Option<io::Error>>,
    latency: Option<RefCell<Histogram<u64>>>,
    buffers: RefCell<Vec<AlignedBuffer>>,
}

impl Generator {
    /// A generator for requests on `backend`.
    ///
    /// # Errors
    /// If the backend is smaller than one request, or there is no memory.
    pub fn new(backend: BlockBackend, job: &Job) -> io::Result<Generator> {
        let range_bytes = job.range_bytes.min(backend.length()?);
        let offsets = Offsets::new(job.pattern, range_bytes, job.block_bytes as u64, job.seed)?
            .with_step(job.step_bytes);
        let buffers = (0..job.depth).map(|_| AlignedBuffer::new(job.block_bytes, 4096));
        let latency = job.latency.then(|| RefCell::new(new_histogram()));
        Ok(Generator {
            state: Rc::new(State {
                backend,
                block_bytes: job.block_bytes,
                offsets: RefCell::new(offsets),
                left: Cell::new(0),
                deadline: Cell::new(None),
                in_flight: Cell::new(0),
                done: Cell::new(0),
                error: Cell::new(None),
                latency,
                buffers: RefCell::new(buffers.collect::<io::Result<Vec<_>>>()?),
            }),
        })
    }

    /// Makes requests until `until`, and polls `ctx` until all have ended. Returns how many there
    /// were.
    ///
    /// # Errors
    /// The first error of a request. No further ones are made then.
    pub fn run(&self, ctx: &AioContext, until: Until) -> io::Result<u64> {
        let state = &self.state;
        state.done.set(0);
        match until {
            Until::Count(count) => {
                state.left.set(count);
                state.deadline.set(None);
            }
            Until::Elapsed(time) => {
                state.left.set(u64::MAX);
                state.deadline.set(Some(Instant::now() + time));
            }
        }
        while state.left.get() > 0 {
            let Some(buffer) = state.buffers.borrow_mut().pop() else { break };
            state.submit(ctx, buffer);
        }
        ctx.run_until(|| state.in_flight.get() == 0);
        match state.error.take() {
            None => Ok(state.done.get()),
            Some(error) => Err(error),
        }
    }

    /// Latencies so far, in nanoseconds; empty if the job did not ask for them.
    pub fn latency(&self) -> Histogram<u64> {
        self.state.latency.as_ref().map_or_else(new_histogram, |it| it.borrow().clone())
    }

    /// Forgets the latencies so far.
    pub fn reset_latency(&self) {
        if let Some(latency) = &self.state.latency {
            latency.borrow_mut().reset();
        }
    }
}

/// A histogram of latencies in nanoseconds, without any.
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_max(MAX_LATENCY_NS, 3).expect("the bounds are valid")
}

impl State {
    // Both are inlined: after a switch of stacks the processor expects a return to the other
    // stack's caller, so each frame of ours between a request's end and the next one's begin
    // would cost a mispredicted return, and be counted as the request's.
    #[inline(always)]
    fn submit(self: &Rc<State>, ctx: &AioContext, buffer: AlignedBuffer) {
        self.left.set(self.left.get() - 1);
        self.in_flight.set(self.in_flight.get() + 1);
        let (kind, offset) = self.offsets.borrow_mut().next();
        let start = self.latency.as_ref().map(|_| Instant::now());
        let state = Rc::clone(self);
        match kind {
            Kind::Read => {
                self.backend.aio_preadv(ctx, offset, buffer, move |ctx, result, buffer| {
                    state.completed(ctx, result, buffer, start);
                })
            }
            Kind::Write => self.backend.aio_pwritev(
                ctx,
                offset,
                buffer,
                WriteFlags::empty(),
                move |ctx, result, buffer| state.completed(ctx, result, buffer, start),
            ),
        }
    }

    #[inline(always)]
    fn completed(
        self: &Rc<State>,
        ctx: &AioContext,
        result: io::Result<()>,
        buffer: AlignedBuffer,
        start: Option<Instant>,
    ) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.done.set(self.done.get() + 1);
        if let Err(error) = result {
            self.left.set(0);
            self.error.set(Some(error));
        }
        if let (Some(latency), Some(start)) = (&self.latency, start) {
            let ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(MAX_LATENCY_NS);
            latency.borrow_mut().saturating_record(ns);
        }
        // Now and then: a look at the clock may cost as much as a request.
        if self.done.get().is_multiple_of(16)
            && self.deadline.get().is_some_and(|deadline| Instant::now() >= deadline)
        {
            self.left.set(0);
        }
        if self.left.get() > 0 {
            self.submit(ctx, buffer);
        } else {
            debug_assert_eq!(buffer.len(), self.block_bytes);
            self.buffers.borrow_mut().push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coblk::BlockNode;
    use coblk::drivers::Null;

    fn generator(ctx: &AioContext, job: &Job) -> io::Result<Generator> {
        let node = BlockNode::new("null", Null::new(1 << 20));
        Generator::new(BlockBackend::new(ctx, "bench", node), job)
    }

    #[test]
    fn makes_as_many_as_it_should() {
        let ctx = AioContext::for_test().unwrap();
        let job = Job { latency: true, ..Job::sequential_reads(8, u64::MAX) };
        let generator = generator(&ctx, &job).unwrap();
        for count in [0, 1, 8, 1000] {
            assert_eq!(generator.run(&ctx, Until::Count(count)).unwrap(), count);
        }
        assert_eq!(generator.latency().len(), 1009);
        let time = Duration::from_millis(5);
        assert!(generator.run(&ctx, Until::Elapsed(time)).unwrap() > 8);
        generator.reset_latency();
        assert!(generator.latency().is_empty());
    }

    #[test]
    fn a_device_too_small_is_an_error() {
        let ctx = AioContext::for_test().unwrap();
        let job = Job { block_bytes: 2 << 20, ..Job::sequential_reads(1, u64::MAX) };
        assert!(generator(&ctx, &job).is_err());
    }
}
