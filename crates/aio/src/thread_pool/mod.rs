//! The worker pool: threads that make blocking calls for coroutines and callbacks.
//!
//! One pool serves all contexts of a process. A job goes to the workers through a bounded channel,
//! so submitting allocates nothing; a finished job goes, as a bottom half, to the list of the
//! context that submitted it ([`job`]). What a worker thread does is in [`worker`], who starts
//! and who ends in [`headcount`].

pub(crate) mod headcount;
mod job;
mod job_time;
pub(crate) mod owed;
pub(crate) mod parking;
mod worker;

use std::collections::VecDeque;
use std::fmt;
use std::ops::DerefMut;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::loom::Mutex;
use crate::sys::{self, OwnProcess};
use headcount::Headcount;
pub(crate) use job::JobHeader;
use job_time::JobTime;
use parking::Parking;

/// Threads a pool may run, unless told otherwise (contract: C56).
pub const DEFAULT_MAX_THREADS: usize = 64;
/// How long a worker above the minimum stays without work (contract: C58).
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Jobs the channel holds; more wait in the overflow list.
const CHANNEL_CAPACITY: usize = 4096;

/// Limits that make no sense (contract: C60).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThreadPoolLimitsError {
    /// The minimum is above the maximum.
    MinAboveMax {
        /// The minimum asked for.
        min: usize,
        /// The maximum asked for.
        max: usize,
    },
    /// The maximum is 0, so no job could ever run.
    MaxZero,
}

impl std::fmt::Display for ThreadPoolLimitsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MinAboveMax { min, max } => {
                write!(f, "thread pool: minimum of {min} threads is above the maximum of {max}")
            }
            Self::MaxZero => write!(f, "thread pool: the maximum must be at least 1 thread"),
        }
    }
}

impl std::error::Error for ThreadPoolLimitsError {}

/// What the channel carries.
enum Message {
    Job(NonNull<JobHeader>),
    /// Look at the limits: there may be one worker too many.
    Recheck,
    /// The pool ends; so does the worker that takes this. One is sent for each worker, behind all
    /// jobs.
    Stop,
}

// SAFETY: a job is handed to exactly one worker, and is made of what is `Send`: `submit_co` and
// `submit_aio` demand it.
unsafe impl Send for Message {}

/// What workers and handles share.
struct PoolState {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    headcount: Headcount,
    parking: Parking,
    job_time: JobTime,
    /// Jobs that found the channel full, oldest first; none may overtake them (contract: C61).
    overflow: Mutex<VecDeque<Message>>,
    overflowing: AtomicUsize,
    idle_timeout: Duration,
    process: OwnProcess,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

/// Locks even if a thread panicked while it held the lock: nothing here is left half-changed.
fn lock<T>(mutex: &Mutex<T>) -> impl DerefMut<Target = T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads that run blocking work. A handle: clones are the same pool. Any thread may hold one; to
/// submit takes a [`Co`](crate::Co) or a context, so it happens on a home thread (contract: C55):
///
/// ```compile_fail
/// let pool = coblk_aio::ThreadPool::global();
/// let ctx = coblk_aio::AioContext::new().unwrap();
/// std::thread::spawn(move || pool.submit_aio(&ctx, || (), |_| ()));
/// ```
///
/// When the last handle is dropped, the workers finish what is queued and end (contract: C65).
#[derive(Clone)]
pub struct ThreadPool {
    owner: Arc<Owner>,
}

struct Owner {
    state: Arc<PoolState>,
}

impl ThreadPool {
    /// A pool with its own threads: at least `min`, started now, and up to `max`.
    ///
    /// # Errors
    /// If `max` is 0 or below `min` (contract: C60).
    pub fn new(min: usize, max: usize) -> Result<ThreadPool, ThreadPoolLimitsError> {
        Self::with_idle_timeout(min, max, IDLE_TIMEOUT)
    }

