//! The job: the filter, the copies, and the end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{
    BlockBackend, BlockNode, Blockdevs, Child, ChildRole, DrainedSection, GraphError, HiddenNode,
    NodeUse, Operation, PermissionError, Permissions, WAIT_LIMIT, WriteFlags,
};

use super::bitmap::Held;
use super::check::BackupError;
use super::manifest::Manifest;
use super::options::{Backup, BackupSync};
use super::top::co_skip_below;
use super::verify::co_verify;
use crate::copy::engine::Engine;
use crate::copy::guests::Guests;
use crate::copy::pace::Latency;
use crate::copy::plan::{Manner, Plan};
use crate::copy::target::Target;
use crate::mirror::backing_of;
use crate::rules::{Rule, holds};
use crate::snapshot::{CopyBeforeWrite, Keeper, KeeperPlan, leads_to};
use crate::{Job, JobFailure, Task};

/// The longest copy, in bytes, unless the options say so.
const MAX_CHUNK: u64 = 1 << 20;
/// Memory of the workers, in bytes, unless a cluster is longer.
const MAX_BUFFER: u64 = 128 << 20;

/// Others may write to the target as far as permissions go, for its backing file may be the source.
const OF_TARGET: (Permissions, Permissions) =
    (Permissions::WRITE, Permissions::all().difference(Permissions::RESIZE));
/// Nothing else has a use for it.
const OF_SPILL: (Permissions, Permissions) =
    (Permissions::CONSISTENT_READ.union(Permissions::WRITE), Permissions::empty());
/// Guests go on with the source.
const OF_SOURCE: (Permissions, Permissions) =
    (Permissions::CONSISTENT_READ, Permissions::all().difference(Permissions::RESIZE));
/// Nothing else writes to a source whose copied bytes are discarded: they would be lost.
const OF_DISCARDED: (Permissions, Permissions) = (
    Permissions::CONSISTENT_READ.union(Permissions::WRITE),
    OF_SOURCE.1.difference(Permissions::WRITE),
);

/// A handle: clones are the same task.
#[derive(Clone)]
pub(super) struct BackupTask(Rc<State>);

/// It has the nodes no longer than the job uses them: a job that is over may be kept.
struct State {
    /// Until it is made.
    backup: Cell<Option<Backup>>,
    parts: RefCell<Option<Rc<Parts>>>,
    bitmap: Cell<Option<Held>>,
}

/// What a job has from its making to its end.
struct Parts {
    backup: Backup,
    filter: Arc<BlockNode>,
    hidden: Cell<Option<HiddenNode>>,
    source_use: Cell<Option<NodeUse>>,
    source: BlockBackend,
    target: Rc<Target>,
    spill_use: Option<Rc<Target>>,
    guests: Arc<Guests>,
    keeper: Arc<Keeper>,
    engine: Rc<Engine>,
    manifest: Cell<Option<Manifest>>,
}

impl BackupTask {
    pub(super) fn new(backup: Backup) -> BackupTask {
        let (parts, bitmap) = Default::default();
        BackupTask(Rc::new(State { backup: Cell::new(Some(backup)), parts, bitmap }))
    }

    fn parts(&self) -> Option<Rc<Parts>> {
        self.0.parts.borrow().clone()
    }
}

