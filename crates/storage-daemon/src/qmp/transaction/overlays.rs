//! Overlays that come above nodes.

use serde::Deserialize;

use super::ActionTypes;
use crate::daemon::transaction::PutOverlay;

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
}
