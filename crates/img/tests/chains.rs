//! Chains of backing files, changed by ours and read by QEMU.

use std::fs;

use coblk_tests::tools;
use serde_json::Value;

use crate::util::Place;

/// Three images, one on another, each with bytes of its own; `flat.raw` has what the last one reads as.
fn chain(place: &Place) {
    place.qemu_img("create -q -f qcow2 base.qcow2 20M");
    place.qemu_io("base.qcow2", &["write -P 1 0 2M", "write -P 2 5M 1M"]);
    place.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2 22M");
    place.qemu_io("middle.qcow2", &["write -P 3 1M 100k", "write -P 4 21M 64k", "write -z 5M 64k"]);
    place.qemu_img("create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 25M");
    place.qemu_io("top.qcow2", &["write -P 5 1M 64k", "write -P 6 24M 64k", "write -z 64k 64k"]);
    place.qemu_img("convert -O raw top.qcow2 flat.raw");
}

/// An image reads as the chain did.
#[track_caller]
fn assert_flat(place: &Place, image: &str, what: &str) {
    let said = place.theirs(&format!("compare {image} flat.raw"));
    assert_eq!((said.code, said.out.as_str()), (0, "Images are identical.\n"), "{what}: {said:?}");
    if image.ends_with("qcow2") {
        let said = place.theirs(&format!("check {image}"));
        assert_eq!(said.code, 0, "{what}: {said:?}");
    }
}

#[test]
fn commit_writes_to_the_backing_file() {
    for (options, base) in [
        ("", "middle.qcow2"),
        ("-d", "middle.qcow2"),
        ("-b base.qcow2", "base.qcow2"),
        ("-b middle.qcow2", "middle.qcow2"),
        ("-t none -p -r 100M", "middle.qcow2"),
    ] {
        let place = Place::new();
        chain(&place);
        let before = place.read("top.qcow2");
        let said = place.ours(&format!("commit {options} top.qcow2")).expect_success();
        assert!(said.out.ends_with("Image committed.\n"), "{options}: {said:?}");
        assert_flat(&place, base, options);
        // It still reads the same: from its backing file, or by what it has.
        assert_flat(&place, "top.qcow2", options);
        if options.contains("-d") || options.contains("-b") {
            assert!(place.read("top.qcow2") == before, "{options}");
        } else {
            let map = place.theirs("map --output=json top.qcow2").expect_success().json();
            let is_below = |it: &Value| it["depth"] != 0 || it["present"] == false;
            assert!(map.as_array().unwrap().iter().all(is_below), "{options}: {map}");
        }
    }
}

#[test]
fn commit_writes_to_a_raw_file_and_makes_it_longer() {
    let place = Place::new();
    chain(&place);
    place.qemu_img("convert -O raw middle.qcow2 base.raw");
    place.qemu_img("rebase -u -b base.raw -F raw top.qcow2");
    place.ours("commit -q top.qcow2").expect_success();
    assert_flat(&place, "base.raw", "raw");
}

#[test]
fn a_commit_that_cannot_be_leaves_all_as_it_was() {
    let place = Place::new();
    chain(&place);
    let all = || ["base.qcow2", "middle.qcow2", "top.qcow2"].map(|name| place.read(name));
    let before = all();
    for wrong in ["commit -b other.qcow2 top.qcow2", "commit base.qcow2", "commit -f raw top.qcow2"]
    {
        let said = place.ours(wrong);
        assert_eq!(said.code, 1, "{wrong}: {said:?}");
        assert!(all() == before, "{wrong}");
    }
}