    /// [`new`](Self::new), and how long a worker above `min` stays without work.
    ///
    /// # Errors
    /// If `max` is 0 or below `min` (contract: C60).
    pub fn with_idle_timeout(
        min: usize,
        max: usize,
        idle_timeout: Duration,
    ) -> Result<ThreadPool, ThreadPoolLimitsError> {
        let (sender, receiver) = bounded(CHANNEL_CAPACITY);
        let state = PoolState {
            sender,
            receiver,
            headcount: Headcount::new(),
            parking: Parking::new(),
            job_time: JobTime::new(),
            overflow: Mutex::new(VecDeque::new()),
            overflowing: AtomicUsize::new(0),
            idle_timeout,
            process: OwnProcess::new(),
            handles: Mutex::new(Vec::new()),
        };
        let pool = ThreadPool { owner: Arc::new(Owner { state: Arc::new(state) }) };
        pool.set_limits(min, max)?;
        Ok(pool)
    }

    /// The process's pool: 0 to 64 threads (contract: C56), made on first use, never ended.
    pub fn global() -> ThreadPool {
        static GLOBAL: OnceLock<ThreadPool> = OnceLock::new();
        GLOBAL
            .get_or_init(|| {
                ThreadPool::new(0, DEFAULT_MAX_THREADS).expect("the default limits are valid")
            })
            .clone()
    }

    /// Changes the limits. A higher minimum starts workers at once; workers above a lower maximum
    /// end without taking more work (contract: C59). Any thread.
    ///
    /// # Errors
    /// If `max` is 0 or below `min`; nothing has changed then (contract: C60).
    pub fn set_limits(&self, min: usize, max: usize) -> Result<(), ThreadPoolLimitsError> {
        if max == 0 {
            return Err(ThreadPoolLimitsError::MaxZero);
        }
        if min > max {
            return Err(ThreadPoolLimitsError::MinAboveMax { min, max });
        }
        let state = &self.owner.state;
        state.process.assert_here("thread pool", "coblk-worker");
        let (missing, surplus) = state.headcount.set_limits(min, max);
        for _ in 0..missing {
            let threads = state.headcount.threads();
            state.start_worker(false);
            // Where one cannot be had, the next one cannot either.
            if state.headcount.threads() == threads {
                break;
            }
        }
        for _ in 0..surplus {
            // An idle worker has to be told; a busy one looks at `over_max` by itself.
            state.headcount.message_sent();
            state.send(Message::Recheck);
        }
        Ok(())
    }

    /// Threads that run now.
    pub fn threads(&self) -> usize {
        self.owner.state.headcount.threads()
    }

    /// Threads that wait for work. A queued job is counted against an idle thread.
    pub fn idle_threads(&self) -> usize {
        self.owner.state.headcount.idle()
    }

    /// Jobs that no thread has begun, as of a moment.
    pub fn queued_jobs(&self) -> usize {
        let state = &self.owner.state;
        state.receiver.len() + state.overflowing.load(Ordering::Relaxed)
    }

    /// The minimum and the maximum.
    pub fn limits(&self) -> (usize, usize) {
        self.owner.state.headcount.limits()
    }

    /// Jobs that workers have, or are to have.
    #[inline]
    pub(crate) fn jobs(&self) -> usize {
        self.owner.state.headcount.jobs()
    }

    #[inline]
    pub(crate) fn max_threads(&self) -> usize {
        self.owner.state.headcount.max()
    }

    /// `is_first` of its share: there is a thread for it, whatever the maximum. `in_turn`: a turn of a loop
    /// of this thread goes on, whose end [pays](owed::pay) for the wake-up.
    #[inline]
    pub(crate) fn submit(&self, job: NonNull<JobHeader>, is_first: bool, in_turn: bool) {
        self.owner.state.submit(job, is_first, in_turn);
    }
}

impl PoolState {
    /// Hands a job to the workers, and starts one if none is idle.
    fn submit(self: &Arc<PoolState>, job: NonNull<JobHeader>, is_first: bool, in_turn: bool) {
        self.process.assert_here("thread pool", "coblk-worker");
        // To unwind from here, out of a coroutine, would leave a job in the queue whose frame is
        // gone.
        let no_unwinding = AbortOnUnwind("submitting a job");
        let start = self.headcount.job_submitted(is_first);
        self.queue(Message::Job(job));
        if in_turn {
            owed::owe(self)
        } else {
            self.wake_worker()
        }
        if start && !self.start_worker(is_first) {
            self.run_without_workers();
        }
        std::mem::forget(no_unwinding);
    }

    /// Queues a message, and wakes a worker for it.
    fn send(&self, message: Message) {
        self.queue(message);
        self.wake_worker();
    }

