//! What a node holds on the file of its image without users, and nodes that are inactive; beside QEMU's programs.

use std::fs;
use std::path::Path;
use std::process::Output;

use coblk_tests::holder::{Holder, locked_bytes};
use coblk_tests::tools;
use serde_json::json;

use crate::util;
use crate::util::{Stand, assert_same, first_l2, patch, word};

const NOTHING: [u64; 0] = [];
/// The bytes that QEMU locks for an image that it writes, and for one that it reads.
const WRITER: [u64; 5] = [100, 101, 103, 201, 203];
const READER: [u64; 3] = [100, 201, 203];

fn qemu_io(image: &Path, more: &[&str]) -> Output {
    let mut command = tools::command("qemu-io");
    tools::finish("qemu-io", command.args(["-f", "qcow2"]).args(more).arg(image))
}

/// QEMU's daemon with a node that has no user.
fn daemon(image: &Path, more: &str) -> Holder {
    let mut command = tools::command("qemu-storage-daemon");
    let node = format!(
        "driver=qcow2,node-name=disk,file.driver=file,file.filename={}{more}",
        image.display()
    );
    Holder::start(command.args(["--blockdev", &node]), image, 201)
}

#[test]
fn q74_a_node_without_users_holds_its_image_as_in_qemu() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    for (more, held) in [(json!({"read-only": false}), &WRITER[..]), (json!({}), &READER[..])] {
        let node = stand.try_open(&image, more).unwrap();
        assert_eq!(locked_bytes(&image), held);
        let refused = qemu_io(&image, &["-c", "write 0 512"]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("Failed to get \"write\" lock"), "{said}");
        // Readers are let in beside a reader.
        let read = qemu_io(&image, &["-r", "-c", "read 0 512"]);
        assert_eq!(read.status.success(), held == &READER[..], "{read:?}");
        stand.blockdevs.close(&stand.ctx, node.name()).unwrap();
        // Though it is held yet.
        assert_eq!(locked_bytes(&image), NOTHING);
        drop(node);
    }
    // And the other way round.
    let theirs = daemon(&image, "");
    assert_eq!(locked_bytes(&image), WRITER);
    let write = stand.refusal(&image, json!({"read-only": false}));
    assert!(write.contains("failed to get \"write\" lock"), "{write}");
    let read = stand.refusal(&image, json!({}));
    assert!(read.contains("failed to get shared \"write\" lock"), "{read}");
    let shared = stand.open(&image, json!({"force-share": true}));
    drop(shared);
    theirs.kill();
    let theirs = daemon(&image, ",read-only=on");
    assert_eq!(locked_bytes(&image), READER);
    stand.refusal(&image, json!({"read-only": false}));
    drop(stand.open(&image, json!({})));
    drop(theirs);
    stand.end();
}

#[test]
fn q74_a_node_that_only_passes_on_holds_nothing() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    let file = json!({"driver": "file", "node-name": "file", "filename": tools::text(&image)});
    let raw = json!({"driver": "raw", "node-name": "raw", "file": "file"});
    let open = |options: serde_json::Value| {
        let options = coblk_block::options::NodeOptions::from_value(options).unwrap();
        stand.blockdevs.open(&stand.ctx, options).unwrap()
    };
    let nodes = [open(file), open(raw)];
    assert_eq!(locked_bytes(&image), NOTHING);
    // As soon as a format is there, another one is kept out in this process, too.
    let format = json!({"driver": "qcow2", "node-name": "one", "file": "file"});
    let one = open(format);
    assert_eq!(locked_bytes(&image), WRITER);
    let other = json!({"driver": "qcow2", "node-name": "other", "file": "file"});
    let other = coblk_block::options::NodeOptions::from_value(other).unwrap();
    let error = stand.blockdevs.open(&stand.ctx, other).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("'one'") && error.contains("write"), "{error}");
    drop(one);
    stand.blockdevs.close(&stand.ctx, "one").unwrap();
    drop(nodes);
    assert_eq!(locked_bytes(&image), NOTHING);
    stand.end();
}