#[test]
fn resize_changes_the_length_of_qcow2_images() {
    let place = Place::new();
    chain(&place);
    for (options, bytes) in
        [("+10M", 30 << 20), ("--shrink 3M", 3 << 20), ("--preallocation=full 6M", 6 << 20)]
    {
        let (first, size) = options.rsplit_once(' ').unwrap_or(("", options));
        place.ours(&format!("resize {first} base.qcow2 {size}")).expect_success();
        let info = place.theirs("info --output=json base.qcow2").json();
        assert_eq!(info["virtual-size"], bytes, "{options}");
        assert_eq!(place.theirs("check base.qcow2").code, 0, "{options}");
        place.qemu_io("base.qcow2", &["read -P 1 0 2M"]);
    }
    let before = fs::read(place.path("base.qcow2")).unwrap();
    assert_eq!(place.ours("resize base.qcow2 1M").code, 1);
    assert!(place.read("base.qcow2") == before);
}

#[test]
fn rebase_gives_an_image_another_backing_file() {
    for options in [
        "-b base.qcow2 -F qcow2",
        "-b flat.raw -F raw",
        "-b ''",
        "-c -b ''",
        "-p -b middle.qcow2 -F qcow2",
    ] {
        if tools::qemu_major() < 8 && options.contains("-c") {
            continue;
        }
        let place = Place::new();
        chain(&place);
        fs::copy(place.path("top.qcow2"), place.path("theirs.qcow2")).unwrap();
        let words = |image| {
            let options = options.split(' ').map(|it| it.trim_matches('\''));
            ["rebase"].into_iter().chain(options).chain([image]).collect::<Vec<&str>>()
        };
        let said = place.command_with(words("top.qcow2")).output().unwrap();
        assert!(said.status.success(), "{options}: {said:?}");
        place.program("qemu-img", &words("theirs.qcow2")).expect_success();
        assert_flat(&place, "top.qcow2", options);
        assert_same_backing(&place, options);
    }
}

/// A name that was forgotten, in either program.
#[test]
fn rebase_needs_a_backing_file_by_name() {
    let place = Place::new();
    chain(&place);
    let before = place.read("top.qcow2");
    for options in ["", "-F qcow2 ", "-p ", "-c "] {
        let line = format!("rebase {options}top.qcow2");
        let (ours, theirs) = (place.ours(&line), place.theirs(&line));
        assert_eq!((ours.code, theirs.code), (1, 1), "{line}: {ours:?} {theirs:?}");
        assert_eq!(ours.out, theirs.out, "{line}");
        assert!(place.read("top.qcow2") == before, "{line}");
    }
    place.ours("rebase -u top.qcow2").expect_success();
    assert!(!place.theirs("info top.qcow2").expect_success().out.contains("backing file"));
}

#[test]
fn rebase_unsafe_writes_the_name_alone() {
    let place = Place::new();
    chain(&place);
    fs::copy(place.path("top.qcow2"), place.path("theirs.qcow2")).unwrap();
    for name in ["not-there.raw -F raw", "base.qcow2 -F qcow2", "middle.qcow2 -F qcow2"] {
        place.ours(&format!("rebase -u -b {name} top.qcow2")).expect_success();
        place.qemu_img(&format!("rebase -u -b {name} theirs.qcow2"));
        assert_same_backing(&place, name);
    }
    assert_flat(&place, "top.qcow2", "with its old backing file again");
}

/// Nothing is written into an image that names a format that there is not.
#[test]
fn a_backing_file_has_a_format_that_there_is() {
    let place = Place::new();
    chain(&place);
    for (line, code) in [
        ("rebase -u -b base.qcow2 -F frob top.qcow2", 1),
        ("rebase -u -F frob top.qcow2", 1),
        ("rebase -b base.qcow2 -F frob top.qcow2", 1),
        ("create -q -u -f qcow2 -b base.qcow2 -F frob new.qcow2 1M", 1),
        ("create -q -u -f qcow2 -o backing_file=base.qcow2,backing_fmt=frob new.qcow2 1M", 1),
        ("create -q -u -f qcow2 -b there.vmdk -F vmdk new.qcow2 1M", 0),
        ("rebase -u -b there.vmdk -F vmdk top.qcow2", 0),
    ] {
        let before = place.read("top.qcow2");
        let ours = place.ours(line);
        assert_eq!(ours.code, code, "{line}: {ours:?}");
        let is_changed = line.ends_with("vmdk top.qcow2");
        assert!((place.read("top.qcow2") != before) == is_changed, "{line}");
        assert_eq!(place.path("new.qcow2").exists(), line.contains("vmdk new"), "{line}");
        let _ = fs::remove_file(place.path("new.qcow2"));
        fs::write(place.path("top.qcow2"), &before).unwrap();
        let theirs = place.theirs(line);
        assert_eq!(theirs.code, code, "{line}: {theirs:?}");
        let _ = fs::remove_file(place.path("new.qcow2"));
        fs::write(place.path("top.qcow2"), before).unwrap();
    }
}

