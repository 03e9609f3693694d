//! Other lengths of the disk, beside a model and QEMU's programs.

use std::fs;

use coblk_block::{Preallocation, Truncate};
use coblk_tests::{errno, tools};
use serde_json::json;

use crate::util::model::Model;
use crate::util::{Stand, assert_same, patch};

const OFF: Truncate = Truncate { exact: true, preallocation: Preallocation::Off, zero: false };

fn run(create: &str, unit: usize) {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", create, "1M");
    let mut model = Model::new(&stand, &image, json!({}));
    for round in 0..8 {
        model.writes(10, 4 * unit);
        let sectors = model.random.usize(1..40 * unit / 512);
        model.truncate(sectors * 512, OFF);
        model.writes(5, 4 * unit);
        if round % 3 == 0 {
            model.check();
        }
    }
    model.check();
    drop(model);
    stand.end();
}

#[test]
fn q116_q118_a_disk_becomes_longer_and_shorter() {
    run("", 65536);
    run("cluster_size=4k", 16 << 10);
    run("extended_l2=on", 65536);
    run("compat=0.10,cluster_size=512", 32 << 10);
    run("data_file=data.raw", 65536);
}

#[test]
fn q116_a_longer_disk_has_a_longer_l1_table() {
    for create in ["cluster_size=512", "", "data_file=data.raw"] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", create, "1M");
        let mut model = Model::new(&stand, &image, json!({}));
        model.writes(10, 64 << 10);
        let all = if create.contains("512") { 64 << 20 } else { 1 << 40 };
        let opened = model.opened();
        let grow = |length: u64| opened.backend().truncate(&stand.ctx, length).unwrap();
        grow(all);
        opened.write(all - 512, &[7; 512]).unwrap();
        opened.flush().unwrap();
        grow(2 * all);
        opened.write(2 * all - 512, &[8; 512]).unwrap();
        assert_eq!(opened.read(all - 512, 512).unwrap(), [7; 512]);
        assert_eq!(opened.read(2 * all - 1024, 1024).unwrap(), [[0; 512], [8; 512]].concat());
        // And back: what is behind the end is gone.
        model.truncate(model.content.len(), OFF);
        model.check();
        drop(model);
        stand.end();
    }
}

#[test]
fn q118_what_is_behind_a_shorter_disk_is_freed() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=4k", "64M");
    let opened = stand.open_writable(&image, json!({}));
    opened.write(0, &vec![7; 32 << 20]).unwrap();
    opened.flush().unwrap();
    opened.backend().truncate(&stand.ctx, 1 << 20).unwrap();
    assert!(fs::metadata(&image).unwrap().len() < 3 << 20);
    drop(opened);
    stand.check(&image);
    stand.end();
}

#[test]
fn q117_a_longer_disk_is_preallocated() {
    use Preallocation::{Falloc, Full, Metadata};
    for create in ["", "cluster_size=4k", "extended_l2=on", "compat=0.10"] {
        for preallocation in [Metadata, Falloc, Full] {
            let stand = Stand::new();
            let image = stand.create("image.qcow2", create, "1M");
            let mut model = Model::new(&stand, &image, json!({"discard": "unmap"}));
            model.writes(5, 64 << 10);
            // Free clusters in between.
            let backend = model.opened().backend();
            backend.pdiscard(&stand.ctx, 0, 512 << 10).unwrap();
            model.opened().flush().unwrap();
            model.content[..512 << 10].fill(0);
            let how = Truncate { preallocation, ..OFF };
            model.truncate(8 << 20, how);
            let status = model.opened().status(2 << 20, 1 << 20);
            assert!(status.stored.is_some(), "{create} {preallocation:?}");
            model.check();
            assert!(fs::metadata(&image).unwrap().len() > 7 << 20);
            model.writes(20, 64 << 10);
            model.check();
            drop(model);
            stand.end();
        }
    }
}