    /// After messages were queued: wakes a worker, unless one is about to look, or they are gone.
    #[inline]
    fn wake_worker(&self) {
        self.parking.notify(|| self.has_messages());
    }

    /// Whether a worker is awake that takes what is queued sooner than one that sleeps: one that spins, or one
    /// that runs a job, if jobs are short.
    #[inline]
    fn is_attended(&self) -> bool {
        self.parking.is_spinning()
            || (self.job_time.is_short() && self.headcount.started() > self.parking.asleep())
    }

    /// Whether there are messages that no worker has taken.
    #[inline]
    fn has_messages(&self) -> bool {
        !self.receiver.is_empty() || self.overflowing.load(Ordering::SeqCst) > 0
    }

    /// Never blocks. A full channel fills the overflow list, which workers move on.
    fn queue(&self, message: Message) {
        if self.overflowing.load(Ordering::SeqCst) > 0 {
            return self.send_overflow(message);
        }
        // Both ends live in this struct, so the only error is a full channel.
        if let Err(error) = self.sender.try_send(message) {
            self.send_overflow(error.into_inner());
        }
    }

    #[cold]
    fn send_overflow(&self, message: Message) {
        let mut overflow = lock(&self.overflow);
        overflow.push_back(message);
        self.overflowing.store(overflow.len(), Ordering::SeqCst);
        self.refill(&mut overflow);
    }

    /// Moves what the overflow list holds into the channel, as far as it goes.
    ///
    /// Nothing is stranded: if this finds the channel full, a worker will take from it later, and
    /// then sees `overflowing`, which was set before. (A send that finds the channel full has a
    /// sequentially consistent fence between the two.)
    fn refill(&self, overflow: &mut VecDeque<Message>) {
        while let Some(message) = overflow.pop_front() {
            if let Err(error) = self.sender.try_send(message) {
                overflow.push_front(error.into_inner());
                break;
            }
        }
        self.overflowing.store(overflow.len(), Ordering::SeqCst);
    }

    /// After a message was taken: there is room again.
    #[inline]
    fn refill_if_overflowing(&self) {
        if self.overflowing.load(Ordering::SeqCst) > 0 {
            self.refill(&mut lock(&self.overflow));
        }
    }

    /// Starts a worker if [`Headcount::add_worker`] says so. False if there is none at all.
    fn start_worker(self: &Arc<PoolState>, is_first: bool) -> bool {
        if !self.headcount.add_worker(is_first) {
            return true;
        }
        let state = Arc::clone(self);
        let thread = std::thread::Builder::new().name("coblk-worker".to_owned());
        let _blocked = sys::SignalsBlocked::here();
        match thread.spawn(move || worker::run(&state)) {
            Ok(handle) => {
                let mut handles = lock(&self.handles);
                handles.retain(|handle| !handle.is_finished());
                handles.push(handle);
                true
            }
            Err(error) => {
                let threads = self.headcount.worker_failed();
                tracing::warn!(%error, threads, "cannot start a worker thread");
                threads > 0
            }
        }
    }

    /// No thread could be started and none runs: better a loop that blocks than a job that hangs.
    #[cold]
    fn run_without_workers(&self) {
        while let Ok(message) = self.receiver.try_recv() {
            self.headcount.worker_ready();
            if let Message::Job(job) = message {
                // SAFETY: taken from the channel, so it is ours to run.
                unsafe { JobHeader::run(job, &mut None, || {}) };
            }
            self.refill_if_overflowing();
        }
    }
}

/// Ends the process, and says where, if it is dropped by a panic.
struct AbortOnUnwind(&'static str);

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        eprintln!("coblk: panic while {}: cannot go on", self.0);
        std::process::abort();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if !self.state.process.is_here() {
            // A forked process has none of its parent's threads.
            return;
        }
        let handles = std::mem::take(&mut *lock(&self.state.handles));
        for _ in &handles {
            self.state.send(Message::Stop);
        }
        owed::pay();
        let own = std::thread::current().id();
        for handle in handles {
            // A job may own the last handle; its worker cannot wait for itself.
            if handle.thread().id() != own {
                let _ = handle.join();
            }
        }
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPool")
            .field("limits", &self.limits())
            .field("threads", &self.threads())
            .finish()
    }
}
