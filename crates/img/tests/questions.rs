//! What is told of an image is what `qemu-img` tells of it: lines, JSON and exit codes.

use std::fs;

use coblk_tests::tools;
use serde_json::Value;

use crate::util::{Place, images};

/// Runs both with the same arguments: they print the same, and end with the same code.
#[track_caller]
fn same(place: &Place, arguments: &str) {
    let (mut ours, theirs) = (place.ours(arguments), place.theirs(arguments));
    if tools::qemu_major() < 8 {
        // A map did not tell that.
        ours.out =
            ours.out.replace(", \"compressed\": false", "").replace(", \"compressed\": true", "");
    }
    assert_eq!((&ours.out, ours.code), (&theirs.out, theirs.code), "{arguments}: {}", ours.error);
    assert_eq!(ours.error.is_empty(), theirs.error.is_empty(), "{arguments}: {ours:?} {theirs:?}");
}

#[track_caller]
fn same_json(place: &Place, arguments: &str, less: impl Fn(Value) -> Value) {
    let (ours, theirs) = (place.ours(arguments), place.theirs(arguments));
    assert_eq!(less(ours.json()), theirs.json(), "{arguments}");
}

/// What versions before 8 do not tell.
fn as_old(mut value: Value) -> Value {
    if tools::qemu_major() >= 8 {
        return value;
    }
    let images = match &mut value {
        Value::Array(images) => images.iter_mut().collect(),
        image => vec![image],
    };
    for image in images {
        let image = image.as_object_mut().unwrap();
        image.remove("children");
        let specific = image.get_mut("format-specific");
        let luks = specific.and_then(|it| it.get_mut("data")?.get_mut("encrypt")?.as_object_mut());
        luks.map(|luks| luks.remove("detached-header"));
    }
    value
}

fn as_old_lines(text: &str) -> String {
    if tools::qemu_major() >= 8 {
        return text.to_owned();
    }
    let (mut lines, mut is_child) = (String::new(), false);
    for line in text.lines() {
        is_child = line.starts_with("Child node") || (is_child && line.starts_with("    "));
        if !is_child {
            lines.push_str(&line.replace("VM_SIZE", "VM SIZE").replace("VM_CLOCK", "VM CLOCK"));
            lines.push('\n');
        }
    }
    lines
}

/// Lines without the widths of their columns, which differ between versions, and hours with all digits.
fn words(text: &str) -> Vec<Vec<String>> {
    let word = |word: &str| word.replace("0000:00:00.000", "00:00:00.000");
    text.lines().map(|line| line.split_whitespace().map(word).collect()).collect()
}

#[test]
fn info_prints_what_qemu_img_prints() {
    let place = Place::new();
    for image in images(&place) {
        for arguments in [format!("info {image}"), format!("info --backing-chain {image}")] {
            let (ours, theirs) = (place.ours(&arguments), place.theirs(&arguments));
            assert_eq!(ours.code, 0, "{ours:?}");
            match tools::qemu_major() >= 8 {
                true => assert_eq!(ours.out, theirs.out, "{arguments}"),
                false => {
                    assert_eq!(words(&as_old_lines(&ours.out)), words(&theirs.out), "{arguments}")
                }
            }
            same_json(&place, &format!("{arguments} --output=json"), as_old);
        }
    }
    same_json(&place, "info --output=json -f raw v3.qcow2", as_old);
    same_json(&place, "info -U --output=json v3.qcow2", as_old);
    let options = "--image-opts driver=qcow2,file.driver=file,file.filename=v3.qcow2";
    same_json(&place, &format!("info --output=json {options}"), as_old);
}

#[test]
fn map_prints_what_qemu_img_prints() {
    let place = Place::new();
    // QEMU looks for holes below the clusters of images that seem to be preallocated.
    for image in images(&place).into_iter().filter(|image| *image != "prealloc.qcow2") {
        same(&place, &format!("map {image}"));
        same(&place, &format!("map --output=json {image}"));
        same(&place, &format!("map --output=json --start-offset 65k --max-length 3M {image}"));
    }
    same(&place, "map --output=json -f raw v3.qcow2");
    same(&place, "map missing.qcow2");
}

#[test]
fn check_prints_what_qemu_img_prints() {
    let place = Place::new();
    for image in images(&place) {
        same(&place, &format!("check {image}"));
        if image.ends_with("qcow2") {
            same_json(&place, &format!("check --output=json {image}"), |it| it);
        }
        same(&place, &format!("check -q {image}"));
    }
    same(&place, "check missing.qcow2");
}

#[test]
fn check_tells_leaks_and_corruptions_by_its_code() {
    let place = Place::new();
    for image in ["leak.qcow2", "corrupt.qcow2", "both.qcow2"] {
        place.qemu_img(&format!("create -q -f qcow2 {image} 9M"));
        place.qemu_io(image, &["write -P 1 0 300k"]);
        let l2 = place.word(image, place.word(image, 40));
        let refcounts = place.word(image, place.word(image, 48));
        if image != "corrupt.qcow2" {
            place.patch(image, l2, &[0; 8]);
        }
        if image != "leak.qcow2" {
            let data = place.word(image, l2 + 8) / 65536;
            place.patch(image, refcounts + 2 * data, &[0, 0]);
        }
        let (ours, theirs) =
            (place.ours(&format!("check {image}")), place.theirs(&format!("check {image}")));
        assert_eq!((&ours.out, ours.code), (&theirs.out, theirs.code), "{image}");
        let arguments = format!("check --output=json {image}");
        let (ours, theirs) = (place.ours(&arguments), place.theirs(&arguments));
        assert_eq!(ours.code, if image == "leak.qcow2" { 3 } else { 2 });
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!((json(&ours.out), ours.code), (json(&theirs.out), theirs.code), "{image}");
    }
}