#[test]
fn q74_a_backing_file_is_held_as_one_that_is_read() {
    let stand = Stand::new();
    let base = stand.create("base.qcow2", "", "1M");
    let options = format!("backing_file={},backing_fmt=qcow2", base.display());
    let image = stand.create("image.qcow2", &options, "1M");
    let opened = stand.try_open(&image, json!({"read-only": false})).unwrap();
    assert_eq!((locked_bytes(&image), locked_bytes(&base)), (WRITER.into(), READER.into()));
    stand.blockdevs.close(&stand.ctx, opened.name()).unwrap();
    drop(opened);
    assert_eq!(locked_bytes(&base), NOTHING);
    // One that cannot be held leaves nothing open.
    let theirs = daemon(&base, "");
    let error = stand.refusal(&image, json!({"read-only": false}));
    assert!(error.contains("shared \"write\" lock"), "{error}");
    assert_eq!(locked_bytes(&image), NOTHING);
    drop(theirs);
    stand.end();
}

#[test]
fn q15_q16_an_image_that_is_opened_inactive_is_not_touched() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    stand.qemu_io(&image, &["write -P 7 0 256k".to_owned()]);
    fs::File::options().write(true).open(&image).unwrap().set_len(20 << 16).unwrap();
    // A cluster leaks, the image is dirty, and a feature is not known.
    patch(&image, word(&image, word(&image, 48)) + 2 * 12, &[0, 1]);
    patch(&image, 79, &[1]);
    patch(&image, 88, &[0x80]);
    let before = fs::read(&image).unwrap();
    let node = stand.try_open(&image, json!({"read-only": false, "active": false})).unwrap();
    assert!(!node.is_active() && node.length() == 1 << 20);
    assert_eq!(locked_bytes(&image), NOTHING);
    assert!(fs::read(&image).unwrap() == before);
    // Another process may use it meanwhile.
    let theirs = qemu_io(&image, &["-r", "-c", "read -P 7 0 256k"]);
    assert!(theirs.status.success(), "{theirs:?}");
    let names = [node.name()];
    stand.blockdevs.set_active(&stand.ctx, Some(&names), true).unwrap();
    assert_eq!(locked_bytes(&image), WRITER);
    let after = fs::read(&image).unwrap();
    assert_eq!((after[79], after[88]), (0, 0));
    stand.blockdevs.close(&stand.ctx, node.name()).unwrap();
    drop(node);
    stand.check(&image);
    // A corrupt one is opened, and does not become active.
    patch(&image, 79, &[2]);
    let node = stand.try_open(&image, json!({"read-only": false, "active": false})).unwrap();
    let names = [node.name()];
    let error = stand.blockdevs.set_active(&stand.ctx, Some(&names), true).unwrap_err();
    assert!(error.to_string().contains("corrupt"), "{error}");
    assert!(!node.is_active() && locked_bytes(&image).is_empty());
    stand.blockdevs.close(&stand.ctx, node.name()).unwrap();
    drop(node);
    stand.end();
}

#[test]
fn what_another_process_has_made_of_an_image_is_there_when_it_becomes_active() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=4k", "2M");
    let mut opened = None;
    for (round, size) in (1_u8..).zip([2_u64, 300, 10]) {
        let text = tools::text(&image).to_owned();
        // Other tables at other places: what was a table may be data now.
        let other = stand.create("other.qcow2", "cluster_size=4k", &format!("{size}M"));
        let mut writes: Vec<String> = (0..20_u64)
            .map(|it| format!("write -P {round} {} 8k", (it * 7 + u64::from(round)) % 64 * 16384))
            .collect();
        writes.rotate_left(usize::from(round) * 3);
        stand.qemu_io(&other, &writes);
        tools::run("qemu-img", ["snapshot", "-c", &format!("s{round}"), tools::text(&other)]);
        fs::write(&image, fs::read(&other).unwrap()).unwrap();
        let content = stand.content(&image);
        if opened.is_none() {
            // Opened by now, and read anew in the other rounds.
            let more = json!({"read-only": false, "active": false});
            opened = Some(stand.try_open(&image, more).unwrap());
        }
        let node = opened.clone().unwrap();
        stand.blockdevs.set_active(&stand.ctx, Some(&[node.name()]), true).unwrap();
        assert_eq!(node.length(), size << 20);
        {
            let backend = coblk_block::BackendOptions::new("writer");
            let backend = backend.open(&stand.ctx, node.clone()).unwrap();
            let mut read = vec![0xee; content.len()];
            let mut target = coblk_aio::IoVectorMut::from(&mut read[..]);
            backend.preadv(&stand.ctx, 0, &mut target).unwrap();
            assert_same(&read, &content, "what was written meanwhile");
            let data = vec![99; 1 << 20];
            let source = coblk_aio::IoVector::from(&data[..]);
            let flags = coblk_block::WriteFlags::empty();
            backend.pwritev(&stand.ctx, 4096, &source, flags).unwrap();
        }
        stand.blockdevs.set_active(&stand.ctx, Some(&[node.name()]), false).unwrap();
        assert_eq!(locked_bytes(&image), NOTHING);
        let mut wanted = content;
        wanted[4096..4096 + (1 << 20)].fill(99);
        assert_same(&stand.content(&image), &wanted, "what was written here");
        stand.check(&image);
        tools::run("qemu-img", ["snapshot", "-d", &format!("s{round}"), &text]);
    }
    let node = opened.unwrap();
    stand.blockdevs.close(&stand.ctx, node.name()).unwrap();
    drop(node);
    stand.end();
}