/// Version 2 has nothing that says zeroes, which hide what the new backing file has.
#[test]
fn rebase_compresses_zeroes_of_version_2() {
    if tools::qemu_major() < 8 {
        return;
    }
    let place = Place::new();
    chain(&place);
    let create = "create -q -f qcow2 -o compat=0.10,cluster_size=4k -b base.qcow2 -F qcow2";
    let others = [("ours.qcow2", true), ("theirs.qcow2", false)].map(|(image, is_ours)| {
        place.qemu_img(&format!("{create} {image} 22M"));
        place.qemu_io(image, &["write -P 9 100k 8k"]);
        place.qemu_img(&format!("convert -O raw {image} flat.raw"));
        let line = format!("rebase -c -b middle.qcow2 -F qcow2 {image}");
        if is_ours { place.ours(&line) } else { place.theirs(&line) }.expect_success();
        assert_flat(&place, image, "rebased");
        let check = place.theirs(&format!("check --output=json {image}")).expect_success().json();
        (check["allocated-clusters"].clone(), check["compressed-clusters"].clone())
    });
    let [ours, theirs] = others;
    assert_eq!(ours.0, theirs.0);
    // Theirs writes some of the zeroes plainly.
    assert!(ours.1.as_u64() >= theirs.1.as_u64(), "{ours:?} {theirs:?}");
}

/// What is printed of progress, without lines that are as the one before.
#[test]
fn amend_shows_its_progress() {
    let place = Place::new();
    for options in ["compat=0.10", "lazy_refcounts=off", "size=2M", "compat=0.10,lazy_refcounts"] {
        let said = ["ours.qcow2", "theirs.qcow2"].map(|image| {
            place.qemu_img(&format!("create -q -f qcow2 {image} 1M"));
            let line = format!("amend -p -o {options} {image}");
            let said = if image == "ours.qcow2" { place.ours(&line) } else { place.theirs(&line) };
            let mut lines: Vec<_> = said.out.split('\r').map(str::to_owned).collect();
            lines.dedup();
            (said.code, lines)
        });
        let [ours, theirs] = &said;
        match ours.0 {
            0 => assert_eq!(ours, theirs, "{options}"),
            // How much was told before it was found out.
            _ => assert_eq!((ours.0, ours.1.last()), (theirs.0, theirs.1.last()), "{options}"),
        }
    }
}

#[test]
fn amend_changes_fields_of_the_header() {
    let place = Place::new();
    place.qemu_img("create -q -f qcow2 base.qcow2 20M");
    place.qemu_img("create -q -f qcow2 -o compat=0.10 -b base.qcow2 -F qcow2 top.qcow2");
    place.qemu_io("top.qcow2", &["write -P 7 1M 2M"]);
    place.qemu_img("convert -O raw top.qcow2 flat.raw");
    fs::copy(place.path("top.qcow2"), place.path("theirs.qcow2")).unwrap();
    let specific = |image: &str| {
        let info = place.theirs(&format!("info --output=json {image}")).expect_success().json();
        info["format-specific"].clone()
    };
    for options in [
        "-o compat=0.10",
        "-o lazy_refcounts=on",
        "-o compat=1.1,lazy_refcounts=on",
        "-o lazy_refcounts=off",
        "-o data_file=nothing",
        "-o size=30M -o compat=v3",
        "-o frob=1",
        "-o refcount_bits=8",
        "-o compat=0.10",
        "-o refcount_bits=16,compat=0.10",
        "-o refcount_bits=64",
        "-o refcount_bits=64,compat=1.1",
        "-o refcount_bits=5",
    ] {
        let ours = place.ours(&format!("amend {options} top.qcow2"));
        let theirs = place.theirs(&format!("amend {options} theirs.qcow2"));
        assert_eq!(ours.code, theirs.code, "{options}: {ours:?} {theirs:?}");
        assert_eq!(specific("top.qcow2"), specific("theirs.qcow2"), "{options}");
        assert_same_backing(&place, options);
    }
    place.ours("resize -q --shrink top.qcow2 20M").expect_success();
    assert_flat(&place, "top.qcow2", "amended");
}

