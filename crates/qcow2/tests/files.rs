//! Files that options or an image name: backing files and data files, the gate, refusals.

use std::fs;

use coblk_tests::tools;
use serde_json::json;

use crate::util;
use crate::util::{Opened, Stand, assert_same, patch};

const BASE: &str = "backing_file=base.raw,backing_fmt=raw";

/// The place of the backing name, and a name of this length in its place.
fn rename(image: &std::path::Path, name: &str) {
    let at = util::word(image, 8);
    patch(image, at, name.as_bytes());
    patch(image, 16, &(name.len() as u32).to_be_bytes());
}

/// An overlay without the extension that says the format of its backing file.
fn without_format(stand: &Stand, name: &str, base: &str) -> std::path::PathBuf {
    let image = stand.create(name, &format!("backing_file={base},backing_fmt=raw"), "1M");
    // The extension comes first; its type becomes one that is not known.
    patch(&image, 112, &0x1234_5678_u32.to_be_bytes());
    image
}

#[test]
fn q64_a_backing_file_is_that_of_the_options_or_of_the_image() {
    let stand = Stand::new();
    let base = fs::read(stand.random_file("base.raw", 1 << 20)).unwrap();
    let other = fs::read(stand.random_file("other.raw", (1 << 20) + 512)).unwrap();
    let image = stand.create("image.qcow2", BASE, "1M");
    let read = |more| stand.open(&image, more).read(0, 1 << 20).unwrap();
    assert_same(&read(json!({})), &base, "that of the image");
    let none = json!({"backing": null});
    assert_same(&read(none), &[0; 1 << 20], "none");
    assert_same(&read(json!({"backing": ""})), &[0; 1 << 20], "none, as a text");
    let file = json!({"driver": "file", "filename": tools::text(&stand.path("other.raw"))});
    let described = json!({"backing": {"driver": "raw", "file": file}});
    assert_same(&read(described), &other[..1 << 20], "a definition");
    let named = coblk_block::options::NodeOptions::from_value(
        json!({"driver": "file", "node-name": "other", "read-only": true,
               "filename": tools::text(&stand.path("other.raw"))}),
    );
    stand.blockdevs.open(&stand.ctx, named.unwrap()).unwrap();
    assert_same(&read(json!({"backing": "other"})), &other[..1 << 20], "a node");
    stand.end();
}

#[test]
fn q67_q68_names_are_relative_to_the_image() {
    let stand = Stand::new();
    let base = fs::read(stand.random_file("base.raw", 1 << 20)).unwrap();
    let image = stand.create("image.qcow2", BASE, "1M");
    // This process works elsewhere.
    assert_same(&stand.open(&image, json!({})).read(0, 1 << 20).unwrap(), &base, "relative");
    let whole = format!("backing_file={},backing_fmt=raw", stand.path("base.raw").display());
    let absolute = stand.create("absolute.qcow2", &whole, "1M");
    assert_same(&stand.open(&absolute, json!({})).read(0, 1 << 20).unwrap(), &base, "absolute");
    let json = format!(
        r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}"#,
        stand.path("base.raw").display()
    );
    let name = format!("backing_file={},backing_fmt=raw", json.replace(',', ",,"));
    let defined = stand.create("defined.qcow2", &name, "1M");
    assert_same(&stand.open(&defined, json!({})).read(0, 1 << 20).unwrap(), &base, "JSON");
    rename(&image, "nbd:it.x");
    let why = stand.refusal(&image, json!({}));
    assert!(why.contains("'nbd:it.x'") && why.contains("protocol"), "{why}");
    rename(&image, "gone.raw");
    let why = stand.refusal(&image, json!({}));
    assert!(why.contains("No such file"), "{why}");
    // What the image names is left alone.
    stand.open(&image, json!({"backing": null}));
    stand.end();
}

#[test]
fn q68_backing_files_that_form_a_loop_are_refused() {
    let stand = Stand::new();
    stand.create("b.raw", "", "1M");
    let image = stand.create("a.qcow2", "backing_file=b.raw,backing_fmt=qcow2", "1M");
    fs::copy(&image, stand.path("b.raw")).unwrap();
    rename(&stand.path("b.raw"), "a.qcow2");
    let why = stand.refusal(&image, json!({}));
    assert!(why.contains("loop"), "{why}");
    rename(&image, "./a.qcow2");
    let why = stand.refusal(&image, json!({}));
    // Each link has the name of the same file in another way, so the depth ends it.
    assert!(why.contains("loop") || why.contains("200"), "{why}");
    stand.end();
}

