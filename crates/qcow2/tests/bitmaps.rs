//! Dirty bitmaps that are kept in images, by this driver and by QEMU in turns.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use coblk_block::{Amend, BitmapError, DirtyBitmap, NewBitmap, Repair};
use coblk_qapi::Deferred;
use coblk_tests::tools;
use serde_json::{Value, json};

use crate::util::{Opened, Stand, first_l2, patch, word};

const GRANULE: u64 = 65536;

/// The flags of the bitmaps in an image, as QEMU sees them.
#[track_caller]
fn flags(stand: &Stand, image: &Path) -> Value {
    let (info, code) = stand.qemu_img("info", image);
    assert_eq!(code, 0, "{info}");
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned();
    let mut all = json!({});
    for bitmap in bitmaps.unwrap_or_default() {
        all[bitmap["name"].as_str().unwrap()] = bitmap["flags"].clone();
    }
    all
}

/// What QEMU's daemon answers that has an image open as the node `disk`. It asks for no locks: for a moment, a
/// program that another test starts has those of images that are closed.
fn qemu(image: &Path, read_only: bool, commands: &[(&str, Value)]) -> Vec<Value> {
    let node = json!({"driver": "qcow2", "node-name": "disk", "read-only": read_only,
        "file": {"driver": "file", "filename": tools::text(image), "locking": "off"}});
    let mut command = tools::command("qemu-storage-daemon");
    command.current_dir(image.parent().unwrap()).args([
        "--chardev",
        "stdio,id=c",
        "--monitor",
        "chardev=c",
    ]);
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
    let mut ask = |command: &str, arguments: &Value| {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(stdin, "{request}").unwrap();
        next()
    };
    ask("qmp_capabilities", &json!({}));
    let answers = commands.iter().map(|(command, arguments)| ask(command, arguments)).collect();
    ask("quit", &json!({}));
    assert!(child.wait().unwrap().success());
    answers
}

/// The SHA-256 of a bitmap, as QEMU loads it.
fn qemu_digest(image: &Path, name: &str) -> Value {
    let bitmap = json!({"node": "disk", "name": name});
    let answers = qemu(image, true, &[("x-debug-block-dirty-bitmap-sha256", bitmap)]);
    answers[0]["return"]["sha256"].clone()
}

fn bitmap(opened: &Opened<'_>, name: &str) -> Arc<DirtyBitmap> {
    opened.node.bitmaps().find(name).unwrap()
}

fn add(opened: &Opened<'_>, name: &str) -> Result<Arc<DirtyBitmap>, BitmapError> {
    let mut new = NewBitmap::new(name.to_owned(), GRANULE);
    new.is_persistent = true;
    opened.ctx().run(|co| opened.node.co_add_bitmap(co, new))
}

fn remove(opened: &Opened<'_>, name: &str) -> Result<(), BitmapError> {
    let bitmap = bitmap(opened, name);
    opened.ctx().run(|co| opened.node.co_remove_bitmap(co, &bitmap))
}

/// What the file has now, as another image.
fn copy(stand: &Stand, image: &Path) -> std::path::PathBuf {
    let copy = stand.path("copy.qcow2");
    fs::copy(image, &copy).unwrap();
    copy
}

fn qemu_bitmap(image: &Path, words: &[&str]) {
    let mut command = tools::command("qemu-img");
    // A name of a data file in the image is looked for in the working directory.
    command.current_dir(image.parent().unwrap()).arg("bitmap");
    command.args(&words[..words.len() - 1]).args([tools::text(image), words[words.len() - 1]]);
    tools::expect_success("qemu-img bitmap", &tools::finish("qemu-img", &mut command));
}

