//! Dirty bitmaps.

use coblk::BlockNode;
use coblk::block::{BitmapInfo, BitmapRef, NodeBitmap};
use coblk::qapi::Schema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Commands;

/// QAPI's `BlockDirtyBitmapAdd`.
#[derive(Deserialize)]
pub(super) struct Add {
    pub(super) node: String,
    pub(super) name: String,
    pub(super) granularity: Option<u32>,
    #[serde(default)]
    pub(super) persistent: bool,
    #[serde(default)]
    pub(super) disabled: bool,
}

/// QAPI's `BlockDirtyBitmapMerge`.
#[derive(Deserialize)]
pub(super) struct Merge {
    pub(super) node: String,
    pub(super) target: String,
    pub(super) bitmaps: Vec<BitmapRef>,
}

/// QAPI's `BlockDirtyBitmap`.
#[derive(Deserialize)]
pub(super) struct Bitmap {
    pub(super) node: String,
    pub(super) name: String,
}

/// QAPI's `BlockDirtyInfo`.
#[derive(Serialize)]
pub(super) struct Info {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    count: u64,
    granularity: u64,
    recording: bool,
    busy: bool,
    persistent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    inconsistent: Option<bool>,
}

impl From<BitmapInfo> for Info {
    fn from(it: BitmapInfo) -> Info {
        Info {
            name: it.name,
            count: it.count,
            granularity: it.granularity,
            recording: it.is_recording,
            busy: it.is_busy,
            persistent: it.is_persistent,
            inconsistent: it.is_inconsistent.then_some(true),
        }
    }
}

/// Those of a node, newest first.
pub(super) fn of(node: &BlockNode) -> Vec<Info> {
    node.bitmaps().list().iter().map(|bitmap| bitmap.info().into()).collect()
}

pub(super) fn add(commands: &mut Commands) {
    commands.add("block-dirty-bitmap-add", |daemon, co, it: Add| {
        let bitmap = NodeBitmap { node: it.node, name: it.name };
        daemon.dirty_bitmap_add(co, bitmap, it.granularity, (it.persistent, !it.disabled))
    });
    commands.add("block-dirty-bitmap-remove", |daemon, co, Bitmap { node, name }| {
        daemon.dirty_bitmap_remove(co, &NodeBitmap { node, name })
    });
    commands.add("block-dirty-bitmap-clear", |daemon, co, Bitmap { node, name }| {
        daemon.dirty_bitmap_clear(co, &NodeBitmap { node, name })
    });
    for (command, on) in
        [("block-dirty-bitmap-enable", true), ("block-dirty-bitmap-disable", false)]
    {
        commands.add(command, move |daemon, co, Bitmap { node, name }| {
            daemon.dirty_bitmap_record(co, &NodeBitmap { node, name }, on)
        });
    }
    commands.add("block-dirty-bitmap-merge", |daemon, co, Merge { node, target, bitmaps }| {
        daemon.dirty_bitmap_merge(co, &NodeBitmap { node, name: target }, &bitmaps)
    });
    commands.add("x-debug-block-dirty-bitmap-sha256", |daemon, _, Bitmap { node, name }| {
        let (_, bitmap) = daemon.find_bitmap(&node, &name)?;
        Ok(json!({"sha256": bitmap.bits().sha256()}))
    });
    if let Ok(both) = Schema::of::<NodeBitmap>() {
        commands.table.alternate("BlockDirtyBitmapOrStr", vec![Schema::Builtin("str"), both]);
    }
}