/// Both images name the same backing file.
#[track_caller]
fn assert_same_backing(place: &Place, what: &str) {
    let info = |image: &str| {
        let info = place.theirs(&format!("info --output=json {image}")).expect_success().json();
        (info["backing-filename"].clone(), info["backing-filename-format"].clone())
    };
    assert_eq!(info("top.qcow2"), info("theirs.qcow2"), "{what}");
}

/// Names of backing files are relative to the image above, and may be absolute, as in QEMU.
#[test]
fn a_commit_finds_its_base_by_relative_and_by_absolute_names() {
    let place = Place::new();
    fs::create_dir(place.path("below")).unwrap();
    place.qemu_img("create -q -f qcow2 below/base.qcow2 1M");
    place.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 below/mid.qcow2");
    place.qemu_img("create -q -f qcow2 -b mid.qcow2 -F qcow2 below/top.qcow2");
    let absolute = place.path("below/base.qcow2").display().to_string();
    for (base, code) in [("base.qcow2", 0), (&*absolute, 0), ("below/base.qcow2", 1), ("other", 1)]
    {
        let commit = format!("commit -q -b {base} below/top.qcow2");
        assert_eq!(place.ours(&commit).code, code, "{base}");
        assert_eq!(place.theirs(&commit).code, code, "{base}");
    }
    let absolute_top = place.path("below/top.qcow2").display().to_string();
    place.ours(&format!("commit -q -b {absolute} {absolute_top}")).expect_success();
}

/// Slots and times are numbers, as text on the command line.
#[test]
fn a_key_is_put_into_a_chosen_slot() {
    let place = Place::new();
    let secrets = "--object secret,id=old,data=one --object secret,id=new,data=two";
    let format = "encrypt.format=luks,encrypt.key-secret=old,encrypt.iter-time=10";
    place.ours(&format!("create -f qcow2 {secrets} -o {format} a.qcow2 1M")).expect_success();
    let image = |secret: &str| {
        format!("--image-opts driver=qcow2,file.filename=a.qcow2,encrypt.key-secret={secret}")
    };
    let amend = |more: &str| {
        let key = format!("encrypt.state=active,encrypt.new-secret=new,{more}");
        place.ours(&format!("amend {secrets} -o {key} {}", image("old")))
    };
    for wrong in ["encrypt.keyslot=x", "encrypt.keyslot=8", "encrypt.iter-time=-1"] {
        let said = amend(wrong);
        assert_eq!(said.code, 1, "{wrong}: {said:?}");
    }
    amend("encrypt.keyslot=3,encrypt.iter-time=10").expect_success();
    let info = place.theirs("info --output=json a.qcow2").expect_success().json();
    let slots = info["format-specific"]["data"]["encrypt"]["slots"].as_array().unwrap().clone();
    let active = slots.iter().map(|slot| slot["active"] == true).collect::<Vec<_>>();
    assert_eq!(active, [true, false, false, true, false, false, false, false]);
    for secret in ["old", "new"] {
        place.theirs(&format!("check {secrets} {}", image(secret))).expect_success();
    }
}
