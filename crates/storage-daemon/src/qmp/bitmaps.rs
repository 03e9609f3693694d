//! Dirty bitmaps.

use coblk::BlockNode;
use coblk::block::{BitmapInfo, BitmapRef, NodeBitmap};
use coblk::qapi::Schema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Commands;

#[derive(Deserialize)]
struct Add {
    node: String,
    name: String,
    granularity: Option<u32>,
    #[serde(default)]
    persistent: bool,
    #[serde(default)]
    disabled: bool,
}

#[derive(Deserialize)]
struct Merge {
    node: String,
    target: String,
    bitmaps: Vec<BitmapRef>,
}

/// QAPI's `BlockDirtyBitmap`.
#[derive(Deserialize)]
struct Bitmap {
    node: String,
    name: String,
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
    commands.add("block-dirty-bitmap-clear", |daemon, _, Bitmap { node, name }| {
        Ok(daemon.find_bitmap(&node, &name)?.1.clear()?)
    });
    for (command, on) in
        [("block-dirty-bitmap-enable", true), ("block-dirty-bitmap-disable", false)]
    {
        commands.add(command, move |daemon, _, Bitmap { node, name }| {
            Ok(daemon.find_bitmap(&node, &name)?.1.set_recording(on)?)
        });
    }
    commands.add("block-dirty-bitmap-merge", |daemon, _, Merge { node, target, bitmaps }| {
        daemon.dirty_bitmap_merge(&NodeBitmap { node, name: target }, &bitmaps)
    });
    commands.add("x-debug-block-dirty-bitmap-sha256", |daemon, _, Bitmap { node, name }| {
        let (_, bitmap) = daemon.find_bitmap(&node, &name)?;
        Ok(json!({"sha256": bitmap.bits().sha256()}))
    });
    if let Ok(both) = Schema::of::<NodeBitmap>() {
        commands.table.alternate("BlockDirtyBitmapOrStr", vec![Schema::Builtin("str"), both]);
    }
}
