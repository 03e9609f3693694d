//! Sizes of images that are not there yet, beside those that `qemu-img measure` tells.

use std::path::Path;

use coblk_block::BlockBackend;
use coblk_tests::tools;
use serde_json::{Map, Value, json};

use crate::util::{Opened, Stand};

/// Options of encrypted images, in the same way.
#[cfg(feature = "encryption")]
const ENCRYPTED: [(&str, &str); 4] = [
    ("encrypt.format=luks", r#"{"encrypt": {"format": "luks"}}"#),
    (
        "encrypt.format=luks,cluster_size=512,encrypt.cipher-alg=aes-128",
        r#"{"encrypt": {"format": "luks", "cipher-alg": "aes-128"}, "cluster-size": 512}"#,
    ),
    (
        "encrypt.format=luks,cluster_size=2M,encrypt.cipher-mode=cbc",
        r#"{"encrypt": {"format": "luks", "cipher-mode": "cbc"}, "cluster-size": 2097152}"#,
    ),
    ("encrypt.format=aes", r#"{"encrypt": {"format": "qcow"}}"#),
];

/// Options as `qemu-img` has them, and as they are here.
const OPTIONS: [(&str, &str); 14] = [
    ("", "{}"),
    ("compat=0.10", r#"{"version": "v2"}"#),
    ("cluster_size=512", r#"{"cluster-size": 512}"#),
    ("cluster_size=512,refcount_bits=64", r#"{"cluster-size": 512, "refcount-bits": 64}"#),
    ("cluster_size=4k,refcount_bits=1", r#"{"cluster-size": 4096, "refcount-bits": 1}"#),
    ("cluster_size=2M", r#"{"cluster-size": 2097152}"#),
    ("extended_l2=on", r#"{"extended-l2": true}"#),
    ("extended_l2=on,cluster_size=16k", r#"{"extended-l2": true, "cluster-size": 16384}"#),
    ("preallocation=metadata", r#"{"preallocation": "metadata"}"#),
    ("preallocation=falloc", r#"{"preallocation": "falloc"}"#),
    ("preallocation=full", r#"{"preallocation": "full"}"#),
    ("backing_file=x,backing_fmt=raw", r#"{"backing-file": "x", "backing-fmt": "raw"}"#),
    ("data_file=x,data_file_raw=on", r#"{"data-file": "x", "data-file-raw": true}"#),
    (
        "lazy_refcounts=on,compression_type=zstd",
        r#"{"lazy-refcounts": true, "compression-type": "zstd"}"#,
    ),
];

/// What is said here: a report, or none.
fn ours(stand: &Stand, options: &str, size: Option<u64>, source: Option<&BlockBackend>) -> Value {
    let mut members: Map<String, Value> = serde_json::from_str(options).unwrap();
    members.insert("driver".to_owned(), json!("qcow2"));
    members.extend(size.map(|size| ("size".to_owned(), json!(size))));
    let measured = stand.ctx.run(|co| stand.blockdevs.drivers().co_measure(co, members, source));
    let Ok(measure) = measured else { return Value::Null };
    let (required, all) = (measure.required, measure.fully_allocated);
    let mut report = json!({"required": required, "fully-allocated": all});
    if let Some(bitmaps) = measure.bitmaps {
        report["bitmaps"] = json!(bitmaps);
    }
    report
}

fn theirs(options: &str, of: &[&str]) -> Value {
    let mut command = tools::command("qemu-img");
    command.args(["measure", "--output=json", "-O", "qcow2"]);
    if !options.is_empty() {
        command.args(["-o", options]);
    }
    let output = tools::finish("qemu-img", command.args(of));
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

#[test]
#[cfg(feature = "encryption")]
fn q148_sizes_of_encrypted_images_are_those_of_qemu_img() {
    let stand = Stand::in_memory();
    for (number, (options, members)) in ENCRYPTED.into_iter().enumerate() {
        // qemu-img stretches a key for seconds each time: one has two sizes, and the others the larger one.
        let sizes: &[&str] = if number == 0 { &["10485760"] } else { &[] };
        for size in sizes.iter().chain(&["1099511627776"]) {
            let rounds = if options.contains("luks") { ",encrypt.iter-time=1" } else { "" };
            let options = format!("{options},encrypt.key-secret=s{rounds}");
            let expected = theirs(&options, &["--object", "secret,id=s,data=x", "--size", size]);
            let found = ours(&stand, members, size.parse().ok(), None);
            assert_eq!(found, expected, "{options} {size}");
        }
    }
    stand.end();
}

#[test]
fn q147_q148_sizes_of_empty_images_are_those_of_qemu_img() {
    let stand = Stand::in_memory();
    let sizes =
        [0, 1, 512, 65537, 1 << 20, (1 << 30) + 512, 10 << 30, 1 << 40, 1 << 50, 1 << 61, 1 << 62];
    for (options, members) in OPTIONS {
        for size in sizes {
            let expected = theirs(options, &["--size", &size.to_string()]);
            let found = ours(&stand, members, Some(size), None);
            assert_eq!(found, expected, "{options} {size}");
        }
    }
    assert_eq!(ours(&stand, "{}", None, None), Value::Null, "without a size");
    for wrong in [r#"{"cluster-size": 1000}"#, r#"{"version": "v2", "refcount-bits": 8}"#] {
        assert_eq!(ours(&stand, wrong, Some(512), None), Value::Null, "{wrong}");
    }
    stand.end();
}

#[track_caller]
fn measure_source(stand: &Stand, path: &Path, what: &str) {
    let opened: Opened<'_> = stand.open(path, json!({}));
    for (options, members) in OPTIONS {
        let expected = theirs(options, &["-f", "qcow2", tools::text(path)]);
        let found = ours(stand, members, None, Some(opened.backend()));
        assert_eq!(found, expected, "{what}: {options}");
    }
}

#[test]
fn q149_sizes_of_what_an_image_has_are_those_of_qemu_img() {
    let stand = Stand::in_memory();
    let base = stand.create("base.qcow2", "", "5M");
    stand.qemu_io(&base, &["write 100k 300k".into(), "write -z 1M 1M".into()]);
    measure_source(&stand, &base, "base");
    let backing = format!("backing_file={},backing_fmt=qcow2", tools::text(&base));
    let top = stand.create("top.qcow2", &format!("{backing},cluster_size=4k"), "7M");
    let writes = ["write 512 512", "write 350k 100k", "write -z 100k 8k", "write 6M 1000k"];
    stand.qemu_io(&top, &writes.map(str::to_owned));
    measure_source(&stand, &top, "top");
    for (name, granularity) in [("first", "64k"), ("a longer name", "512")] {
        let mut command = tools::command("qemu-img");
        command.args(["bitmap", "--add", "-g", granularity, tools::text(&top), name]);
        tools::expect_success("qemu-img bitmap", &tools::finish("qemu-img", &mut command));
    }
    measure_source(&stand, &top, "top with bitmaps");
    let v2 = stand.create("v2.qcow2", "compat=0.10", "65k");
    measure_source(&stand, &v2, "version 2");
    stand.end();
}
