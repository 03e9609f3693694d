//! [`Jobs`]: the jobs that there are, by their ids.

use std::cell::RefCell;
use std::fmt::Display;
use std::rc::Rc;

use coblk_aio::{AioContext, Co, CoWaker};
use coblk_qapi::is_identifier;

use crate::closure::Closure;
use crate::job::group;
use crate::{Job, JobChange, JobError, JobEvent, JobGroup, JobInfo, JobOptions, JobStatus, Task};

/// The jobs of a daemon, all on its thread. Dropping it leaves the work to its coroutines.
pub struct Jobs {
    /// The oldest first.
    list: RefCell<Vec<Rc<Job>>>,
    listener: Box<Listener>,
    /// They wait for the end of jobs.
    waiters: RefCell<Vec<CoWaker>>,
}

type Listener = dyn Fn(&AioContext, &JobEvent);

impl Jobs {
    /// Makes a set without jobs. `listener` is told of what jobs tell, at once; it must not start or end jobs.
    pub fn new(listener: impl Fn(&AioContext, &JobEvent) + 'static) -> Rc<Jobs> {
        let (list, waiters) = Default::default();
        Rc::new(Jobs { list, listener: Box::new(listener), waiters })
    }

    /// Makes a job of a group. It is `created`, and is [started](Job::start) or [discarded](Job::discard) next.
    ///
    /// # Errors
    /// If the id is none, or is taken.
    pub fn make(
        self: &Rc<Self>,
        ctx: &AioContext,
        options: JobOptions,
        group: &Rc<JobGroup>,
        task: impl Task,
    ) -> Result<Rc<Job>, JobError> {
        self.check_id(&options.id)?;
        let job = Job::new(ctx, self, options, group, Rc::new(task));
        self.list.borrow_mut().push(Rc::clone(&job));
        Ok(job)
    }

    /// That a job may have this id.
    ///
    /// # Errors
    /// If it is none, or is taken.
    pub fn check_id(&self, id: &str) -> Result<(), JobError> {
        if !is_identifier(id) {
            return Err(JobError::Id(coblk_qapi::shorten(id)));
        }
        match self.find(id) {
            Ok(_) => Err(JobError::InUse(id.to_owned())),
            Err(_) => Ok(()),
        }
    }

