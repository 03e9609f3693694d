//! New images, beside those that `qemu-img create` makes with the same options.

mod util;

use std::fs;
use std::path::Path;

use coblk_tests::tools;
use serde_json::{Map, Value, json};

use util::{Stand, assert_same, word};

/// Creates an image in a file that is there, and empty. Options as in `qemu-img create -o`.
fn create(stand: &Stand, path: &Path, options: &str, size: &str) -> Result<(), String> {
    fs::File::create(path).unwrap();
    let creation = stand.blockdevs.drivers().creation(members(path, options, size));
    let creation = creation.map_err(|error| error.to_string())?;
    let made = stand.ctx.run(|co| stand.blockdevs.co_create(co, creation));
    assert!(stand.blockdevs.nodes().is_empty(), "nodes are left");
    made.map_err(|error| error.to_string())
}

/// `blockdev-create`'s names for options of `qemu-img create`.
fn members(path: &Path, options: &str, size: &str) -> Map<String, Value> {
    let file = |path: &Path| json!({"driver": "file", "filename": tools::text(path)});
    let mut members = json!({"driver": "qcow2", "file": file(path), "size": bytes(size)});
    for (name, value) in options.split(',').filter_map(|option| option.split_once('=')) {
        let name = name.replace('_', "-");
        let (name, value) = match (&*name, value) {
            ("compat", "0.10") => ("version", json!("v2")),
            ("compat", _) => ("version", json!("v3")),
            ("data-file", name) => ("data-file", file(Path::new(name))),
            (name, "on" | "off") => (name, json!(value == "on")),
            ("cluster-size", size) => ("cluster-size", json!(bytes(size))),
            ("refcount-bits", bits) => ("refcount-bits", json!(bits.parse::<u64>().unwrap())),
            (name, value) => (name, json!(value)),
        };
        members[name] = value;
    }
    members.as_object().unwrap().clone()
}

/// The bytes that a size such as `64k` has.
fn bytes(size: &str) -> u64 {
    let (number, unit) = size.split_at(size.trim_end_matches(char::is_alphabetic).len());
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" => 0,
        unit => 10 * (1 + "KMGTP".find(unit).unwrap() as u32),
    };
    number.parse::<u64>().unwrap() << shift
}

/// Makes an image both here and by `qemu-img`, and compares all bytes.
#[track_caller]
fn same(stand: &Stand, options: &str, size: &str) {
    let what = format!("{options} {size}");
    let theirs = stand.create("theirs.qcow2", options, size);
    let ours = stand.path("ours.qcow2");
    create(stand, &ours, options, size).unwrap_or_else(|error| panic!("{what}: {error}"));
    let [bytes, mut expected] = [&ours, &theirs].map(|path| fs::read(path).unwrap());
    // A refcount table that has moved leaves its old entries in cluster 1, which is free then.
    let cluster = 1 << expected[23];
    if word(&theirs, 48) != cluster as u64 && bytes[cluster..2 * cluster].iter().all(|it| *it == 0)
    {
        expected[cluster..2 * cluster].fill(0);
    }
    assert_same(&bytes, &expected, &what);
    let (report, code) = stand.qemu_img("check", &ours);
    assert_eq!(code, 0, "{what}: {report}");
}

const CLUSTERS: [&str; 5] = ["512", "1k", "4k", "64k", "2M"];

#[test]
fn q82_images_of_all_widths_and_sizes_are_those_of_qemu_img() {
    let stand = Stand::new();
    for cluster in CLUSTERS {
        for size in ["0", "512", "1M", "100M", "1G"] {
            for bits in [1, 2, 4, 8, 16, 32, 64] {
                same(&stand, &format!("cluster_size={cluster},refcount_bits={bits}"), size);
            }
            same(&stand, &format!("cluster_size={cluster},compat=0.10"), size);
        }
    }
    stand.end();
}

#[test]
fn q82_tables_that_need_many_refcount_blocks_are_where_qemu_has_them() {
    let stand = Stand::new();
    for (options, size) in [
        ("cluster_size=512,refcount_bits=64", "16G"),
        ("cluster_size=512,refcount_bits=16", "17G"),
        ("cluster_size=1k,refcount_bits=64", "65G"),
        ("cluster_size=4k", "8T"),
    ] {
        same(&stand, options, size);
    }
    stand.end();
}

/// Options of other kinds, each of which changes the header.
#[test]
fn q27_q82_headers_have_the_bytes_of_qemu_img() {
    let stand = Stand::new();
    stand.random_file("back.raw", 1 << 20);
    let data_file = format!("data_file={}", tools::text(&stand.path("data.raw")));
    for options in [
        "lazy_refcounts=on",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k,lazy_refcounts=on",
        "compression_type=zstd",
        "compression_type=zlib,compat=1.1",
        "backing_file=back.raw,backing_fmt=raw",
        "backing_file=back.raw,backing_fmt=raw,compat=0.10",
        "backing_file=back.raw,backing_fmt=raw,cluster_size=4k,compression_type=zstd",
        "backing_file=back.raw,backing_fmt=raw,extended_l2=on,refcount_bits=1",
        "DATA",
        "DATA,data_file_raw=on",
        "DATA,extended_l2=on,data_file_raw=on",
        "DATA,backing_file=back.raw,backing_fmt=raw",
    ] {
        same(&stand, &options.replace("DATA", &data_file), "1M");
    }
    stand.end();
}
