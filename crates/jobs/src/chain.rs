//! Chains of images that a job makes shorter: the names of backing files in headers, and the order of steps.
//!
//! A chain reads the same at any moment, also after a crash. For that, the steps of a job that leaves images out come
//! in this order, each durable before the next:
//!
//! ```text
//! data     what the images that are left out have is in the image that stays
//! headers  the images above name the image that is below them then
//! graph    the nodes are put together as the headers say
//! ```
//!
//! Before a header changes, the image reads the same by its old name and by its new one, and so does each of several
//! images, whichever headers have changed. If a step fails, headers that have changed are changed back, in several
//! tries if need be.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::Co;
use coblk_block::{
    BackingName, BlockNode, Blockdevs, GraphError, NodeUse, Operation, WeakBlockdevs,
};

use crate::{Job, JobFailure};

/// Whether a change of the graph may succeed later.
pub(crate) fn is_in_the_way(error: &GraphError) -> bool {
    matches!(error, GraphError::RequestsInTheWay(_) | GraphError::ChangeInTheWay)
}

/// Changes the graph, as often as others are in the way, until the job is cancelled.
pub(crate) fn co_until_done(
    job: &Rc<Job>,
    mut change: impl FnMut() -> Result<(), GraphError>,
) -> Result<(), JobFailure> {
    loop {
        match change() {
            Ok(()) => return Ok(()),
            Err(error) if is_in_the_way(&error) && !job.is_cancelled() => {
                tracing::info!(job = job.id(), %error, "a change of nodes is tried again");
            }
            Err(_) if job.is_cancelled() => return Err(JobFailure::Cancelled),
            Err(error) => return Err(JobFailure::Text(error.to_string())),
        }
    }
}

/// How headers are to name a node that is a backing file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Naming {
    /// The name, in place of that of the node's file.
    pub(crate) file: Option<String>,
    /// A node that is a protocol is called raw.
    pub(crate) masks_protocol: bool,
}

impl Naming {
    /// The name of a node.
    pub(crate) fn of(&self, node: &Arc<BlockNode>) -> Result<BackingName, String> {
        let node = node.skip_filters();
        let name = self.file.clone().or_else(|| node.driver().filename());
        let name = name.ok_or_else(|| format!("Node '{}' has no file name", node.name()))?;
        let is_protocol = node.children().is_empty();
        let format = match self.masks_protocol && is_protocol {
            true => "raw",
            false => node.driver().format_name(),
        };
        Ok(BackingName::new(name, Some(format.to_owned())))
    }
}

/// The node of a chain that another job keeps jobs from, and why.
pub(crate) fn busy_node<'a>(
    nodes: impl IntoIterator<Item = &'a Arc<BlockNode>>,
) -> Option<(String, String)> {
    let busy = |node: &Arc<BlockNode>| {
        Some((node.name().to_owned(), node.blocked_reason(Operation::Job)?))
    };
    nodes.into_iter().find_map(busy)
}

/// Keeps others from what would get in the way of a job of this kind.
pub(crate) fn block<'a>(uses: impl IntoIterator<Item = &'a NodeUse>, kind: &str) {
    let operations = [Operation::Resize, Operation::Replace, Operation::Inactivate, Operation::Job];
    for used in uses {
        for operation in operations {
            used.block(operation, format!("block device is in use by block job: {kind}"));
        }
    }
}

/// Makes a node read-only again at the end of a job that has written to it. A failure is logged.
pub(crate) fn co_put_back(
    co: &Co<'_>,
    job: &Job,
    blockdevs: &WeakBlockdevs,
    node: &Arc<BlockNode>,
) {
    let Some(blockdevs) = blockdevs.upgrade() else { return };
    if let Err(error) = blockdevs.co_set_read_only(co, node, true) {
        tracing::error!(node = node.name(), job = job.id(), %error, "it stays writable");
    }
}

/// How often a header is tried to be put back.
const MAX_TRIES: u32 = 8;
/// How long the second try waits for, and each one after that twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(5);

/// The headers that a job has changed, with what they had before.
pub(crate) struct Headers {
    blockdevs: Blockdevs,
    before: RefCell<Vec<(Arc<BlockNode>, Option<BackingName>)>>,
}

impl Headers {
    /// Does what `change` does, which names the backing files in headers. If it fails or panics, headers are as they
    /// were.
    ///
    /// # Errors
    /// Those of `change`; if the set of nodes has gone. If a header cannot be put back, the failure says what it names:
    /// it reads the same by either name.
    pub(crate) fn co_change(
        co: &Co<'_>,
        blockdevs: &WeakBlockdevs,
        change: impl FnOnce(&Headers) -> Result<(), JobFailure>,
    ) -> Result<(), JobFailure> {
        let gone = || JobFailure::Text("the nodes have gone".to_owned());
        let blockdevs = blockdevs.upgrade().ok_or_else(gone)?;
        let headers = Headers { blockdevs, before: RefCell::default() };
        // The hook of panics has reported it.
        let changed = co.catch_unwind(|| change(&headers));
        let changed = changed.unwrap_or_else(|_| Err(JobFailure::panicked()));
        changed.map_err(|failure| headers.co_restore(co, failure))
    }

    /// Has the header of a node name this backing file; durable when it returns. A node without a header has nothing
    /// to change.
    pub(crate) fn co_name(
        &self,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        name: Option<&BackingName>,
    ) -> Result<(), JobFailure> {
        let info = node.driver().image().and_then(|image| image.info().ok());
        let Some(info) = info else { return Ok(()) };
        if info.backing.as_ref() == name {
            return Ok(());
        }
        // What is there after an error is not known.
        self.before.borrow_mut().push((Arc::clone(node), info.backing));
        let named = self.blockdevs.co_name_backing(co, node, name);
        named.map_err(|error| JobFailure::Text(error.to_string()))
    }

    /// Has headers name what they did before. Returns why the job fails.
    fn co_restore(&self, co: &Co<'_>, mut failure: JobFailure) -> JobFailure {
        for (node, name) in self.before.take().into_iter().rev() {
            let Err(error) = self.co_put_back(co, &node, name.as_ref()) else { continue };
            let info = node.driver().image().and_then(|image| image.info().ok());
            if info.is_some_and(|info| info.backing == name) {
                // It could not be changed in the first place.
                continue;
            }
            let node = node.name();
            tracing::error!(node, error, "a header names another backing file");
            if !matches!(failure, JobFailure::Cancelled) {
                let text = failure.text();
                let text = format!("{text}; the header of node '{node}' stays changed: {error}");
                failure = JobFailure::Text(text);
            }
        }
        failure
    }

    /// Has a header name what it did before. What has failed the job may fail this as well, and be over soon.
    fn co_put_back(
        &self,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        name: Option<&BackingName>,
    ) -> Result<(), String> {
        let mut wait = FIRST_WAIT;
        for is_last in (1..=MAX_TRIES).map(|number| number == MAX_TRIES) {
            let named = co.catch_unwind(|| self.blockdevs.co_name_backing(co, node, name));
            let error = match named {
                Ok(Ok(())) => break,
                Ok(Err(error)) => error.to_string(),
                Err(_) => JobFailure::panicked().text(),
            };
            if is_last {
                return Err(error);
            }
            co.sleep(wait);
            wait *= 2;
        }
        Ok(())
    }
}
