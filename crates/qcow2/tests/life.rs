//! An open image over time: other contexts, failing reads, hand-over, flags of the header.

use std::fs;
use std::sync::Arc;
use std::thread;

use coblk_aio::{AioContext, IoVectorMut};
use coblk_block::{BackendOptions, Repair};
use coblk_tests::{errno, tools};
use serde_json::json;

use crate::util::{Stand, assert_same, first_l2, patch, word};

#[test]
fn q177_q186_two_contexts_read_one_image_through_one_small_cache() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=512", "2M");
    let writes: Vec<String> = (0..64)
        .map(|number| format!("write -P {} {} 20k", number + 1, number * 32 * 1024))
        .collect();
    stand.qemu_io(&image, &writes);
    let theirs = Arc::new(stand.content(&image));
    // Two slices: nearly every look is a miss, and fills what the other context looks at.
    let opened = stand.open(&image, json!({"l2-cache-size": 1024, "l2-cache-entry-size": 512}));
    let threads: Vec<_> = (0..2)
        .map(|seed| {
            let (node, theirs) = (Arc::clone(&opened.node), Arc::clone(&theirs));
            thread::spawn(move || {
                let ctx = AioContext::for_test().unwrap();
                let backend = BackendOptions::new("reader").read_only(true);
                let backend = backend.open(&ctx, node).unwrap();
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..300 {
                    let offset = random.usize(..theirs.len());
                    let bytes = random.usize(1..80_000).min(theirs.len() - offset);
                    let mut data = vec![0xdb; bytes];
                    let mut target = IoVectorMut::from(&mut data[..]);
                    backend.preadv(&ctx, offset as u64, &mut target).unwrap();
                    assert_same(&data, &theirs[offset..offset + bytes], "a part");
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    drop(opened);
    stand.end();
}

#[test]
fn q90_a_table_that_cannot_be_read_fails_its_request_and_is_no_corruption() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    stand.qemu_io(&image, &["write -P 7 0 64k".to_owned()]);
    let file = json!({
        "driver": "blkdebug",
        "image": {"driver": "file", "filename": tools::text(&image)},
        "inject-error": [{"event": "l2_load", "once": true}],
    });
    let opened = stand.open(&image, json!({"file": file}));
    assert_eq!(errno(opened.read(0, 512)), libc::EIO);
    assert_eq!(opened.read(0, 512).unwrap(), [7; 512]);
    assert!(stand.events.lock().unwrap().is_empty());
    drop(opened);
    stand.end();
}

#[test]
fn q20_q206_a_cut_image_reads_zeroes_in_its_last_cluster_and_fails_behind_it() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    stand.qemu_io(&image, &["write -P 7 0 256k".to_owned()]);
    let data = word(&image, first_l2(&image)) & 0x00ff_ffff_ffff_fe00;
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(data + 65536 + 1000).unwrap();
    let opened = stand.open(&image, json!({}));
    let read = opened.read(0, 128 << 10).unwrap();
    assert!(read[..65536 + 1000].iter().all(|byte| *byte == 7));
    assert!(read[65536 + 1000..].iter().all(|byte| *byte == 0));
    assert_eq!(errno(opened.read(100 << 10, 100 << 10)), libc::EIO);
    assert_eq!(errno(opened.read(128 << 10, 512)), libc::EIO);
    // The file has less than its refcounts count, so it is asked; its last sector has both.
    let data = opened.status(0, 1 << 20);
    assert_eq!((data.bytes, data.zero), (65536 + 1024, false));
    let behind = opened.status(data.bytes, (128 << 10) - data.bytes);
    assert_eq!((data.bytes + behind.bytes, behind.zero), (128 << 10, true));
    drop(opened);
    stand.end();
}

#[test]
fn q13_q15_a_corrupt_image_is_read() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    stand.qemu_io(&image, &["write -P 7 0 64k".to_owned()]);
    patch(&image, 72, &2_u64.to_be_bytes());
    let before = fs::read(&image).unwrap();
    let opened = stand.open(&image, json!({}));
    assert_eq!(opened.read(0, 512).unwrap(), [7; 512]);
    let info = stand.ctx.run(|co| opened.node.co_image(co).unwrap().info()).unwrap();
    assert!(info.corrupt && !info.dirty);
    drop(opened);
    // Nothing was written, and unknown flags that may stay are left alone.
    assert_eq!(fs::read(&image).unwrap(), before);
    patch(&image, 72, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
    let before = fs::read(&image).unwrap();
    assert_eq!(stand.open(&image, json!({})).read(0, 512).unwrap(), [7; 512]);
    assert_eq!(fs::read(&image).unwrap(), before);
    patch(&image, 72, &(1_u64 << 20).to_be_bytes());
    let why = stand.refusal(&image, json!({}));
    assert!(why.contains("unsupported qcow2 feature(s)"), "{why}");
    stand.end();
}

#[test]
fn an_image_that_comes_back_from_another_process_is_read_anew() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    stand.qemu_io(&image, &["write -P 7 0 64k".to_owned()]);
    let mut opened = stand.open(&image, json!({"node-name": "disk"}));
    assert_eq!(opened.read(0, 512).unwrap(), [7; 512]);
    let node = Arc::clone(&opened.node);
    let give = |is_active| stand.ctx.run(|co| node.co_set_active(co, is_active));
    opened.backend = None;
    give(false).unwrap();
    // The same tables have other entries.
    stand.qemu_io(&image, &["write -P 8 64k 128k".to_owned()]);
    give(true).unwrap();
    let backend = BackendOptions::new("reader").read_only(true);
    opened.backend = Some(backend.open(&stand.ctx, Arc::clone(&node)).unwrap());
    assert_eq!(opened.read(65536, 512).unwrap(), [8; 512]);
    // And the disk another length.
    opened.backend = None;
    give(false).unwrap();
    tools::run("qemu-img", ["resize", "-q", tools::text(&image), "2M"]);
    give(true).unwrap();
    assert_eq!(node.length(), 2 << 20);
    drop((node, opened));
    stand.end();
}

#[test]
fn a_repair_is_refused() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    let opened = stand.open(&image, json!({}));
    let repair =
        |repair| stand.ctx.run(|co| opened.node.co_image(co).unwrap().co_check(co, repair));
    assert!(repair(Repair::None).is_ok());
    assert_eq!(errno(repair(Repair::All)), libc::EPERM);
    drop(opened);
    stand.end();
}