#[test]
fn q162_bitmaps_go_to_and_fro_between_qemu_and_this_driver() {
    for options in ["", "cluster_size=512", "cluster_size=2M,extended_l2=on", "data_file=data.raw"]
    {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", options, "64M");
        qemu_bitmap(&image, &["--add", "-g", "65536", "theirs"]);
        qemu_bitmap(&image, &["--add", "--disable", "-g", "65536", "off"]);
        qemu_bitmap(&image, &["--add", "-g", "512", "fine"]);
        stand.qemu_io(&image, &["write 1M 64k".to_owned(), "write -z 40M 4k".to_owned()]);

        let opened = stand.open_writable(&image, json!({}));
        let names: Vec<_> = opened.node.bitmaps().list().iter().map(|it| it.name()).collect();
        assert_eq!(names, ["fine", "off", "theirs"].map(|name| Some(name.to_owned())));
        assert!(bitmap(&opened, "theirs").is_recording() && !bitmap(&opened, "off").is_recording());
        assert_eq!(bitmap(&opened, "theirs").bits().count(), 2 * GRANULE);
        assert_eq!(bitmap(&opened, "fine").bits().count(), 68 << 10);
        opened.write(3 << 20, &[7; 100_000]).unwrap();
        add(&opened, "ours").unwrap();
        opened.write(8 << 20, &[8; 1]).unwrap();
        let digest = |name: &str| (name.to_owned(), bitmap(&opened, name).bits().sha256());
        let digests = ["theirs", "off", "fine", "ours"].map(digest);
        assert_eq!(bitmap(&opened, "ours").bits().count(), GRANULE);
        bitmap(&opened, "ours").set_recording(false).unwrap();
        opened.close();

        stand.check(&image);
        let on = json!(["auto"]);
        let expected = json!({"theirs": on, "off": [], "fine": on, "ours": []});
        assert_eq!(flags(&stand, &image), expected, "{options}");
        for (name, digest) in digests {
            assert_eq!(qemu_digest(&image, &name), digest, "{options}: {name}");
            let opened = stand.open(&image, json!({}));
            assert_eq!(bitmap(&opened, &name).bits().sha256(), digest, "{options}: {name}");
        }
        stand.end();
    }
}

#[test]
fn q161_q164_bitmaps_are_marked_before_the_first_write_and_not_before() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "64M");
    qemu_bitmap(&image, &["--add", "a"]);
    stand.qemu_io(&image, &["write 1M 64k".to_owned()]);
    let before = fs::read(&image).unwrap();
    let opened = stand.open_writable(&image, json!({}));
    assert!(fs::read(&image).unwrap() == before, "an opening writes nothing");
    opened.write(0, &[7; 512]).unwrap();
    let copy = copy(&stand, &image);
    opened.close();
    assert_eq!(flags(&stand, &image), json!({"a": ["auto"]}));

    // What a crash would have left.
    assert_eq!(flags(&stand, &copy), json!({"a": ["in-use", "auto"]}));
    let opened = stand.open_writable(&copy, json!({}));
    let a = bitmap(&opened, "a");
    assert!(a.is_inconsistent() && !a.is_recording() && a.bits().count() == 0);
    opened.write(2 << 20, &[7; 512]).unwrap();
    assert_eq!(a.bits().count(), 0);
    assert!(matches!(a.clear(), Err(BitmapError::Inconsistent(_))));
    assert!(matches!(add(&opened, "a"), Err(BitmapError::Exists(_))));
    drop(a);
    opened.close();
    assert_eq!(flags(&stand, &copy), json!({"a": ["in-use", "auto"]}));
    let opened = stand.open_writable(&copy, json!({}));
    remove(&opened, "a").unwrap();
    add(&opened, "a").unwrap();
    opened.close();
    assert_eq!(flags(&stand, &copy), json!({"a": ["auto"]}));
    stand.end();
}

#[test]
fn q161_each_kind_of_change_marks_the_bitmaps() {
    type Change = fn(&Opened<'_>);
    let changes: [(&str, Change); 5] = [
        ("write", |it| it.write(0, &[7; 1]).unwrap()),
        ("zeroes", |it| {
            let flags = coblk_block::ZeroFlags::empty();
            it.ctx().run(|co| it.backend().co_pwrite_zeroes(co, 0, 65536, flags)).unwrap();
        }),
        ("discard", |it| it.ctx().run(|co| it.backend().co_pdiscard(co, 0, 65536)).unwrap()),
        ("resize", |it| it.ctx().run(|co| it.backend().co_truncate(co, 32 << 20)).unwrap()),
        ("empty", |it| it.ctx().run(|co| it.node.co_image(co)?.co_make_empty(co)).unwrap()),
    ];
    for (name, change) in changes {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", "", "16M");
        stand.qemu_io(&image, &["write 0 64k".to_owned()]);
        qemu_bitmap(&image, &["--add", "a"]);
        let opened = stand.open_writable(&image, json!({"discard": "unmap"}));
        change(&opened);
        let copy = copy(&stand, &image);
        opened.close();
        assert_eq!(flags(&stand, &copy), json!({"a": ["in-use", "auto"]}), "{name}");
        assert_eq!(flags(&stand, &image), json!({"a": ["auto"]}), "{name}");
        stand.check(&image);
        stand.end();
    }
}

#[test]
fn q163_a_bitmap_is_removed_from_the_image_at_once_and_version_2_has_none() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "64M");
    qemu_bitmap(&image, &["--add", "a"]);
    qemu_bitmap(&image, &["--add", "b"]);
    let opened = stand.open_writable(&image, json!({}));
    opened.write(0, &[7; 512]).unwrap();
    remove(&opened, "a").unwrap();
    let copy = copy(&stand, &image);
    assert_eq!(flags(&stand, &copy), json!({"b": ["in-use", "auto"]}));
    remove(&opened, "b").unwrap();
    assert_eq!(flags(&stand, &self::copy(&stand, &image)), json!({}));
    opened.close();
    stand.check(&image);
    let image = stand.create("old.qcow2", "compat=0.10", "1M");
    let opened = stand.open_writable(&image, json!({}));
    let why = add(&opened, "a").unwrap_err().to_string();
    assert!(why.ends_with("Cannot store dirty bitmaps in qcow2 v2 files"), "{why}");
    assert!(opened.node.bitmaps().is_empty());
    opened.close();
    stand.end();
}

