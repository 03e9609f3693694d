//! Repairs of images that a node has open and writes, beside `qemu-img check -r`.

use std::fs;
use std::path::Path;

use coblk_block::{CheckReport, Repair};
use coblk_tests::errno;
use serde_json::json;

use crate::util::repair::{copy, repair as repair_closed};
use crate::util::{Opened, Stand, assert_same, first_l2, patch, word};

fn repair(opened: &Opened<'_>, way: Repair) -> std::io::Result<CheckReport> {
    opened.ctx().run(|co| opened.node.co_image(co)?.co_check(co, way))
}

/// Where the refcount of a cluster of 64 KiB is, of 16 bits.
fn refcount(image: &Path, cluster: u64) -> u64 {
    word(image, word(image, 48)) + 2 * cluster
}

fn fixed(report: &CheckReport) -> [u64; 4] {
    let CheckReport { leaks_fixed, corruptions_fixed, leaks, corruptions, .. } = *report;
    [leaks_fixed, corruptions_fixed, leaks, corruptions]
}

#[test]
fn q143_an_open_image_is_repaired_as_by_qemu_img() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("nothing", |_| ()),
        ("leaks", |image| patch(image, refcount(image, 40), &[0, 1, 0, 3])),
        ("a refcount that is too high", |image| patch(image, refcount(image, 5), &[0, 2])),
        ("a refcount that is too low", |image| patch(image, refcount(image, 4), &[0, 0])),
        ("a flag", |image| {
            let table = first_l2(image);
            patch(image, table, &(word(image, table) & !(1 << 63)).to_be_bytes());
        }),
    ];
    for (what, damage) in damages {
        for way in [Repair::Leaks, Repair::All] {
            let stand = Stand::new();
            let image = stand.create("image.qcow2", "", "4M");
            stand.qemu_io(&image, &["write -P 7 0 1M".to_owned()]);
            let mut content = stand.content(&image);
            // Leaks are found where the file is.
            fs::File::options().write(true).open(&image).unwrap().set_len(64 << 16).unwrap();
            damage(&image);
            let theirs = copy(&stand, &image, "theirs");
            let opened = stand.open_writable(&image, json!({}));
            let ours = repair(&opened, way);
            // As of a file that no node writes.
            let closed = repair_closed(&stand, &theirs, way);
            match (&ours, &closed) {
                (Ok(ours), Ok(closed)) => {
                    assert_eq!(fixed(ours), fixed(&closed.report), "{what} {way:?}");
                }
                (Err(_), Err(_)) => {}
                other => panic!("{what} {way:?}: {other:?}"),
            }
            // The node goes on with what was mended.
            opened.write(3 << 20, &[9; 300_000]).unwrap();
            opened.write(512, &[8; 512]).unwrap();
            content[3 << 20..][..300_000].fill(9);
            content[512..1024].fill(8);
            opened.flush().unwrap();
            assert_same(&opened.read(0, 4 << 20).unwrap(), &content, what);
            drop(opened);
            if way == Repair::All {
                assert_eq!(stand.qemu_img("check", &image).1, 0, "{what}: {ours:?}");
            }
            assert_same(&stand.content(&image), &content, what);
            stand.end();
        }
    }
}

#[test]
fn q143_what_waits_to_be_free_is_no_leak() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=4k", "4M");
    let opened = stand.open_writable(&image, json!({"discard": "unmap"}));
    let mut content = vec![0; 4 << 20];
    for round in 0..5_usize {
        let at = round * 100_000;
        opened.write(at as u64, &[round as u8 + 1; 200_000]).unwrap();
        content[at..at + 200_000].fill(round as u8 + 1);
        opened.backend().pdiscard(&stand.ctx, 4096 * round as u64, 8192).unwrap();
        content[4096 * round..][..8192].fill(0);
        // Nothing is flushed: entries, refcounts, and what was given up are in memory.
        let report = repair(&opened, Repair::All).unwrap();
        assert_eq!(fixed(&report), [0; 4], "{round}");
    }
    assert_same(&opened.read(0, 4 << 20).unwrap(), &content, "all");
    drop(opened);
    stand.check(&image);
    assert_same(&stand.content(&image), &content, "all");
    stand.end();
}