#[test]
fn q119_what_is_grown_into_reads_as_zeroes() {
    for create in ["", "extended_l2=on", "compat=0.10", "cluster_size=4k"] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", create, "1M");
        let text = tools::text(&image).to_owned();
        stand.qemu_io(&image, &["write -P 7 0 1M".to_owned()]);
        // Into a cluster, by another program, which leaves what is there.
        tools::run("qemu-img", ["resize", "-q", "--shrink", &text, "300k"]);
        let mut model = Model::new(&stand, &image, json!({}));
        model.truncate(2 << 20, OFF);
        model.check();
        assert!(model.content[300 << 10..].iter().all(|byte| *byte == 0));
        drop(model);
        stand.end();
    }
}

#[test]
fn q116_growing_over_a_longer_backing_file_shows_zeroes() {
    for create in ["", "extended_l2=on", "cluster_size=4k", "compat=0.10"] {
        let stand = Stand::new();
        stand.random_file("base.raw", 4 << 20);
        let options = format!("backing_file=base.raw,backing_fmt=raw,{create}");
        let image = stand.create("image.qcow2", options.trim_end_matches(','), "1000k");
        let mut model = Model::new(&stand, &image, json!({}));
        model.writes(5, 64 << 10);
        model.truncate(3 << 20, OFF);
        model.check();
        // What lies behind the backing file takes no place.
        model.truncate(64 << 20, OFF);
        model.writes(5, 64 << 10);
        model.check();
        assert!(fs::metadata(&image).unwrap().len() < 8 << 20, "{create}");
        drop(model);
        stand.end();
    }
}

#[test]
fn q115_lengths_that_cannot_be_are_refused() {
    let stand = Stand::new();
    let image = stand.create("v2.qcow2", "compat=0.10", "1M");
    tools::run("qemu-img", ["snapshot", "-c", "one", tools::text(&image)]);
    let opened = stand.open_writable(&image, json!({}));
    let truncate = |length| errno(opened.backend().truncate(&stand.ctx, length));
    assert_eq!(truncate(2 << 20), libc::ENOTSUP);
    assert_eq!(truncate((1 << 20) + 1), libc::EINVAL);
    assert_eq!(opened.node.length(), 1 << 20);
    drop(opened);
    let image = stand.create("v3.qcow2", "", "1M");
    let opened = stand.open_writable(&image, json!({}));
    let how = Truncate { preallocation: Preallocation::Full, ..OFF };
    let shrink = |co: &coblk_aio::Co<'_>| opened.backend().co_truncate_with(co, 512, how);
    assert_eq!(errno(stand.ctx.run(shrink)), libc::EINVAL);
    assert!(opened.backend().truncate(&stand.ctx, 1 << 62).is_err());
    drop(opened);
    stand.check(&image);
    stand.end();
}

#[test]
fn q115_a_snapshot_keeps_its_length() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    let text = tools::text(&image).to_owned();
    stand.qemu_io(&image, &["write -P 7 0 1M".to_owned()]);
    tools::run("qemu-img", ["snapshot", "-c", "one", &text]);
    let mut model = Model::new(&stand, &image, json!({}));
    model.truncate(300 << 10, OFF);
    model.writes(5, 64 << 10);
    model.check();
    tools::run("qemu-img", ["snapshot", "-a", "one", &text]);
    assert_same(&stand.content(&image), &[7; 1 << 20], "the snapshot");
    stand.check(&image);
    drop(model);
    stand.end();
}

/// An image that a program has begun to shorten, and no more than that: the length is the new one, and what is
/// behind it still mapped.
#[test]
fn q119_what_an_interrupted_cut_has_left_is_not_seen_again() {
    for create in ["", "extended_l2=on", "compat=0.10", "cluster_size=4k"] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", create, "1M");
        stand.qemu_io(&image, &["write -P 7 0 1M".to_owned()]);
        // The field `size`.
        patch(&image, 24, &(512_u64 << 10).to_be_bytes());
        let opened = stand.open_writable(&image, json!({}));
        opened.backend().truncate(&stand.ctx, 1 << 20).unwrap();
        let expected = [[7; 512 << 10], [0; 512 << 10]].concat();
        assert_same(&opened.read(0, 1 << 20).unwrap(), &expected, create);
        drop(opened);
        assert_same(&stand.content(&image), &expected, create);
        stand.check(&image);
        stand.end();
    }
}