#[test]
fn q163_bitmaps_follow_a_resize_and_refuse_it_where_they_cannot() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "16M");
    qemu_bitmap(&image, &["--add", "a"]);
    let opened = stand.open_writable(&image, json!({}));
    opened.write(15 << 20, &[7; 512]).unwrap();
    let resize = |mib: u64| opened.ctx().run(|co| opened.backend().co_truncate(co, mib << 20));
    resize(64).unwrap();
    opened.write(63 << 20, &[7; 512]).unwrap();
    resize(8).unwrap();
    let a = bitmap(&opened, "a");
    assert_eq!((a.bits().length(), a.bits().count()), (8 << 20, 0));
    resize(12).unwrap();
    assert_eq!(a.bits().count(), 4 << 20);
    let acquired = a.acquire(coblk_block::BitmapUse::Read).unwrap();
    assert!(resize(16).is_err());
    drop(acquired);
    resize(16).unwrap();
    let digest = a.bits().sha256();
    drop(a);
    let crashed = copy(&stand, &image);
    opened.close();
    assert_eq!(qemu_digest(&image, "a"), digest);
    stand.check(&image);
    // What was not closed keeps its length until the bitmap has been removed.
    let opened = stand.open_writable(&crashed, json!({}));
    let resize = |mib: u64| opened.ctx().run(|co| opened.backend().co_truncate(co, mib << 20));
    assert!(resize(32).is_err());
    remove(&opened, "a").unwrap();
    resize(32).unwrap();
    opened.close();
    stand.check(&crashed);
    stand.end();
}

#[test]
fn q162_bitmaps_are_stored_and_forgotten_when_a_node_becomes_inactive() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "16M");
    qemu_bitmap(&image, &["--add", "a"]);
    let mut opened = stand.open_writable(&image, json!({}));
    opened.write(0, &[7; 512]).unwrap();
    opened.backend = None;
    let set_active = |active| {
        let node = Arc::clone(&opened.node);
        opened.ctx().run(move |co| node.co_set_active(co, active)).unwrap();
    };
    set_active(false);
    assert!(opened.node.bitmaps().is_empty());
    assert_eq!(flags(&stand, &image), json!({"a": ["auto"]}));
    // Another process writes meanwhile, and adds one.
    stand.qemu_io(&image, &["write 8M 64k".to_owned()]);
    qemu_bitmap(&image, &["--add", "b"]);
    set_active(true);
    assert_eq!(bitmap(&opened, "a").bits().count(), 2 * GRANULE);
    assert!(bitmap(&opened, "b").is_recording());
    let writer = coblk_block::BackendOptions::new("writer");
    opened.backend = Some(writer.open(&stand.ctx, Arc::clone(&opened.node)).unwrap());
    opened.write(4 << 20, &[7; 512]).unwrap();
    opened.close();
    stand.check(&image);
    assert_eq!(flags(&stand, &image), json!({"a": ["auto"], "b": ["auto"]}));
    stand.end();
}

#[test]
fn q162_bitmaps_are_stored_when_a_node_becomes_read_only_and_marked_when_it_is_written_again() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "16M");
    qemu_bitmap(&image, &["--add", "a"]);
    let mut opened = stand.open_writable(&image, json!({"node-name": "disk"}));
    opened.write(0, &[7; 512]).unwrap();
    opened.backend = None;
    let reopen = |read_only: bool| {
        let options = stand.options(&image, json!({"node-name": "disk", "read-only": read_only}));
        stand.blockdevs.reopen(&stand.ctx, vec![options]).unwrap();
    };
    reopen(true);
    assert_eq!(flags(&stand, &image), json!({"a": ["auto"]}));
    assert!(matches!(bitmap(&opened, "a").clear(), Err(BitmapError::ReadOnly(_))));
    assert!(matches!(remove(&opened, "a"), Err(BitmapError::ReadOnly(_))));
    let why = add(&opened, "b").unwrap_err().to_string();
    assert!(why.contains("persistent in 'disk'"), "{why}");
    reopen(false);
    assert_eq!(flags(&stand, &copy(&stand, &image)), json!({"a": ["auto"]}));
    let writer = coblk_block::BackendOptions::new("writer");
    opened.backend = Some(writer.open(&stand.ctx, Arc::clone(&opened.node)).unwrap());
    opened.write(8 << 20, &[7; 512]).unwrap();
    assert_eq!(flags(&stand, &copy(&stand, &image)), json!({"a": ["in-use", "auto"]}));
    assert_eq!(bitmap(&opened, "a").bits().count(), 2 * GRANULE);
    opened.close();
    stand.check(&image);
    stand.end();
}

