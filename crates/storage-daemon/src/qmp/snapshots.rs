//! Internal snapshots.

use serde::{Deserialize, Serialize};

use super::Commands;

#[derive(Deserialize)]
pub(super) struct Create {
    pub(super) device: String,
    pub(super) name: String,
}

#[derive(Deserialize)]
struct Delete {
    device: String,
    id: Option<String>,
    name: Option<String>,
}

/// QAPI's `SnapshotInfo`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct SnapshotInfo {
    id: String,
    name: String,
    vm_state_size: u64,
    date_sec: u64,
    date_nsec: u32,
    vm_clock_sec: u64,
    vm_clock_nsec: u64,
}

const NS_PER_SECOND: u64 = 1_000_000_000;

pub(super) fn add(commands: &mut Commands) {
    commands.add("blockdev-snapshot-internal-sync", |daemon, co, Create { device, name }| {
        daemon.blockdev_snapshot_internal(co, &device, &name)
    });
    commands.add("blockdev-snapshot-delete-internal-sync", |daemon, co, it: Delete| {
        let (id, name) = (it.id.as_deref(), it.name.as_deref());
        let snapshot = daemon.blockdev_snapshot_delete_internal(co, &it.device, id, name)?;
        Ok(SnapshotInfo {
            id: snapshot.id,
            name: snapshot.name,
            vm_state_size: snapshot.vm_state_size,
            date_sec: snapshot.date.0,
            date_nsec: snapshot.date.1,
            vm_clock_sec: snapshot.vm_clock / NS_PER_SECOND,
            vm_clock_nsec: snapshot.vm_clock % NS_PER_SECOND,
        })
    });
}