/// Takes the nodes into use, and inserts the filter: that is the instant.
///
/// # Errors
/// If other users do not agree, or the bitmap cannot be used. All is as before then.
pub(super) fn co_set_up(
    co: &Co<'_>,
    task: &BackupTask,
    job: &Rc<Job>,
    blockdevs: &Blockdevs,
) -> Result<(), BackupError> {
    let backup = task.0.backup.take().expect("a job is made once");
    let uses = Uses::co_take(co, job, &backup)?;
    let manifest = Manifest::co_begin(co, backup.manifest.as_deref(), job.id())?;
    let is_read_above = leads_to(&backup.target, &backup.source);
    let tracking = match is_read_above {
        true => Some(backup.target.track(&co_drain(co, &backup.target)?)),
        false => None,
    };
    let guests = Arc::new(Guests::new(job.remote_kick()));
    let plan = keeper_plan(&backup, is_read_above);
    let keeper = Arc::new(Keeper::for_job(plan, Arc::clone(&guests), job.progress())?);
    let owner = format!("backup job '{}'", job.id());
    let hidden = blockdevs.make_hidden(backup.filter_name.as_deref(), owner, |name| {
        let node = Child::new("file", ChildRole::FILTER, Arc::clone(&backup.source));
        let target = Child::new("target", ChildRole::DATA, Arc::clone(&backup.target));
        BlockNode::try_new(name, CopyBeforeWrite::on((node, target), &keeper, tracking))
    })?;
    let filter = Arc::clone(hidden.node());
    if backup.sync != BackupSync::Bitmap {
        keeper.keep_all();
    }
    match co_insert(co, &backup, &keeper, &filter) {
        Ok(bitmap) => task.0.bitmap.set(bitmap),
        Err(error) => {
            hidden.co_end(co);
            return Err(error);
        }
    }
    uses.block();
    let name = format!("source of job '{}'", job.id());
    let source = BlockBackend::new(co.context(), name, Arc::clone(&backup.source));
    let target = Target::new(co, job, uses.target);
    let shared = (keeper.granules(), &guests);
    let spill_use = uses.spill.map(|used| Target::new(co, job, used));
    let plan = plan_of(&backup, &keeper, spill_use.as_ref());
    let engine = Engine::new(job, shared, source.clone(), &target, plan);
    // Others than the job's context leave the source as it is.
    if !backup.discard_source {
        engine.set_contexts(backup.contexts.clone());
    }
    let (hidden, source_use) = (Cell::new(Some(hidden)), Cell::new(Some(uses.source)));
    let parts = Parts {
        backup,
        filter,
        hidden,
        source_use,
        source,
        target,
        spill_use,
        guests,
        keeper,
        engine,
        manifest: Cell::new(manifest),
    };
    task.0.parts.replace(Some(Rc::new(parts)));
    Ok(())
}

const IN_USE: &str = "block device is in use by block job: backup";

/// The uses of the nodes.
struct Uses {
    source: NodeUse,
    target: NodeUse,
    spill: Option<NodeUse>,
}

impl Uses {
    fn co_take(co: &Co<'_>, job: &Job, backup: &Backup) -> Result<Uses, PermissionError> {
        let target = job.co_use(co, &backup.target, OF_TARGET.0, OF_TARGET.1)?;
        let of_source = if backup.discard_source { OF_DISCARDED } else { OF_SOURCE };
        let source = job.co_use(co, &backup.source, of_source.0, of_source.1)?;
        let spill = match &backup.spill {
            Some(node) => Some(job.co_use(co, node, OF_SPILL.0, OF_SPILL.1)?),
            None => None,
        };
        Ok(Uses { source, target, spill })
    }

    /// Keeps others from what would get in the way of the job.
    fn block(&self) {
        for operation in [Operation::Resize, Operation::Inactivate] {
            self.source.block(operation, IN_USE);
        }
        for used in [&self.target].into_iter().chain(&self.spill) {
            for operation in
                [Operation::Resize, Operation::Inactivate, Operation::Replace, Operation::Job]
            {
                used.block(operation, IN_USE);
            }
        }
    }
}

/// In one drained section of the source: the bitmap, what it says is to be copied, the filter.
fn co_insert(
    co: &Co<'_>,
    backup: &Backup,
    keeper: &Keeper,
    filter: &Arc<BlockNode>,
) -> Result<Option<Held>, BackupError> {
    let _drained = co_drain(co, &backup.source)?;
    let bitmap = match &backup.bitmap {
        Some((name, mode)) => Some(Held::new(&backup.source, name, *mode)?),
        None => None,
    };
    if let (BackupSync::Bitmap, Some(bitmap)) = (backup.sync, &bitmap) {
        keeper.keep_dirty(bitmap.bits());
    }
    backup.source.co_insert_above(co, filter)?;
    Ok(bitmap)
}