    /// Starts a job, in a group of its own, whose nodes and permissions `set_up` takes first. It is running
    /// when this returns, or over already.
    ///
    /// # Errors
    /// If the id is none, or is taken; if the speed is below zero; those of `set_up`, after which the job is gone
    /// again, its task [cleaned](Task::co_clean).
    pub fn co_start<T: Task, E: From<JobError>>(
        self: &Rc<Self>,
        co: &Co<'_>,
        options: JobOptions,
        task: T,
        set_up: impl FnOnce(&Co<'_>, &Rc<Job>) -> Result<(), E>,
    ) -> Result<Rc<Job>, E> {
        let job = self.co_make(co, options, &JobGroup::new(), task, set_up)?;
        job.start(co.context());
        Ok(job)
    }

    /// [`co_start`](Self::co_start) of a job of a group, without its start: it is [started](Job::start),
    /// [discarded](Job::discard) or [cancelled](Self::co_cancel) next.
    ///
    /// # Errors
    /// As of [`co_start`](Self::co_start).
    pub fn co_make<T: Task, E: From<JobError>>(
        self: &Rc<Self>,
        co: &Co<'_>,
        options: JobOptions,
        group: &Rc<JobGroup>,
        task: T,
        set_up: impl FnOnce(&Co<'_>, &Rc<Job>) -> Result<(), E>,
    ) -> Result<Rc<Job>, E> {
        let speed = options.speed;
        let job = self.make(co.context(), options, group, task)?;
        job.set_up(true);
        let is_set_up = match job.set_speed(speed) {
            Ok(()) => set_up(co, &job),
            Err(error) => Err(error.into()),
        };
        job.set_up(false);
        if is_set_up.is_err() {
            job.discard(co);
        }
        is_set_up.map(|()| job)
    }

    /// Starts a job that is no block job, and does `work` in a coroutine of its own. It does not pause, and is
    /// done all at once. It stays until it is dismissed. It is running when this returns, or over already.
    ///
    /// # Errors
    /// If the id is none, or is taken.
    pub fn start<E: Display>(
        self: &Rc<Self>,
        ctx: &AioContext,
        (id, kind): (&str, &'static str),
        work: impl FnOnce(&Co<'_>) -> Result<(), E> + 'static,
    ) -> Result<(), JobError> {
        let options = JobOptions::new(id, kind).plain().auto_dismiss(false);
        let job = self.make(ctx, options, &JobGroup::new(), Closure::new(work))?;
        job.progress().set_rest(1);
        job.start(ctx);
        Ok(())
    }

    pub(crate) fn tell(&self, ctx: &AioContext, event: &JobEvent) {
        (self.listener)(ctx, event);
    }

    pub(crate) fn remove(&self, job: &Rc<Job>) {
        self.list.borrow_mut().retain(|known| !Rc::ptr_eq(known, job));
    }

    pub(crate) fn wake_waiters(&self) {
        self.waiters.take().into_iter().for_each(|waiter| waiter.wake());
    }

    fn find(&self, id: &str) -> Result<Rc<Job>, JobError> {
        let list = self.list.borrow();
        list.iter().find(|job| job.id() == id).cloned().ok_or(JobError::NotFound)
    }

    /// That there is a block job with this id.
    ///
    /// # Errors
    /// If there is none.
    pub fn check_block_job(&self, id: &str) -> Result<(), JobError> {
        match self.find(id) {
            Ok(job) if job.info().is_block_job => Ok(()),
            _ => Err(JobError::NotActive(coblk_qapi::shorten(id))),
        }
    }

    /// All jobs, the newest first.
    pub fn all(&self) -> Vec<JobInfo> {
        self.list.borrow().iter().rev().map(|job| job.info()).collect()
    }

    /// Gives a job up, if it is `forced`; otherwise, one that is ready ends well, and without the effect of a
    /// completion. One that works ends as soon as its task has noticed that; one that is past its work has
    /// ended when this returns.
    ///
    /// # Errors
    /// If there is no such job, or it is over; if it is paused, and not `forced`.
    pub fn co_cancel(&self, co: &Co<'_>, id: &str, forced: bool) -> Result<(), JobError> {
        group::co_cancel(co, &self.find(id)?, forced)
    }

    /// Pauses a job, as of its next pause point.
    ///
    /// # Errors
    /// If there is no such job, it is over, or paused already.
    pub fn pause(&self, id: &str) -> Result<(), JobError> {
        self.find(id)?.pause()
    }

    /// Resumes a job that was paused, or stopped by an error.
    ///
    /// # Errors
    /// If there is no such job, it is not paused, or over.
    pub fn resume(&self, id: &str) -> Result<(), JobError> {
        self.find(id)?.resume()
    }

    /// Tells a job that is ready to end.
    ///
    /// # Errors
    /// If there is no such job, or it is not ready; those of its task.
    pub fn complete(&self, id: &str) -> Result<(), JobError> {
        self.find(id)?.complete()
    }

    /// Makes the end of a job, and of its group, take effect.
    ///
    /// # Errors
    /// If there is no such job, or it does not wait for that.
    pub fn co_finalize(&self, co: &Co<'_>, id: &str) -> Result<(), JobError> {
        group::co_finalize(co, &self.find(id)?)
    }

    /// Forgets a job that is over.
    ///
    /// # Errors
    /// If there is no such job, or it is not over.
    pub fn dismiss(&self, ctx: &AioContext, id: &str) -> Result<(), JobError> {
        self.find(id)?.dismiss(ctx)
    }

    /// Limits a job to a speed in bytes a second; 0 is no limit.
    ///
    /// # Errors
    /// If there is no such job, or it is over; if the speed is below zero.
    pub fn set_speed(&self, id: &str, speed: i64) -> Result<(), JobError> {
        self.find(id)?.set_speed(speed)
    }

    /// Has a job work in another mode.
    ///
    /// # Errors
    /// If there is no such job, or it is over; if it has no such mode.
    pub fn change(&self, id: &str, change: &JobChange) -> Result<(), JobError> {
        self.find(id)?.change(change)
    }

    /// Waits until a job is over, or gone.
    pub fn co_wait_for(&self, co: &Co<'_>, job: &Job) {
        while !matches!(job.status(), JobStatus::Concluded | JobStatus::Null) {
            co.suspend_for("the end of a job", |waker| self.waiters.borrow_mut().push(waker));
        }
    }

    /// Ends: gives all jobs up, the newest first, waits until all are over, and forgets them.
    pub fn co_end(&self, co: &Co<'_>) {
        let newest_first = || self.list.borrow().iter().rev().cloned().collect::<Vec<_>>();
        for job in newest_first() {
            // One that is over cannot be.
            let _ = group::co_cancel(co, &job, true);
        }
        for job in newest_first() {
            self.co_wait_for(co, &job);
            let _ = job.dismiss(co.context());
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.list.take().iter().for_each(|job| job.lose_set());
    }
}
