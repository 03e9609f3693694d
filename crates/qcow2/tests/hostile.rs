//! Images that are damaged, or made to do damage: requests fail, and nothing else.

use std::fs;
use std::time::{Duration, Instant};

use coblk_tests::errno;
use serde_json::json;

use crate::util;
use crate::util::{Stand, first_l2, patch, word};

const COPIED: u64 = 1 << 63;

/// An image with a cluster of data at 0 and at 64 KiB.
fn image(stand: &Stand, options: &str) -> std::path::PathBuf {
    let image = stand.create("image.qcow2", options, "1M");
    stand.qemu_io(&image, &["write -P 7 0 128k".to_owned()]);
    image
}

#[test]
fn q36_q131_q132_a_corrupt_entry_fails_its_requests_and_is_told_once() {
    let stand = Stand::new();
    let image = image(&stand, "");
    patch(&image, first_l2(&image), &(COPIED | 0x5_0200).to_be_bytes());
    let opened = stand.open(&image, json!({"node-name": "disk"}));
    for _ in 0..3 {
        assert_eq!(errno(opened.read(100, 100)), libc::EIO);
    }
    assert_eq!(opened.read(65536, 512).unwrap(), [7; 512]);
    assert_eq!(errno(opened.read(0, 1 << 20)), libc::EIO);
    let events = stand.events.lock().unwrap();
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!((event.name, &*event.node_name), ("BLOCK_IMAGE_CORRUPTED", "disk"));
    assert_eq!(event.data["fatal"], false);
    assert_eq!(event.data["offset"], 0x5_0200);
    assert!(event.data["msg"].as_str().unwrap().contains("unaligned"));
    drop(events);
    drop(opened);
    stand.end();
}

#[test]
fn q36_entries_that_cannot_be_fail() {
    let stand = Stand::new();
    let entries: [(&str, u64, u64); 6] = [
        // A zero flag in version 2, an unaligned table, places behind the end of the file.
        ("compat=0.10", 0, 1),
        ("", 1, COPIED | 0x4_0200),
        ("", 1, COPIED | 0x400_0000),
        ("", 0, COPIED | 0x400_0000),
        ("", 0, 1 << 62 | 0x400_0000),
        ("data_file=data.raw", 0, COPIED | 0x1_0000),
    ];
    for (options, table, entry) in entries {
        let image = image(&stand, options);
        let at = if table == 1 { word(&image, 40) } else { first_l2(&image) };
        patch(&image, at, &entry.to_be_bytes());
        let opened = stand.open(&image, json!({}));
        assert_eq!(errno(opened.read(0, 512)), libc::EIO, "{options} {entry:#x}");
        drop(opened);
        fs::remove_file(image).unwrap();
    }
    stand.end();
}

#[test]
fn q41_a_cluster_that_is_not_decompressed_fails_and_is_no_corruption() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    stand.qemu_io(&image, &["write -c -P 7 0 64k".to_owned()]);
    let entry = word(&image, first_l2(&image));
    patch(&image, entry & ((1 << 54) - 1), &[0xff; 64]);
    let opened = stand.open(&image, json!({}));
    assert_eq!(errno(opened.read(0, 512)), libc::EIO);
    assert!(stand.events.lock().unwrap().is_empty());
    drop(opened);
    stand.end();
}

#[test]
fn q206_q207_tables_that_lead_to_each_other_end_reads() {
    let stand = Stand::new();
    let image = image(&stand, "");
    let (l1, l2) = (word(&image, 40), first_l2(&image));
    // L1 to itself, to the header, and L2 to L1, to itself and to the header.
    for (at, entry) in [(l1, l1), (l1, 0x1_0000), (l2, l1), (l2, l2), (l2, 0x1_0000)] {
        let before = word(&image, at);
        patch(&image, at, &(entry | COPIED).to_be_bytes());
        let opened = stand.open(&image, json!({}));
        let start = Instant::now();
        let _ = opened.read(0, 1 << 20);
        for offset in (0..1 << 20).step_by(65536) {
            opened.status(offset, 512);
        }
        assert!(start.elapsed() < Duration::from_secs(60));
        drop(opened);
        patch(&image, at, &before.to_be_bytes());
    }
    stand.end();
}

#[test]
fn q205_q208_what_lies_behind_the_end_of_the_file_takes_no_memory() {
    let stand = Stand::new();
    let image = image(&stand, "");
    // An L1 table of 32 MiB, 65,536 snapshots, all behind the end.
    patch(&image, 24, &(1_u64 << 50).to_be_bytes());
    patch(&image, 36, &4_194_304_u32.to_be_bytes());
    patch(&image, 40, &(1_u64 << 40).to_be_bytes());
    let opened = stand.open(&image, json!({}));
    assert_eq!(opened.read(1 << 49, 512).unwrap(), [0; 512]);
    drop(opened);
    patch(&image, 60, &65_536_u32.to_be_bytes());
    patch(&image, 64, &(1_u64 << 40).to_be_bytes());
    let why = stand.refusal(&image, json!({}));
    assert!(why.contains("snapshot table ends behind"), "{why}");
    // A snapshot with extra data of 4 GiB, in a file that has it, as a hole.
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(8 << 30).unwrap();
    patch(&image, 64, &(1_u64 << 32).to_be_bytes());
    patch(&image, (1 << 32) + 36, &[0xff; 4]);
    let why = stand.refusal(&image, json!({}));
    assert!(why.contains("snapshot table is too large"), "{why}");
    patch(&image, (1 << 32) + 36, &1025_u32.to_be_bytes());
    let why = stand.refusal(&image, json!({}));
    assert!(why.contains("extra data"), "{why}");
    stand.end();
}

#[test]
fn q204_images_with_random_damage_neither_panic_nor_hang() {
    let mut random = fastrand::Rng::with_seed(204);
    for options in
        ["cluster_size=512", "cluster_size=4k,compat=0.10", "extended_l2=on,cluster_size=16k"]
    {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", options, "256k");
        stand.qemu_io(
            &image,
            &["write -c -P 9 128k 16k".to_owned(), "write -P 7 0 100k".to_owned()],
        );
        let good = fs::read(&image).unwrap();
        let damaged = stand.path("damaged.qcow2");
        for _ in 0..150 {
            let mut bytes = good.clone();
            for _ in 0..random.usize(1..8) {
                let most = *random.choice(&[112, 4096, bytes.len()]).unwrap();
                let at = random.usize(..most);
                bytes[at] = if random.bool() { random.u8(..) } else { 0 };
            }
            fs::write(&damaged, &bytes).unwrap();
            let file = json!({"driver": "file", "read-only": true, "filename": damaged});
            let file = coblk_block::options::NodeOptions::from_value(file).unwrap();
            let file = stand.blockdevs.open(&stand.ctx, file).unwrap();
            let backend = coblk_block::BackendOptions::new("check").read_only(true);
            let backend = backend.open(&stand.ctx, file.clone()).unwrap();
            // An image that is not opened may be checked.
            let _ = stand.ctx.run(|co| coblk_qcow2::check::co_check(co, &backend));
            drop(backend);
            stand.blockdevs.close(&stand.ctx, file.name()).unwrap();
            let no_files = json!({"x-named-files": "refuse"});
            let Ok(node) = stand.try_open(&damaged, no_files) else { continue };
            let opened = util::Opened::new(&stand, node);
            let bytes = opened.node.length().min(512 << 10);
            let _ = opened.read(0, bytes as usize);
            let _ = stand.ctx.run(|co| {
                opened.node.co_image(co).unwrap().co_check(co, coblk_block::Repair::None)
            });
        }
        stand.end();
    }
}