/// Drains for a change. Simulated time is over as soon as nothing else is to be done: no limit there.
fn co_drain(co: &Co<'_>, node: &Arc<BlockNode>) -> Result<DrainedSection, GraphError> {
    match co.context().simulation() {
        Some(_) => Ok(node.co_drain(co)),
        None => node
            .co_drain_within(co, WAIT_LIMIT)
            .map_err(|_| GraphError::RequestsInTheWay(node.name().to_owned())),
    }
}

fn keeper_plan(backup: &Backup, is_read_above: bool) -> KeeperPlan {
    let mut flags = WriteFlags::empty();
    flags.set(WriteFlags::COMPRESSED, backup.compress);
    flags.set(WriteFlags::SERIALISING, is_read_above);
    KeeperPlan {
        granule: backup.granule(),
        cluster: backup.cluster(),
        length: backup.source.length(),
        target_cluster: backup.target_cluster(),
        flags,
        on_error: backup.on_cbw_error,
        timeout: None,
        hold: backup.hold,
        // With that the job itself writes there.
        is_alone: !backup.discard_source,
        spill: backup.spill.clone(),
        sums: backup.verify || backup.manifest.is_some(),
        latency: backup.guest_latency.map(Latency::new),
        waits: backup.guest_latency.is_none().then(Latency::of_copies),
    }
}

fn plan_of(backup: &Backup, keeper: &Keeper, spill_use: Option<&Rc<Target>>) -> Plan {
    let cluster = backup.cluster();
    // What is compressed is written cluster by cluster.
    let longest = if backup.compress { cluster } else { backup.max_chunk.unwrap_or(MAX_CHUNK) };
    let max_chunk = longest.clamp(cluster, MAX_CHUNK.max(cluster));
    Plan {
        granularity: backup.granule(),
        unit: cluster,
        length: backup.source.length(),
        buffer: (max_chunk * backup.max_workers).min(MAX_BUFFER),
        cluster: backup.target_cluster(),
        on_source_error: backup.on_source_error,
        on_target_error: backup.on_target_error,
        manner: Manner {
            max_workers: backup.max_workers,
            max_chunk,
            flags: keeper.flags(),
            keeps_all: true,
            discards_source: backup.discard_source,
            spill: keeper.spill().cloned().zip(spill_use.cloned()),
            sums: keeper.sums().cloned(),
            latency: keeper.latency().cloned(),
        },
    }
}

impl Parts {
    /// Copies nothing by itself, until the job is cancelled.
    fn co_stand_by(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        loop {
            job.co_pause_point(co)?;
            if let Some(error) = self.guests.take_fatal() {
                return Err(JobFailure::Io(error));
            }
            job.co_wait(co, None);
        }
    }

    /// Copies what is to be copied, and makes the target durable: a bitmap may begin anew then.
    fn co_copy(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        loop {
            self.engine.co_converge(co)?;
            if !holds(Rule::DurableAtEnd) {
                return Ok(());
            }
            let flushed = self.target.co_apart(co, job, |co, target| target.co_flush(co))?;
            let Err(error) = flushed else { return Ok(()) };
            self.engine.target_failed(co.context(), &error);
            let until_ns = self.engine.retry_ns();
            if until_ns > co.context().now_ns() {
                job.co_wait(co, Some(until_ns));
            }
        }
    }