#[test]
fn q184_q198_a_compressed_cluster_is_read_and_decompressed_once() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    stand.qemu_io(
        &image,
        &["write -c -P 7 64k 64k".to_owned(), "write -c -P 8 128k 64k".to_owned()],
    );
    // Every read of a compressed cluster fails but the first.
    let file = json!({
        "driver": "blkdebug",
        "image": {"driver": "file", "filename": tools::text(&image)},
        "set-state": [{"event": "read_compressed", "state": 1, "new_state": 2}],
        "inject-error": [{"event": "read_compressed", "state": 2}],
    });
    let opened = stand.open(&image, json!({"file": file}));
    for piece in 0..16 {
        assert_eq!(opened.read((64 << 10) + piece * 4096, 4096).unwrap(), [7; 4096]);
    }
    assert_eq!(opened.read(128 << 10, 4096).unwrap_err().raw_os_error().unwrap(), libc::EIO);
    assert_eq!(opened.read(64 << 10, 65536).unwrap(), [7; 65536]);
    drop(opened);
    stand.end();
}

/// The one that cleans the cache ends with the node, and not when its time is up.
#[test]
fn q199_no_coroutine_outlives_a_closed_image() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    stand.qemu_io(&image, &["write -P 7 0 1M".to_owned()]);
    let opened = stand.open(&image, json!({"cache-clean-interval": 600}));
    assert_eq!(opened.read(0, 512).unwrap(), [7; 512]);
    stand.ctx.run_until(|| !stand.ctx.coroutines().is_empty());
    drop(opened);
    // It is woken by then, and ends in the next rounds.
    (0..10).for_each(|_| _ = stand.ctx.try_poll());
    assert!(stand.ctx.coroutines().is_empty(), "{:?}", stand.ctx.coroutines());
    stand.end();
}
