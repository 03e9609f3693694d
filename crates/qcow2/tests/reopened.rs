//! Nodes that are read-only, and come to be written, and the reverse.

use std::path::Path;

use coblk_block::BackendOptions;
use coblk_block::options::NodeOptions;
use coblk_tests::{errno, tools};
use serde_json::json;

use crate::util::{Opened, Stand, first_l2, patch, word};

const COPIED: u64 = 1 << 63;

fn options(image: &Path, read_only: bool) -> NodeOptions {
    let file = json!({"driver": "file", "filename": tools::text(image), "read-only": read_only});
    let disk = json!({
        "driver": "qcow2",
        "node-name": "disk",
        "file": file,
        "read-only": read_only,
        "discard": "unmap",
        "l2-cache-entry-size": 4096,
    });
    NodeOptions::from_value(disk).unwrap()
}

/// A node that is opened read-only.
fn open<'a>(stand: &'a Stand, image: &Path) -> Opened<'a> {
    let node = stand.blockdevs.open(&stand.ctx, options(image, true)).unwrap();
    let mut opened = Opened::new(stand, node);
    opened.backend = None;
    opened
}

/// Has the node be written, or not.
#[track_caller]
fn reopen(opened: &mut Opened<'_>, stand: &Stand, image: &Path, read_only: bool) {
    opened.backend = None;
    stand.blockdevs.reopen(&stand.ctx, vec![options(image, read_only)]).unwrap();
    let backend = BackendOptions::new("user").read_only(read_only);
    opened.backend = Some(backend.open(&stand.ctx, opened.node.clone()).unwrap());
}

#[test]
fn q66_q134_an_image_that_comes_to_be_written_has_its_metadata_protected() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    stand.qemu_io(&image, &["write -P 7 0 128k".to_owned()]);
    let l1 = word(&image, 40);
    patch(&image, first_l2(&image), &(l1 | COPIED).to_be_bytes());
    let mut opened = open(&stand, &image);
    reopen(&mut opened, &stand, &image, false);
    assert_eq!(errno(opened.write(0, &[8; 4096])), libc::EIO);
    assert_eq!(word(&image, l1) & !COPIED, first_l2(&image));
    opened.close();
    stand.end();
}

#[test]
fn q66_an_image_is_written_read_only_and_written_again() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=4k", "16M");
    let mut opened = open(&stand, &image);
    for round in 0..4_u64 {
        reopen(&mut opened, &stand, &image, false);
        for index in 0..32 {
            let data = [(round * 32 + index) as u8; 4096];
            opened.write((index * 4 + round) << 12, &data).unwrap();
        }
        if round == 1 {
            let made = stand.ctx.run(|co| opened.node.co_image(co)?.co_create_snapshot(co, "s"));
            made.unwrap();
        }
        reopen(&mut opened, &stand, &image, true);
        for index in 0..32 {
            let read = opened.read((index * 4 + round) << 12, 4096).unwrap();
            assert_eq!(read, [(round * 32 + index) as u8; 4096]);
        }
    }
    opened.close();
    stand.check(&image);
    stand.end();
}

#[test]
fn q66_q206_an_entry_behind_the_end_that_was_read_before_does_not_come_to_life() {
    let stand = Stand::in_memory();
    let image = stand.create("image.qcow2", "", "1G");
    stand.qemu_io(&image, &["write -P 7 0 128k".to_owned()]);
    let place = std::fs::metadata(&image).unwrap().len().next_multiple_of(65536) + 0x10_0000;
    patch(&image, first_l2(&image), &(place | COPIED).to_be_bytes());
    let mut opened = open(&stand, &image);
    reopen(&mut opened, &stand, &image, true);
    // The slice is in the cache by now.
    assert_eq!(opened.read(65536, 512).unwrap(), [7; 512]);
    reopen(&mut opened, &stand, &image, false);
    for index in 0..48 {
        opened.write((64 << 20) + (index << 16), &[3; 65536]).unwrap();
    }
    assert_eq!(errno(opened.read(0, 512)), libc::EIO);
    opened.close();
    stand.end();
}
