//! The map of an image, beside that of QEMU.

use std::path::Path;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{BlockNode, Extent};
use serde_json::{Value, json};

use super::Stand;

/// A run as `qemu-img map` shows it.
#[derive(Clone, Debug, PartialEq)]
struct Shown {
    start: u64,
    length: u64,
    depth: u64,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
}

impl Shown {
    fn follows(&self, last: &Shown) -> bool {
        let kind = |it: &Shown| (it.depth, it.present, it.zero, it.data, it.compressed);
        kind(self) == kind(last) && last.offset.map(|it| it + last.length) == self.offset
    }
}

/// The layers of an image, the top first.
fn layers<'a>(stand: &'a Stand, top: &Arc<BlockNode>) -> Vec<Layer<'a>> {
    let mut layers = Vec::new();
    let mut next = Some(Arc::clone(top));
    while let Some(node) = next {
        let below = node.children().into_iter().find(|(name, _)| name == "backing");
        next = below.map(|(_, node)| node);
        let backend = coblk_block::BackendOptions::new("layer").read_only(true);
        let backend = backend.open(&stand.ctx, Arc::clone(&node)).unwrap();
        layers.push(Layer { stand, node, backend });
    }
    layers
}

struct Layer<'a> {
    stand: &'a Stand,
    node: Arc<BlockNode>,
    backend: coblk_block::BlockBackend,
}

/// The first run of a range.
fn run(layers: &[Layer<'_>], start: u64, mut bytes: u64) -> Shown {
    for (depth, layer) in layers.iter().enumerate() {
        // Of this layer alone.
        let base = layers.get(depth + 1).map(|below| &*below.node);
        let ask = |co: &Co<'_>| layer.backend.co_status_above(co, base, start, bytes);
        let status = layer.stand.ctx.run(ask).unwrap().extent;
        let Extent { data, zero, allocated, compressed, stored, .. } = status;
        bytes = status.bytes;
        let below = layers.get(depth + 1).map(|below| below.node.length().saturating_sub(start));
        let shown = Shown {
            start,
            length: bytes,
            depth: depth as u64,
            present: allocated,
            zero: zero || !allocated,
            data,
            compressed,
            offset: stored.map(|stored| stored.offset),
        };
        match below {
            _ if allocated => return shown,
            // Nothing lies below, or not so far: zeroes of this layer.
            None | Some(0) => return shown,
            Some(there) => bytes = bytes.min(there),
        }
    }
    unreachable!("the last layer decides")
}

fn our_map(stand: &Stand, top: &Arc<BlockNode>) -> Vec<Shown> {
    let layers = layers(stand, top);
    let mut shown: Vec<Shown> = Vec::new();
    let mut at = 0;
    while at < top.length() {
        let next = run(&layers, at, top.length() - at);
        at += next.length;
        match shown.last_mut() {
            Some(last) if next.follows(last) => last.length += next.length,
            _ => shown.push(next),
        }
    }
    shown
}

fn their_map(stand: &Stand, image: &Path) -> Vec<Shown> {
    let (map, code) = stand.qemu_img("map", image);
    assert_eq!(code, 0);
    let flag = |run: &Value, name: &str| run[name].as_bool().unwrap_or(false);
    let runs = map.as_array().unwrap().iter().map(|run| Shown {
        start: run["start"].as_u64().unwrap(),
        length: run["length"].as_u64().unwrap(),
        depth: run["depth"].as_u64().unwrap(),
        present: flag(run, "present"),
        zero: flag(run, "zero"),
        data: flag(run, "data"),
        compressed: flag(run, "compressed"),
        offset: run["offset"].as_u64(),
    });
    runs.collect()
}

/// Panics where our block status of an image is not what `qemu-img map` shows.
#[track_caller]
pub fn compare(stand: &Stand, image: &Path) {
    let opened = stand.open(image, json!({}));
    let (ours, theirs) = (our_map(stand, &opened.node), their_map(stand, image));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "{}", image.display());
    }
    assert_eq!(ours.len(), theirs.len());
}
