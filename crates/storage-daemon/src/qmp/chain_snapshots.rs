//! External snapshots, and names of backing files.

use serde::Deserialize;

use super::Commands;
use crate::daemon::{DaemonError, NewOverlay};

#[derive(Deserialize)]
struct Snapshot {
    node: String,
    overlay: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct SnapshotSync {
    /// Of devices with a name of their own; there are none.
    device: Option<String>,
    node_name: Option<String>,
    snapshot_file: String,
    snapshot_node_name: Option<String>,
    format: Option<String>,
    mode: Option<NewImageMode>,
}

/// QAPI's `NewImageMode`.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum NewImageMode {
    Existing,
    AbsolutePaths,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ChangeBackingFile {
    device: String,
    image_node_name: String,
    backing_file: String,
}

impl SnapshotSync {
    /// The overlay that is to be made.
    pub(super) fn overlay(self) -> Result<NewOverlay, DaemonError> {
        let Some(node_name) = &self.node_name else {
            let (device, node_name) = (self.device.unwrap_or_default(), String::new());
            return Err(DaemonError::NoSuchDevice { device, node_name });
        };
        Ok(NewOverlay {
            node_name: node_name.clone(),
            file: self.snapshot_file,
            overlay_name: self.snapshot_node_name,
            format: self.format.unwrap_or_else(|| "qcow2".to_owned()),
            exists: matches!(self.mode, Some(NewImageMode::Existing)),
        })
    }
}

pub(super) fn add(commands: &mut Commands) {
    commands.add("blockdev-snapshot", |daemon, co, Snapshot { node, overlay }| {
        daemon.blockdev_snapshot(co, &node, &overlay)
    });
    commands.add("blockdev-snapshot-sync", |daemon, co, arguments: SnapshotSync| {
        daemon.blockdev_snapshot_sync(co, &arguments.overlay()?)
    });
    commands.add("change-backing-file", |daemon, co, it: ChangeBackingFile| {
        daemon.change_backing_file(co, &it.device, &it.image_node_name, &it.backing_file)
    });
}
