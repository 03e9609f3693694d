//! What an opening for writes does, and what ends the writing of a corrupt image.

use std::fs;
use std::sync::Arc;

use coblk_aio::{Co, IoVector};
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, WriteFlags};
use coblk_tests::{errno, tools};
use serde_json::json;

use crate::util::{Opened, Stand, first_l2, patch, word};

/// Where the features of a header are.
const INCOMPATIBLE: u64 = 72;
const COMPATIBLE: u64 = 80;
const AUTOCLEAR: u64 = 88;

#[test]
fn q15_a_corrupt_image_is_not_opened_for_writes() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    patch(&image, INCOMPATIBLE, &2_u64.to_be_bytes());
    let before = fs::read(&image).unwrap();
    let why = stand.refusal(&image, json!({"read-only": false}));
    assert!(why.contains("corrupt"), "{why}");
    assert_eq!(fs::read(&image).unwrap(), before);
    stand.end();
}

#[test]
fn q16_a_dirty_image_is_repaired_before_it_is_written() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "lazy_refcounts=on", "1M");
    stand.qemu_io(&image, &["write -P 7 0 128k".to_owned()]);
    // A cluster that is used has no refcount, and one that is not has one.
    let table = word(&image, 48);
    let block = word(&image, table);
    let data = word(&image, first_l2(&image)) & 0x00ff_ffff_ffff_fe00;
    patch(&image, block + data / 65536 * 2, &[0, 0]);
    patch(&image, block + 40, &[0, 1]);
    patch(&image, INCOMPATIBLE, &1_u64.to_be_bytes());
    stand.open(&image, json!({})).close();
    assert_eq!(word(&image, INCOMPATIBLE), 1);
    let opened = stand.open_writable(&image, json!({}));
    opened.write(512 << 10, &[8; 4096]).unwrap();
    opened.close();
    assert_eq!(word(&image, INCOMPATIBLE), 0);
    stand.check(&image);
    assert_eq!(stand.content(&image)[..128 << 10], [7; 128 << 10]);
    stand.end();
}

#[test]
fn q18_unknown_features_are_cleared_or_kept_before_the_first_write() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    patch(&image, AUTOCLEAR, &(1_u64 << 50).to_be_bytes());
    patch(&image, COMPATIBLE, &(1_u64 << 40).to_be_bytes());
    stand.open(&image, json!({})).close();
    assert_eq!(word(&image, AUTOCLEAR), 1 << 50);
    let opened = stand.open_writable(&image, json!({}));
    assert_eq!((word(&image, AUTOCLEAR), word(&image, COMPATIBLE)), (0, 1 << 40));
    opened.close();
    stand.check(&image);
    stand.end();
}

#[test]
fn q131_q133_q135_a_write_that_would_meet_metadata_ends_the_use_of_the_image() {
    for (version, cluster) in [("1.1", 0), ("1.1", 1), ("0.10", 3)] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", &format!("compat={version}"), "1M");
        stand.qemu_io(&image, &["write -P 7 0 128k".to_owned()]);
        // The header, the refcount table, the L1 table.
        let entry = (1_u64 << 63 | cluster << 16).to_be_bytes();
        if cluster > 0 {
            patch(&image, first_l2(&image), &entry);
        } else {
            // An offset of 0 is none: the table itself.
            let table = 1_u64 << 63 | first_l2(&image);
            patch(&image, first_l2(&image), &table.to_be_bytes());
        }
        let before = fs::read(&image).unwrap();
        let opened = stand.open_writable(&image, json!({}));
        assert_eq!(errno(opened.write(0, &[8; 4096])), libc::EIO);
        assert_eq!(errno(opened.write(65536, &[8; 4096])), libc::ENOMEDIUM);
        assert_eq!(errno(opened.read(65536, 512)), libc::ENOMEDIUM);
        let events = stand.events.lock().unwrap().len();
        assert_eq!(events, 1);
        opened.close();
        let after = fs::read(&image).unwrap();
        if version == "1.1" {
            assert_eq!(word(&image, INCOMPATIBLE), 2);
        }
        // Nothing but the flag.
        assert!(before[..72] == after[..72] && before[80..] == after[80..before.len()]);
        stand.end();
    }
}

