//! [`Job`]: one operation in the background, with its state.
//!
//! ```text
//! task      what a job does
//! options   what a job is made of, and what it is at the moment
//! state     JobStatus, Verb
//! verbs     what can be asked of a job
//! signal    what the main coroutine waits for
//! pause     drains of the nodes of a job
//! rate      the speed limit
//! progress  what is done and what is left
//! policy    what is done about errors
//! failure   why a job fails, and why something cannot be asked of it
//! events    what jobs tell of
//! group     jobs that end together, and how they end
//! ```
//!
//! A job's main coroutine and all changes of its state are on the thread of one context.

mod events;
mod failure;
pub(crate) mod group;
mod options;
mod pause;
mod policy;
mod progress;
mod rate;
mod signal;
mod state;
mod task;
mod verbs;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::sync::CoQueue;
use coblk_aio::{AioContext, Co, RemoteBottomHalf, Wanted};
use coblk_block::{
    BlockNode, ErrorAction, IoStatus, NodeUse, PermissionError, Permissions, RequestKind,
};

pub use events::{BlockJob, JobEvent, StatusChange};
pub use failure::{JobError, JobFailure};
pub use group::JobGroup;
pub use options::{JobInfo, JobOptions};
pub use policy::OnError;
pub use progress::Progress;
pub use rate::Rate;
pub use state::{JobStatus, Verb};
pub use task::{JobChange, Task};

use crate::set::Jobs;
use pause::Drains;
use policy::Retries;
use signal::Signal;

/// One job. Home thread.
pub struct Job {
    options: JobOptions,
    task: RefCell<Rc<dyn Task>>,
    jobs: Weak<Jobs>,
    group: Rc<JobGroup>,
    status: Cell<JobStatus>,
    has_started: Cell<bool>,
    /// The command that starts it is at work: a cancellation is seen when it has started.
    is_setting_up: Cell<bool>,
    /// Its work is over, or will not begin.
    has_run: Cell<bool>,
    /// Its work is over, and its task goes on while it waits.
    pends: Cell<bool>,
    /// They wait for the end of that.
    pend_waiters: CoQueue,
    /// Given up.
    is_cancelled: Cell<bool>,
    /// To end without taking effect, but well.
    is_soft_cancelled: Cell<bool>,
    is_paused_by_user: Cell<bool>,
    drains: Arc<Drains>,
    io_status: Cell<IoStatus>,
    retries: Retries,
    wanted: Wanted,
    progress: Arc<Progress>,
    rate: Rate,
    is_busy: Cell<bool>,
    error: RefCell<Option<String>>,
    signal: Signal,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.id())
            .field("status", &self.status.get())
            .finish_non_exhaustive()
    }
}

