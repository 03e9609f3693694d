//! The job: first scan, copies until both are equal, and the pivot.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk_aio::Co;
use coblk_block::{
    BlockBackend, BlockNode, Blockdevs, GraphError, HiddenNode, NodeUse, Operation, Permissions,
    WeakBlockdevs,
};

use super::active::Active;
use super::options::{CopyMode, Mirror, MirrorError, cluster_size};
use super::scan::Scan;
use super::top::{Marks, MirrorTop, TARGET};
use crate::copy::engine::Engine;
use crate::copy::granules::Granules;
use crate::copy::guests::Guests;
use crate::copy::pace::Latency;
use crate::copy::plan::{Manner, Plan};
use crate::copy::target::Target;
use crate::rules::{Rule, holds};
use crate::{Job, JobChange, JobError, JobFailure, JobStatus, Task};

/// What the job holds and shares at its source, and then at its target.
fn permissions(is_commit: bool) -> [(Permissions, Permissions); 2] {
    if is_commit { OF_COMMIT } else { [OF_SOURCE, OF_TARGET] }
}

/// What is below the source is written.
const OF_COMMIT: [(Permissions, Permissions); 2] =
    [(Permissions::empty(), Permissions::all()), (Permissions::WRITE, Permissions::all())];
/// Others may read a target before it is equal, and not write.
const OF_TARGET: (Permissions, Permissions) = (Permissions::WRITE, Permissions::WRITE_UNCHANGED);
/// Guests go on with the source.
const OF_SOURCE: (Permissions, Permissions) =
    (Permissions::CONSISTENT_READ, Permissions::all().difference(Permissions::RESIZE));

/// How long another try to change the mode waits.
const SWITCH_AGAIN_NS: i64 = 1_000_000_000;

/// Whether a change of the graph may succeed later.
fn is_in_the_way(error: &GraphError) -> bool {
    matches!(error, GraphError::RequestsInTheWay(_) | GraphError::ChangeInTheWay)
}

/// A handle: clones are the same task.
#[derive(Clone)]
pub(crate) struct MirrorTask(Rc<State>);

struct State {
    mirror: Mirror,
    blockdevs: WeakBlockdevs,
    parts: RefCell<Option<Rc<Parts>>>,
    /// It shall take the place of the source.
    is_completing: Cell<bool>,
    /// The mode that the job is to be in.
    mode: Cell<CopyMode>,
}

/// What a running mirror has.
struct Parts {
    filter: Arc<BlockNode>,
    hidden: Cell<Option<HiddenNode>>,
    source_use: Cell<Option<NodeUse>>,
    source: BlockBackend,
    target: Rc<Target>,
    marks: Arc<Marks>,
    active: Arc<Active>,
    engine: Rc<Engine>,
}

impl MirrorTask {
    pub(crate) fn new(mirror: Mirror, blockdevs: WeakBlockdevs) -> MirrorTask {
        let (parts, is_completing) = Default::default();
        let mode = Cell::new(mirror.copy_mode);
        MirrorTask(Rc::new(State { mirror, blockdevs, parts, is_completing, mode }))
    }

    fn parts(&self) -> Option<Rc<Parts>> {
        self.0.parts.borrow().clone()
    }

    /// Begins the mode that the job is to be in. Writes of the old mode have ended before: an overlapping one of the
    /// new mode would clear marks that they are about to set.
    fn co_switch(&self, co: &Co<'_>, parts: &Parts) -> Result<(), JobFailure> {
        if self.0.mode.get() == CopyMode::Background || parts.active.is_on() {
            return Ok(());
        }
        // From here on a drain of the target holds guests, too.
        match parts.filter.co_attach(co, TARGET, parts.target.node()) {
            Ok(()) => {}
            // Tried again later.
            Err(error) if is_in_the_way(&error) => return Ok(()),
            Err(error) => return Err(JobFailure::Text(error.to_string())),
        }
        let _drained = parts.filter.co_drain(co);
        parts.active.switch_on();
        Ok(())
    }

    /// Both were equal: sleeps until something is marked, the job is kicked, or the mode may be begun.
    fn co_rest(&self, co: &Co<'_>, job: &Rc<Job>, parts: &Parts) {
        let is_switching = self.0.mode.get() != CopyMode::Background && !parts.active.is_on();
        let later_ns = co.context().now_ns() + SWITCH_AGAIN_NS;
        if parts.marks.granules.may_sleep() {
            job.co_wait(co, Some(later_ns).filter(|_| is_switching));
        }
    }
}

