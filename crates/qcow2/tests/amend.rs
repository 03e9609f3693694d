//! Changes of an image's options, beside `qemu-img amend`.

mod util;

use std::fs;
use std::path::Path;
use std::process::Command;

use coblk_block::{Amend, ZeroFlags};
use coblk_qapi::Deferred;
use coblk_qcow2::layout::Header;
use serde_json::{Value, json};
use util::{Opened, Stand};

/// Changes options of an open image.
fn amend(opened: &Opened<'_>, options: Value) -> Result<(), String> {
    let change = Amend::new(Deferred::new(options.as_object().unwrap().clone()));
    let changed = opened.ctx().run(|co| opened.node.co_image(co)?.co_amend(co, change));
    changed.map_err(|error| error.to_string())
}

fn header(path: &Path) -> Header {
    Header::parse(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn q150_q151_headers_are_changed_as_by_qemu_img_amend() {
    let stand = Stand::new();
    for (create, ours, theirs) in [
        ("compat=0.10", json!({"version": "v3"}), "compat=1.1"),
        ("compat=0.10,cluster_size=4k", json!({"version": "v3"}), "compat=1.1"),
        (
            "compat=0.10",
            json!({"version": "v3", "lazy-refcounts": true}),
            "compat=1.1,lazy_refcounts=on",
        ),
        ("compat=1.1", json!({"lazy-refcounts": true}), "lazy_refcounts=on"),
        ("lazy_refcounts=on", json!({"lazy-refcounts": false}), "lazy_refcounts=off"),
        ("compat=0.10", json!({"version": "v2"}), "compat=0.10"),
        ("data_file=DATA,data_file_raw=on", json!({"data-file-raw": false}), "data_file_raw=off"),
    ] {
        let named = create.replace("DATA", stand.path("data").to_str().unwrap());
        let path = stand.create("image.qcow2", &named, "3M");
        stand.qemu_io(&path, &["write -P 9 1M 100k".to_owned()]);
        let other = stand.path("theirs.qcow2");
        fs::copy(&path, &other).unwrap();
        let opened = stand.open_writable(&path, json!({}));
        amend(&opened, ours).unwrap();
        // The node goes on.
        let mut bytes = vec![0; 3 << 20];
        bytes[1 << 20..(1 << 20) + (100 << 10)].fill(9);
        opened.write(0, &[8; 3000]).unwrap();
        bytes[..3000].fill(8);
        let zero = |co: &coblk_aio::Co<'_>| {
            opened.backend().co_pwrite_zeroes(co, 1 << 20, 65536, ZeroFlags::empty())
        };
        opened.ctx().run(zero).unwrap();
        bytes[1 << 20..(1 << 20) + 65536].fill(0);
        opened.flush().unwrap();
        assert!(opened.read(0, 3 << 20).unwrap() == bytes, "{create}");
        drop(opened);
        let command = ["amend", "-f", "qcow2", "-o", theirs];
        assert!(Command::new("qemu-img").args(command).arg(&other).status().unwrap().success());
        let mut ours = header(&path);
        let theirs = header(&other);
        // Writes have changed no more than where tables are.
        (ours.l1_offset, ours.refcount_table_offset) =
            (theirs.l1_offset, theirs.refcount_table_offset);
        assert_eq!(ours, theirs, "{create}");
        stand.check(&path);
        assert!(stand.content(&path) == bytes, "{create}");
    }
    stand.end();
}

#[test]
fn q150_a_data_file_gets_another_name() {
    let stand = Stand::new();
    let (data, moved) = (stand.path("data"), stand.path("moved"));
    let path = stand.create("image.qcow2", &format!("data_file={}", data.display()), "3M");
    stand.qemu_io(&path, &["write -P 9 1M 100k".to_owned()]);
    let before = stand.content(&path);
    let opened = stand.open_writable(&path, json!({}));
    amend(&opened, json!({"data-file": moved})).unwrap();
    drop(opened);
    fs::rename(&data, &moved).unwrap();
    assert!(stand.content(&path) == before);
    stand.end();
}

#[test]
fn q150_what_makes_no_sense_changes_nothing() {
    let stand = Stand::new();
    for (create, options, why) in [
        ("compat=0.10", json!({"lazy-refcounts": true}), "needs version 3"),
        ("compat=1.1", json!({"lazy-refcounts": true, "data-file": "x"}), "has no data file"),
        ("compat=1.1", json!({"version": "v2"}), "cannot become version 2"),
        ("compat=1.1", json!({"data-file-raw": true}), "cannot be set"),
        (
            "compat=1.1",
            json!({"lazy-refcounts": true, "encrypt": {"state": "inactive"}}),
            "not encrypted",
        ),
        ("compat=1.1", json!({"cluster-size": 512}), "cluster-size"),
    ] {
        let path = stand.create("image.qcow2", create, "3M");
        let before = fs::read(&path).unwrap();
        let opened = stand.open_writable(&path, json!({}));
        let error = amend(&opened, options).unwrap_err();
        assert!(error.contains(why), "{error}");
        drop(opened);
        assert!(fs::read(&path).unwrap() == before, "{create}");
    }
    stand.end();
}
