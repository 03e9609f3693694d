//! `convert -c`: compressed images have the bytes of their sources, and are those that `qemu-img` reads.

use std::fs;

use serde_json::Value;

use crate::util::{Place, allocated, images, random};

/// Space that may be more than QEMU's, in bytes: other implementations find other ways to compress.
const SLACK: u64 = 128 << 10;

/// A raw image of which parts are zero, compressible, random, and of part of a cluster.
fn mixed(place: &Place, name: &str) {
    let mut bytes = random(1, 5_000_000 - 300);
    for (at, length) in [(100_000, 400_000), (1 << 20, 1 << 20), (4_000_000, 5000)] {
        bytes[at..at + length].fill(0);
    }
    for (at, length) in [(700_000, 300_000), (3 << 20, 70_000)] {
        let text = b"the same words, again and again; ".iter().cycle();
        bytes[at..at + length].iter_mut().zip(text).for_each(|(byte, it)| *byte = *it);
    }
    bytes[4_999_000..].fill(0);
    fs::write(place.path(name), bytes).unwrap();
}

/// An image is equal to its source, its tables agree, and some of it is compressed.
#[track_caller]
fn assert_good(place: &Place, source: &str, what: &str) {
    let said = place.theirs(&format!("compare {source} ours.qcow2"));
    assert_eq!((said.code, said.out.as_str()), (0, "Images are identical.\n"), "{what}: {said:?}");
    let said = place.ours(&format!("compare {source} ours.qcow2"));
    assert_eq!((said.code, said.out.as_str()), (0, "Images are identical.\n"), "{what}: {said:?}");
    let checked = place.theirs("check --output=json ours.qcow2").json();
    assert!(checked["compressed-clusters"].as_u64().unwrap() > 0, "{what}: {checked}");
}

#[test]
fn compressed_copies_are_those_of_qemu_img() {
    let place = Place::new();
    mixed(&place, "mixed.raw");
    for kind in ["zlib", "zstd"] {
        for more in
            ["", ",cluster_size=4k", ",cluster_size=2M", ",extended_l2=on", ",refcount_bits=64"]
        {
            let options = format!("-o compression_type={kind}{more}");
            for name in ["ours.qcow2", "theirs.qcow2"] {
                let _ = fs::remove_file(place.path(name));
            }
            let how = format!("convert -c -O qcow2 {options} mixed.raw");
            place.ours(&format!("{how} ours.qcow2")).expect_success();
            assert_good(&place, "mixed.raw", &options);
            place.qemu_img(&format!("{how} theirs.qcow2"));
            let figures = |image: &str| {
                let found = place.theirs(&format!("check --output=json {image}")).json();
                ["allocated-clusters", "compressed-clusters", "total-clusters"]
                    .map(|name| found.get(name).and_then(Value::as_u64))
            };
            assert_eq!(figures("ours.qcow2"), figures("theirs.qcow2"), "{options}");
            let [ours, theirs] =
                ["ours.qcow2", "theirs.qcow2"].map(|it| allocated(&place.path(it)));
            // A cluster for a table had space, and was not needed.
            let cluster = if more.ends_with("2M") { 2 << 20 } else { 64 << 10 };
            let most = theirs + cluster + SLACK;
            assert!(ours <= most, "{options}: {ours} and {theirs} bytes");
        }
    }
    for options in
        ["-m 1", "-m 16", "-W", "-S 0", "-S 1M", "-t none", "-p -q", "-o preallocation=metadata"]
    {
        let how = format!("convert -c -O qcow2 {options} mixed.raw ours.qcow2");
        place.ours(&how).expect_success();
        assert_good(&place, "mixed.raw", options);
    }
}

#[test]
fn compressed_copies_of_all_images() {
    let place = Place::new();
    for image in images(&place) {
        let _ = fs::remove_file(place.path("ours.qcow2"));
        let said = place.ours(&format!("convert -c -O qcow2 {image} ours.qcow2"));
        assert_eq!(said.code, 0, "{image}: {said:?}");
        match image {
            "empty.raw" | "bitmaps.qcow2" => {
                let said = place.theirs(&format!("compare {image} ours.qcow2"));
                assert_eq!(said.code, 0, "{image}: {said:?}");
            }
            _ => assert_good(&place, image, image),
        }
    }
    // What the backing file has stays there.
    place
        .ours("convert -c -O qcow2 -B middle.qcow2 -F qcow2 top.qcow2 ours.qcow2")
        .expect_success();
    assert_good(&place, "top.qcow2", "-B");
    place.qemu_img("convert -c -O qcow2 -B middle.qcow2 -F qcow2 top.qcow2 theirs.qcow2");
    let [ours, theirs] = ["ours.qcow2", "theirs.qcow2"].map(|image| {
        let said = place.theirs(&format!("check --output=json {image}"));
        said.json()["allocated-clusters"].clone()
    });
    assert_eq!(ours, theirs);
    // The result is a source, too.
    place.ours("convert -O raw ours.qcow2 back.raw").expect_success();
    place.qemu_img("convert -O raw top.qcow2 theirs.raw");
    assert!(place.read("back.raw") == place.read("theirs.raw"));
}

#[test]
fn what_cannot_be_compressed_is_refused() {
    let place = Place::new();
    mixed(&place, "mixed.raw");
    for wrong in [
        "-O raw mixed.raw",
        "-O qcow2 -o data_file=outside.data mixed.raw",
        "-O qcow2 -o compression_type=frob mixed.raw",
        "-O qcow2 -o compression_type=zstd,compat=0.10 mixed.raw",
    ] {
        let [ours, theirs] = [
            place.ours(&format!("convert -c {wrong} ours.img")),
            place.theirs(&format!("convert -c {wrong} theirs.img")),
        ];
        assert_eq!((ours.code, theirs.code), (1, 1), "{wrong}: {ours:?} {theirs:?}");
    }
}
