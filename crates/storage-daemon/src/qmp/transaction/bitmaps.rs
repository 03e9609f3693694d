//! Actions on dirty bitmaps.

use std::rc::Rc;

use coblk::block::{BitmapRef, NewBitmap, NodeBitmap};
use coblk::jobs::{AddBitmap, BitmapAt, ClearBitmap, MergeBitmaps, RecordBitmap, RemoveBitmap};

use super::ActionTypes;
use crate::daemon::Daemon;
use crate::qmp::bitmaps::{Add, Bitmap, Merge};

fn at(daemon: &Rc<Daemon>, node: &str, name: String) -> BitmapAt {
    BitmapAt::new(daemon.bitmap_node_finder(node), name)
}

pub(super) fn add(types: &mut ActionTypes) {
    types.add("block-dirty-bitmap-add", |daemon, it: Add| {
        let mut new = NewBitmap::new(it.name, it.granularity.map_or(0, u64::from));
        new.is_persistent = it.persistent;
        new.is_recording = !it.disabled;
        let add = AddBitmap::new(daemon.device_finder(&it.node), new);
        if it.granularity.is_none() { add.default_granularity() } else { add }
    });
    types.add("block-dirty-bitmap-clear", |daemon, Bitmap { node, name }| {
        ClearBitmap::new(at(daemon, &node, name))
    });
    types.add("block-dirty-bitmap-disable", |daemon, Bitmap { node, name }| {
        RecordBitmap::new(at(daemon, &node, name), false)
    });
    types.add("block-dirty-bitmap-enable", |daemon, Bitmap { node, name }| {
        RecordBitmap::new(at(daemon, &node, name), true)
    });
    types.add("block-dirty-bitmap-merge", |daemon, Merge { node, target, bitmaps }| {
        let source = |source| match source {
            BitmapRef::Name(name) => at(daemon, &node, name),
            BitmapRef::Of(NodeBitmap { node, name }) => at(daemon, &node, name),
        };
        let sources = bitmaps.into_iter().map(source).collect();
        MergeBitmaps::new(at(daemon, &node, target), sources)
    });
    types.add("block-dirty-bitmap-remove", |daemon, Bitmap { node, name }| {
        RemoveBitmap::new(at(daemon, &node, name))
    });
}
