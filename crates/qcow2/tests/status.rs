//! Block status and information, beside those of QEMU.

mod util;

use std::path::Path;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{BlockNode, Extent};
use serde_json::{Value, json};
use util::{Opened, Stand};

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

#[track_caller]
fn compare(stand: &Stand, image: &Path) {
    let opened = stand.open(image, json!({}));
    let (ours, theirs) = (our_map(stand, &opened.node), their_map(stand, image));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "{}", image.display());
    }
    assert_eq!(ours.len(), theirs.len());
}

/// Writes of all kinds, of whole units: QEMU shows what it fills up with zeroes as holes of the file.
fn fill(stand: &Stand, image: &Path, unit: u64, packs: bool) {
    let all = [
        ("write -P 1", 0, 3),
        ("write -P 2", 8, 1),
        ("write -z", 9, 5),
        ("discard", 1, 1),
        ("write -P 3", 20, 2),
        ("write -z -u", 16, 2),
        ("write -P 4", 32, 1),
        ("write -z", 32, 1),
    ];
    let mut commands: Vec<String> =
        all.map(|(what, at, units)| format!("{what} {} {}", at * unit, units * unit)).into();
    if packs {
        commands.push(format!("write -c -P 7 {} {}", 36 * unit, 2 * unit.max(65536)));
    }
    stand.qemu_io(image, &commands);
}

#[test]
fn q124_q146_a_map_is_that_of_qemu_img() {
    for (options, unit, packs) in [
        ("", 65536, true),
        ("compat=0.10", 65536, true),
        ("cluster_size=512", 65536, true),
        ("cluster_size=2M", 2 << 20, true),
        ("extended_l2=on", 65536, true),
        ("extended_l2=on", 2048, false),
        ("compression_type=zstd", 65536, true),
        ("data_file=data.raw", 65536, false),
    ] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", options, "100M");
        fill(&stand, &image, unit, packs);
        compare(&stand, &image);
        stand.end();
    }
}

#[test]
fn q125_a_map_of_a_chain_is_that_of_qemu_img() {
    for options in ["compat=1.1", "extended_l2=on", "compat=0.10"] {
        let stand = Stand::new();
        let base = stand.create("base.qcow2", "", "4M");
        stand.qemu_io(&base, &["write -P 9 0 3M".to_owned(), "write -z 1M 64k".to_owned()]);
        let middle =
            stand.create("middle.qcow2", "backing_file=base.qcow2,backing_fmt=qcow2", "20M");
        stand.qemu_io(&middle, &["write -P 8 5M 1M".to_owned(), "write -P 8 128k 64k".to_owned()]);
        let top = format!(
            "backing_file=middle.qcow2,backing_fmt=qcow2{}{options}",
            if options.is_empty() { "" } else { "," }
        );
        let image = stand.create("image.qcow2", &top, "22M");
        fill(&stand, &image, 65536, true);
        compare(&stand, &image);
        stand.end();
    }
}

/// The information of the format on both sides.
#[track_caller]
fn compare_info(stand: &Stand, image: &Path) {
    let opened = stand.open(image, json!({}));
    let (theirs, code) = stand.qemu_img("info", image);
    assert_eq!(code, 0);
    let info = stand.ctx.run(|co| opened.node.co_image(co).unwrap().info()).unwrap();
    assert_eq!(info.virtual_size, theirs["virtual-size"]);
    assert_eq!(info.cluster_size.unwrap(), theirs["cluster-size"]);
    assert_eq!(info.dirty, theirs["dirty-flag"]);
    let backing = info.backing.as_ref();
    let name = backing.map_or(Value::Null, |backing| json!(backing.name));
    assert_eq!(name, theirs["backing-filename"]);
    let format = backing.and_then(|it| it.format.clone()).map_or(Value::Null, |it| json!(it));
    assert_eq!(format, theirs["backing-filename-format"]);
    let specific = info.specific.unwrap();
    assert_eq!(json!({"type": specific.kind, "data": specific.data}), theirs["format-specific"]);
    compare_snapshots(stand, &opened, &theirs["snapshots"]);
}

#[track_caller]
fn compare_snapshots(stand: &Stand, opened: &Opened<'_>, theirs: &Value) {
    let snapshots = stand.ctx.run(|co| opened.node.co_image(co).unwrap().co_snapshots(co)).unwrap();
    let none = Vec::new();
    let theirs = theirs.as_array().unwrap_or(&none);
    assert_eq!(snapshots.len(), theirs.len());
    for (ours, theirs) in snapshots.iter().zip(theirs) {
        assert_eq!(theirs["id"], *ours.id);
        assert_eq!(theirs["name"], *ours.name);
        assert_eq!(theirs["vm-state-size"], ours.vm_state_size);
        assert_eq!(theirs["date-sec"], ours.date.0);
        assert_eq!(theirs["date-nsec"], ours.date.1);
    }
}

#[test]
fn q144_information_is_that_of_qemu_img() {
    for options in [
        "",
        "compat=0.10",
        "lazy_refcounts=on",
        "refcount_bits=1,cluster_size=4k",
        "extended_l2=on,compression_type=zstd",
        "data_file=data.raw,data_file_raw=on",
    ] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", options, "10M");
        compare_info(&stand, &image);
        stand.end();
    }
    let stand = Stand::new();
    stand.create("base.qcow2", "", "10M");
    let image = stand.create("image.qcow2", "backing_file=base.qcow2,backing_fmt=qcow2", "10M");
    compare_info(&stand, &image);
    stand.end();
}

#[test]
fn q47_q145_snapshots_and_bitmaps_are_those_of_qemu_img() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "10M");
    let text = coblk_tests::tools::text(&image);
    for args in [
        &["snapshot", "-c", "first", text][..],
        &["snapshot", "-c", "a second one", text],
        &["bitmap", "--add", "-g", "512k", text, "b0"],
        &["bitmap", "--add", "--disable", text, "other bitmap"],
    ] {
        coblk_tests::tools::run("qemu-img", args);
    }
    compare_info(&stand, &image);
    stand.end();
}