/// Takes the nodes into use, and inserts the filter.
///
/// # Errors
/// If other users do not agree, or there are too many granules. All is as before then.
pub(crate) fn co_set_up(
    co: &Co<'_>,
    task: &MirrorTask,
    job: &Rc<Job>,
    blockdevs: &Blockdevs,
) -> Result<(), MirrorError> {
    let mirror = &task.0.mirror;
    let [of_source, of_target] = permissions(mirror.is_commit);
    let use_target = || job.co_use(co, &mirror.target, of_target.0, of_target.1);
    // The users of the source read a target below it, until the filter is there.
    let early = if mirror.is_commit { None } else { Some(use_target()?) };
    let source_use = job.co_use(co, &mirror.source, of_source.0, of_source.1)?;
    let length = mirror.source.length();
    let granularity = match mirror.has_absent_backing() {
        true => mirror.granule().max(cluster_size(&mirror.target)),
        false => mirror.granule(),
    };
    let mut granules = Granules::try_new(length.div_ceil(granularity))?;
    if mirror.has_absent_backing() {
        granules.track_copied();
    }
    let granules = Arc::new(granules);
    let guests = Arc::new(Guests::new(job.remote_kick()));
    let (is_leaving, is_commit) = (AtomicBool::new(false), mirror.is_commit);
    let marks = Arc::new(Marks { granules, guests, granularity, length, is_leaving, is_commit });
    let active = Arc::new(Active::new(&mirror.target, &marks, job.progress()));
    let latency = mirror.guest_latency.map(Latency::new);
    let owner = format!("mirror job '{}'", job.id());
    let hidden = blockdevs.make_hidden(mirror.filter_name.as_deref(), owner, |name| {
        BlockNode::try_new(name, MirrorTop::new(&mirror.source, &marks, &active, latency.clone()))
    })?;
    let filter = Arc::clone(hidden.node());
    if let Err(error) = mirror.source.co_insert_above(co, &filter) {
        hidden.co_end(co);
        return Err(error.into());
    }
    let target_use = match early.map_or_else(use_target, Ok) {
        Ok(used) => used,
        Err(error) => {
            co_remove_filter(co, &filter, &mirror.source);
            hidden.co_end(co);
            return Err(error.into());
        }
    };
    for used in [&source_use, &target_use] {
        for operation in
            [Operation::Resize, Operation::Replace, Operation::Inactivate, Operation::Job]
        {
            used.block(operation, "block device is in use by block job: mirror");
        }
    }
    let name = format!("source of job '{}'", job.id());
    let source = BlockBackend::read_only(co.context(), name, Arc::clone(&mirror.source));
    let target = Target::new(co, job, target_use);
    let plan = plan_of(mirror, (granularity, length), latency);
    let shared = (&marks.granules, &marks.guests);
    let engine = Engine::new(job, shared, source.clone(), &target, plan);
    engine.set_contexts(mirror.contexts.clone());
    let (hidden, source_use) = (Cell::new(Some(hidden)), Cell::new(Some(source_use)));
    let parts = Parts { filter, hidden, source_use, source, target, marks, active, engine };
    task.0.parts.replace(Some(Rc::new(parts)));
    Ok(())
}

fn plan_of(
    mirror: &Mirror,
    (granularity, length): (u64, u64),
    latency: Option<Arc<Latency>>,
) -> Plan {
    Plan {
        granularity,
        unit: granularity,
        length,
        buffer: mirror.buffer,
        cluster: cluster_size(&mirror.target),
        on_source_error: mirror.on_source_error,
        on_target_error: mirror.on_target_error,
        manner: Manner { latency, ..Manner::default() },
    }
}

impl Parts {
    /// Makes both equal, and the target durable. A step of the job's main coroutine.
    fn co_equalize(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        loop {
            self.engine.co_catch_up(co, || false)?;
            self.co_flush(co, job)?;
            if self.engine.is_copied() {
                return Ok(());
            }
        }
    }

    fn co_flush_failed(&self, co: &Co<'_>, job: &Rc<Job>, error: &io::Error) {
        self.engine.target_failed(co.context(), error);
        let until_ns = self.engine.retry_ns();
        if until_ns > co.context().now_ns() {
            job.co_wait(co, Some(until_ns));
        }
    }

