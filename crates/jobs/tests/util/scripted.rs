//! A job that does what a test says.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, Co};
use coblk_block::drivers::Null;
use coblk_block::{BlockNode, ErrorAction, NodeUse, Permissions, RequestKind};
use coblk_jobs::{Job, JobError, JobFailure, JobGroup, JobOptions, JobStatus, Jobs, OnError, Task};

use super::{Told, jobs, simulated, take};

/// How a job ends.
#[derive(Clone, Debug)]
pub enum End {
    Well,
    Errno(i32),
    Text(&'static str),
}

impl End {
    fn result(self) -> Result<(), JobFailure> {
        match self {
            End::Well => Ok(()),
            End::Errno(errno) => Err(io::Error::from_raw_os_error(errno).into()),
            End::Text(text) => Err(JobFailure::Text(text.to_owned())),
        }
    }
}

/// What a test has a job do.
#[derive(Default)]
pub struct Script {
    /// How the work ends, when the job is kicked next.
    pub end: RefCell<Option<End>>,
    pub prepare: RefCell<Option<End>>,
    pub becomes_ready: Cell<bool>,
    pub completes: Cell<bool>,
    pub fails: Cell<Option<(RequestKind, OnError, i32)>>,
    pub action: Cell<Option<ErrorAction>>,
    pub calls: RefCell<Vec<&'static str>>,
    /// Used until the job is cleaned.
    pub uses: RefCell<Vec<NodeUse>>,
}

impl Script {
    fn called(&self, call: &'static str) {
        self.calls.borrow_mut().push(call);
    }
}

pub struct Scripted(pub Rc<Script>);

impl Task for Scripted {
    fn co_run(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        self.0.called("run");
        loop {
            job.co_pause_point(co)?;
            if let Some((kind, policy, errno)) = self.0.fails.take() {
                let error = io::Error::from_raw_os_error(errno);
                let action = job.failed(co.context(), kind, policy, &error);
                self.0.action.set(Some(action));
                if action == ErrorAction::Report {
                    return Err(error.into());
                }
                continue;
            }
            if self.0.becomes_ready.take() {
                job.become_ready(co.context());
            }
            if let Some(end) = self.0.end.take() {
                return end.result();
            }
            if job.is_soft_cancelled() || self.0.completes.get() {
                return Ok(());
            }
            job.co_wait(co, None);
        }
    }

    fn co_prepare(&self, _: &Co<'_>, _: &Rc<Job>) -> Result<(), JobFailure> {
        self.0.called("prepare");
        self.0.prepare.take().unwrap_or(End::Well).result()
    }

    fn co_commit(&self, _: &Co<'_>, _: &Rc<Job>) {
        self.0.called("commit");
    }

    fn co_abort(&self, _: &Co<'_>, _: &Rc<Job>) {
        self.0.called("abort");
    }

    fn co_clean(&self, _: &Co<'_>, _: &Rc<Job>) {
        self.0.called("clean");
        self.0.uses.take();
    }

    fn complete(&self, _: &Rc<Job>) -> Result<(), JobError> {
        self.0.completes.set(true);
        Ok(())
    }

    fn cancel(&self, job: &Rc<Job>, forced: bool) -> bool {
        forced || !matches!(job.status(), JobStatus::Ready | JobStatus::Standby)
    }
}

pub struct Stage {
    pub ctx: AioContext,
    pub jobs: Rc<Jobs>,
    pub told: Told,
}

pub fn stage() -> Stage {
    let ctx = simulated(1);
    let (jobs, told) = jobs();
    Stage { ctx, jobs, told }
}

impl Stage {
    pub fn make(&self, options: JobOptions, group: &Rc<JobGroup>) -> (Rc<Job>, Rc<Script>) {
        let script = Rc::<Script>::default();
        let task = Scripted(Rc::clone(&script));
        let job = self.jobs.make(&self.ctx, options, group, task).unwrap();
        (job, script)
    }

    pub fn start(&self, options: JobOptions) -> (Rc<Job>, Rc<Script>) {
        let (job, script) = self.make(options, &JobGroup::new());
        job.start(&self.ctx);
        self.settle();
        (job, script)
    }

    /// Everything that is to be done at once is done.
    pub fn settle(&self) {
        while self.ctx.try_poll() {}
    }

    pub fn end(&self, job: &Rc<Job>, script: &Script, end: End) {
        script.end.replace(Some(end));
        job.kick();
        self.settle();
    }

    pub fn take(&self) -> Vec<String> {
        self.settle();
        take(&self.told)
    }

    pub fn refused(&self, result: Result<(), JobError>, text: &str) {
        assert_eq!(result.unwrap_err().to_string(), text);
    }

    pub fn cancel(&self, id: &str, forced: bool) -> Result<(), JobError> {
        self.ctx.run(|co| self.jobs.co_cancel(co, id, forced))
    }

    pub fn finalize(&self, id: &str) -> Result<(), JobError> {
        self.ctx.run(|co| self.jobs.co_finalize(co, id))
    }

    pub fn node(&self) -> Arc<BlockNode> {
        BlockNode::new("node", Null::new(1 << 20))
    }

    pub fn uses(&self, job: &Rc<Job>, script: &Script, node: &Arc<BlockNode>) {
        let (held, shared) = (Permissions::empty(), Permissions::all());
        let taken = self.ctx.run(|co| job.co_use(co, node, held, shared));
        script.uses.borrow_mut().push(taken.unwrap());
    }
}

pub fn options() -> JobOptions {
    JobOptions::new("j", "copy")
}
