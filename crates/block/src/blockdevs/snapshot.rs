//! External snapshots: an overlay comes above a node, and keeps what is written from then on.
//!
//! ```text
//! prepare  both are drained; the node is flushed, and becomes the backing file of the overlay; its users turn
//! commit   the node is read-only
//! abort    the users turn back
//!          requests go on, in either case
//! ```

use std::sync::Arc;

use coblk_aio::Co;

use super::Blockdevs;
use crate::driver::permissions::Permissions;
use crate::graph::change::ChangeLock;
use crate::graph::node::BlockNode;
use crate::graph::overlay::{PutOn, co_put_on};
use crate::graph::{self, DrainedSection, GraphError, Operation};

/// Why a node cannot get an overlay, in QEMU's words. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Another user reads the overlay.
    #[error("The overlay is already in use")]
    InUse,
    /// The overlay is a filter.
    #[error("Filters cannot be used as overlays")]
    Filter,
    /// The overlay has a backing file.
    #[error("The overlay already has a backing image")]
    HasBacking,
    /// The driver of the overlay knows no backing files.
    #[error("The overlay does not support backing images")]
    NoBacking,
    /// Another node has the node as its backing file.
    #[error("Node '{node}' is busy: node is used as backing hd of '{overlay}'")]
    IsBacking {
        /// The node.
        node: String,
        /// The other.
        overlay: String,
    },
    /// The node leads to the overlay.
    #[error("Making '{node}' a backing child of '{overlay}' would create a cycle")]
    Cycle {
        /// The node.
        node: String,
        /// The overlay.
        overlay: String,
    },
    /// The graph cannot be changed.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// A snapshot that is prepared: the overlay is above the node, and both are drained until this is committed or
/// aborted. Dropped instead, as by a coroutine that is unwound, it leaves the overlay where it is, and the node
/// writable.
#[must_use = "it is committed or aborted"]
pub struct PreparedSnapshot {
    put: PutOn,
    _drained: (DrainedSection, DrainedSection),
}

impl Blockdevs {
    /// Puts `overlay` above `node`, at one instant: the overlay is as long as the node, has nothing, and nothing
    /// reads it. One that is written meanwhile, as the target of a copy, is right too.
    ///
    /// # Errors
    /// If the overlay cannot have the node as its backing file; if a job has the node, or a user does not agree; if
    /// what was written to the node cannot be flushed. All is as before then.
    pub fn co_prepare_snapshot(
        &self,
        co: &Co<'_>,
        change: &ChangeLock,
        node: &Arc<BlockNode>,
        overlay: &Arc<BlockNode>,
    ) -> Result<PreparedSnapshot, SnapshotError> {
        check(node, overlay)?;
        let drained =
            (graph::co_drain_for_change(co, node)?, graph::co_drain_for_change(co, overlay)?);
        // Another user may have come meanwhile.
        check(node, overlay)?;
        Ok(PreparedSnapshot { put: co_put_on(co, change, node, overlay)?, _drained: drained })
    }

    /// That a node can get an overlay, before one is made.
    ///
    /// # Errors
    /// If a job has the node, or another node has it as its backing file.
    pub fn check_snapshot(&self, node: &Arc<BlockNode>) -> Result<(), SnapshotError> {
        check_node(node)
    }

    /// Takes a snapshot by itself: [prepares](Self::co_prepare_snapshot) and commits it.
    ///
    /// # Errors
    /// As of [`co_prepare_snapshot`](Self::co_prepare_snapshot); if another change of nodes is in the way.
    pub fn co_snapshot(
        &self,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        overlay: &Arc<BlockNode>,
    ) -> Result<(), SnapshotError> {
        check(node, overlay)?;
        let change = ChangeLock::co_take(co)?;
        let prepared = self.co_prepare_snapshot(co, &change, node, overlay)?;
        prepared.co_commit(co, &change, self);
        Ok(())
    }
}

impl PreparedSnapshot {
    /// The snapshot stays. Its node becomes read-only, unless it has another user that writes to it.
    pub fn co_commit(self, co: &Co<'_>, change: &ChangeLock, blockdevs: &Blockdevs) {
        let node = self.put.node();
        if !node.is_read_only()
            && let Err(error) = blockdevs.co_set_read_only_locked(co, change, node, true)
        {
            tracing::info!(node = node.name(), %error, "the node of a snapshot stays writable");
        }
    }

    /// The overlay is where it was before, and users of the node turn back to it. Actions that were prepared later are
    /// aborted before.
    pub fn co_abort(self, co: &Co<'_>, change: &ChangeLock) {
        if let Err(error) = self.put.co_take_off(co, change) {
            tracing::error!(node = self.put.node().name(), %error, "a snapshot cannot be undone");
        }
    }
}

fn check(node: &Arc<BlockNode>, overlay: &Arc<BlockNode>) -> Result<(), SnapshotError> {
    check_node(node)?;
    if overlay.held_permissions().contains(Permissions::CONSISTENT_READ) {
        return Err(SnapshotError::InUse);
    }
    if overlay.filter_child().is_some() {
        return Err(SnapshotError::Filter);
    }
    if overlay.backing_child().is_some() {
        return Err(SnapshotError::HasBacking);
    }
    if overlay.backing_slot().is_none() {
        return Err(SnapshotError::NoBacking);
    }
    if node.leads_to(overlay) {
        let (node, overlay) = (node.name().to_owned(), overlay.name().to_owned());
        return Err(SnapshotError::Cycle { node, overlay });
    }
    Ok(())
}

/// That a node can get an overlay, whatever overlay that is.
fn check_node(node: &Arc<BlockNode>) -> Result<(), SnapshotError> {
    graph::lock().check_operation(node, Operation::Replace)?;
    match node.overlays().first() {
        Some(above) => {
            let (node, overlay) = (node.name().to_owned(), above.name().to_owned());
            Err(SnapshotError::IsBacking { node, overlay })
        }
        None => Ok(()),
    }
}
