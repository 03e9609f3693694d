//! Blocking calls on worker threads: for a coroutine, and for a callback.
//!
//! # Why a job may live on a coroutine's stack
//!
//! [`ThreadPool::submit_co`] keeps job, closure and result in its own frame (design decision D4).
//! That is sound because the frame cannot go away while the worker or a list refers to the job:
//!
//! * A coroutine's stack stays mapped, and its frames in place, until the coroutine has ended.
//! * The frame is left in two ways. Normally, after the resume that the job's own completion
//!   gives, when the worker is done with the job and the node is off all lists. Or by unwinding,
//!   when the context ends; then [`WaitOnUnwind`] first waits for the worker and takes the node
//!   from the list. That is the argument of `std::thread::scope`.
//! * Forgetting the guard is impossible: it is a local that no caller sees.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{Co, Task};
use crate::context::{AioContext, Inner};
use crate::home::HANDOVER_PAUSE;
use crate::panics::{self, Culprit};
use crate::run_list::{Node, NodeKind, Runner};
use crate::thread_pool::{JobHeader, ThreadPool, owed};
use crate::trace_event;

/// Gives a job to a worker, or to the simulated world in a worker's place.
#[inline]
fn submit(ctx: &AioContext, pool: &ThreadPool, job: NonNull<JobHeader>, is_first: bool) {
    match ctx.simulation() {
        None => pool.submit(job, is_first, ctx.inner().turn.goes_on()),
        Some(simulation) => simulation.submit(job),
    }
}

// ---- submit_co ---------------------------------------------------------------------------------

/// A job on the stack of the coroutine that waits for it.
#[repr(C)]
struct CoJob<F, R> {
    header: JobHeader,
    /// The task to resume.
    task: NonNull<Task>,
    /// Home thread only: the completion has run.
    done: Cell<bool>,
    /// The worker's, until the node is scheduled.
    function: UnsafeCell<Option<F>>,
    /// Written by the worker, read at home after the node has arrived.
    result: UnsafeCell<MaybeUninit<std::thread::Result<R>>>,
}

/// # Safety
/// As `JobHeader::work`; `job` is a `CoJob<F, R>`.
unsafe fn co_job_work<F: FnOnce() -> R, R>(job: NonNull<JobHeader>) {
    // SAFETY: the type by contract. The fields used here are the worker's for now.
    let (function, result) = unsafe {
        let job = job.cast::<CoJob<F, R>>().as_ref();
        (&mut *job.function.get(), &mut *job.result.get())
    };
    if let Some(function) = function.take() {
        result.write(catch_unwind(AssertUnwindSafe(function)));
    }
    trace_event!("thread_pool_complete");
}

/// The completion bottom half.
///
/// # Safety
/// As `NodeKind::run`; the node is the header of a `CoJob`.
unsafe fn co_job_complete<F, R>(node: NonNull<Node>, _: Runner<'_>) -> bool {
    trace_event!("thread_pool_completion_bh");
    owed::job_done();
    // SAFETY: the coroutine is suspended in `submit_co`, so the job is alive. The reference is
    // not used after the resume, which ends the frame that it points into.
    let task = unsafe {
        let job = node.cast::<CoJob<F, R>>().as_ref();
        job.done.set(true);
        job.task
    };
    // SAFETY: its coroutine waits for this, so it is live.
    unsafe { Task::resume(task) };
    true
}

/// # Safety
/// As `NodeKind::discard`.
unsafe fn co_job_discard(_node: NonNull<Node>) {
    // A context unwinds its coroutines, and so takes their jobs off its lists, before it discards
    // what is left.
    unreachable!("a coroutine's job outlived the coroutine");
}

struct CoJobKind<F, R>(F, R);
impl<F: FnOnce() -> R, R> CoJobKind<F, R> {
    const KIND: &'static NodeKind =
        &NodeKind { run: co_job_complete::<F, R>, discard: co_job_discard };
}

/// Keeps a frame until the job in it is home.
struct WaitOnUnwind<'a, F, R> {
    job: &'a CoJob<F, R>,
    ctx: &'a AioContext,
}

impl<F, R> Drop for WaitOnUnwind<'_, F, R> {
    fn drop(&mut self) {
        let jobs = &self.ctx.inner().co_jobs;
        jobs.set(jobs.get() - 1);
        if self.job.done.get() {
            return;
        }
        if self.wait() {
            // SAFETY: the function has run, so the result is there, and the job has been given
            // back. Nothing else will read it: this frame is being unwound.
            unsafe { (*self.job.result.get()).assume_init_drop() };
        }
    }
}

