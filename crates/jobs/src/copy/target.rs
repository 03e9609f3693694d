//! [`Target`]: the node that a job writes.
//!
//! A target may stop answering. A job that is cancelled does not wait for it: requests under way keep the
//! target in use, and locked, until they return, and the last of them ends the use.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{BlockBackend, BlockNode, NodeUse, PermissionError, Permissions};

use crate::{Job, JobFailure};

/// A node that is written, and its use. Home thread.
pub(crate) struct Target {
    node: Arc<BlockNode>,
    backend: RefCell<Option<BlockBackend>>,
    used: RefCell<Option<NodeUse>>,
    /// What is under way at it, and may outlive the job.
    pending: Cell<usize>,
    /// The job is over.
    is_left: Cell<bool>,
}

impl Target {
    /// Makes the target of a use that has begun. The backend takes no permissions besides.
    pub(crate) fn new(co: &Co<'_>, job: &Job, used: NodeUse) -> Rc<Target> {
        let node = Arc::clone(used.node());
        let name = format!("target of job '{}'", job.id());
        let backend = BlockBackend::new(co.context(), name, Arc::clone(&node));
        Rc::new(Target {
            node,
            backend: RefCell::new(Some(backend)),
            used: RefCell::new(Some(used)),
            pending: Cell::new(0),
            is_left: Cell::new(false),
        })
    }

    pub(crate) fn node(&self) -> &Arc<BlockNode> {
        &self.node
    }

    /// For requests, as long as something is [pending](Self::begin) or the job is not over.
    pub(crate) fn backend(&self) -> BlockBackend {
        self.backend.borrow().clone().expect("the target is in use")
    }

    /// A coroutine begins something that the job need not wait for.
    pub(crate) fn begin(self: &Rc<Self>) -> Pending {
        self.pending.set(self.pending.get() + 1);
        Pending { target: Rc::clone(self) }
    }

    /// Holds and shares these permissions from now on.
    pub(crate) fn co_set_permissions(
        &self,
        co: &Co<'_>,
        held: Permissions,
        shared: Permissions,
    ) -> Result<(), PermissionError> {
        // Nothing else uses it meanwhile: the job is between two steps.
        let Some(used) = self.used.take() else { return Ok(()) };
        let set = used.co_set_permissions(co, held, shared);
        self.used.replace(Some(used));
        set
    }

    /// The job is over, or will be when nothing is pending.
    pub(crate) fn co_leave(&self, co: &Co<'_>) {
        self.is_left.set(true);
        self.co_release(co);
    }

    fn co_release(&self, co: &Co<'_>) {
        if !self.is_left.get() || self.pending.get() > 0 {
            return;
        }
        // It has no permissions, so its end asks for nothing, and guests may be at the node by now.
        drop(self.backend.take());
        if let Some(used) = self.used.take() {
            used.co_end(co);
        }
    }

    /// Does something to the target in a coroutine of its own, and waits for it as a step of the job's main
    /// coroutine.
    ///
    /// # Errors
    /// [`JobFailure::Cancelled`] as soon as the job is cancelled; what was begun goes on. If it has panicked.
    pub(crate) fn co_apart<R: 'static>(
        self: &Rc<Self>,
        co: &Co<'_>,
        job: &Rc<Job>,
        step: impl FnOnce(&Co<'_>, &BlockBackend) -> R + 'static,
    ) -> Result<R, JobFailure> {
        let result = Rc::<Cell<Option<Result<R, JobFailure>>>>::default();
        let (own, job_of_step, done) = (self.begin(), Rc::clone(job), Rc::clone(&result));
        co.context().spawn("job's step at its target", move |co| {
            let backend = own.target.backend();
            // The hook of panics has reported it.
            let stepped = co.catch_unwind(|| step(co, &backend));
            done.set(Some(stepped.map_err(|_| JobFailure::panicked())));
            drop(backend);
            own.co_end(co);
            job_of_step.kick();
        });
        loop {
            if let Some(result) = result.take() {
                return result;
            }
            if job.is_cancelled() {
                return Err(JobFailure::Cancelled);
            }
            job.co_wait(co, None);
        }
    }
}

/// Something under way at a target.
pub(crate) struct Pending {
    target: Rc<Target>,
}

impl Pending {
    /// It is done. Ends the use of the target if the job is over and this was the last.
    pub(crate) fn co_end(self, co: &Co<'_>) {
        let target = Rc::clone(&self.target);
        drop(self);
        target.co_release(co);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.target.pending.set(self.target.pending.get() - 1);
    }
}
