//! Parts of images are copied as by `qemu-img`: internal snapshots (`-l`), ranges (`dd`).

use std::fs;

use crate::util::{Place, allocated, random};

/// An image with snapshots: `first` (id 1), `2` (id 2), `1` (id 3), each with data of its own.
fn snapshots(place: &Place) {
    place.qemu_img("create -q -f qcow2 a.qcow2 4M");
    for (name, pattern) in [("first", 1), ("2", 2), ("1", 3)] {
        place.qemu_io("a.qcow2", &[&format!("write -P {pattern} {}k 200k", pattern * 64)]);
        place.qemu_img(&format!("snapshot -c {name} a.qcow2"));
    }
    place.qemu_io("a.qcow2", &["write -P 9 0 4M"]);
}

#[test]
fn a_snapshot_is_copied_by_its_id_or_name() {
    let place = Place::new();
    snapshots(&place);
    let options = "--image-opts driver=qcow2,file.driver=file,file.filename=a.qcow2";
    let before = place.read("a.qcow2");
    for (snapshot, pattern) in [
        ("-l first", 1),
        ("-l 1", 1),
        ("-l 2", 2),
        ("-l 3", 3),
        ("-l snapshot.id=1", 1),
        ("-l snapshot.name=1", 3),
        ("-l snapshot.id=2,snapshot.name=2", 2),
        ("--source-snapshot 3", 3),
    ] {
        // Older versions have no long name.
        let theirs = snapshot.replace("--source-snapshot", "-l");
        for image in ["a.qcow2", options] {
            place.ours(&format!("convert {snapshot} -O raw {image} ours.raw")).expect_success();
            place.qemu_img(&format!("convert {theirs} -O raw {image} theirs.raw"));
            let ours = place.read("ours.raw");
            assert!(ours == place.read("theirs.raw"), "{snapshot}");
            assert_eq!(ours[pattern * 65536], pattern as u8, "{snapshot}");
        }
        if !snapshot.starts_with("--") {
            let measure = format!("measure -O qcow2 {snapshot} a.qcow2");
            let (ours, theirs) = (place.ours(&measure), place.theirs(&measure));
            assert_eq!((&ours.out, ours.code), (&theirs.out, 0), "{snapshot}: {ours:?}");
        }
    }
    place.ours("convert -c -l first -O qcow2 a.qcow2 ours.qcow2").expect_success();
    place.qemu_img("convert -l first -O qcow2 a.qcow2 theirs.qcow2");
    assert_eq!(place.theirs("compare ours.qcow2 theirs.qcow2").code, 0);
    assert!(place.read("a.qcow2") == before);
    place.raw("b.raw", 1 << 20);
    for wrong in [
        "convert -l missing a.qcow2 c.raw",
        "convert -l snapshot.id=first a.qcow2 c.raw",
        "convert -l snapshot.id=1,snapshot.name=2 a.qcow2 c.raw",
        "convert -l snapshot.frob=1 a.qcow2 c.raw",
        "convert -l first b.raw c.raw",
        "convert -l first a.qcow2 a.qcow2 c.raw",
        "measure -O raw -l missing a.qcow2",
        "measure -O raw -l first --size 1M",
    ] {
        let (ours, theirs) = (place.ours(wrong), place.theirs(wrong));
        assert_eq!((ours.code, theirs.code), (1, 1), "{wrong}: {ours:?} {theirs:?}");
        assert!(!ours.error.is_empty());
    }
}

#[test]
fn dd_copies_blocks() {
    let place = Place::new();
    place.raw("a.raw", 5_000_000);
    place.qemu_img("convert -O qcow2 a.raw a.qcow2");
    for operands in [
        "if=a.raw",
        "bs=1M if=a.raw",
        "if=a.raw bs=1000 count=7",
        "if=a.raw bs=4k skip=3",
        "if=a.raw bs=4k skip=3 count=10",
        "if=a.raw bs=4k skip=10 count=3",
        "if=a.raw skip=1000000",
        "if=a.raw count=0",
        "if=a.raw bs=1k bs=2k count=3",
        "if=missing if=a.raw bs=64k count=100000",
        "if=a.qcow2 bs=100k skip=1",
        "-f raw if=a.qcow2 bs=64k count=1",
        "-U if=a.raw count=10",
        "--image-opts if=driver=qcow2,file.driver=file,file.filename=a.qcow2 bs=64k count=3",
    ] {
        for name in ["ours.img", "theirs.img"] {
            let _ = fs::remove_file(place.path(name));
        }
        let ours = place.ours(&format!("dd {operands} of=ours.img"));
        let theirs = place.theirs(&format!("dd {operands} of=theirs.img"));
        assert_eq!((&ours.out, ours.code), (&theirs.out, theirs.code), "{operands}: {ours:?}");
        assert_eq!(ours.error.is_empty(), theirs.error.is_empty(), "{operands}: {ours:?}");
        assert!(place.read("ours.img") == place.read("theirs.img"), "{operands}");
        let [ours, theirs] = ["ours.img", "theirs.img"].map(|name| allocated(&place.path(name)));
        assert_eq!(ours, theirs, "{operands}: as much is allocated");
    }
    for options in ["-O qcow2", "-f raw -O qcow2"] {
        for name in ["ours.img", "theirs.img"] {
            let _ = fs::remove_file(place.path(name));
        }
        let how = format!("dd {options} if=a.raw bs=100k skip=2");
        place.ours(&format!("{how} of=ours.img")).expect_success();
        place.qemu_img(&format!("{how} of=theirs.img"));
        assert_eq!(place.theirs("compare -s ours.img theirs.img").code, 0, "{options}");
        assert_eq!(place.theirs("check ours.img").code, 0);
    }
}