impl<F, R> WaitOnUnwind<'_, F, R> {
    /// Waits for the worker and takes the node from the list it arrives on. Whether the job's
    /// function has run.
    #[cold]
    fn wait(&self) -> bool {
        let node = NonNull::from(&self.job.header.node);
        let inner: &Inner = self.ctx.inner();
        let running = &inner.queues.running;
        if let Some(simulation) = self.ctx.simulation() {
            // Everything happens on this thread: the job waits to be run, or is home already.
            return !simulation.withdraw(node.cast::<JobHeader>())
                && (inner.queues.pending.remove(node) || running.remove(node));
        }
        owed::pay();
        // The worker may be anywhere between taking the job and scheduling the node. Nothing else
        // is lost: what else comes in is kept for the next bottom-half phase.
        loop {
            inner.shared.take_remote(running);
            if running.remove(node) {
                return true;
            }
            std::thread::sleep(HANDOVER_PAUSE);
        }
    }
}

impl ThreadPool {
    /// Runs `function` on a worker thread while the calling coroutine is suspended, and returns
    /// what it returns. Allocates nothing. A panic in `function` goes on in the coroutine.
    ///
    /// If the coroutine is unwound meanwhile, because its context ends, that waits for `function`.
    #[inline]
    pub fn submit_co<F, R>(&self, co: &Co<'_>, function: F) -> R
    where
        F: FnOnce() -> R + Send,
        R: Send,
    {
        self.submit_job(co, function, false)
    }

    /// [`submit_co`](Self::submit_co); the first job of a share gets a thread whatever the maximum.
    #[inline]
    pub(super) fn submit_job<F, R>(&self, co: &Co<'_>, function: F, is_first: bool) -> R
    where
        F: FnOnce() -> R + Send,
        R: Send,
    {
        let ctx = co.context();
        if ctx.inner().calls_in_place {
            return function();
        }
        let job = CoJob {
            header: JobHeader::new(
                CoJobKind::<F, R>::KIND,
                co_job_work::<F, R>,
                ctx.inner().shared(),
            ),
            task: NonNull::from(co.task()),
            done: Cell::new(false),
            function: UnsafeCell::new(Some(function)),
            result: UnsafeCell::new(MaybeUninit::uninit()),
        };
        let header = NonNull::from(&job).cast::<JobHeader>();
        trace_event!("thread_pool_submit_co");
        let jobs = &ctx.inner().co_jobs;
        jobs.set(jobs.get() + 1);
        submit(ctx, self, header, is_first);
        let guard = WaitOnUnwind { job: &job, ctx };
        while !job.done.get() {
            co.suspend("a worker");
        }
        drop(guard);
        // SAFETY: done: the worker has written the result, and has given the job back.
        match unsafe { job.result.into_inner().assume_init() } {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }
}

// ---- submit_aio --------------------------------------------------------------------------------

const QUEUED: u8 = 0;
const RUNNING: u8 = 1;
const CANCELLED: u8 = 2;

/// A job on the heap, with a callback.
#[repr(C)]
struct CallbackJob<F, T, C> {
    header: JobHeader,
    state: AtomicU8,
    /// The worker's, once it has moved `state` to `RUNNING`.
    function: UnsafeCell<Option<F>>,
    result: UnsafeCell<Option<std::thread::Result<T>>>,
    /// Home thread only.
    callback: UnsafeCell<Option<C>>,
    /// Home thread only: the handle's way to the job, emptied on completion.
    link: Rc<Cell<Option<NonNull<AtomicU8>>>>,
}

/// # Safety
/// As `JobHeader::work`; `job` is a `CallbackJob<F, T, C>`.
unsafe fn callback_job_work<F: FnOnce() -> T, T, C>(job: NonNull<JobHeader>) {
    // SAFETY: the type by contract.
    let job = unsafe { job.cast::<CallbackJob<F, T, C>>().as_ref() };
    if job.state.compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        // SAFETY: `RUNNING` makes function and result the worker's.
        unsafe {
            if let Some(function) = (*job.function.get()).take() {
                *job.result.get() = Some(catch_unwind(AssertUnwindSafe(function)));
            }
        }
    }
    trace_event!("thread_pool_complete");
}

/// # Safety
/// As `NodeKind::run`; the node is the header of a `CallbackJob<F, T, C>`.
unsafe fn callback_job_complete<F, T, C>(node: NonNull<Node>, runner: Runner<'_>) -> bool
where
    C: FnOnce(&AioContext, io::Result<T>),
{
    trace_event!("thread_pool_completion_bh");
    owed::job_done();
    // SAFETY: as `NodeKind::run`: on a context's list, so that runs it.
    let ctx = unsafe { runner.get::<AioContext>() };
    // SAFETY: leaked in `submit_aio`, and home now: nothing refers to it but the link, which
    // is emptied here.
    let job = unsafe { Box::from_raw(node.cast::<CallbackJob<F, T, C>>().as_ptr()) };
    job.link.set(None);
    let jobs = &ctx.inner().aio_jobs;
    jobs.set(jobs.get() - 1);
    let (result, panic) = match job.result.into_inner() {
        Some(Ok(value)) => (Ok(value), None),
        Some(Err(panic)) => (Err(panicked(&*panic)), Some(panic)),
        None => (Err(io::Error::from_raw_os_error(libc::ECANCELED)), None),
    };
    let panics = &ctx.inner().panics;
    if let Some(callback) = job.callback.into_inner() {
        panics.blaming(Culprit::Other("the callback of a job"), || callback(ctx, result));
    }
    if let Some(panic) = panic {
        panics.blaming(Culprit::Other("a job"), || resume_unwind(panic));
    }
    true
}

/// What a callback is told when its job has panicked.
#[cold]
fn panicked(panic: &(dyn Any + Send)) -> io::Error {
    io::Error::other(format!("the job panicked: {}", panics::message(panic)))
}

/// # Safety
/// As `NodeKind::discard`.
unsafe fn callback_job_discard(_node: NonNull<Node>) {
    // A context polls until it has no jobs before it discards anything.
    unreachable!("a context ended before its job");
}

struct CallbackJobKind<F, T, C>(F, T, C);
impl<F: FnOnce() -> T, T, C: FnOnce(&AioContext, io::Result<T>)> CallbackJobKind<F, T, C> {
    const KIND: &'static NodeKind =
        &NodeKind { run: callback_job_complete::<F, T, C>, discard: callback_job_discard };
}

/// A job submitted with [`ThreadPool::submit_aio`]. Dropping it changes nothing.
pub struct AioJob {
    state: Rc<Cell<Option<NonNull<AtomicU8>>>>,
}

impl AioJob {
    /// Cancels the job if no worker has begun it: it completes with ECANCELED, and its function
    /// never runs (contract: C62). Otherwise changes nothing (C63). Returns whether it did.
    ///
    /// The completion comes when the job's turn in the queue comes.
    pub fn cancel(&self) -> bool {
        self.state.get().is_some_and(|state| {
            // SAFETY: the link is emptied before the job is freed, on this thread.
            unsafe { state.as_ref() }
                .compare_exchange(QUEUED, CANCELLED, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })
    }
}

impl ThreadPool {
    /// Runs `function` on a worker thread and then `callback` in a bottom half of `ctx`, with what
    /// it returned, or with ECANCELED (contract: C54, C62), or with an error without a number if
    /// `function` panicked; such a panic is then the loop's ([`PanicPolicy`](crate::PanicPolicy)).
    /// A callback may poll `ctx`, and sees other completions then (C64).
    ///
    /// In a turn of the loop the job may begin only when that is over, or the thread polls: a callback must
    /// not block until it has run (C54).
    pub fn submit_aio<F, T, C>(&self, ctx: &AioContext, function: F, callback: C) -> AioJob
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
        C: FnOnce(&AioContext, io::Result<T>) + 'static,
    {
        let link = Rc::new(Cell::new(None));
        let job = Box::new(CallbackJob::<F, T, C> {
            header: JobHeader::new(
                CallbackJobKind::<F, T, C>::KIND,
                callback_job_work::<F, T, C>,
                ctx.inner().shared(),
            ),
            state: AtomicU8::new(QUEUED),
            function: UnsafeCell::new(Some(function)),
            result: UnsafeCell::new(None),
            callback: UnsafeCell::new(Some(callback)),
            link: Rc::clone(&link),
        });
        let job = NonNull::from(Box::leak(job));
        // SAFETY: just leaked, alive until it has come home.
        link.set(Some(NonNull::from(unsafe { &job.as_ref().state })));
        let jobs = &ctx.inner().aio_jobs;
        jobs.set(jobs.get() + 1);
        trace_event!("thread_pool_submit_aio");
        submit(ctx, self, job.cast::<JobHeader>(), false);
        AioJob { state: link }
    }
}

impl fmt::Debug for AioJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No link: it has completed.
        f.debug_struct("AioJob").field("is_done", &self.state.get().is_none()).finish()
    }
}
