//! qcow2 images that are made by copies and changed: QEMU reads them, and finds no fault.

use std::fs;

use crate::util::{Place, allocated, images};

/// Space that may differ, in bytes: clusters where pieces of data meet zeroes.
const SLACK: u64 = 256 << 10;

/// Options of targets.
const TARGETS: [&str; 11] = [
    "",
    "-W -m 16",
    "-t writeback",
    "-t none -T none",
    "-o cluster_size=4k",
    "-o cluster_size=2M",
    "-o compat=0.10",
    "-o extended_l2=on,cluster_size=128k",
    "-o preallocation=metadata",
    "-o lazy_refcounts=on,refcount_bits=64",
    "-o data_file=target.data",
];

#[track_caller]
fn assert_good(place: &Place, source: &str, target: &str, what: &str) {
    let said = place.theirs(&format!("compare {source} {target}"));
    assert_eq!((said.code, said.out.as_str()), (0, "Images are identical.\n"), "{what}: {said:?}");
    // What was written last may end within a cluster.
    let said = place.ours(&format!("compare {source} {target}"));
    assert_eq!((said.code, said.out.as_str()), (0, "Images are identical.\n"), "{what}: {said:?}");
    let said = place.theirs(&format!("check {target}"));
    assert_eq!(said.code, 0, "{what}: {said:?}");
}

#[test]
fn every_image_becomes_qcow2() {
    let place = Place::new();
    for image in images(&place) {
        place.ours(&format!("convert -O qcow2 {image} target.qcow2")).expect_success();
        assert_good(&place, image, "target.qcow2", image);
        place.qemu_img(&format!("convert -O qcow2 {image} theirs.qcow2"));
        let [ours, theirs] =
            ["target.qcow2", "theirs.qcow2"].map(|name| allocated(&place.path(name)));
        assert!(ours <= theirs + SLACK, "{image}: {ours} and {theirs} bytes");
    }
}

#[test]
fn targets_have_what_options_say() {
    let place = Place::new();
    place.raw("source.raw", 20 << 20);
    for options in TARGETS {
        place.ours(&format!("convert {options} -O qcow2 source.raw target.qcow2")).expect_success();
        assert_good(&place, "source.raw", "target.qcow2", options);
    }
    place.ours("convert -S 0 -O qcow2 source.raw target.qcow2").expect_success();
    assert_good(&place, "source.raw", "target.qcow2", "-S 0");
    let map = place.theirs("map --output=json target.qcow2").json();
    assert!(map.as_array().unwrap().iter().all(|extent| extent["data"] == true), "{map}");
}

#[test]
fn a_copy_on_a_backing_file_has_what_that_has_not() {
    let place = Place::new();
    images(&place);
    place.ours("convert -O qcow2 -B middle.qcow2 -F qcow2 top.qcow2 target.qcow2").expect_success();
    assert_good(&place, "top.qcow2", "target.qcow2", "-B");
    assert_eq!(
        place.theirs("info --output=json target.qcow2").json()["backing-filename"],
        "middle.qcow2"
    );
    place.qemu_img("convert -O qcow2 -B middle.qcow2 -F qcow2 top.qcow2 theirs.qcow2");
    let [ours, theirs] = ["target.qcow2", "theirs.qcow2"].map(|name| allocated(&place.path(name)));
    assert!(ours <= theirs + SLACK, "{ours} and {theirs} bytes");
    // A copy of several images has no backing file, nor has one in raw.
    for wrong in [
        "-O qcow2 -B middle.qcow2 -F qcow2 top.qcow2 top.qcow2",
        "-O raw -B middle.qcow2 -F qcow2 top.qcow2",
    ] {
        let said = place.ours(&format!("convert {wrong} wrong.img"));
        assert_eq!(said.code, 1, "{said:?}");
    }
}

#[test]
fn a_qcow2_target_that_exists_is_overwritten() {
    let place = Place::new();
    place.raw("source.raw", 3 << 20);
    place.qemu_img("create -q -f qcow2 target.qcow2 3M");
    place.qemu_io("target.qcow2", &["write -P 9 0 3M"]);
    place.ours("convert -n -O qcow2 source.raw target.qcow2").expect_success();
    assert_good(&place, "source.raw", "target.qcow2", "-n");
    let options = "driver=qcow2,file.driver=file,file.filename=target.qcow2";
    place.raw("other.raw", 2 << 20);
    place.ours(&format!("convert -n --target-image-opts other.raw {options}")).expect_success();
    place.qemu_img("convert -O raw target.qcow2 back.raw");
    let (back, other) = (place.read("back.raw"), place.read("other.raw"));
    assert!(back[..2 << 20] == other[..]);
    assert!(back[2 << 20..] == place.read("source.raw")[2 << 20..]);
}

