//! Internal snapshots of nodes, with QEMU's refusals.

use std::sync::Arc;

use coblk::block::ImageSnapshot;
use coblk::jobs::co_create_snapshot;
use coblk::{BlockNode, Co};

use super::{Daemon, DaemonError};
use crate::options::OptionError;

fn refused(why: String) -> DaemonError {
    OptionError::other(why).into()
}

impl Daemon {
    fn node_with_snapshots(&self, device: &str) -> Result<Arc<BlockNode>, DaemonError> {
        self.blockdevs.node(device).ok_or_else(|| DaemonError::NoSuchDevice {
            device: device.to_owned(),
            node_name: device.to_owned(),
        })
    }

    /// `blockdev-snapshot-internal-sync`: keeps in the image of a node what its disk has. Requests run
    /// meanwhile, but those that change what is mapped wait.
    ///
    /// # Errors
    /// If there is no such node, or it has no such image, or a snapshot with that name; those of the format.
    pub fn blockdev_snapshot_internal(
        &self,
        co: &Co<'_>,
        device: &str,
        name: &str,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("blockdev-snapshot-internal-sync")?;
        let node = self.node_with_snapshots(device)?;
        co_create_snapshot(co, &node, name).map_err(|error| refused(error.to_string()))?;
        Ok(())
    }

    /// `blockdev-snapshot-delete-internal-sync`: deletes the snapshot with this id, or this name, or both, and
    /// returns what it was.
    ///
    /// # Errors
    /// If there is no such node or snapshot; those of the format.
    pub fn blockdev_snapshot_delete_internal(
        &self,
        co: &Co<'_>,
        device: &str,
        id: Option<&str>,
        name: Option<&str>,
    ) -> Result<ImageSnapshot, DaemonError> {
        let _command = self.begin_command("blockdev-snapshot-delete-internal-sync")?;
        let node = self.node_with_snapshots(device)?;
        if id.is_none() && name.is_none() {
            return Err(refused("Name or id must be provided".to_owned()));
        }
        let listed = node.co_image(co).and_then(|image| image.co_snapshots(co));
        let listed =
            listed.map_err(|error| refused(format!("Failed to get a snapshot list: {error}")))?;
        let is_meant = |it: &ImageSnapshot| {
            id.is_none_or(|id| it.id == id) && name.is_none_or(|name| it.name == name)
        };
        let Some(snapshot) = listed.into_iter().find(is_meant) else {
            let [id, name] = [id, name].map(|it| it.unwrap_or("null"));
            return Err(refused(format!(
                "Snapshot with id '{id}' and name '{name}' does not exist on device '{device}'"
            )));
        };
        let deleted = node.co_image(co).and_then(|it| it.co_delete_snapshot(co, &snapshot.id));
        let failed = |error| {
            let ImageSnapshot { id, name, .. } = &snapshot;
            refused(format!(
                "Failed to delete snapshot with id '{id}' and name '{name}' on device '{device}': {error}"
            ))
        };
        deleted.map_err(failed)?;
        Ok(snapshot)
    }
}