#[test]
fn q70_a_backing_file_without_a_format_is_raw_or_names_no_file() {
    let stand = Stand::new();
    let base = fs::read(stand.random_file("base.raw", 1 << 20)).unwrap();
    let image = without_format(&stand, "image.qcow2", "base.raw");
    assert_same(&stand.open(&image, json!({})).read(0, 1 << 20).unwrap(), &base, "raw");
    // A qcow2 image that names no file.
    let qcow2 = stand.create("new.qcow2", "", "1M");
    stand.qemu_io(&qcow2, &["write -P 7 0 1M".to_owned()]);
    fs::rename(&qcow2, stand.path("base.raw")).unwrap();
    assert_eq!(stand.open(&image, json!({})).read(0, 512).unwrap(), [7; 512]);
    for (options, why) in [(BASE, "names a file"), ("data_file=d.raw", "names a file")] {
        let naming = stand.create("new.qcow2", options, "1M");
        fs::rename(naming, stand.path("base.raw")).unwrap();
        let told = stand.refusal(&image, json!({}));
        assert!(told.contains(why), "{told}");
    }
    fs::write(stand.path("base.raw"), b"KDMV and so on").unwrap();
    let told = stand.refusal(&image, json!({}));
    assert!(told.contains("looks like 'vmdk'"), "{told}");
    // With a format nothing is probed.
    let known = stand.create("known.qcow2", BASE, "1M");
    assert_eq!(&stand.open(&known, json!({})).read(0, 4).unwrap(), b"KDMV");
    stand.end();
}

#[test]
fn q71_a_gate_refuses_files_that_only_the_image_names() {
    let stand = Stand::new();
    stand.random_file("base.raw", 1 << 20);
    let image = stand.create("image.qcow2", BASE, "1M");
    let refuse = json!({"x-named-files": "refuse"});
    let why = stand.refusal(&image, refuse.clone());
    assert!(why.contains("'backing'") && why.contains("base.raw"), "{why}");
    stand.open(&image, json!({"x-named-files": "refuse", "backing": null}));
    let with_data = stand.create("data.qcow2", "data_file=data.raw", "1M");
    let why = stand.refusal(&with_data, refuse);
    assert!(why.contains("'data-file'") && why.contains("data.raw"), "{why}");
    let file = json!({"driver": "file", "filename": tools::text(&stand.path("data.raw"))});
    stand.open(&with_data, json!({"x-named-files": "refuse", "data-file": file}));
    stand.end();
}

#[test]
fn q71_a_definition_in_an_image_does_not_write() {
    let stand = Stand::new();
    stand.random_file("base.raw", 1 << 20);
    let log = stand.random_file("log", 65536);
    let before = fs::read(&log).unwrap();
    let image = stand.create("image.qcow2", BASE, "1M");
    // A log is written whatever the mode of its node is. The name has room behind the extensions.
    let text = |name: &str| tools::text(&stand.path(name)).to_owned();
    let json = format!(
        r#"json:{{"driver":"blklogwrites","file":{{"driver":"null-co"}},"log":{{"driver":"file","filename":"{}"}}}}"#,
        text("log")
    );
    rename(&image, &json);
    let why = stand.refusal(&image, json!({}));
    assert!(why.contains("definition") && why.contains("'blklogwrites'"), "{why}");
    assert_same(&fs::read(&log).unwrap(), &before, "the log");
    stand.end();
}

#[test]
fn q62_q63_a_data_file_belongs_to_images_that_have_one() {
    let stand = Stand::new();
    let plain = stand.create("plain.qcow2", "", "1M");
    let data = stand.random_file("other.raw", 1 << 20);
    let file = json!({"driver": "file", "filename": tools::text(&data)});
    let why = stand.refusal(&plain, json!({"data-file": file}));
    assert!(why.contains("'data-file'") && why.contains("no external data file"), "{why}");
    // The data file that options name has the data.
    let image = stand.create("image.qcow2", "data_file=data.raw", "1M");
    stand.qemu_io(&image, &["write -P 7 0 64k".to_owned()]);
    assert_eq!(stand.open(&image, json!({})).read(0, 512).unwrap(), [7; 512]);
    let theirs = fs::read(&data).unwrap();
    let read = stand.open(&image, json!({"data-file": file})).read(0, 65536).unwrap();
    assert_same(&read, &theirs[..65536], "the other data file");
    // Without a name in the image the option is needed.
    let at = 112;
    assert_eq!(util::word(&image, at) >> 32, 0x4441_5441);
    patch(&image, at, &0x1234_5678_u32.to_be_bytes());
    let why = stand.refusal(&image, json!({}));
    assert!(why.contains("'data-file'") && why.contains("names none"), "{why}");
    stand.end();
}