#[test]
fn internal_snapshots_come_and_go() {
    let place = Place::new();
    place.qemu_img("create -q -f qcow2 a.qcow2 4M");
    place.qemu_io("a.qcow2", &["write -P 1 0 1M"]);
    place.ours("snapshot -c first a.qcow2").expect_success();
    place.qemu_io("a.qcow2", &["write -P 2 0 1M"]);
    place.ours("snapshot -c second a.qcow2").expect_success();
    place.ours("snapshot -a first a.qcow2").expect_success();
    place.qemu_io("a.qcow2", &["read -P 1 0 1M"]);
    place.ours("snapshot -a 2 a.qcow2").expect_success();
    place.qemu_io("a.qcow2", &["read -P 2 0 1M"]);
    place.ours("snapshot -d first a.qcow2").expect_success();
    assert_eq!(place.ours("snapshot -d first a.qcow2").code, 1);
    assert_eq!(place.ours("snapshot -a first a.qcow2").code, 1);
    let left = place.theirs("info --output=json a.qcow2").json();
    let names: Vec<_> =
        left["snapshots"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["second"]);
    assert_eq!(place.theirs("check a.qcow2").code, 0);
}

#[test]
fn the_source_of_a_failed_copy_is_as_it_was() {
    let place = Place::new();
    place.raw("source.raw", 4 << 20);
    place.ours("convert -O qcow2 source.raw source.qcow2").expect_success();
    let before = fs::read(place.path("source.qcow2")).unwrap();
    for target in ["source.qcow2", "missing/target.qcow2"] {
        let said = place.ours(&format!("convert -O qcow2 source.qcow2 {target}"));
        assert_eq!(said.code, 1, "{said:?}");
        assert!(fs::read(place.path("source.qcow2")).unwrap() == before, "{target}");
    }
}

#[test]
fn the_disk_of_a_new_image_is_whole_sectors() {
    let place = Place::new();
    for size in ["1", "1000", "1024", "65537"] {
        let [ours, theirs] =
            ["ours", "theirs"].map(|name| format!("create -f qcow2 {name} {size}"));
        place.ours(&ours).expect_success();
        place.theirs(&theirs).expect_success();
        assert!(place.read("ours") == place.read("theirs"), "{size}");
    }
}

/// An option without a value is switched on, or off with `no` before its name.
#[test]
fn switches_need_no_value() {
    let place = Place::new();
    place.raw("a.raw", 1 << 20);
    for options in [
        "lazy_refcounts",
        "nolazy_refcounts",
        "cluster_size=4k,lazy_refcounts,extended_l2=off",
        "lazy_refcounts,nolazy_refcounts",
        "nonocow",
        "nocow",
        "cluster_size",
        "lazy_refcounts,",
        ",lazy_refcounts",
        "frob",
        "nofrob",
    ] {
        let lazy = |name: &str| {
            let info = place.theirs(&format!("info --output=json {name}")).expect_success().json();
            info["format-specific"]["data"]["lazy-refcounts"].clone()
        };
        for command in
            ["create -q -f qcow2 -o @ # 1M", "convert -O qcow2 -o @ a.raw #", "amend -o @ #"]
        {
            let line = |name: &str| command.replace('@', options).replace('#', name);
            let is_amend = command.starts_with("amend");
            for name in ["ours.qcow2", "theirs.qcow2"] {
                match is_amend {
                    true => place.qemu_img(&format!("create -q -f qcow2 {name} 1M")),
                    false => drop(fs::remove_file(place.path(name))),
                }
            }
            let (ours, theirs) =
                (place.ours(&line("ours.qcow2")), place.theirs(&line("theirs.qcow2")));
            assert_eq!(ours.code, theirs.code, "{command}, {options}: {ours:?} {theirs:?}");
            if ours.code == 0 {
                assert_eq!(lazy("ours.qcow2"), lazy("theirs.qcow2"), "{command}, {options}");
            }
        }
        let line = format!("measure -O qcow2 -o {options} --size 1M");
        let (ours, theirs) = (place.ours(&line), place.theirs(&line));
        assert_eq!((ours.code, ours.out), (theirs.code, theirs.out), "{line}");
    }
}
