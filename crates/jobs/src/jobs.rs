//! [`Jobs`]: the jobs that there are, by their ids.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::panic::resume_unwind;
use std::rc::Rc;

use coblk_aio::{AioContext, Co, CoWaker, Wanted};
use coblk_qapi::is_identifier;

use crate::{JobStatus, Verb};

/// How far a job has come, in a unit of its own, when all is done.
const DONE: u64 = 1;

/// The jobs of a daemon, all on its thread. Dropping it leaves the work to its coroutines.
pub struct Jobs {
    /// The oldest first.
    list: RefCell<Vec<Rc<Job>>>,
    listener: Box<Listener>,
    /// They wait for the end of jobs.
    waiters: RefCell<Vec<CoWaker>>,
}

type Listener = dyn Fn(&AioContext, &StatusChange);

struct Job {
    id: String,
    kind: &'static str,
    status: Cell<JobStatus>,
    /// By a user.
    is_paused: Cell<bool>,
    is_cancelled: Cell<bool>,
    wanted: Wanted,
    done: Cell<u64>,
    error: RefCell<Option<String>>,
}

/// A job has changed its state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatusChange {
    /// The job.
    pub id: String,
    /// Its state from now on.
    pub status: JobStatus,
}

/// What a job is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobInfo {
    /// Its id.
    pub id: String,
    /// Its kind, such as `create`.
    pub kind: &'static str,
    /// Its state.
    pub status: JobStatus,
    /// How much is done, in a unit of the job's.
    pub current_progress: u64,
    /// How much there is to do, in the same unit.
    pub total_progress: u64,
    /// Why it has failed.
    pub error: Option<String>,
}

/// Why something cannot be asked of a job, in QEMU's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The id has other characters than ids have.
    #[error("Invalid job ID '{0}'")]
    Id(String),
    /// A job has this id, running or concluded.
    #[error("Job ID '{0}' already in use")]
    InUse(String),
    /// No job has this id.
    #[error("Job not found")]
    NotFound,
    /// Its state does not allow that.
    #[error("Job '{id}' in state '{}' cannot accept command verb '{}'", status.name(), verb.name())]
    State {
        /// The job.
        id: String,
        /// Its state.
        status: JobStatus,
        /// What it was asked for.
        verb: Verb,
    },
    /// It is paused.
    #[error("Job is already paused")]
    Paused,
    /// It is not paused.
    #[error("Can't resume a job that was not paused")]
    NotPaused,
}

impl Jobs {
    /// Makes a set without jobs. `listener` is told of each change of a state, at once; it must not start or
    /// end jobs.
    pub fn new(listener: impl Fn(&AioContext, &StatusChange) + 'static) -> Rc<Jobs> {
        let (list, waiters) = Default::default();
        Rc::new(Jobs { list, listener: Box::new(listener), waiters })
    }

