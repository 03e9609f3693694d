//! The job of an active commit: a mirror to a backing file of its source.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{Blockdevs, NodeUse, WeakBlockdevs};

use super::options::{Commit, CommitError};
use super::{intermediate::OF_BETWEEN, intermediate::share_all};
use crate::chain::{block, co_put_back};
use crate::mirror::{Mirror, MirrorTask, co_set_up};
use crate::{Job, JobError, JobFailure, Task};

/// A handle: clones are the same task.
#[derive(Clone)]
pub(super) struct ActiveTask(Rc<State>);

struct State {
    commit: Commit,
    blockdevs: WeakBlockdevs,
    mirror: MirrorTask,
    /// Of the nodes between top and base.
    between: RefCell<Vec<NodeUse>>,
    /// The base was read-only before.
    was_read_only: Cell<bool>,
    /// The base has taken the place of the top.
    has_turned: Cell<bool>,
}

impl ActiveTask {
    pub(super) fn new(commit: Commit, blockdevs: &Blockdevs) -> ActiveTask {
        let mut mirror = Mirror::new(Arc::clone(&commit.top), Arc::clone(&commit.base))
            .on_source_error(commit.on_error)
            .on_target_error(commit.on_error)
            .into_backing();
        if let Some(name) = &commit.filter_name {
            mirror = mirror.filter_name(name);
        }
        let blockdevs = blockdevs.downgrade();
        let mirror = MirrorTask::new(mirror, blockdevs.clone());
        let (between, was_read_only, has_turned) = Default::default();
        let state = State { commit, blockdevs, mirror, between, was_read_only, has_turned };
        ActiveTask(Rc::new(state))
    }

    /// Takes the nodes into use, and inserts the filter.
    ///
    /// # Errors
    /// If other users do not agree. All is as before when the task is cleaned.
    pub(super) fn co_set_up(
        &self,
        co: &Co<'_>,
        job: &Rc<Job>,
        blockdevs: &Blockdevs,
    ) -> Result<(), CommitError> {
        let commit = &self.0.commit;
        if commit.base.is_read_only() {
            blockdevs.co_set_read_only(co, &commit.base, false)?;
            self.0.was_read_only.set(true);
        }
        co_set_up(co, &self.0.mirror, job, blockdevs)?;
        for node in commit.between() {
            let used = job.co_use(co, &node, OF_BETWEEN.0, OF_BETWEEN.1)?;
            self.0.between.borrow_mut().push(used);
        }
        block(self.0.between.borrow().iter(), "commit");
        Ok(())
    }
}

impl Task for ActiveTask {
    fn co_run(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        self.0.mirror.co_run(co, job)
    }

    fn co_pend(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        self.0.mirror.co_pend(co, job)
    }

    fn co_commit(&self, co: &Co<'_>, job: &Rc<Job>) {
        self.0.mirror.co_commit(co, job);
    }

    fn co_prepare(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        // Guests read the base, or the nodes between, from here on.
        share_all(co, &self.0.between);
        self.0.mirror.co_prepare(co, job)?;
        self.0.has_turned.set(!job.is_soft_cancelled());
        Ok(())
    }

    fn co_clean(&self, co: &Co<'_>, job: &Rc<Job>) {
        let State { commit, blockdevs, between, .. } = &*self.0;
        share_all(co, between);
        self.0.mirror.co_clean(co, job);
        between.take().into_iter().for_each(|used| used.co_end(co));
        let is_writable = self.0.has_turned.get() && !commit.top.is_read_only();
        if self.0.was_read_only.get() && !is_writable {
            co_put_back(co, job, blockdevs, &commit.base);
        }
    }

    fn complete(&self, job: &Rc<Job>) -> Result<(), JobError> {
        self.0.mirror.complete(job)
    }

    fn cancel(&self, job: &Rc<Job>, forced: bool) -> bool {
        self.0.mirror.cancel(job, forced)
    }

    fn rest(&self) -> Option<u64> {
        self.0.mirror.rest()
    }
}
