//! The job: a filter that copies what is read, a sweep over the disk, and the end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{
    BlockBackend, BlockNode, Blockdevs, FrozenChain, HiddenNode, NodeUse, Permissions,
    WeakBlockdevs, filters::CopyOnRead,
};

use super::options::{Stream, StreamError};
use super::sweep::Sweep;
use crate::chain::{Headers, block, co_put_back, co_until_done, is_in_the_way};
use crate::{Job, JobFailure, Task};

const ALL_BUT_RESIZE: Permissions = Permissions::all().difference(Permissions::RESIZE);
/// The job reads what its filter has, so that the filter copies.
const OF_FILTER: (Permissions, Permissions) = (Permissions::CONSISTENT_READ, ALL_BUT_RESIZE);
const OF_TOP: (Permissions, Permissions) = (Permissions::empty(), ALL_BUT_RESIZE);
/// They stay as they are.
const OF_SOURCES: (Permissions, Permissions) =
    (Permissions::empty(), Permissions::CONSISTENT_READ.union(Permissions::WRITE_UNCHANGED));

/// A handle: clones are the same task.
#[derive(Clone)]
pub(super) struct StreamTask(Rc<State>);

struct State {
    stream: Stream,
    blockdevs: WeakBlockdevs,
    parts: RefCell<Option<Rc<Parts>>>,
    /// The image was read-only before.
    was_read_only: Cell<bool>,
}

/// What a stream has that has something to copy.
struct Parts {
    filter: Arc<BlockNode>,
    hidden: Cell<Option<HiddenNode>>,
    uses: RefCell<Vec<NodeUse>>,
    frozen: RefCell<Option<FrozenChain>>,
    sweep: Rc<Sweep>,
}

impl StreamTask {
    pub(super) fn new(stream: Stream, blockdevs: &Blockdevs) -> StreamTask {
        let (parts, was_read_only) = Default::default();
        let blockdevs = blockdevs.downgrade();
        StreamTask(Rc::new(State { stream, blockdevs, parts, was_read_only }))
    }

    fn parts(&self) -> Option<Rc<Parts>> {
        self.0.parts.borrow().clone()
    }
}

/// Takes the nodes into use, and inserts the filter. A stream that has nothing to copy needs neither.
///
/// # Errors
/// If other users do not agree. All is as before when the task is cleaned.
pub(super) fn co_set_up(
    co: &Co<'_>,
    task: &StreamTask,
    job: &Rc<Job>,
    blockdevs: &Blockdevs,
) -> Result<(), StreamError> {
    let stream = &task.0.stream;
    let (top, image, sources) = (&stream.top, stream.image(), stream.sources());
    if sources.is_empty() {
        return Ok(());
    }
    let mut uses = vec![job.co_use(co, top, OF_TOP.0, OF_TOP.1)?];
    for source in &sources {
        uses.push(job.co_use(co, source, OF_SOURCES.0, OF_SOURCES.1)?);
    }
    if image.is_read_only() {
        blockdevs.co_set_read_only(co, &image, false)?;
        task.0.was_read_only.set(true);
    }
    let owner = format!("stream job '{}'", job.id());
    let hidden = blockdevs.make_hidden(stream.filter_name.as_deref(), owner, |name| {
        BlockNode::try_new(name, CopyOnRead::new(Arc::clone(top), stream.bottom.clone()))
    })?;
    let filter = Arc::clone(hidden.node());
    let name = format!("source of job '{}'", job.id());
    let source = BlockBackend::read_only(co.context(), name, Arc::clone(&filter));
    let extents = (top.length(), image.cluster_size());
    let sweep = Sweep::new(job, source, stream.base(), extents, stream.on_error);
    let parts = Rc::new(Parts {
        filter,
        hidden: Cell::new(Some(hidden)),
        uses: RefCell::new(uses),
        frozen: RefCell::default(),
        sweep,
    });
    // What is there from here on goes when the task is cleaned.
    task.0.parts.replace(Some(Rc::clone(&parts)));
    top.co_insert_above(co, &parts.filter)?;
    let used = job.co_use(co, &parts.filter, OF_FILTER.0, OF_FILTER.1)?;
    parts.uses.borrow_mut().push(used);
    let reason = format!("stream job '{}' needs it", job.id());
    let bottom = sources.last();
    parts.frozen.replace(Some(parts.filter.co_freeze_chain(co, bottom, reason)?));
    // But for the filter, which goes out again.
    let uses = parts.uses.borrow();
    block(uses.iter().filter(|used| !Arc::ptr_eq(used.node(), &parts.filter)), "stream");
    Ok(())
}

