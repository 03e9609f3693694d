//! [`Task`]: what a job does.

use std::rc::Rc;

use coblk_aio::Co;

use super::{Job, JobError, JobFailure};

/// What a job does. Its methods are called on the thread of the job's context, and may suspend where they are
/// given a [`Co`].
///
/// ```text
/// co_run --> co_pend (waiting, pending) --> co_prepare (of all in the group) --> co_commit --> co_clean
///        '-----------'--> aborting --------'--------------------------------> co_abort --> co_clean
/// ```
pub trait Task: 'static {
    /// Does the work. Called once, in a coroutine of its own. It looks for cancellation and pauses wherever
    /// it waits: [`Job::co_pause_point`] does both.
    ///
    /// # Errors
    /// Why the job fails. One that is cancelled fails whatever this returns.
    fn co_run(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure>;

    /// Goes on with what must not rest while the job waits for the others of its group, or for the command that
    /// makes its end take effect. Called in the coroutine of [`co_run`](Self::co_run), after that. It returns soon
    /// after [`Job::is_ending`] is true, of which the job is kicked. By default it does nothing.
    ///
    /// # Errors
    /// Why the job fails after all: its state knows no pause.
    fn co_pend(&self, _co: &Co<'_>, _job: &Rc<Job>) -> Result<(), JobFailure> {
        Ok(())
    }

    /// Makes the result take effect: the last step that may fail.
    ///
    /// # Errors
    /// Why the job fails after all.
    fn co_prepare(&self, _co: &Co<'_>, _job: &Rc<Job>) -> Result<(), JobFailure> {
        Ok(())
    }

    /// All of the group have succeeded.
    fn co_commit(&self, _co: &Co<'_>, _job: &Rc<Job>) {}

    /// This job, or another of its group, has failed. Also called if it has not run.
    fn co_abort(&self, _co: &Co<'_>, _job: &Rc<Job>) {}

    /// The last step, in either case: afterwards the job uses nothing any more.
    fn co_clean(&self, _co: &Co<'_>, _job: &Rc<Job>) {}

    /// A job that is ready shall end.
    ///
    /// # Errors
    /// If it cannot be completed: by default none can.
    fn complete(&self, job: &Rc<Job>) -> Result<(), JobError> {
        Err(JobError::NotCompletable(job.id().to_owned()))
    }

    /// A cancellation that need not be `forced` begins. Returns whether the job gives up; otherwise it ends
    /// well, without the effect of a completion.
    fn cancel(&self, _job: &Rc<Job>, _forced: bool) -> bool {
        true
    }

    /// What is left to do, if the job does not keep that in its progress.
    fn rest(&self) -> Option<u64> {
        None
    }

    /// For `query-block-jobs`: whether a mirror's target has all that was written.
    fn is_actively_synced(&self) -> Option<bool> {
        None
    }

    /// Works in another mode from now on.
    ///
    /// # Errors
    /// If it cannot: by default there is one mode.
    fn change(&self, _job: &Rc<Job>, _change: &JobChange) -> Result<(), JobError> {
        Err(JobError::NoChange)
    }
}

/// Another mode for a job: `block-job-change`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobChange {
    /// The kind that the job is thought to be.
    pub kind: String,
    /// The mode, by QMP's name.
    pub copy_mode: String,
}

impl JobChange {
    /// The change to `copy_mode` of a job of that kind.
    pub fn new(kind: impl Into<String>, copy_mode: impl Into<String>) -> JobChange {
        JobChange { kind: kind.into(), copy_mode: copy_mode.into() }
    }
}
