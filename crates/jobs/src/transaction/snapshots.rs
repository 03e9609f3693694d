//! Snapshots inside of images.

use std::io;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::BlockNode;

use super::action::{Action, ActionError, FindNode, Preparing};

/// Why a snapshot inside of an image is not made, in QEMU's words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The node refuses writes.
    #[error("Device '{0}' is read only")]
    ReadOnly(String),
    /// A snapshot has a name.
    #[error("Name is empty")]
    EmptyName,
    /// There is one of this name.
    #[error("Snapshot with name '{name}' already exists on device '{device}'")]
    Exists {
        /// The name.
        name: String,
        /// The node.
        device: String,
    },
    /// The format has no snapshots.
    #[error(
        "Block format '{format}' used by device '{device}' does not support internal snapshots"
    )]
    Unsupported {
        /// The driver.
        format: &'static str,
        /// The node.
        device: String,
    },
    /// The image cannot be changed.
    #[error("Failed to create snapshot '{name}' on device '{device}': {source}")]
    Io {
        /// The name.
        name: String,
        /// The node.
        device: String,
        /// Why.
        source: io::Error,
    },
}

/// Keeps in the image of a node what its disk has, under a name that no other snapshot of it has, and returns the
/// id that the format gives it. Requests run meanwhile, but those that change what is mapped wait.
///
/// # Errors
/// If the node is read-only, or has no such image; those of the format.
pub fn co_create_snapshot(
    co: &Co<'_>,
    node: &BlockNode,
    name: &str,
) -> Result<String, SnapshotError> {
    let device = || node.name().to_owned();
    if node.is_read_only() {
        return Err(SnapshotError::ReadOnly(device()));
    }
    if name.is_empty() {
        return Err(SnapshotError::EmptyName);
    }
    let created = node.co_image(co).and_then(|image| {
        if image.co_snapshots(co)?.iter().any(|it| it.name == name) {
            return Ok(None);
        }
        image.co_create_snapshot(co, name).map(Some)
    });
    match created {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(SnapshotError::Exists { name: name.to_owned(), device: device() }),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let format = node.driver().format_name();
            Err(SnapshotError::Unsupported { format, device: device() })
        }
        Err(source) => Err(SnapshotError::Io { name: name.to_owned(), device: device(), source }),
    }
}

/// Takes a snapshot inside of the image of a node.
pub struct CreateSnapshot {
    node: Box<dyn FindNode>,
    name: String,
    created: Option<(Arc<BlockNode>, String)>,
}

impl CreateSnapshot {
    /// Takes one of this name.
    pub fn new(node: impl FindNode + 'static, name: impl Into<String>) -> CreateSnapshot {
        CreateSnapshot { node: Box::new(node), name: name.into(), created: None }
    }
}

impl Action for CreateSnapshot {
    fn name(&self) -> &'static str {
        "blockdev-snapshot-internal-sync"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.node.find().into_iter().collect()
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        let node = self.node.find()?;
        let id = co_create_snapshot(co, &node, &self.name)?;
        self.created = Some((node, id));
        Ok(())
    }

    fn co_abort(&mut self, co: &Co<'_>) {
        let Some((node, id)) = self.created.take() else { return };
        let deleted = node.co_image(co).and_then(|image| image.co_delete_snapshot(co, &id));
        if let Err(error) = deleted {
            let node = node.name();
            tracing::error!(node, id, %error, "the snapshot of a transaction without effect stays");
        }
    }
}
