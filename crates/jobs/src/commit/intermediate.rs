//! The job of a commit of images that others are above: copies, then headers, then the graph.
//!
//! Until the graph turns, the base is read through the top alone, which has, or leads to, all that is copied to the
//! base: so it reads the same, whatever has been copied. When all has been copied, and is durable, an image above reads
//! the same from the base as from the top. So its header may name the base, and it may turn there, in that order.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{
    BlockBackend, BlockNode, Blockdevs, FrozenChain, HiddenNode, NodeUse, Permissions,
    WeakBlockdevs, ZeroFlags,
};

use super::options::{Commit, CommitError};
use super::top::CommitTop;
use crate::chain::{Headers, block, co_put_back, co_until_done, is_in_the_way};
use crate::copy::engine::Engine;
use crate::copy::granules::Granules;
use crate::copy::guests::Guests;
use crate::copy::plan::{Manner, Plan};
use crate::copy::target::Target;
use crate::rules::{Rule, holds};
use crate::{Job, JobFailure, Task};

/// No other user reads them, as they are valid through the top alone; the base is written and resized below them.
pub(super) const OF_BETWEEN: (Permissions, Permissions) =
    (Permissions::empty(), Permissions::all().difference(Permissions::CONSISTENT_READ));
const OF_BASE: (Permissions, Permissions) = (
    Permissions::WRITE,
    Permissions::CONSISTENT_READ.union(Permissions::WRITE_UNCHANGED).union(Permissions::RESIZE),
);
const NOTHING: (Permissions, Permissions) = (Permissions::empty(), Permissions::all());

/// Bytes in flight at most.
const BUFFER: u64 = 16 << 20;
/// Bytes that are marked together, where the base says nothing else.
const GRANULE: u64 = 64 << 10;
/// After that long without a suspension others have a turn.
const TURN_NS: i64 = 10_000_000;

/// The job keeps others from nothing any more.
pub(super) fn share_all(co: &Co<'_>, uses: &RefCell<Vec<NodeUse>>) {
    let taken = uses.take();
    for used in &taken {
        if let Err(error) = used.co_set_permissions(co, NOTHING.0, NOTHING.1) {
            tracing::error!(node = used.node().name(), %error, "permissions are kept");
        }
    }
    uses.replace(taken);
}

/// A handle: clones are the same task.
#[derive(Clone)]
pub(super) struct CommitTask(Rc<State>);

struct State {
    commit: Commit,
    blockdevs: WeakBlockdevs,
    parts: RefCell<Option<Rc<Parts>>>,
    /// The base was read-only before.
    was_read_only: Cell<bool>,
}

/// What a running commit has.
struct Parts {
    filter: Arc<BlockNode>,
    hidden: Cell<Option<HiddenNode>>,
    /// Of the top, and of the nodes between it and the base.
    uses: RefCell<Vec<NodeUse>>,
    frozen: RefCell<Option<FrozenChain>>,
    source: RefCell<Option<BlockBackend>>,
    target: Rc<Target>,
    granules: Arc<Granules>,
    granularity: u64,
    length: u64,
    engine: Rc<Engine>,
}

/// What is marked, and copied, together: a cluster of the base, if that is of a usual size.
fn granularity(base: &Arc<BlockNode>) -> u64 {
    let cluster = base.cluster_size();
    if (4 << 10..=GRANULE).contains(&cluster) { cluster } else { GRANULE }
}

impl CommitTask {
    pub(super) fn new(commit: Commit, blockdevs: &Blockdevs) -> CommitTask {
        let (parts, was_read_only) = Default::default();
        let blockdevs = blockdevs.downgrade();
        CommitTask(Rc::new(State { commit, blockdevs, parts, was_read_only }))
    }