    /// Takes the filter out, whatever has users there still: they turn to what is below it by now.
    fn co_remove_filter(&self, co: &Co<'_>) {
        loop {
            let below = self.below();
            let turned =
                self.filter.co_replace_when(co, &below, |_, _| Arc::ptr_eq(&self.below(), &below));
            match turned {
                Ok(true) => return,
                // Another filter has come in between.
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(filter = self.filter.name(), %error, "the filter of a job stays");
                    let is_in_the_way = matches!(
                        error,
                        GraphError::RequestsInTheWay(_) | GraphError::ChangeInTheWay
                    );
                    if !is_in_the_way {
                        return;
                    }
                }
            }
        }
    }

    /// The node below the filter.
    fn below(&self) -> Arc<BlockNode> {
        let children = self.filter.children();
        let below = children.into_iter().find(|(edge, _)| edge == "file");
        below.map(|(_, node)| node).expect("the filter has its child")
    }

    /// Copies that guests have left behind keep what they write in use until they have returned.
    fn leave_written(&self, co: &Co<'_>) {
        if self.keeper.is_copying() {
            let (own, keeper) =
                (self.written().map(Target::begin).collect::<Vec<_>>(), Arc::clone(&self.keeper));
            co.context().spawn("copies of a job that is over", move |co| {
                keeper.co_wait_for_copies(co);
                own.into_iter().for_each(|own| own.co_end(co));
            });
        }
        self.written().for_each(|it| it.co_leave(co));
    }

    /// What the job writes.
    fn written(&self) -> impl Iterator<Item = &Rc<Target>> {
        self.spill_use.iter().chain([&self.target])
    }
}

/// Of a job whose context ends: guests of others do not wait for copies any more.
impl Drop for Parts {
    fn drop(&mut self) {
        self.keeper.give_up();
    }
}

impl Task for BackupTask {
    fn co_run(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        let Some(parts) = self.parts() else { return Ok(()) };
        let sync = parts.backup.sync;
        if sync == BackupSync::Top
            && let Some(base) = backing_of(&parts.backup.source)
        {
            co_skip_below(co, job, (&parts.source, &base), &parts.keeper)?;
        }
        if sync == BackupSync::None {
            return parts.co_stand_by(co, job);
        }
        parts.co_copy(co, job)?;
        let Some(sums) = parts.keeper.sums() else { return Ok(()) };
        if parts.backup.verify {
            co_verify(co, job, &parts.target, sums)?;
        }
        match parts.manifest.take() {
            Some(manifest) => manifest.co_finish(co, sums),
            None => Ok(()),
        }
    }

    fn co_commit(&self, co: &Co<'_>, _: &Rc<Job>) {
        let Some(bitmap) = self.0.bitmap.take().and_then(Held::succeed) else { return };
        let Some(source) = self.parts().and_then(|parts| parts.source.node()) else { return };
        if let Err(error) = source.co_note_bitmap(co, &bitmap) {
            // What is stored has more than the bitmap, and not less.
            tracing::warn!(node = source.name(), %error, "a bitmap is stored when the node is closed");
        }
    }

    fn co_abort(&self, _: &Co<'_>, _: &Rc<Job>) {
        if let (Some(bitmap), Some(parts)) = (self.0.bitmap.take(), self.parts()) {
            bitmap.fail(|bits| parts.keeper.mark_todo(bits));
        }
    }

    fn co_clean(&self, co: &Co<'_>, job: &Rc<Job>) {
        drop(self.0.bitmap.take());
        let Some(parts) = self.0.parts.take() else { return };
        parts.keeper.give_up();
        parts.manifest.take().into_iter().for_each(|manifest| manifest.co_discard(co));
        if job.is_cancelled() {
            // What waits for a server to come back.
            parts.written().for_each(|it| it.node().cancel_in_flight());
        }
        job.progress().set_rest(parts.engine.rest());
        parts.engine.co_stop(co);
        parts.co_remove_filter(co);
        parts.leave_written(co);
        if let Some(used) = parts.source_use.take() {
            used.co_end(co);
        }
        if let Some(hidden) = parts.hidden.take() {
            hidden.co_end(co);
        }
    }

    fn rest(&self) -> Option<u64> {
        self.parts().map(|parts| parts.engine.rest())
    }
}