#[test]
fn q241_a_cluster_that_compressed_data_has_left_takes_no_more_of_it() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    let opened = stand.open_writable(&image, json!({"discard": "unmap"}));
    let compressed = |opened: &Opened<'_>, offset: u64, byte: u8| {
        let data = vec![byte; 65536];
        let source = IoVector::from(&data[..]);
        let write =
            |co: &Co<'_>| opened.backend().co_pwritev(co, offset, &source, WriteFlags::COMPRESSED);
        stand.ctx.run(write).unwrap();
    };
    compressed(&opened, 0, 1);
    opened.backend().pdiscard(&stand.ctx, 0, 65536).unwrap();
    // The cluster becomes free.
    for _ in 0..4 {
        opened.flush().unwrap();
        opened.write(1 << 19, &[9; 512]).unwrap();
    }
    for index in 1..5 {
        opened.write(index << 16, &[index as u8; 65536]).unwrap();
        compressed(&opened, (8 + index) << 16, 0x80 + index as u8);
    }
    for index in 1..5_u64 {
        assert_eq!(opened.read(index << 16, 65536).unwrap(), [index as u8; 65536]);
        assert_eq!(opened.read((8 + index) << 16, 65536).unwrap(), [0x80 + index as u8; 65536]);
    }
    opened.close();
    stand.check(&image);
    stand.end();
}

#[test]
fn q16_q74_an_image_that_another_uses_is_not_repaired() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    patch(&image, INCOMPATIBLE, &1_u64.to_be_bytes());
    let options = json!({"driver": "file", "filename": tools::text(&image)});
    let options = NodeOptions::from_value(options).unwrap();
    let other = stand.blockdevs.open(&stand.ctx, options).unwrap();
    let user = BackendOptions::new("other").open(&stand.ctx, Arc::clone(&other)).unwrap();
    let opened = stand.try_open(&image, json!({"read-only": false}));
    let why = opened.map(|node| node.name().to_owned()).unwrap_err().to_string();
    assert!(why.contains("lock"), "{why}");
    assert_eq!(word(&image, INCOMPATIBLE), 1);
    drop((user, other));
    stand.end();
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    patch(&image, INCOMPATIBLE, &1_u64.to_be_bytes());
    stand.open_writable(&image, json!({})).close();
    assert_eq!(word(&image, INCOMPATIBLE), 0);
    stand.end();
}

#[test]
fn q217_a_file_ends_with_its_last_cluster() {
    for cluster in [512, 65536, 2 << 20] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", &format!("cluster_size={cluster}"), "16M");
        let opened = stand.open_writable(&image, json!({}));
        opened.write(4 << 20, &[7; 4096]).unwrap();
        opened.close();
        let report = tools::run("qemu-img", ["check", "--output=json", tools::text(&image)]);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let length = fs::metadata(&image).unwrap().len();
        assert_eq!(report["image-end-offset"], length, "clusters of {cluster}");
        stand.end();
    }
}

/// What a snapshot shared is given up in one request, all over the file: more refcount blocks count it than the
/// cache holds in many commits.
#[test]
fn q217_nothing_leaks_though_more_blocks_count_it_than_the_cache_holds() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=512,refcount_bits=64", "4M");
    stand.qemu_io(&image, &["write -P 1 0 4M".to_owned()]);
    tools::run("qemu-img", ["snapshot", "-c", "one", tools::text(&image)]);
    let opened = stand.open_writable(&image, json!({}));
    opened.write(0, &vec![2; 4 << 20]).unwrap();
    drop(opened);
    stand.check(&image);
    stand.end();
}