#[test]
fn q73_a_backing_file_may_be_shorter_or_longer() {
    let stand = Stand::new();
    let base = fs::read(stand.random_file("base.raw", 100_352)).unwrap();
    let image = stand.create("image.qcow2", BASE, "1M");
    let read = stand.open(&image, json!({})).read(0, 1 << 20).unwrap();
    assert_same(&read[..100_352], &base, "the backing file");
    assert!(read[100_352..].iter().all(|byte| *byte == 0));
    assert_same(&read, &stand.content(&image), "as QEMU");
    let small = stand.create("small.qcow2", BASE, "64k");
    let opened = stand.open(&small, json!({}));
    assert_eq!(opened.node.length(), 65536);
    assert_same(&opened.read(0, 65536).unwrap(), &base[..65536], "the beginning");
    drop(opened);
    stand.end();
}

#[test]
fn q72_a_chain_of_200_images_is_read_and_a_longer_one_refused() {
    let stand = Stand::new();
    let base = fs::read(stand.random_file("base.raw", 65536)).unwrap();
    // One made by QEMU; the others are it under other names.
    let first = stand.create("000.qcow2", "backing_file=base.raw,backing_fmt=raw", "64k");
    let link = stand.create("001.qcow2", "backing_file=000.qcow2,backing_fmt=qcow2", "64k");
    for number in 2..=200 {
        let next = stand.path(&format!("{number:03}.qcow2"));
        fs::copy(&link, &next).unwrap();
        rename(&next, &format!("{:03}.qcow2", number - 1));
    }
    assert!(first.exists());
    let top = stand.open(&stand.path("199.qcow2"), json!({}));
    assert_same(&top.read(0, 65536).unwrap(), &base, "through 200 images");
    assert_eq!(top.read(1, 65000).unwrap()[..], base[1..65001]);
    drop(top);
    let why = stand.refusal(&stand.path("200.qcow2"), json!({}));
    assert!(why.contains("200 backing files"), "{why}");
    stand.end();
}

#[test]
fn q74_an_image_is_read_beside_other_readers_and_not_beside_a_writer() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    let opened = stand.open(&image, json!({}));
    let [read, write] = [&["-r"][..], &[]].map(|mode| {
        let mut command = tools::command("qemu-io");
        command.args(mode).args(["-f", "qcow2", "-c", "read 0 512"]).arg(&image);
        tools::finish("qemu-io", &mut command).status.success()
    });
    assert_eq!((read, write), (true, false));
    drop(opened);
    stand.end();
}

#[test]
fn q77_a_file_that_cannot_be_written_makes_the_node_read_only() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    // A flag that an opening for writes would clear.
    patch(&image, 88, &(1_u64 << 50).to_be_bytes());
    let before = fs::read(&image).unwrap();
    let file = json!({"driver": "file", "filename": tools::text(&image), "read-only": true});
    let why = stand.refusal(&image, json!({"read-only": false, "file": file}));
    assert!(why.contains("read-only"), "{why}");
    let more = json!({"read-only": false, "auto-read-only": true, "file": file});
    let node = stand.try_open(&image, more).unwrap();
    assert!(node.is_read_only());
    drop(Opened::new(&stand, node));
    assert_eq!(fs::read(&image).unwrap(), before);
    stand.end();
}

#[test]
fn options_that_an_image_cannot_have_are_refused() {
    let stand = Stand::new();
    let v2 = stand.create("v2.qcow2", "compat=0.10", "1M");
    for option in ["lazy-refcounts", "discard-no-unref"] {
        let why = stand.refusal(&v2, json!({option: true}));
        assert!(why.contains(option) && why.contains("version 3"), "{why}");
    }
    stand.end();
}