#[test]
fn dd_refuses_what_it_does_not_know() {
    let place = Place::new();
    fs::write(place.path("a.raw"), random(1, 1 << 20)).unwrap();
    let before = place.read("a.raw");
    for wrong in [
        "",
        "if=a.raw",
        "of=b.raw",
        "if=missing of=b.raw",
        "if=a.raw of=missing/b.raw",
        "if=a.raw of=b.raw bs=0",
        "if=a.raw of=b.raw bs=3G",
        "if=a.raw of=b.raw bs=frob",
        "if=a.raw of=b.raw count=-1",
        "if=a.raw of=b.raw skip=",
        "if=a.raw of=b.raw frob",
        "if=a.raw of=b.raw seek=1",
        "-O frob if=a.raw of=b.raw",
        "-f frob if=a.raw of=b.raw",
        "if=a.raw of=a.raw",
    ] {
        let ours = place.ours(&format!("dd {wrong}"));
        assert_eq!((ours.code, ours.out.as_str()), (1, ""), "{wrong}: {ours:?}");
        assert!(ours.error.starts_with("coblk-img: "), "{wrong}: {ours:?}");
        // QEMU's program cuts a source that is its own target.
        if wrong != "if=a.raw of=a.raw" {
            assert_eq!(place.theirs(&format!("dd {wrong}")).code, 1, "{wrong}");
        }
    }
    assert!(place.read("a.raw") == before);
}

/// The names of the options that are told.
fn names(text: &str) -> Vec<&str> {
    let options = text.lines().filter_map(|line| line.strip_prefix("  ")?.split_once('='));
    options.map(|(name, _)| name).collect()
}

#[test]
fn options_are_told_as_by_qemu_img() {
    let place = Place::new();
    place.qemu_img("create -q -f qcow2 a.qcow2 1M");
    place.raw("a.raw", 1 << 20);
    for arguments in [
        "create -f qcow2 -o help",
        "create -f qcow2 -o help c.qcow2",
        "create -f qcow2 -o ? c.qcow2 1M",
        "create -f qcow2 -o cluster_size=4k,help c.qcow2 1M",
        "create -o help",
        "create -f raw -o help c.raw",
        "create -f file -o help c.raw",
        "convert -O qcow2 -o help",
        "convert -O qcow2 -o help a.raw c.qcow2",
        "convert -o help a.raw c.raw",
        "amend -f qcow2 -o help",
        "amend -o help a.qcow2",
    ] {
        let (ours, theirs) = (place.ours(arguments), place.theirs(arguments));
        assert_eq!((ours.code, theirs.code), (0, 0), "{arguments}: {ours:?} {theirs:?}");
        assert_eq!(ours.error, "");
        let first = |text: &str| text.lines().next().unwrap().to_owned();
        assert_eq!(first(&ours.out), first(&theirs.out), "{arguments}");
        // What there is not: legacy names, and what cannot be changed.
        let mut expected = names(&theirs.out);
        let is_amend = arguments.starts_with("amend");
        expected.retain(|name| !matches!(*name, "encryption" | "extent_size_hint"));
        expected.retain(|name| !is_amend || !matches!(*name, "backing_file" | "backing_fmt"));
        assert_eq!(names(&ours.out), expected, "{arguments}");
        assert!(!place.path("c.qcow2").exists() && !place.path("c.raw").exists(), "{arguments}");
    }
    for wrong in [
        "create -f frob -o help",
        "create -f throttle -o help",
        "convert -O frob -o help",
        "amend -o help",
        "amend -f raw -o help",
        "amend -f raw -o help a.raw",
        "amend -o help missing",
    ] {
        let (ours, theirs) = (place.ours(wrong), place.theirs(wrong));
        assert_eq!((ours.code, theirs.code), (1, 1), "{wrong}: {ours:?} {theirs:?}");
        assert_eq!(ours.out, "");
    }
}
