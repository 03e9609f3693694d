//! Dirty bitmaps that images have: what `bitmap` and `convert --bitmaps` do with them is what `qemu-img` does.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use coblk_tests::tools;
use serde_json::{Value, json};

use crate::util::{Place, Said};

/// Name, granularity, flags and bits (by their digest) of all bitmaps of an image, as QEMU sees them.
fn bitmaps(place: &Place, image: &str) -> Vec<(String, Value, Value, Value)> {
    let info = place.theirs(&format!("info --output=json {image}")).json();
    let listed = info["format-specific"]["data"]["bitmaps"].as_array().cloned();
    let told = |it: &Value| {
        let name = it["name"].as_str().unwrap().to_owned();
        let digest = digest(place, image, &name);
        (name, it["granularity"].clone(), it["flags"].clone(), digest)
    };
    listed.unwrap_or_default().iter().map(told).collect()
}

/// The digest of a bitmap's bits; null if they cannot be used.
fn digest(place: &Place, image: &str, name: &str) -> Value {
    let node = json!({"driver": "qcow2", "node-name": "disk", "read-only": true,
        "file": {"driver": "file", "filename": tools::text(&place.path(image))}});
    let mut command = tools::command("qemu-storage-daemon");
    // A data file is named as seen from here.
    command.current_dir(place.path(""));
    command.args(["--chardev", "stdio,id=c", "--monitor", "chardev=c"]);
    command.args(["--blockdev", &node.to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || loop {
        let message: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if message.get("event").is_none() {
            return message;
        }
    };
    next();
    let mut ask = |command: &str, arguments: Value| {
        // In one piece: a daemon that is told to quit does not wait for the end of the line.
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        stdin.write_all(line.as_bytes()).unwrap();
        next()
    };
    ask("qmp_capabilities", json!({}));
    let bitmap = json!({"node": "disk", "name": name});
    let answer = ask("x-debug-block-dirty-bitmap-sha256", bitmap);
    ask("quit", json!({}));
    assert!(child.wait().unwrap().success());
    answer["return"]["sha256"].clone()
}

/// An image with bitmaps of which some writes are known.
fn image(place: &Place, name: &str) {
    place.qemu_img(&format!("create -q -f qcow2 {name} 16M"));
    place.qemu_img(&format!("bitmap --add -g 64k {name} first"));
    place.qemu_io(name, &["write -P 1 1M 300k"]);
    place.qemu_img(&format!("bitmap --add -g 512 {name} second"));
    place.qemu_io(name, &["write -P 2 5M 3k", "write -z 9M 128k"]);
    place.qemu_img(&format!("bitmap --disable {name} first"));
}

/// Both programs do the same with images of the same content, which are the same afterwards.
#[track_caller]
fn same(place: &Place, arguments: &str) -> Said {
    let _ = fs::create_dir(place.path("copy"));
    for name in ["a.qcow2", "b.qcow2"] {
        fs::copy(place.path(name), place.path("copy").join(name)).unwrap();
    }
    let theirs = place.theirs(&arguments.replace("@", "copy/"));
    let ours = place.ours(&arguments.replace("@", ""));
    assert_eq!(
        (&ours.out, ours.code),
        (&theirs.out, theirs.code),
        "{arguments}: {ours:?} {theirs:?}"
    );
    assert_eq!(ours.error.is_empty(), theirs.error.is_empty(), "{arguments}: {ours:?} {theirs:?}");
    for name in ["a.qcow2", "b.qcow2"] {
        let copy = format!("copy/{name}");
        assert_eq!(bitmaps(place, name), bitmaps(place, &copy), "{arguments}: {name}");
        assert_eq!(place.theirs(&format!("check {name}")).code, 0, "{arguments}: {name}");
    }
    ours
}

#[test]
fn actions_are_done_in_their_order() {
    let place = Place::new();
    image(&place, "a.qcow2");
    image(&place, "b.qcow2");
    place.qemu_io("b.qcow2", &["write -P 7 12M 1M"]);
    for arguments in [
        "bitmap --add @a.qcow2 third",
        "bitmap --add -g 4k --disable @a.qcow2 fourth",
        "bitmap --enable @a.qcow2 first",
        "bitmap --disable --clear @a.qcow2 first",
        "bitmap --merge second --enable @a.qcow2 first",
        "bitmap --merge second -b @b.qcow2 -F qcow2 @a.qcow2 third",
        "bitmap --merge first --merge third @a.qcow2 second",
        "bitmap --remove -f qcow2 @a.qcow2 fourth",
        "bitmap --add --merge second --disable --granularity 1M @a.qcow2 fifth",
        "bitmap --remove --add --image-opts driver=qcow2,file.driver=file,file.filename=@a.qcow2 fifth",
        "bitmap --clear @b.qcow2 second",
    ] {
        let said = same(&place, arguments);
        assert_eq!(said.code, 0, "{arguments}: {said:?}");
    }
    let names: Vec<_> = bitmaps(&place, "a.qcow2").into_iter().map(|it| it.0).collect();
    assert_eq!(names, ["first", "second", "third", "fifth"]);
    place.qemu_io("a.qcow2", &["read -P 1 1M 300k", "read -P 2 5M 3k"]);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let place = Place::new();
    image(&place, "a.qcow2");
    image(&place, "b.qcow2");
    place.raw("c.raw", 1 << 20);
    place.qemu_img("create -q -f qcow2 -o compat=0.10 old.qcow2 1M");
    place.qemu_img("create -q -f qcow2 other.qcow2 1M");
    place.qemu_img("bitmap --add other.qcow2 second");
    for name in ["c.raw", "old.qcow2", "other.qcow2"] {
        let _ = fs::create_dir(place.path("copy"));
        fs::copy(place.path(name), place.path("copy").join(name)).unwrap();
    }
    for arguments in [
        "bitmap",
        "bitmap @a.qcow2 first",
        "bitmap --add @a.qcow2",
        "bitmap --add @a.qcow2 first more",
        "bitmap --add @a.qcow2 first",
        "bitmap --add --add @a.qcow2 twice",
        "bitmap --add -g 1000 @a.qcow2 new",
        "bitmap --add -g frob @a.qcow2 new",
        "bitmap --clear -g 64k @a.qcow2 first",
        "bitmap --clear @a.qcow2 missing",
        "bitmap --remove @a.qcow2 missing",
        "bitmap --merge missing @a.qcow2 first",
        "bitmap --merge second -b @other.qcow2 @a.qcow2 first",
        "bitmap --merge second -b missing @a.qcow2 first",
        "bitmap --clear -b @b.qcow2 @a.qcow2 first",
        "bitmap --merge second -F qcow2 @a.qcow2 first",
        "bitmap --add missing first",
        "bitmap --add -f raw @c.raw first",
        "bitmap --add @old.qcow2 first",
        "bitmap --add --image-opts -f qcow2 @a.qcow2 first",
        // What comes before a failure is done.
        "bitmap --clear --merge missing @a.qcow2 second",
    ] {
        let said = same(&place, arguments);
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{arguments}: {said:?}");
    }
}

#[test]
fn bitmaps_that_were_not_stored_can_be_removed_only() {
    let place = Place::new();
    for name in ["a.qcow2", "b.qcow2"] {
        image(&place, name);
        let mut crash = tools::command("qemu-io");
        crash.current_dir(place.path("")).args(["-f", "qcow2", name]);
        crash.args(["-c", "write -P 5 768k 128k", "-c", "flush", "-c", "abort"]);
        tools::finish("qemu-io", &mut crash);
    }
    for action in ["--clear", "--enable", "--disable", "--merge second"] {
        assert_eq!(same(&place, &format!("bitmap {action} @a.qcow2 first")).code, 1, "{action}");
    }
    for (arguments, code) in [("--bitmaps", 1), ("--bitmaps --skip-broken-bitmaps", 0)] {
        let how = format!("convert {arguments} -O qcow2 a.qcow2");
        let (ours, theirs) =
            (place.ours(&format!("{how} ours.img")), place.theirs(&format!("{how} theirs.img")));
        assert_eq!((ours.code, theirs.code), (code, code), "{ours:?} {theirs:?}");
        assert!(!ours.error.is_empty() && !theirs.error.is_empty());
    }
    assert_eq!(bitmaps(&place, "ours.img"), []);
    assert_eq!(same(&place, "bitmap --remove @a.qcow2 first").code, 0);
    assert_eq!(same(&place, "bitmap --remove --add @a.qcow2 second").code, 0);
}

#[test]
fn convert_copies_bitmaps() {
    let place = Place::new();
    image(&place, "a.qcow2");
    place.raw("c.raw", 1 << 20);
    for options in ["", "-c", "-W -m 3", "-o cluster_size=4k", "-S 0", "-o data_file=outside.data"]
    {
        let how = format!("convert --bitmaps -O qcow2 {options} a.qcow2");
        for name in ["ours.qcow2", "theirs.qcow2"] {
            let _ = fs::remove_file(place.path(name));
        }
        place.qemu_img(&format!("{how} theirs.qcow2"));
        let theirs = bitmaps(&place, "theirs.qcow2");
        place.ours(&format!("{how} ours.qcow2")).expect_success();
        assert_eq!(bitmaps(&place, "ours.qcow2"), theirs, "{options}");
        assert_eq!(theirs.len(), 2);
        assert_eq!(place.theirs("check ours.qcow2").code, 0, "{options}");
        assert_eq!(place.theirs("compare a.qcow2 ours.qcow2").code, 0, "{options}");
    }
    for wrong in [
        "c.raw -O qcow2",
        "a.qcow2 -O raw",
        "a.qcow2 a.qcow2 -O qcow2",
        "a.qcow2 -O qcow2 -o compat=0.10",
    ] {
        let wrong = format!("convert --bitmaps {wrong}");
        let (ours, theirs) = (
            place.ours(&format!("{wrong} ours.img")),
            place.theirs(&format!("{wrong} theirs.img")),
        );
        assert_eq!((ours.code, theirs.code), (1, 1), "{wrong}: {ours:?} {theirs:?}");
    }
}
