//! [`JobGroup`]: jobs that end together, and how jobs end.
//!
//! When all of a group have done their work, all are pending, and then take effect, at once or by a command.
//! If one fails or is cancelled all are given up, and when none works any more, all are undone.

use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::rc::{Rc, Weak};

use coblk_aio::Co;

use super::{Job, JobEvent, JobFailure, JobStatus, Verb};
use crate::JobError;

/// Jobs that end together. A job that is in no other group has one of its own.
#[derive(Default)]
pub struct JobGroup {
    /// The newest first.
    members: RefCell<Vec<Weak<Job>>>,
    /// One has failed.
    is_aborting: Cell<bool>,
    /// The end takes effect.
    is_ending: Cell<bool>,
}

impl JobGroup {
    /// A group without jobs.
    pub fn new() -> Rc<JobGroup> {
        Rc::default()
    }

    pub(super) fn add(&self, job: &Rc<Job>) {
        self.members.borrow_mut().insert(0, Rc::downgrade(job));
    }

    pub(super) fn leave(&self, job: &Rc<Job>) {
        self.members.borrow_mut().retain(|it| it.as_ptr() != Rc::as_ptr(job));
    }

    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.get()
    }

    fn members(&self) -> Vec<Rc<Job>> {
        self.members.borrow().iter().filter_map(Weak::upgrade).collect()
    }
}

/// The work of a job is over.
pub(super) fn co_ended(co: &Co<'_>, job: &Rc<Job>, result: Result<(), JobFailure>) {
    job.has_run.set(true);
    let result = if job.is_cancelled() { Err(JobFailure::Cancelled) } else { result };
    if let Err(failure) = result {
        begin_abort(co, job, &failure);
        return co_abort(co, job);
    }
    job.enter(co.context(), JobStatus::Waiting);
    let members = job.group.members();
    if job.group.is_aborting.get() {
        return co_abort(co, job);
    }
    if members.iter().any(|it| it.status.get() != JobStatus::Waiting) {
        return co_pend(co, job);
    }
    members.iter().for_each(|it| it.enter(co.context(), JobStatus::Pending));
    let waits = |it: &&Rc<Job>| !it.options.auto_finalize;
    let waiting: Vec<_> = members.iter().filter(waits).collect();
    for it in &waiting {
        let (id, kind) = (it.id().to_owned(), it.options.kind);
        it.emit(co.context(), JobEvent::Pending { id, kind });
    }
    if waiting.is_empty() {
        return co_take_effect(co, job);
    }
    co_pend(co, job);
}