    /// Turns the users of the filter to `new`, if both are equal in the drained section for that. A target that
    /// takes the place of the source is durable before.
    fn co_turn(
        &self,
        co: &Co<'_>,
        job: &Rc<Job>,
        new: &Arc<BlockNode>,
    ) -> Result<bool, JobFailure> {
        let is_pivot = Arc::ptr_eq(new, self.target.node());
        let failed = Cell::new(None);
        let turned = self.filter.co_replace_when(co, new, |co, drained| {
            if !is_pivot {
                let is_clean = self.engine.is_clean();
                self.marks.is_leaving.store(is_clean, Ordering::SeqCst);
                // They read the target through the source.
                return is_clean && (!self.marks.is_commit || self.co_free_target(co));
            }
            let flush = || drained.co_flush(co);
            if let Err(error) = if holds(Rule::DurableAtPivot) { flush() } else { Ok(()) } {
                failed.set(Some(error));
                return false;
            }
            // Guests take its place, and have permissions of their own.
            let is_clean = self.engine.is_clean() || !holds(Rule::EqualAtPivot);
            is_clean && self.co_free_target(co)
        });
        if let Some(error) = failed.take() {
            self.co_flush_failed(co, job, &error);
        }
        match turned {
            Ok(turned) => Ok(turned),
            // Their drain or change comes to an end, and then it is tried again.
            Err(error) if is_in_the_way(&error) => Ok(false),
            Err(error) => {
                self.marks.is_leaving.store(false, Ordering::SeqCst);
                let [_, (held, shared)] = permissions(self.marks.is_commit);
                let _ = self.target.co_set_permissions(co, held, shared);
                Err(JobFailure::Text(error.to_string()))
            }
        }
    }

    /// Makes what the target has durable.
    fn co_flush(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        loop {
            let flushed = self.target.co_apart(co, job, |co, target| target.co_flush(co))?;
            match flushed {
                Ok(()) => return Ok(()),
                Err(error) => self.co_flush_failed(co, job, &error),
            }
            self.engine.co_catch_up(co, || false)?;
        }
    }

    /// Writes of guests to a target that does not answer go on, and keep it in use until they have returned.
    fn leave_writes_behind(&self, co: &Co<'_>) {
        if self.marks.granules.busy() == 0 {
            return;
        }
        let (marks, pending) = (Arc::clone(&self.marks), self.target.begin());
        co.context().spawn("writes of guests that stay behind", move |co| {
            let is_over = || marks.granules.busy() == 0;
            while !is_over() {
                marks.guests.waiters.co_wait(co, is_over);
            }
            pending.co_end(co);
        });
    }

    /// Takes the filter out, whatever has users there still.
    fn co_remove_filter(&self, co: &Co<'_>, source: &Arc<BlockNode>) {
        // What is written from here on is for no target.
        self.marks.is_leaving.store(true, Ordering::SeqCst);
        if self.marks.is_commit {
            self.co_free_target(co);
        }
        co_remove_filter(co, &self.filter, source);
    }

    /// The job holds nothing at its target any more, and keeps others from nothing.
    fn co_free_target(&self, co: &Co<'_>) -> bool {
        let (held, shared) = (Permissions::empty(), Permissions::all());
        self.target.co_set_permissions(co, held, shared).is_ok()
    }

    /// Makes a target as long as its source that is shorter, and is to become longer.
    fn co_grow_target(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        let length = self.marks.length;
        let grown = self.target.co_apart(co, job, move |co, target| match target.length()? {
            now if now < length => target.co_truncate(co, length),
            _ => Ok(()),
        })?;
        Ok(grown?)
    }
}

/// Of a job whose context ends: guests of others do not wait for the target any more.
impl Drop for Parts {
    fn drop(&mut self) {
        self.active.give_up();
    }
}

fn co_remove_filter(co: &Co<'_>, filter: &Arc<BlockNode>, source: &Arc<BlockNode>) {
    while let Err(error) = filter.co_replace(co, source) {
        tracing::warn!(filter = filter.name(), %error, "the filter of a job stays");
        if !is_in_the_way(&error) {
            break;
        }
    }
}

