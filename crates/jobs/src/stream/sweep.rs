//! [`Sweep`]: goes over a disk once, and has copied what backing files have.
//!
//! The job's main coroutine looks for what is to be copied, and begins copies; each has a coroutine of its own. A
//! copy is a read of the copy-on-read filter that wants no data.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, AlignedBuffer, Co, IoVectorMut};
use coblk_block::{BlockBackend, BlockNode, ErrorAction, ReadFlags, RequestKind};

use crate::rules::{Rule, holds};
use crate::{Job, JobFailure, OnError};

/// Most copies at a time.
const MAX_COPIES: u64 = 16;
/// Longest copy, in bytes, unless a cluster is longer.
const MAX_CHUNK: u64 = 512 << 10;
/// After that long without a suspension others have a turn.
const TURN_NS: i64 = 10_000_000;

/// The copies of one job. Home thread.
pub(super) struct Sweep {
    job: Rc<Job>,
    /// Of the filter; until the sweep is over.
    source: RefCell<Option<BlockBackend>>,
    /// The node that is not copied from.
    base: Option<Arc<BlockNode>>,
    length: u64,
    cluster: u64,
    on_error: OnError,
    /// Up to where it has looked.
    cursor: Cell<u64>,
    /// What has failed and is to be copied once more.
    again: RefCell<Vec<Range<u64>>>,
    active: Cell<u64>,
    /// Buffers that no copy has.
    buffers: RefCell<Vec<AlignedBuffer>>,
    /// Why something was left out.
    left_out: RefCell<Option<io::Error>>,
    failure: RefCell<Option<JobFailure>>,
}

/// The next step.
enum Next {
    Copy(Range<u64>),
    /// An error has been dealt with.
    Look,
    Nothing,
}

impl Sweep {
    /// Over a disk of `length` bytes, which stores `cluster` bytes together.
    pub(super) fn new(
        job: &Rc<Job>,
        source: BlockBackend,
        base: Option<Arc<BlockNode>>,
        (length, cluster): (u64, u64),
        on_error: OnError,
    ) -> Rc<Sweep> {
        job.progress().set_rest(length);
        Rc::new(Sweep {
            job: Rc::clone(job),
            source: RefCell::new(Some(source)),
            base,
            length,
            cluster,
            on_error,
            cursor: Cell::new(0),
            again: RefCell::default(),
            active: Cell::new(0),
            buffers: RefCell::default(),
            left_out: RefCell::default(),
            failure: RefCell::default(),
        })
    }

