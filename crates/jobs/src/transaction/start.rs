//! Jobs that begin with a transaction.

use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::BlockNode;

use super::action::{Action, ActionError, Preparing};
use crate::{Job, JobGroup, Jobs};

type Make = Box<dyn FnOnce(&Co<'_>, &Rc<JobGroup>) -> Result<Rc<Job>, ActionError>>;

/// Starts a job: its instant is that of the transaction. If the transaction fails the job is cancelled before it has
/// run.
pub struct StartJob {
    name: &'static str,
    nodes: Vec<Arc<BlockNode>>,
    jobs: Rc<Jobs>,
    make: Option<Make>,
    job: Option<Rc<Job>>,
}

impl StartJob {
    /// One that is called `name`, about these nodes, whose job `make` makes in the group that it is given, such as
    /// [`Backup::co_make`](crate::Backup::co_make). It is not started yet.
    pub fn new(
        name: &'static str,
        nodes: Vec<Arc<BlockNode>>,
        jobs: &Rc<Jobs>,
        make: impl FnOnce(&Co<'_>, &Rc<JobGroup>) -> Result<Rc<Job>, ActionError> + 'static,
    ) -> StartJob {
        StartJob { name, nodes, jobs: Rc::clone(jobs), make: Some(Box::new(make)), job: None }
    }
}

impl Action for StartJob {
    fn name(&self) -> &'static str {
        self.name
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.nodes.clone()
    }

    fn starts_job(&self) -> bool {
        true
    }

    fn co_prepare(&mut self, co: &Co<'_>, cx: &Preparing) -> Result<(), ActionError> {
        if let Some(make) = self.make.take() {
            self.job = Some(make(co, &cx.group())?);
        }
        Ok(())
    }

    fn co_commit(&mut self, co: &Co<'_>) {
        self.job.iter().for_each(|job| job.start(co.context()));
    }

    fn co_abort(&mut self, co: &Co<'_>) {
        if let Some(job) = self.job.take() {
            // One of its group may have taken it along.
            let _ = self.jobs.co_cancel(co, job.id(), true);
        }
    }

    fn unwind(&mut self) {
        self.job.take().into_iter().for_each(|job| job.abandon());
    }
}