    fn parts(&self) -> Option<Rc<Parts>> {
        self.0.parts.borrow().clone()
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
        let (top, base) = (&commit.top, &commit.base);
        let granularity = granularity(base);
        let granules = Granules::try_new(top.length().div_ceil(granularity))?;
        if base.is_read_only() {
            blockdevs.co_set_read_only(co, base, false)?;
            self.0.was_read_only.set(true);
        }
        let owner = format!("commit job '{}'", job.id());
        let hidden = blockdevs.make_hidden(commit.filter_name.as_deref(), owner, |name| {
            BlockNode::try_new(name, CommitTop::new(top))
        })?;
        let filter = Arc::clone(hidden.node());
        if let Err(error) = top.co_insert_above(co, &filter) {
            hidden.co_end(co);
            return Err(error.into());
        }
        let taken = self.co_take(co, job, &filter);
        let (uses, base_use, frozen) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                co_remove(co, &filter, top);
                hidden.co_end(co);
                return Err(error);
            }
        };
        let parts = self.parts_of(co, job, (hidden, base_use), (granules, granularity));
        parts.uses.replace(uses);
        parts.frozen.replace(Some(frozen));
        self.0.parts.replace(Some(Rc::new(parts)));
        Ok(())
    }

    /// The uses of the nodes that are left out, that of the base, and the chain, which stays as it is.
    fn co_take(
        &self,
        co: &Co<'_>,
        job: &Rc<Job>,
        filter: &Arc<BlockNode>,
    ) -> Result<(Vec<NodeUse>, NodeUse, FrozenChain), CommitError> {
        let Commit { top, base, .. } = &self.0.commit;
        let mut uses = vec![job.co_use(co, top, NOTHING.0, NOTHING.1)?];
        for node in self.0.commit.between() {
            uses.push(job.co_use(co, &node, OF_BETWEEN.0, OF_BETWEEN.1)?);
        }
        let base_use = job.co_use(co, base, OF_BASE.0, OF_BASE.1)?;
        let reason = format!("commit job '{}' needs it", job.id());
        let frozen = filter.co_freeze_chain(co, Some(base), reason)?;
        block(uses.iter().chain([&base_use]), "commit");
        Ok((uses, base_use, frozen))
    }

    fn parts_of(
        &self,
        co: &Co<'_>,
        job: &Rc<Job>,
        (hidden, base_use): (HiddenNode, NodeUse),
        (granules, granularity): (Granules, u64),
    ) -> Parts {
        let Commit { top, base, on_error, .. } = &self.0.commit;
        let name = format!("source of job '{}'", job.id());
        let source = BlockBackend::read_only(co.context(), name, Arc::clone(top));
        let target = Target::new(co, job, base_use);
        let (cluster, length) = (base.cluster_size(), top.length());
        let granules = Arc::new(granules);
        let guests = Arc::new(Guests::new(job.remote_kick()));
        let plan = Plan {
            granularity,
            unit: granularity,
            length,
            buffer: BUFFER,
            cluster,
            on_source_error: *on_error,
            on_target_error: *on_error,
            manner: Manner::default(),
        };
        let engine = Engine::new(job, (&granules, &guests), source.clone(), &target, plan);
        let (uses, frozen) = Default::default();
        Parts {
            filter: Arc::clone(hidden.node()),
            hidden: Cell::new(Some(hidden)),
            uses,
            frozen,
            source: RefCell::new(Some(source)),
            target,
            granules,
            granularity,
            length,
            engine,
        }
    }
}

impl Parts {
    /// Marks what is allocated above the base.
    fn co_mark(&self, co: &Co<'_>, job: &Rc<Job>, base: &BlockNode) -> Result<(), JobFailure> {
        let Some(source) = self.source.borrow().clone() else { return Ok(()) };
        let (mut at, mut turn_ns) = (0, co.context().now_ns());
        while at < self.length {
            let left = self.length - at;
            let (is_above, bytes) = source.co_is_allocated_above(co, base, false, at, left)?;
            let end = at + bytes.clamp(1, left);
            if is_above {
                self.granules.mark(at / self.granularity..end.div_ceil(self.granularity));
            }
            at = end;
            if co.context().now_ns() - turn_ns > TURN_NS {
                co.yield_now();
                turn_ns = co.context().now_ns();
            }
            job.co_pause_point(co)?;
        }
        Ok(())
    }