    fn source(&self) -> io::Result<BlockBackend> {
        self.source.borrow().clone().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEDIUM))
    }

    /// Copies all, and makes that durable. Nothing is under way when it returns. The job's main coroutine.
    ///
    /// # Errors
    /// If the job is cancelled, a copy has failed and the policy is to report that, or something was left out.
    pub(super) fn co_run(self: &Rc<Self>, co: &Co<'_>) -> Result<(), JobFailure> {
        let swept = self.co_sweep(co);
        while self.active.get() > 0 {
            self.job.co_wait(co, None);
        }
        swept?;
        match self.left_out.take() {
            Some(error) => Err(JobFailure::Io(error)),
            None => Ok(()),
        }
    }

    /// Makes durable what was copied.
    pub(super) fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        if !holds(Rule::DurableBeforeHeaders) {
            return Ok(());
        }
        self.source()?.co_flush(co)
    }

    /// Takes its backend away. Nothing is under way.
    pub(super) fn end(&self) {
        self.source.take();
    }

    fn co_sweep(self: &Rc<Self>, co: &Co<'_>) -> Result<(), JobFailure> {
        let mut turn_ns = co.context().now_ns();
        loop {
            if self.job.is_cancelled() {
                return Err(JobFailure::Cancelled);
            }
            self.failure.take().map_or(Ok(()), Err)?;
            if self.job.should_pause() {
                match self.active.get() == 0 && self.job.can_pause() {
                    true => self.job.co_pause_point(co)?,
                    false => self.job.co_wait(co, None),
                }
                continue;
            }
            let earliest_ns = self.earliest_ns(co.context());
            if earliest_ns.is_some() || self.active.get() >= MAX_COPIES {
                self.job.co_wait(co, earliest_ns);
                continue;
            }
            if co.context().now_ns() - turn_ns > TURN_NS {
                co.yield_now();
                turn_ns = co.context().now_ns();
            }
            match self.co_next(co) {
                Next::Copy(range) => self.begin(co.context(), range),
                Next::Look => {}
                Next::Nothing if self.active.get() == 0 => return Ok(()),
                Next::Nothing => self.job.co_wait(co, None),
            }
        }
    }

    /// When the next copy may begin, if that is later than now.
    fn earliest_ns(&self, ctx: &AioContext) -> Option<i64> {
        let now_ns = ctx.now_ns();
        let delay = i64::try_from(self.job.rate().delay(now_ns).as_nanos()).unwrap_or(i64::MAX);
        Some(now_ns.saturating_add(delay)).filter(|_| delay > 0)
    }

    fn co_next(&self, co: &Co<'_>) -> Next {
        if let Some(range) = self.again.borrow_mut().pop() {
            return Next::Copy(range);
        }
        let at = self.cursor.get();
        if at >= self.length {
            return Next::Nothing;
        }
        let most = self.job.rate().chunk(self.cluster, MAX_CHUNK.max(self.cluster));
        let end = at.saturating_add(most) / self.cluster * self.cluster;
        let chunk = at..end.max(at + 1).next_multiple_of(self.cluster).min(self.length);
        let asked = self.source().and_then(|source| {
            source.co_status_above(co, self.base.as_deref(), at, self.length - at)
        });
        match asked {
            Ok(found) if found.extent.allocated && found.depth > 1 => {
                // What the chunk has besides is found out, and left alone, by the filter.
                self.cursor.set(chunk.end);
                Next::Copy(chunk)
            }
            Ok(found) => {
                let bytes = found.extent.bytes.clamp(1, self.length - at);
                self.cursor.set(at + bytes);
                self.done(bytes);
                Next::Look
            }
            Err(error) => {
                self.cursor.set(chunk.end);
                self.failed(co.context(), chunk, error);
                Next::Look
            }
        }
    }

    fn begin(self: &Rc<Self>, ctx: &AioContext, range: Range<u64>) {
        self.job.rate().sent(ctx.now_ns(), range.end - range.start);
        self.active.set(self.active.get() + 1);
        let active = Active(Rc::clone(self));
        ctx.spawn("stream", move |co| {
            let sweep = &active.0;
            match co.catch_unwind(|| sweep.co_copy(co, &range)) {
                Ok(Ok(())) => {
                    sweep.job.request_succeeded();
                    sweep.done(range.end - range.start);
                }
                Ok(Err(error)) => sweep.failed(co.context(), range, error),
                // The hook of panics has reported it. The range is not copied.
                Err(_) => {
                    sweep.failure.borrow_mut().get_or_insert(JobFailure::panicked());
                }
            }
        });
    }

    fn co_copy(&self, co: &Co<'_>, range: &Range<u64>) -> io::Result<()> {
        let bytes = (range.end - range.start) as usize;
        let unused = self.buffers.borrow_mut().pop().filter(|buffer| buffer.len() >= bytes);
        let mut buffer = match unused {
            Some(buffer) => buffer,
            None => AlignedBuffer::new(bytes.max(MAX_CHUNK as usize), 4096)?,
        };
        let flags = ReadFlags::COPY_ON_READ | ReadFlags::PREFETCH;
        let mut target = IoVectorMut::from(&mut buffer[..bytes]);
        let copied = self.source()?.co_preadv_with(co, range.start, &mut target, flags);
        self.buffers.borrow_mut().push(buffer);
        copied
    }

    fn done(&self, bytes: u64) {
        let progress = self.job.progress();
        progress.add(bytes);
        progress.set_rest(progress.rest().saturating_sub(bytes));
    }

    fn failed(&self, ctx: &AioContext, range: Range<u64>, error: io::Error) {
        match self.job.failed(ctx, RequestKind::Read, self.on_error, &error) {
            ErrorAction::Report => {
                self.failure.borrow_mut().get_or_insert(JobFailure::Io(error));
            }
            ErrorAction::Stop => self.again.borrow_mut().push(range),
            ErrorAction::Ignore => {
                self.done(range.end - range.start);
                if !holds(Rule::LeftOutFails) {
                    return;
                }
                self.left_out.borrow_mut().get_or_insert(error);
            }
        }
    }
}

/// A copy under way, until this is dropped.
struct Active(Rc<Sweep>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.job.kick();
    }
}
