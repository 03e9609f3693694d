//! What can be asked of a job. Each of these marks the job, and returns.

use std::rc::Rc;

use coblk_aio::AioContext;
use coblk_block::IoStatus;

use super::{Job, JobChange, JobError, Verb};

impl Job {
    /// # Errors
    /// If its state does not allow that.
    pub(super) fn accept(&self, verb: Verb) -> Result<(), JobError> {
        let status = self.status.get();
        match status.accepts(verb) {
            true => Ok(()),
            false => Err(JobError::State { id: self.id().to_owned(), status, verb }),
        }
    }

    pub(crate) fn pause(&self) -> Result<(), JobError> {
        self.accept(Verb::Pause)?;
        if self.is_paused_by_user.replace(true) {
            return Err(JobError::Paused);
        }
        self.kick();
        Ok(())
    }

    pub(crate) fn resume(&self) -> Result<(), JobError> {
        if !self.is_paused_by_user.get() {
            return Err(JobError::NotPaused);
        }
        self.accept(Verb::Resume)?;
        self.unpause();
        Ok(())
    }

    fn unpause(&self) {
        self.is_paused_by_user.set(false);
        self.io_status.set(IoStatus::Ok);
        self.kick();
    }

    pub(crate) fn complete(self: &Rc<Self>) -> Result<(), JobError> {
        self.accept(Verb::Complete)?;
        if self.is_cancelled() || self.is_soft_cancelled() {
            return Err(JobError::NotCompletable(self.id().to_owned()));
        }
        self.task().complete(self)?;
        self.kick();
        Ok(())
    }

    pub(crate) fn dismiss(self: &Rc<Self>, ctx: &AioContext) -> Result<(), JobError> {
        self.accept(Verb::Dismiss)?;
        self.forget(ctx);
        Ok(())
    }

    pub(crate) fn set_speed(&self, speed: i64) -> Result<(), JobError> {
        self.accept(Verb::SetSpeed)?;
        let speed = u64::try_from(speed).map_err(|_| JobError::Speed)?;
        if self.rate.set_speed(speed) {
            self.kick();
        }
        Ok(())
    }

    pub(crate) fn change(self: &Rc<Self>, change: &JobChange) -> Result<(), JobError> {
        self.accept(Verb::Change)?;
        self.task().change(self, change)
    }

    /// Marks it as cancelled; `forced`, or as its task says.
    pub(super) fn cancel_async(self: &Rc<Self>, forced: bool) {
        if self.task().cancel(self, forced) {
            self.is_cancelled.set(true);
            self.wanted.give_up();
        } else {
            self.is_soft_cancelled.set(true);
        }
        if self.is_paused_by_user.get() {
            self.unpause();
        }
        self.kick();
    }
}