/// A node with a bitmap that records is changed as a whole, before two writes or between them: the bitmap has both, in
/// memory and then in the image.
#[track_caller]
fn change_beside_bitmaps(
    options: &str,
    damage: impl Fn(&Path),
    writes_before: bool,
    change: impl Fn(&Opened<'_>),
) {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", options, "64M");
    qemu_bitmap(&image, &["--add", "-g", "65536", "theirs"]);
    stand.qemu_io(&image, &["write 1M 64k".to_owned()]);
    qemu_bitmap(&image, &["--clear", "theirs"]);
    damage(&image);
    let opened = stand.open_writable(&image, json!({}));
    let mut content = opened.read(1 << 20, 65536).unwrap();
    let write = || opened.write((1 << 20) + 1000, &[7; 1000]).unwrap();
    if writes_before {
        write();
    }
    change(&opened);
    if !writes_before {
        write();
    }
    opened.write(20 << 20, &[8; 100_000]).unwrap();
    content[1000..2000].fill(7);
    assert!(opened.read(1 << 20, 65536).unwrap() == content, "{options}");
    opened.flush().unwrap();
    let marked = flags(&stand, &copy(&stand, &image));
    assert_eq!(marked, json!({"theirs": ["in-use", "auto"]}), "{options}");
    let (bits, digest) = (bitmap(&opened, "theirs"), bitmap(&opened, "theirs").bits().sha256());
    assert_eq!(bits.bits().count(), GRANULE + 2 * GRANULE, "{options}");
    drop(bits);
    opened.close();
    stand.check(&image);
    assert_eq!(flags(&stand, &image), json!({"theirs": ["auto"]}), "{options}");
    assert_eq!(qemu_digest(&image, "theirs"), digest, "{options}");
    stand.end();
}

/// Has a cluster of 64 KiB, within the file, another refcount.
fn damage_refcount(image: &Path, cluster: u64, count: u8) {
    let file = fs::File::options().write(true).open(image).unwrap();
    file.set_len(file.metadata().unwrap().len().max((cluster + 1) << 16)).unwrap();
    patch(image, word(image, word(image, 48)) + 2 * cluster, &[0, count]);
}

fn amend(opened: &Opened<'_>, options: Value) -> std::io::Result<()> {
    let change = Amend::new(Deferred::new(options.as_object().unwrap().clone()));
    opened.ctx().run(|co| opened.node.co_image(co)?.co_amend(co, change))
}

#[test]
fn q143_q161_bitmaps_outlive_a_repair_of_an_open_image() {
    let repair = |opened: &Opened<'_>| {
        let node = &opened.node;
        let report = opened.ctx().run(|co| node.co_image(co)?.co_check(co, Repair::All)).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{report:?}");
        assert!(report.corruptions_fixed + report.leaks_fixed > 0);
    };
    // Refcounts are mended where they are.
    change_beside_bitmaps("", |image| damage_refcount(image, 60, 1), true, repair);
    // Data passes for free: all of them are written anew, and nothing is allocated before, not for bitmaps either.
    let data = |image: &Path| word(image, first_l2(image) + 16 * 8) & !(1 << 63);
    let damage = |image: &Path| damage_refcount(image, data(image) >> 16, 0);
    change_beside_bitmaps("", damage, false, repair);
}

#[test]
fn q152_q161_bitmaps_outlive_another_width_of_refcounts() {
    for bits in [1, 64] {
        let amend = match bits {
            1 => |opened: &Opened<'_>| amend(opened, json!({"refcount-bits": 1})).unwrap(),
            _ => |opened: &Opened<'_>| amend(opened, json!({"refcount-bits": 64})).unwrap(),
        };
        change_beside_bitmaps("cluster_size=4k", |_| (), true, amend);
    }
    // Version 2 knows no bitmaps.
    change_beside_bitmaps(
        "",
        |_| (),
        true,
        |opened| {
            let refused = amend(opened, json!({"version": "v2"})).unwrap_err().to_string();
            assert!(refused.contains("bitmaps"), "{refused}");
        },
    );
}