impl Parts {
    /// Has the users of the filter turn to the node below it.
    fn co_remove_filter(
        &self,
        co: &Co<'_>,
        job: &Rc<Job>,
        top: &Arc<BlockNode>,
    ) -> Result<(), JobFailure> {
        self.co_share_filter(co);
        co_until_done(job, || self.filter.co_replace(co, top))
    }

    /// The job does not read at the filter any more, and so the filter is in the way of no user that turns.
    fn co_share_filter(&self, co: &Co<'_>) {
        let uses = self.uses.take();
        for used in uses.iter().filter(|used| Arc::ptr_eq(used.node(), &self.filter)) {
            let (held, shared) = (Permissions::empty(), Permissions::all());
            if let Err(error) = used.co_set_permissions(co, held, shared) {
                tracing::error!(node = self.filter.name(), %error, "permissions are kept");
            }
        }
        self.uses.replace(uses);
    }
}

impl StreamTask {
    /// The header, and then the graph, do without the nodes that were copied from.
    fn co_shorten(
        &self,
        co: &Co<'_>,
        job: &Rc<Job>,
        parts: &Parts,
        headers: &Headers,
    ) -> Result<(), JobFailure> {
        let State { stream, .. } = &*self.0;
        let image = stream.image();
        let base = stream.base();
        let name = base.as_ref().map(|base| stream.naming.of(base)).transpose();
        let name = name.map_err(JobFailure::Text)?;
        headers.co_name(co, &image, name.as_ref())?;
        parts.co_remove_filter(co, job, &stream.top)?;
        let Some(slot) = image.backing_slot() else { return Ok(()) };
        // Nothing of the job relies on the chain any more, so another may change it from here on.
        let mut frozen = parts.frozen.take();
        co_until_done(job, || match &mut frozen {
            Some(frozen) => frozen.co_set_child(co, &image, slot, base.as_ref()),
            None => image.co_set_child(co, slot, base.as_ref()),
        })
    }
}

impl Task for StreamTask {
    fn co_run(&self, co: &Co<'_>, _: &Rc<Job>) -> Result<(), JobFailure> {
        let Some(parts) = self.parts() else { return Ok(()) };
        parts.sweep.co_run(co)
    }

    fn co_prepare(&self, co: &Co<'_>, job: &Rc<Job>) -> Result<(), JobFailure> {
        let State { stream, blockdevs, .. } = &*self.0;
        let Some(parts) = self.parts() else {
            // The backing file stays, and may have another name.
            let base = stream.image().backing_child().filter(|_| stream.naming.file.is_some());
            let Some(base) = base else { return Ok(()) };
            let name = stream.naming.of(&base).map_err(JobFailure::Text)?;
            let rename = |headers: &Headers| headers.co_name(co, &stream.image(), Some(&name));
            return Headers::co_change(co, blockdevs, rename);
        };
        parts.sweep.co_flush(co)?;
        Headers::co_change(co, blockdevs, |headers| self.co_shorten(co, job, &parts, headers))
    }

    fn co_clean(&self, co: &Co<'_>, job: &Rc<Job>) {
        let State { stream, blockdevs, .. } = &*self.0;
        if let Some(parts) = self.0.parts.take() {
            parts.sweep.end();
            parts.co_share_filter(co);
            while let Err(error) = parts.filter.co_replace(co, &stream.top) {
                tracing::warn!(filter = parts.filter.name(), %error, "the filter of a job stays");
                if !is_in_the_way(&error) {
                    break;
                }
            }
            drop(parts.frozen.take());
            let uses = parts.uses.take();
            // The filter is above the others.
            uses.into_iter().rev().for_each(|used| used.co_end(co));
            if let Some(hidden) = parts.hidden.take() {
                hidden.co_end(co);
            }
        }
        if self.0.was_read_only.get() {
            co_put_back(co, job, blockdevs, &stream.image());
        }
    }
}