/// For its task.
impl Job {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.options.id
    }

    /// Its state.
    pub fn status(&self) -> JobStatus {
        self.status.get()
    }

    /// What it has done.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Its speed limit.
    pub fn rate(&self) -> &Rate {
        &self.rate
    }

    /// Whether it is given up.
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.get()
    }

    /// Whether it is to end well, and without the effect of a completion.
    pub fn is_soft_cancelled(&self) -> bool {
        self.is_soft_cancelled.get()
    }

    /// Whether it shall rest at its next pause point.
    pub fn should_pause(&self) -> bool {
        !self.is_cancelled() && self.counts_as_paused()
    }

    /// Whether its state knows a pause: past its work it does not.
    pub fn can_pause(&self) -> bool {
        matches!(self.status.get(), JobStatus::Running | JobStatus::Ready)
    }

    fn counts_as_paused(&self) -> bool {
        self.is_paused_by_user.get() || self.drains.count() > 0
    }

    /// Whether its end takes effect, or is undone: it waits for others, or for a command, no more.
    pub fn is_ending(&self) -> bool {
        self.is_cancelled() || self.group.is_ending()
    }

    /// Has [`co_wait`](Self::co_wait) of the main coroutine return.
    pub fn kick(&self) {
        self.signal.raise();
    }

    /// [`kick`](Self::kick), from any thread.
    pub fn remote_kick(&self) -> RemoteBottomHalf {
        self.signal.remote()
    }

    /// Waits for a kick, or until a time of the context's clock. Commands to the job, drains of its nodes and
    /// their ends are kicks, too. For the main coroutine alone.
    pub fn co_wait(&self, co: &Co<'_>, until_ns: Option<i64>) {
        self.is_busy.set(false);
        self.signal.co_wait(co, until_ns);
        self.is_busy.set(true);
    }

    /// Rests while the job is paused. For the main coroutine alone, while nothing else of the job works.
    ///
    /// # Errors
    /// [`JobFailure::Cancelled`] if the job is cancelled.
    pub fn co_pause_point(&self, co: &Co<'_>) -> Result<(), JobFailure> {
        while self.should_pause() && self.can_pause() {
            let status = self.status.get();
            let is_ready = status == JobStatus::Ready;
            let paused = if is_ready { JobStatus::Standby } else { JobStatus::Paused };
            self.enter(co.context(), paused);
            while self.should_pause() {
                self.co_wait(co, None);
            }
            self.enter(co.context(), status);
        }
        if self.is_cancelled() { Err(JobFailure::Cancelled) } else { Ok(()) }
    }

    /// Sleeps, and is paused and cancelled meanwhile: returns early then.
    ///
    /// # Errors
    /// [`JobFailure::Cancelled`] if the job is cancelled.
    pub fn co_sleep(&self, co: &Co<'_>, duration: Duration) -> Result<(), JobFailure> {
        let nanoseconds = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let until_ns = co.context().now_ns().saturating_add(nanoseconds);
        if !self.is_cancelled() && !self.should_pause() {
            self.co_wait(co, Some(until_ns));
        }
        self.co_pause_point(co)
    }

    /// The job can be completed: it is `ready`, and tells so.
    pub fn become_ready(&self, ctx: &AioContext) {
        if self.status.get() == JobStatus::Running {
            self.enter(ctx, JobStatus::Ready);
            self.emit(ctx, JobEvent::Ready(self.as_block_job()));
        }
    }

    /// A request of the job has failed: tells that, and says what the job is to do by its policy. A job that
    /// stops is paused when this returns.
    pub fn failed(
        &self,
        ctx: &AioContext,
        operation: RequestKind,
        policy: OnError,
        error: &io::Error,
    ) -> ErrorAction {
        let is_over = matches!(self.status.get(), JobStatus::Waiting | JobStatus::Pending);
        let action = match policy.action(error) {
            // A state that knows no pause.
            ErrorAction::Stop if is_over => ErrorAction::Report,
            action => action,
        };
        // A storm hides no error that stops or ends a job.
        if action != ErrorAction::Ignore || self.retries.tell(ctx.now_ns()) {
            let id = self.id().to_owned();
            self.emit(ctx, JobEvent::Error { id, operation, action });
        }
        if action == ErrorAction::Stop {
            self.is_paused_by_user.set(true);
            if self.io_status.get() == IoStatus::Ok {
                let is_no_space = error.raw_os_error() == Some(libc::ENOSPC);
                self.io_status.set(if is_no_space { IoStatus::NoSpace } else { IoStatus::Failed });
            }
            self.kick();
        }
        action
    }

    /// How long to wait before a request is tried again, after one more has failed.
    pub fn retry_after(&self) -> Duration {
        self.retries.failed()
    }

    /// A request has succeeded: the next retry comes soon again.
    pub fn request_succeeded(&self) {
        self.retries.succeeded();
    }

    /// Begins a use of a node, with permissions: drains of it pause the job.
    ///
    /// # Errors
    /// As of [`NodeUse::new`].
    pub fn co_use(
        &self,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        held: Permissions,
        shared: Permissions,
    ) -> Result<NodeUse, PermissionError> {
        self.drains.co_use(co, node, (held, shared))
    }
}

/// What is left of a task when its job is over.
struct Ended {
    is_actively_synced: Option<bool>,
}

impl Task for Ended {
    fn co_run(&self, _: &Co<'_>, _: &Rc<Job>) -> Result<(), JobFailure> {
        Ok(())
    }

    fn is_actively_synced(&self) -> Option<bool> {
        self.is_actively_synced
    }
}

/// A job whose coroutine is unwound, as its context ends, if this is dropped.
struct Unwound<'a>(&'a Rc<Job>);

impl Drop for Unwound<'_> {
    fn drop(&mut self) {
        self.0.be_unwound();
    }
}

/// For the set of jobs.
impl Job {
    pub(crate) fn new(
        ctx: &AioContext,
        jobs: &Rc<Jobs>,
        options: JobOptions,
        group: &Rc<JobGroup>,
        task: Rc<dyn Task>,
    ) -> Rc<Job> {
        let signal = Signal::new(ctx);
        let drains = Drains::new(format!("{} job '{}'", options.kind, options.id), signal.remote());
        let job = Rc::new(Job {
            options,
            task: RefCell::new(task),
            jobs: Rc::downgrade(jobs),
            group: Rc::clone(group),
            status: Cell::new(JobStatus::Created),
            has_started: Cell::new(false),
            is_setting_up: Cell::new(false),
            has_run: Cell::new(false),
            pends: Cell::new(false),
            pend_waiters: CoQueue::new(),
            is_cancelled: Cell::new(false),
            is_soft_cancelled: Cell::new(false),
            is_paused_by_user: Cell::new(false),
            drains,
            io_status: Cell::new(IoStatus::Ok),
            retries: Retries::default(),
            wanted: Wanted::new(),
            progress: Arc::default(),
            rate: Rate::default(),
            is_busy: Cell::new(false),
            error: RefCell::default(),
            signal,
        });
        group.add(&job);
        job.tell_status(ctx);
        job
    }

    /// The command that starts it begins, or ends, to take what it needs.
    pub(crate) fn set_up(&self, is_setting_up: bool) {
        self.is_setting_up.set(is_setting_up);
    }