/// Has the task go on while its job waits for others, or for a command.
fn co_pend(co: &Co<'_>, job: &Rc<Job>) {
    job.pends.set(true);
    let work = || co.while_wanted(&job.wanted, || job.task().co_pend(co, job));
    let pended = co.catch_unwind(work);
    job.is_busy.set(false);
    job.pends.set(false);
    job.pend_waiters.wake_all();
    let (failure, panic) = match pended {
        Ok(Ok(())) => return,
        Ok(Err(failure)) => (failure, None),
        Err(panic) => (JobFailure::panicked(), Some(panic)),
    };
    if !job.is_ending() && !job.group.is_aborting.get() {
        begin_abort(co, job, &failure);
        co_abort(co, job);
    }
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

/// Waits until no task of the group goes on by itself any more. The group is ending.
fn co_end_pending(co: &Co<'_>, members: &[Rc<Job>]) {
    members.iter().for_each(|it| it.kick());
    for it in members {
        while it.pends.get() {
            it.pend_waiters.wait(co);
        }
    }
}

/// All of the group are pending, and shall take effect.
///
/// # Errors
/// If the job is in another state.
pub(crate) fn co_finalize(co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobError> {
    job.accept(Verb::Finalize)?;
    co_take_effect(co, job);
    Ok(())
}

/// Once a group: a second call returns while the first one is at work.
fn co_take_effect(co: &Co<'_>, job: &Rc<Job>) {
    let group = Rc::clone(&job.group);
    if group.is_ending.replace(true) {
        return;
    }
    let members = group.members();
    co_end_pending(co, &members);
    for it in &members {
        let prepared = co.catch_unwind(|| it.task().co_prepare(co, it));
        // The hook of panics has reported it.
        let prepared = prepared.unwrap_or_else(|_| Err(JobFailure::panicked()));
        if let Err(failure) = prepared {
            group.is_ending.set(false);
            begin_abort(co, it, &failure);
            return co_abort(co, it);
        }
    }
    for it in &members {
        it.task().co_commit(co, it);
        it.task().co_clean(co, it);
        let (job, error) = (it.as_block_job(), None);
        it.emit(co.context(), JobEvent::Completed { job, error });
        conclude(co, it);
    }
}

/// Cancels a job, by force or as its task says. One that is past its work is undone when this returns, with
/// its group.
///
/// # Errors
/// If it is over; if it shall end well, and is paused.
pub(crate) fn co_cancel(co: &Co<'_>, job: &Rc<Job>, forced: bool) -> Result<(), JobError> {
    job.accept(Verb::Cancel)?;
    if job.is_paused_by_user.get() && !forced {
        return Err(JobError::CancelPaused(job.id().to_owned()));
    }
    job.cancel_async(forced || job.has_run.get());
    keep_from_starting(job);
    // What takes effect already sees the mark, if it is not too late.
    if job.has_run.get() && !job.group.is_ending.get() {
        begin_abort(co, job, &JobFailure::Cancelled);
        co_abort(co, job);
    }
    Ok(())
}

/// A job is cancelled, and will not run if it has not begun. One that is being set up begins, and sees that then.
fn keep_from_starting(job: &Job) {
    if !job.has_started.get() && !job.is_setting_up.get() {
        job.has_run.set(true);
    }
}

/// A job has failed: it and its group do not take effect.
fn begin_abort(co: &Co<'_>, job: &Rc<Job>, failure: &JobFailure) {
    job.error.borrow_mut().get_or_insert_with(|| failure.text());
    job.enter(co.context(), JobStatus::Aborting);
    if job.group.is_aborting.replace(true) {
        return;
    }
    for it in job.group.members() {
        if !Rc::ptr_eq(&it, job) {
            it.cancel_async(true);
            keep_from_starting(&it);
        }
    }
}

/// Undoes the group of a job that has failed when no member works any more.
fn co_abort(co: &Co<'_>, job: &Rc<Job>) {
    let group = Rc::clone(&job.group);
    let members = group.members();
    if members.iter().any(|it| !it.has_run.get()) || group.is_ending.replace(true) {
        return;
    }
    co_end_pending(co, &members);
    for it in &members {
        it.error.borrow_mut().get_or_insert_with(|| JobFailure::Cancelled.text());
        if it.status.get() != JobStatus::Aborting {
            it.enter(co.context(), JobStatus::Aborting);
        }
        it.task().co_abort(co, it);
        it.task().co_clean(co, it);
        if it.has_started.get() {
            let event = match it.is_cancelled() {
                true => JobEvent::Cancelled(it.as_block_job()),
                false => {
                    let error = it.error.borrow().clone();
                    JobEvent::Completed { job: it.as_block_job(), error }
                }
            };
            it.emit(co.context(), event);
        }
        conclude(co, it);
    }
}

/// The job is over, and goes unless a user is to see it.
fn conclude(co: &Co<'_>, job: &Rc<Job>) {
    job.group.leave(job);
    job.is_busy.set(false);
    job.end_task();
    job.enter(co.context(), JobStatus::Concluded);
    if job.options.auto_dismiss || !job.has_started.get() {
        job.forget(co.context());
    }
    if let Some(jobs) = job.jobs.upgrade() {
        jobs.wake_waiters();
    }
}
