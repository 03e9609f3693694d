//! New images, beside those that `qemu-img create` makes with the same options.

use std::fs;
use std::path::Path;

use coblk_qcow2::layout::RefcountWidth;
use coblk_tests::tools;
use serde_json::{Map, Value, json};

use crate::util::{Stand, assert_same, word};

/// Creates an image in files that are there, and empty. Options as in `qemu-img create -o`.
fn create(stand: &Stand, path: &Path, options: &str, size: &str) -> Result<(), String> {
    let data_file = options.split(',').find_map(|option| option.strip_prefix("data_file="));
    [Some(path), data_file.map(Path::new)].into_iter().flatten().for_each(|path| {
        fs::File::create(path).unwrap();
    });
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

/// Clears the clusters of an image that are free: a table that has moved leaves its old bytes behind.
fn forget_free(path: &Path, image: &mut [u8]) {
    let be = |at: usize, len: usize| {
        image[at..at + len].iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let cluster = 1 << image[23];
    let order = if image[7] == 2 { 4 } else { be(96, 4) as u32 };
    let width = RefcountWidth::new(order).unwrap();
    let (table, entries) = (word(path, 48) as usize, be(56, 4) as usize * cluster / 8);
    let mut free = Vec::new();
    for at in 0..image.len().div_ceil(cluster) {
        let per_block = (cluster * 8) >> order;
        let block = match at / per_block {
            index if index < entries => be(table + index * 8, 8) as usize,
            _ => 0,
        };
        if block == 0 || width.get(&image[block..block + cluster], at % per_block) == 0 {
            free.push(at * cluster);
        }
    }
    for at in free {
        let end = image.len().min(at + cluster);
        image[at..end].fill(0);
    }
}

/// Makes an image both here and by `qemu-img`, and compares all bytes.
#[track_caller]
fn same(stand: &Stand, options: &str, size: &str) {
    let what = format!("{options} {size}");
    let theirs = stand.create("theirs.qcow2", options, size);
    let ours = stand.path("ours.qcow2");
    create(stand, &ours, options, size).unwrap_or_else(|error| panic!("{what}: {error}"));
    let [bytes, mut expected] = [&ours, &theirs].map(|path| fs::read(path).unwrap());
    forget_free(&theirs, &mut expected);
    assert_same(&bytes, &expected, &what);
    let (report, code) = stand.qemu_img("check", &ours);
    assert_eq!(code, 0, "{what}: {report}");
}

const CLUSTERS: [&str; 5] = ["512", "1k", "4k", "64k", "2M"];

#[test]
fn q82_images_of_all_widths_and_sizes_are_those_of_qemu_img() {
    let stand = Stand::in_memory();
    for cluster in CLUSTERS {
        for size in ["0", "512", "1M", "100M", "1G"] {
            for bits in [1, 4, 16, 64] {
                same(&stand, &format!("cluster_size={cluster},refcount_bits={bits}"), size);
            }
            same(&stand, &format!("cluster_size={cluster},compat=0.10"), size);
        }
    }
    stand.end();
}

#[test]
fn q82_tables_that_need_many_refcount_blocks_are_where_qemu_has_them() {
    let stand = Stand::in_memory();
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
    let stand = Stand::in_memory();
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
#[test]
fn q84_preallocated_images_are_those_of_qemu_img() {
    let stand = Stand::in_memory();
    let data_file = format!("data_file={}", tools::text(&stand.path("data.raw")));
    for preallocation in ["metadata", "falloc", "full"] {
        for (options, size) in [
            ("cluster_size=512", "0"),
            ("cluster_size=512", "1M"),
            ("cluster_size=512", "8300k"),
            ("cluster_size=512,refcount_bits=64", "7M"),
            ("cluster_size=512,refcount_bits=1", "5M"),
            ("cluster_size=1k,refcount_bits=64,compat=1.1", "10M"),
            ("cluster_size=4k,compat=0.10", "30M"),
            ("cluster_size=4k,refcount_bits=32", "130M"),
            ("cluster_size=64k", "1000k"),
            ("cluster_size=64k,extended_l2=on", "30M"),
            ("cluster_size=16k,extended_l2=on,refcount_bits=64", "100M"),
            ("cluster_size=2M", "33M"),
            ("cluster_size=2M,refcount_bits=8", "0"),
            ("DATA", "10M"),
            ("DATA,data_file_raw=on,cluster_size=4k", "10M"),
        ] {
            let options = options.replace("DATA", &data_file);
            same(&stand, &format!("{options},preallocation={preallocation}"), size);
        }
    }
    stand.end();
}