#[test]
fn compare_prints_what_qemu_img_prints() {
    let place = Place::new();
    images(&place);
    place.qemu_img("convert -O raw v3.qcow2 v3.raw");
    place.qemu_img("convert -O raw top.qcow2 top.raw");
    place.qemu_img("convert -O raw compressed.qcow2 longer.raw");
    place.qemu_img("resize -q -f raw longer.raw +100k");
    fs::copy(place.path("longer.raw"), place.path("tail.raw")).unwrap();
    place.qemu_io("tail.raw", &["write -P 3 8257k 512"]);
    fs::copy(place.path("v3.raw"), place.path("other.raw")).unwrap();
    place.qemu_io("other.raw", &["write -P 4 4100k 1k", "write -P 5 8M 4k"]);
    for images in [
        "v3.qcow2 v3.raw",
        "top.qcow2 top.raw",
        "v3.qcow2 other.raw",
        "other.raw v3.qcow2",
        "compressed.qcow2 data.raw",
        "compressed.qcow2 longer.raw",
        "tail.raw compressed.qcow2",
        "compressed.qcow2 tail.raw",
        "v3.qcow2 v2.qcow2",
        "v3.qcow2 v3.qcow2",
        "empty.raw snapshots.qcow2",
        "odd.raw odd.raw",
        "missing.raw v3.raw",
        "v3.raw missing.raw",
    ] {
        for options in ["", "-s", "-q", "-T none", "-U", "-f raw -F raw"] {
            same(&place, &format!("compare {options} {images}"));
        }
    }
    same(&place, "compare -T foo v3.qcow2 v3.qcow2");
}

#[test]
fn measure_prints_what_qemu_img_prints() {
    let place = Place::new();
    images(&place);
    for arguments in ["data.raw", "odd.raw", "v3.qcow2", "top.qcow2", "--size 10M", "--size 1000"] {
        same(&place, &format!("measure -O raw {arguments}"));
        same_json(&place, &format!("measure -O raw --output=json {arguments}"), |it| it);
    }
    for arguments in
        ["data.raw", "top.qcow2", "compressed.qcow2", "--size 10M", "-o cluster_size=4k --size 10G"]
    {
        same(&place, &format!("measure -O qcow2 {arguments}"));
        same_json(&place, &format!("measure -O qcow2 --output=json {arguments}"), |it| it);
    }
    same(&place, "measure -O raw");
    same(&place, "measure -O raw --size 1M data.raw");
    same(&place, "measure -O raw missing.raw");
}

#[test]
fn snapshots_are_listed() {
    let place = Place::new();
    images(&place);
    let (ours, theirs) =
        (place.ours("snapshot -l snapshots.qcow2"), place.theirs("snapshot -l snapshots.qcow2"));
    match tools::qemu_major() >= 8 {
        true => assert_eq!(ours, theirs),
        false => assert_eq!(words(&as_old_lines(&ours.out)), words(&theirs.out)),
    }
    same(&place, "snapshot v3.qcow2");
    assert_eq!(place.ours("snapshot -l -f raw data.raw").expect_success().out, "");
    assert_eq!(place.ours("snapshot -c s -f raw data.raw").code, 1);
}

#[test]
fn encrypted_images_are_opened_by_a_secret() {
    let place = Place::new();
    let secret = "--object secret,id=key,data=password";
    let make = "-o encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=1 a.qcow2 1M";
    place.qemu_img(&format!("create -q -f qcow2 {secret} {make}"));
    let image = "--image-opts driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=key";
    let write = ["--object", "secret,id=key,data=password", "--image-opts"];
    let options = "driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=key";
    place
        .program("qemu-io", &[&write[..], &[options, "-c", "write -P 7 0 100k"]].concat())
        .expect_success();
    same_json(&place, "info --output=json a.qcow2", as_old);
    same(&place, &format!("map --output=json {secret} {image}"));
    same(&place, &format!("check {secret} {image}"));
    let options = &image["--image-opts ".len()..];
    place
        .ours(&format!("convert {secret} --source-image-opts {options} ours.raw"))
        .expect_success();
    place.qemu_img(&format!("convert {secret} --image-opts {options} theirs.raw"));
    assert!(place.read("ours.raw") == place.read("theirs.raw"));
    // In a file, and in base64.
    fs::write(place.path("key"), "cGFzc3dvcmQ=\n").unwrap();
    let secret = "--object secret,id=key,format=base64,file=key";
    place.ours(&format!("map --output=json {secret} {image}")).expect_success();
    for wrong in [
        "map a.qcow2",
        "map --object secret,id=key,data=wrong --image-opts driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=key",
        "map --object secret,id=key a.qcow2",
        "map --object frob,id=key a.qcow2",
    ] {
        let said = place.ours(wrong);
        assert_eq!(said.code, 1, "{wrong}: {said:?}");
        assert!(!said.error.contains("wrong"), "{said:?}");
    }
}