impl Task for MirrorTask {
    fn co_run(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        let Some(parts) = self.parts() else { return Ok(()) };
        if parts.marks.is_commit {
            parts.co_grow_target(co, job)?;
        } else if parts.target.node().length() != parts.marks.length {
            let text = "Source and target image have different sizes";
            return Err(JobFailure::Text(text.to_owned()));
        }
        let (source, target, marks) = (&parts.source, &parts.target, &parts.marks);
        let scan = Scan { job, source, target, marks };
        scan.co_mark(co, self.0.mirror.sync)?;
        self.co_switch(co, &parts)?;
        parts.co_equalize(co, job)?;
        job.become_ready(co.context());
        loop {
            parts.engine.co_catch_up(co, || false)?;
            self.co_switch(co, &parts)?;
            if self.0.is_completing.get() || job.is_soft_cancelled() {
                return Ok(());
            }
            self.co_rest(co, job, &parts);
        }
    }

    fn co_pend(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        let Some(parts) = self.parts() else { return Ok(()) };
        // However long the command lets the job wait, there is little left to copy then.
        self.0.mode.set(CopyMode::WriteBlocking);
        while !job.is_ending() {
            self.co_switch(co, &parts)?;
            parts.engine.co_catch_up(co, || job.is_ending())?;
            if !job.is_ending() {
                self.co_rest(co, job, &parts);
            }
        }
        Ok(())
    }

    fn co_prepare(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        let Some(parts) = self.parts() else { return Ok(()) };
        let mirror = &self.0.mirror;
        let new = if job.is_soft_cancelled() { &mirror.source } else { &mirror.target };
        loop {
            parts.engine.co_catch_up(co, || false)?;
            if parts.co_turn(co, job, new)? {
                break;
            }
        }
        // A copy that stays behind.
        if job.is_soft_cancelled() { parts.co_flush(co, job) } else { Ok(()) }
    }

    fn co_commit(&self, co: &Co<'_>, job: &Rc<Job>) {
        let mirror = &self.0.mirror;
        if job.is_soft_cancelled() || !mirror.source.is_read_only() {
            return;
        }
        let blockdevs = self.0.blockdevs.upgrade();
        let set = blockdevs.map(|set| set.co_set_read_only(co, &mirror.target, true));
        if let Some(Err(error)) = set {
            tracing::warn!(target = mirror.target.name(), %error, "it stays writable");
        }
    }

    fn co_clean(&self, co: &Co<'_>, job: &Rc<Job>) {
        let Some(parts) = self.0.parts.take() else { return };
        parts.active.give_up();
        if job.is_cancelled() {
            // What waits for a server to come back.
            parts.target.node().cancel_in_flight();
        }
        job.progress().set_rest(parts.engine.rest());
        parts.engine.co_stop(co);
        parts.leave_writes_behind(co);
        parts.co_remove_filter(co, &self.0.mirror.source);
        parts.target.co_leave(co);
        if let Some(used) = parts.source_use.take() {
            used.co_end(co);
        }
        if let Some(hidden) = parts.hidden.take() {
            hidden.co_end(co);
        }
    }

    fn complete(&self, _: &Rc<Job>) -> Result<(), JobError> {
        self.0.is_completing.set(true);
        Ok(())
    }

    fn cancel(&self, job: &Rc<Job>, forced: bool) -> bool {
        forced || !matches!(job.status(), JobStatus::Ready | JobStatus::Standby)
    }

    fn rest(&self) -> Option<u64> {
        self.parts().map(|parts| parts.engine.rest())
    }

    fn is_actively_synced(&self) -> Option<bool> {
        let is_synced = |parts: Rc<Parts>| parts.active.is_on() && parts.engine.is_copied();
        Some(self.parts().is_some_and(is_synced))
    }

    fn change(&self, job: &Rc<Job>, change: &JobChange) -> Result<(), JobError> {
        let refused = |text: String| Err(JobError::Refused(text));
        if change.kind != "mirror" {
            return refused(format!("job '{}' is no {} job", job.id(), change.kind));
        }
        match (self.0.mode.get(), change.copy_mode.as_str()) {
            (CopyMode::Background, "write-blocking") => {
                self.0.mode.set(CopyMode::WriteBlocking);
                job.kick();
                Ok(())
            }
            (CopyMode::Background, "background") | (_, "write-blocking") => Ok(()),
            (_, mode) => refused(format!("Change to copy mode '{mode}' is not implemented")),
        }
    }
}
