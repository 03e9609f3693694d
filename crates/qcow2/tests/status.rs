//! Block status and information, beside those of QEMU.

use std::path::Path;

use serde_json::{Value, json};

use crate::util::map::compare;
use crate::util::{Opened, Stand};

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

/// Clusters that have a place and nothing there are holes, as long as that is so of most of them.
#[test]
fn q126_a_map_shows_preallocated_space_as_holes() {
    for options in
        ["preallocation=metadata", "preallocation=metadata,cluster_size=4k", "preallocation=falloc"]
    {
        for written in [0, 1, 12] {
            let stand = Stand::new();
            let image = stand.create("image.qcow2", options, "16M");
            if written > 0 {
                let commands =
                    [format!("write -P 5 1M {written}M"), "write -z 100k 64k".to_owned()];
                stand.qemu_io(&image, &commands);
            }
            compare(&stand, &image);
            stand.end();
        }
    }
    // A hole behind the end of the file.
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "preallocation=metadata", "16M");
    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - 4096).unwrap();
    compare(&stand, &image);
    stand.end();
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