#[test]
fn q143_an_image_that_was_given_up_is_used_again_after_a_repair() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "4M");
    stand.qemu_io(&image, &["write -P 7 0 1M".to_owned()]);
    let content = stand.content(&image);
    // The table of the disk passes for free.
    let table = first_l2(&image);
    patch(&image, refcount(&image, table / 65536), &[0, 0]);
    // Zeroes with a place that is none: a request that meets them ends the use of the image.
    patch(&image, table + 40 * 8, &((table + 512) | 1).to_be_bytes());
    let opened = stand.open_writable(&image, json!({}));
    let met = opened.read(40 << 16, 512);
    assert_eq!(errno(met.map(drop)), libc::EIO);
    assert_eq!(errno(opened.write(0, &[1; 512])), libc::ENOMEDIUM);
    let report = repair(&opened, Repair::All).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0));
    assert!(report.corruptions_fixed > 0);
    assert_same(&opened.read(0, 4 << 20).unwrap(), &content, "all");
    opened.write(2 << 20, &[9; 1 << 20]).unwrap();
    drop(opened);
    stand.check(&image);
    let wanted = [&content[..2 << 20], &[9; 1 << 20], &content[3 << 20..]].concat();
    assert_same(&stand.content(&image), &wanted, "all");
    // What cannot be mended stays so, and the image is not used.
    patch(&image, first_l2(&image), &(1_u64 << 63 | 0x5_0200).to_be_bytes());
    let opened = stand.open_writable(&image, json!({}));
    assert_eq!(errno(opened.read(0, 512).map(drop)), libc::EIO);
    let left = repair(&opened, Repair::All).map(|report| report.corruptions);
    assert!(left.is_err() || left.is_ok_and(|left| left > 0));
    assert_eq!(errno(opened.write(0, &[1; 512])), libc::ENOMEDIUM);
    drop(opened);
    stand.end();
}

#[test]
fn q143_requests_go_on_beside_repairs() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=4k", "4M");
    stand.qemu_io(&image, &["write -P 7 0 2M".to_owned()]);
    let opened = stand.open_writable(&image, json!({"discard": "unmap"}));
    let node = opened.node.clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let repairs = scope.spawn(|| {
            let ctx = coblk_aio::AioContext::for_test().unwrap();
            let mut count = 0;
            while count < 10 || !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let report = ctx.run(|co| node.co_image(co)?.co_check(co, Repair::All)).unwrap();
                assert_eq!(fixed(&report), [0; 4]);
                count += 1;
            }
        });
        let mut random = fastrand::Rng::with_seed(143);
        let mut content = stand_content(&opened);
        for _ in 0..300 {
            let (at, value) = (random.usize(..(4 << 20) - 20_000), random.u8(1..));
            let bytes = random.usize(1..20_000);
            match random.u32(..4) {
                0 => {
                    let (at, end) = (at.next_multiple_of(4096), (at + bytes) & !4095);
                    if at < end {
                        let bytes = (end - at) as u64;
                        opened.backend().pdiscard(&stand.ctx, at as u64, bytes).unwrap();
                        content[at..end].fill(0);
                    }
                }
                1 => {
                    let read = opened.read(at as u64, bytes).unwrap();
                    assert_same(&read, &content[at..at + bytes], "a part");
                }
                _ => {
                    opened.write(at as u64, &vec![value; bytes]).unwrap();
                    content[at..at + bytes].fill(value);
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        repairs.join().unwrap();
        assert_same(&opened.read(0, 4 << 20).unwrap(), &content, "all");
    });
    drop(opened);
    stand.check(&image);
    stand.end();
}

fn stand_content(opened: &Opened<'_>) -> Vec<u8> {
    opened.read(0, opened.node.length() as usize).unwrap()
}

#[test]
fn a_node_that_is_not_written_is_not_repaired() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "1M");
    patch(&image, refcount(&image, 40), &[0, 1]);
    let before = fs::read(&image).unwrap();
    let opened = stand.open(&image, json!({}));
    assert_eq!(errno(repair(&opened, Repair::All).map(drop)), libc::EPERM);
    drop(opened);
    assert!(fs::read(&image).unwrap() == before);
    stand.end();
}