#[test]
fn an_image_of_another_format_has_to_be_opened_again() {
    let stand = Stand::new();
    for (first, then, why) in [
        ("compat=0.10", "compat=1.1", "format"),
        ("cluster_size=64k", "cluster_size=4k", "format"),
        ("extended_l2=off", "extended_l2=on", "format"),
        ("compression_type=zlib", "compression_type=zstd", "format"),
        ("compat=1.1", "backing_file=base,backing_fmt=raw", "backing file"),
    ] {
        fs::write(stand.path("base"), [5; 4096]).unwrap();
        let image = stand.create("image.qcow2", first, "1M");
        let node = stand.try_open(&image, json!({"read-only": false, "active": false})).unwrap();
        let other = stand.create("other.qcow2", then, "1M");
        fs::write(&image, fs::read(&other).unwrap()).unwrap();
        let before = fs::read(&image).unwrap();
        let names = [node.name()];
        let error = stand.blockdevs.set_active(&stand.ctx, Some(&names), true).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(why) && said.contains("opened again"), "{said}");
        assert!(!node.is_active() && fs::read(&image).unwrap() == before);
        stand.blockdevs.close(&stand.ctx, node.name()).unwrap();
    }
    stand.end();
}

#[test]
fn a_backing_file_is_inactive_with_its_overlay() {
    let stand = Stand::new();
    let base = stand.create("base.qcow2", "", "1M");
    let options = format!("backing_file={},backing_fmt=qcow2", base.display());
    let image = stand.create("image.qcow2", &options, "1M");
    let node = stand.try_open(&image, json!({"read-only": false, "active": false})).unwrap();
    assert_eq!((locked_bytes(&image), locked_bytes(&base)), (vec![], vec![]));
    // The process that has the overlay may write to what lies below, as a commit does.
    stand.qemu_io(&base, &["write -P 7 0 64k".to_owned()]);
    stand.blockdevs.set_active(&stand.ctx, Some(&[node.name()]), true).unwrap();
    assert_eq!((locked_bytes(&image), locked_bytes(&base)), (WRITER.into(), READER.into()));
    let opened = util::Opened::new(&stand, node);
    assert_same(&opened.read(0, 65536).unwrap(), &[7; 65536], "the backing file");
    drop(opened);
    stand.end();
}

#[test]
fn a_node_that_becomes_writable_keeps_data_off_its_tables() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    stand.qemu_io(&image, &["write -P 7 0 128k".to_owned()]);
    // The second cluster lies where the table is.
    let table = first_l2(&image);
    patch(&image, table + 8, &(table | 1 << 63).to_be_bytes());
    let node = stand.try_open(&image, json!({"node-name": "disk"})).unwrap();
    let options = stand.options(&image, json!({"node-name": "disk", "read-only": false}));
    stand.blockdevs.reopen(&stand.ctx, vec![options]).unwrap();
    let writer = coblk_block::BackendOptions::new("writer");
    let writer = writer.open(&stand.ctx, node).unwrap();
    let before = fs::read(&image).unwrap()[table as usize..][..65536].to_vec();
    let data = [1; 512];
    let source = coblk_aio::IoVector::from(&data[..]);
    let written = writer.pwritev(&stand.ctx, 65536, &source, coblk_block::WriteFlags::empty());
    assert_eq!(coblk_tests::errno(written), libc::EIO);
    assert!(fs::read(&image).unwrap()[table as usize..][..65536] == before);
    drop(writer);
    stand.end();
}
