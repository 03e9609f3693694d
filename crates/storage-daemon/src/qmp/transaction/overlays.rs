//! Overlays that come above nodes.

use serde::Deserialize;

use super::ActionTypes;
use crate::daemon::transaction::{MakeOverlay, PutOverlay};
use crate::qmp::chain_snapshots::SnapshotSync;

/// QAPI's `BlockdevSnapshot`.
#[derive(Deserialize)]
struct Snapshot {
    node: String,
    overlay: String,
}

pub(super) fn add(types: &mut ActionTypes) {
    types.add("blockdev-snapshot", |daemon, Snapshot { node, overlay }| {
        PutOverlay::new(daemon, &node, &overlay)
    });
    types.add("blockdev-snapshot-sync", |daemon, arguments: SnapshotSync| {
        MakeOverlay::new(daemon, arguments.overlay())
    });
}
