//! Snapshots inside of images.

use coblk::jobs::CreateSnapshot;

use super::ActionTypes;
use crate::qmp::snapshots::Create;

pub(super) fn add(types: &mut ActionTypes) {
    types.add("blockdev-snapshot-internal-sync", |daemon, Create { device, name }| {
        CreateSnapshot::new(daemon.device_finder(&device), name)
    });
}