    /// Makes the base as long as the top, if it is shorter. What it has behind the end of the top reads as zeroes from
    /// then on, as it does through the top.
    fn co_fit_base(&self, co: &Co<'_>, job: &Rc<Job>, is_seen: bool) -> Result<(), JobFailure> {
        let length = self.length;
        let fitted = self.target.co_apart(co, job, move |co, base| match base.length()? {
            now if now < length => base.co_truncate(co, length),
            now if now > length && is_seen => {
                let Range { start, end } = length..now;
                base.co_pwrite_zeroes(co, start, end - start, ZeroFlags::MAY_UNMAP)
            }
            _ => Ok(()),
        })?;
        Ok(fitted?)
    }

    /// Makes what the base has durable.
    fn co_flush(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        while holds(Rule::DurableBeforeHeaders) {
            let flushed = self.target.co_apart(co, job, |co, base| base.co_flush(co))?;
            let Err(error) = flushed else { return Ok(()) };
            self.engine.target_failed(co.context(), &error);
            let until_ns = self.engine.retry_ns();
            if until_ns > co.context().now_ns() {
                job.co_wait(co, Some(until_ns));
            }
            // Says whether the job goes on.
            self.engine.co_converge(co)?;
        }
        Ok(())
    }

    /// Has the headers of all images above name the base, and their users turn to it.
    fn co_turn(
        &self,
        co: &Co<'_>,
        job: &Rc<Job>,
        commit: &Commit,
        headers: &Headers,
    ) -> Result<(), JobFailure> {
        let name = commit.naming.of(&commit.base).map_err(JobFailure::Text)?;
        for overlay in self.filter.overlays() {
            headers.co_name(co, &overlay, Some(&name))?;
        }
        // Those who turn have permissions of their own.
        share_all(co, &self.uses);
        let freed = self.target.co_set_permissions(co, NOTHING.0, NOTHING.1);
        freed.map_err(|error| JobFailure::Text(error.to_string()))?;
        co_until_done(job, || self.filter.co_replace(co, &commit.base))
    }
}

fn co_remove(co: &Co<'_>, filter: &Arc<BlockNode>, top: &Arc<BlockNode>) {
    while let Err(error) = filter.co_replace(co, top) {
        tracing::warn!(filter = filter.name(), %error, "the filter of a job stays");
        if !is_in_the_way(&error) {
            break;
        }
    }
}

impl Task for CommitTask {
    fn co_run(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        let Some(parts) = self.parts() else { return Ok(()) };
        let is_seen = parts.filter.overlays().iter().any(|it| it.length() > parts.length);
        parts.co_fit_base(co, job, is_seen)?;
        parts.co_mark(co, job, &self.0.commit.base)?;
        // What is not above the base is done.
        job.progress().add(parts.length - parts.engine.rest());
        parts.engine.co_converge(co)?;
        parts.co_flush(co, job)
    }

    fn co_prepare(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        let Some(parts) = self.parts() else { return Ok(()) };
        let State { commit, blockdevs, .. } = &*self.0;
        Headers::co_change(co, blockdevs, |headers| parts.co_turn(co, job, commit, headers))
    }

    fn co_clean(&self, co: &Co<'_>, job: &Rc<Job>) {
        let State { commit, blockdevs, .. } = &*self.0;
        if let Some(parts) = self.0.parts.take() {
            if job.is_cancelled() {
                commit.base.cancel_in_flight();
            }
            job.progress().set_rest(parts.engine.rest());
            parts.engine.co_stop(co);
            parts.source.take();
            share_all(co, &parts.uses);
            // Those above read the base through the top.
            let freed = parts.target.co_set_permissions(co, NOTHING.0, NOTHING.1);
            if let Err(error) = freed {
                tracing::error!(node = commit.base.name(), %error, "permissions are kept");
            }
            co_remove(co, &parts.filter, &commit.top);
            drop(parts.frozen.take());
            parts.target.co_leave(co);
            parts.uses.take().into_iter().for_each(|used| used.co_end(co));
            if let Some(hidden) = parts.hidden.take() {
                hidden.co_end(co);
            }
        }
        if self.0.was_read_only.get() {
            co_put_back(co, job, blockdevs, &commit.base);
        }
    }

    fn rest(&self) -> Option<u64> {
        self.parts().map(|parts| parts.engine.rest())
    }
}