    /// Begins its work, in a coroutine. It is running when this returns, or over already.
    pub fn start(self: &Rc<Self>, ctx: &AioContext) {
        self.has_started.set(true);
        self.enter(ctx, JobStatus::Running);
        let job = Rc::clone(self);
        ctx.spawn("job", move |co| {
            let unwound = Unwound(&job);
            job.is_busy.set(true);
            let worked = co.catch_unwind(|| {
                job.co_pause_point(co)?;
                co.while_wanted(&job.wanted, || job.task().co_run(co, &job))
            });
            job.is_busy.set(false);
            let (result, panic) = match worked {
                Ok(result) => (result, None),
                Err(panic) => (Err(JobFailure::panicked()), Some(panic)),
            };
            group::co_ended(co, &job, result);
            std::mem::forget(unwound);
            if let Some(panic) = panic {
                resume_unwind(panic);
            }
        });
    }

    /// Ends a job that no coroutine ends any more: what it uses goes with its task, which has handles of the job.
    fn be_unwound(&self) {
        self.has_run.set(true);
        self.is_cancelled.set(true);
        self.end_task();
    }

    /// The set of jobs goes: one that waits for a command gets none any more. One that works goes on.
    pub(crate) fn lose_set(&self) {
        let waits = matches!(self.status.get(), JobStatus::Waiting | JobStatus::Pending);
        if waits && !self.pends.get() && !self.is_ending() {
            self.be_unwound();
        }
    }

    /// Ends a job that was made and shall not start after all.
    pub fn discard(self: &Rc<Self>, co: &Co<'_>) {
        self.has_run.set(true);
        self.group.leave(self);
        self.task().co_clean(co, self);
        self.end_task();
        self.forget(co.context());
        if let Some(jobs) = self.jobs.upgrade() {
            jobs.wake_waiters();
        }
    }

    /// Gives up a job that was made and not started, in a coroutine that is unwound: what it uses goes with its task.
    /// This is not told.
    pub(crate) fn abandon(self: &Rc<Self>) {
        self.has_run.set(true);
        self.is_cancelled.set(true);
        self.group.leave(self);
        if let Some(jobs) = self.jobs.upgrade() {
            jobs.remove(self);
        }
        self.end_task();
    }

    fn task(&self) -> Rc<dyn Task> {
        Rc::clone(&self.task.borrow())
    }

    /// Its task was cleaned, and is not needed any more. A job that is over may be kept for long, and keeps no node
    /// that its task knows.
    fn end_task(&self) {
        let is_actively_synced = self.task().is_actively_synced();
        let ended = self.task.replace(Rc::new(Ended { is_actively_synced }));
        drop(ended);
    }

    /// The last change of its state.
    fn forget(self: &Rc<Self>, ctx: &AioContext) {
        self.enter(ctx, JobStatus::Null);
        if let Some(jobs) = self.jobs.upgrade() {
            jobs.remove(self);
        }
    }

    /// Goes over into a state, and tells that.
    ///
    /// # Panics
    /// If the state cannot follow: that is a fault of this crate.
    fn enter(&self, ctx: &AioContext, status: JobStatus) {
        let old = self.status.replace(status);
        assert!(old.may_become(status), "job '{}' goes from {old:?} to {status:?}", self.id());
        self.tell_status(ctx);
    }

    fn tell_status(&self, ctx: &AioContext) {
        let change = StatusChange { id: self.id().to_owned(), status: self.status.get() };
        self.emit(ctx, JobEvent::Status(change));
    }

    /// Tells of the job. Those that are no block jobs tell of their states alone.
    fn emit(&self, ctx: &AioContext, event: JobEvent) {
        let is_told = self.options.is_block_job || matches!(event, JobEvent::Status(_));
        if let Some(jobs) = self.jobs.upgrade().filter(|_| is_told) {
            jobs.tell(ctx, &event);
        }
    }

    fn as_block_job(&self) -> BlockJob {
        let info = self.info();
        BlockJob {
            id: info.id,
            kind: info.kind,
            len: info.total_progress,
            offset: info.current_progress,
            speed: info.speed,
        }
    }

    pub(crate) fn info(&self) -> JobInfo {
        let current = self.progress.current();
        let task = self.task();
        let rest = task.rest().unwrap_or_else(|| self.progress.rest());
        JobInfo {
            id: self.options.id.clone(),
            kind: self.options.kind,
            is_block_job: self.options.is_block_job,
            status: self.status.get(),
            current_progress: current,
            total_progress: current.saturating_add(rest),
            error: self.error.borrow().clone(),
            speed: self.rate.speed(),
            is_busy: self.is_busy.get(),
            is_paused: self.counts_as_paused(),
            io_status: self.io_status.get(),
            auto_finalize: self.options.auto_finalize,
            auto_dismiss: self.options.auto_dismiss,
            actively_synced: task.is_actively_synced(),
        }
    }
}