    /// Starts a job, which does `work` in a coroutine of its own. It is created and running when this
    /// returns, or over already.
    ///
    /// # Errors
    /// If the id is none, or is taken.
    pub fn start<E: Display>(
        self: &Rc<Self>,
        ctx: &AioContext,
        (id, kind): (&str, &'static str),
        work: impl FnOnce(&Co<'_>) -> Result<(), E> + 'static,
    ) -> Result<(), JobError> {
        if !is_identifier(id) {
            return Err(JobError::Id(coblk_qapi::shorten(id)));
        }
        if self.find(id).is_ok() {
            return Err(JobError::InUse(id.to_owned()));
        }
        let job = Rc::new(Job {
            id: id.to_owned(),
            kind,
            status: Cell::new(JobStatus::Created),
            is_paused: Cell::new(false),
            is_cancelled: Cell::new(false),
            wanted: Wanted::new(),
            done: Cell::new(0),
            error: RefCell::default(),
        });
        self.list.borrow_mut().push(Rc::clone(&job));
        self.tell(ctx, &job);
        self.enter(ctx, &job, JobStatus::Running);
        let jobs = Rc::clone(self);
        ctx.spawn("job", move |co| {
            let worked = co.catch_unwind(|| co.while_wanted(&job.wanted, || work(co)));
            let worked = worked.map(|result| result.map_err(|error| error.to_string()));
            let error = match &worked {
                // It was too late to give up some of it.
                Ok(_) if job.is_cancelled.get() => Some("Operation canceled".to_owned()),
                Ok(result) => result.clone().err(),
                Err(_) => Some("the job has panicked".to_owned()),
            };
            jobs.end(co.context(), &job, error);
            if let Err(panic) = worked {
                resume_unwind(panic);
            }
        });
        Ok(())
    }

    fn end(&self, ctx: &AioContext, job: &Rc<Job>, error: Option<String>) {
        job.done.set(DONE);
        let states: &[JobStatus] = match error {
            None => &[JobStatus::Waiting, JobStatus::Pending],
            Some(_) => &[JobStatus::Aborting],
        };
        job.error.replace(error);
        states.iter().for_each(|status| self.enter(ctx, job, *status));
        self.enter(ctx, job, JobStatus::Concluded);
        self.waiters.take().into_iter().for_each(|waiter| waiter.wake());
    }

    fn enter(&self, ctx: &AioContext, job: &Job, status: JobStatus) {
        let old = job.status.replace(status);
        assert!(old.may_become(status), "job '{}' goes from {old:?} to {status:?}", job.id);
        self.tell(ctx, job);
    }

    fn tell(&self, ctx: &AioContext, job: &Job) {
        let change = StatusChange { id: job.id.clone(), status: job.status.get() };
        (self.listener)(ctx, &change);
    }

    fn find(&self, id: &str) -> Result<Rc<Job>, JobError> {
        let list = self.list.borrow();
        list.iter().find(|job| job.id == id).cloned().ok_or(JobError::NotFound)
    }

    /// The job with this id, if its state allows what is asked for.
    fn accepting(&self, id: &str, verb: Verb) -> Result<Rc<Job>, JobError> {
        let job = self.find(id)?;
        let status = job.status.get();
        match status.accepts(verb) {
            true => Ok(job),
            false => Err(JobError::State { id: id.to_owned(), status, verb }),
        }
    }

    /// All jobs, the newest first.
    pub fn all(&self) -> Vec<JobInfo> {
        let list = self.list.borrow();
        let infos = list.iter().rev().map(|job| JobInfo {
            id: job.id.clone(),
            kind: job.kind,
            status: job.status.get(),
            current_progress: job.done.get(),
            total_progress: DONE,
            error: job.error.borrow().clone(),
        });
        infos.collect()
    }

    /// Gives a job up. It fails as soon as its work has noticed that.
    ///
    /// # Errors
    /// If there is no such job, or it is over.
    pub fn cancel(&self, id: &str) -> Result<(), JobError> {
        self.accepting(id, Verb::Cancel)?.cancel();
        Ok(())
    }

    /// Pauses a job, as of its next place to pause: the jobs that there are have none, and go on.
    ///
    /// # Errors
    /// If there is no such job, it is over, or paused already.
    pub fn pause(&self, id: &str) -> Result<(), JobError> {
        match self.accepting(id, Verb::Pause)?.is_paused.replace(true) {
            true => Err(JobError::Paused),
            false => Ok(()),
        }
    }

    /// Resumes a job that was paused.
    ///
    /// # Errors
    /// If there is no such job, it is not paused, or over.
    pub fn resume(&self, id: &str) -> Result<(), JobError> {
        if !self.find(id)?.is_paused.get() {
            return Err(JobError::NotPaused);
        }
        self.accepting(id, Verb::Resume)?.is_paused.set(false);
        Ok(())
    }

    /// Tells a job that is ready to end.
    ///
    /// # Errors
    /// If there is no such job, or it is not ready. The jobs that there are never are.
    pub fn complete(&self, id: &str) -> Result<(), JobError> {
        self.accepting(id, Verb::Complete).map(drop)
    }

    /// Makes the end of a job take effect.
    ///
    /// # Errors
    /// If there is no such job, or it does not wait for that. The jobs that there are do not.
    pub fn finalize(&self, id: &str) -> Result<(), JobError> {
        self.accepting(id, Verb::Finalize).map(drop)
    }

    /// Forgets a job that is over.
    ///
    /// # Errors
    /// If there is no such job, or it is not over.
    pub fn dismiss(&self, ctx: &AioContext, id: &str) -> Result<(), JobError> {
        let job = self.accepting(id, Verb::Dismiss)?;
        self.list.borrow_mut().retain(|known| !Rc::ptr_eq(known, &job));
        self.enter(ctx, &job, JobStatus::Null);
        Ok(())
    }

    /// Ends: gives all jobs up, the newest first, waits until all are over, and forgets them.
    pub fn co_end(&self, co: &Co<'_>) {
        let newest_first = || self.list.borrow().iter().rev().cloned().collect::<Vec<_>>();
        newest_first().iter().for_each(|job| job.cancel());
        while newest_first().iter().any(|job| job.status.get() != JobStatus::Concluded) {
            co.suspend_for("the end of jobs", |waker| self.waiters.borrow_mut().push(waker));
        }
        for job in newest_first() {
            let _ = self.dismiss(co.context(), &job.id);
        }
    }
}

impl Job {
    fn cancel(&self) {
        if self.status.get().accepts(Verb::Cancel) {
            self.is_cancelled.set(true);
            self.wanted.give_up();
        }
    }
}
