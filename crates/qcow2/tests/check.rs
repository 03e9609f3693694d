//! A check finds what `qemu-img check` finds, on good images and on damaged ones.

use std::path::Path;

use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, CheckReport, Repair, RequestKind};
use coblk_qcow2::check::{Check, co_check};
use coblk_tests::tools;
use serde_json::{Value, json};

use crate::util::{Stand, first_l2, patch, word};

const COPIED: u64 = 1 << 63;

/// Checks an image without opening it.
#[track_caller]
fn check(stand: &Stand, image: &Path) -> Check {
    check_counting(stand, image).0
}

/// [`check`]; and how many bytes of the file it has read.
#[track_caller]
fn check_counting(stand: &Stand, image: &Path) -> (Check, u64) {
    let file = json!({"driver": "file", "read-only": true, "filename": tools::text(image)});
    let node = stand.blockdevs.open(&stand.ctx, NodeOptions::from_value(file).unwrap()).unwrap();
    let backend = BackendOptions::new("check").read_only(true);
    let backend = backend.open(&stand.ctx, node.clone()).unwrap();
    let check = stand.ctx.run(|co| co_check(co, &backend));
    let read = backend.statistics().of(RequestKind::Read).bytes;
    drop(backend);
    stand.blockdevs.close(&stand.ctx, node.name()).unwrap();
    (check.unwrap_or_else(|error| panic!("{error}")), read)
}

/// The members of the report that `qemu-img check` has, in its words.
fn shown(report: &CheckReport) -> Value {
    let all = [
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("check-errors", report.check_errors),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
        ("image-end-offset", report.image_end_offset.unwrap_or(0)),
    ];
    all.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect()
}

/// Compares a check with that of QEMU; returns the exit code of the latter.
#[track_caller]
fn compare(stand: &Stand, image: &Path, what: &str) -> i32 {
    let (theirs, code) = stand.qemu_img("check", image);
    let ours = check(stand, image);
    let shown = shown(&ours.report);
    for (name, value) in shown.as_object().unwrap() {
        let theirs = theirs[name].as_u64().unwrap_or(0);
        assert_eq!(*value, theirs, "{what}: {name}\n{:#?}", ours.findings);
    }
    code
}

/// An image with data, zeroes and compressed clusters.
fn image(stand: &Stand, options: &str) -> std::path::PathBuf {
    let image = stand.create("image.qcow2", options, "1M");
    // A compressed cluster is written whole.
    if !options.contains("2M") {
        stand.qemu_io(&image, &["write -c -P 9 256k 64k".to_owned()]);
    }
    stand.qemu_io(&image, &["write -P 7 0 128k", "write -z 512k 64k"].map(str::to_owned));
    image
}

fn qemu_img(args: &[&str], image: &Path) {
    tools::run("qemu-img", args.iter().copied().chain([tools::text(image)]));
}

#[test]
fn q136_q138_figures_of_good_images_are_those_of_qemu_img() {
    for options in [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4k",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=2,cluster_size=4k",
        "refcount_bits=64,cluster_size=1k",
        "extended_l2=on",
        "compression_type=zstd,cluster_size=16k",
    ] {
        let stand = Stand::new();
        let image = image(&stand, options);
        assert_eq!(compare(&stand, &image, options), 0);
        let mut random = fastrand::Rng::with_seed(136);
        let writes: Vec<String> = (0..60)
            .map(|_| {
                let (kind, at) = (random.u32(..3), random.u64(..1536) * 512);
                let bytes = random.u64(1..128) * 512;
                match kind {
                    0 => format!("discard {at} {bytes}"),
                    1 => format!("write -z -u {at} {bytes}"),
                    _ => format!("write {at} {bytes}"),
                }
            })
            .collect();
        stand.qemu_io(&image, &writes);
        assert_eq!(compare(&stand, &image, options), 0);
        stand.end();
    }
}

#[test]
fn q46_q136_a_data_file_has_no_refcounts() {
    for options in ["data_file=data.raw", "data_file=data.raw,data_file_raw=on"] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", options, "10M");
        stand.qemu_io(&image, &["write -P 7 0 128k", "write 5M 99k"].map(str::to_owned));
        assert_eq!(compare(&stand, &image, options), 0);
        let l2 = first_l2(&image);
        patch(&image, l2, &(1_u64 << 62 | 0x50000).to_be_bytes());
        assert_eq!(compare(&stand, &image, "a compressed cluster"), 2);
        stand.end();
    }
}

#[test]
fn q136_snapshots_and_bitmaps_are_counted() {
    let stand = Stand::new();
    let image = image(&stand, "");
    qemu_img(&["snapshot", "-c", "one"], &image);
    stand.qemu_io(&image, &["write -P 8 64k 64k".to_owned()]);
    qemu_img(&["snapshot", "-c", "two"], &image);
    qemu_img(&["snapshot", "-c", "three"], &image);
    assert_eq!(compare(&stand, &image, "snapshots"), 0);
    // An entry of the table that snapshots share is counted for each of them.
    let table = word(&image, word(&image, 64));
    let l2 = word(&image, table) & 0x00ff_ffff_ffff_fe00;
    patch(&image, l2, &(0x4000_0000_u64).to_be_bytes());
    assert_eq!(compare(&stand, &image, "an entry behind the end"), 2);
    stand.end();

    let stand = Stand::new();
    let image = stand.create("image.qcow2", "", "64M");
    for name in ["a", "b"] {
        let text = tools::text(&image).to_owned();
        tools::run("qemu-img", ["bitmap", "--add", "-g", "4k", &text, name]);
    }
    stand.qemu_io(&image, &["write 1M 8M".to_owned()]);
    assert_eq!(compare(&stand, &image, "bitmaps"), 0);
    stand.end();
}

#[test]
fn q137_q139_damage_is_found_as_by_qemu_img() {
    let far = COPIED | 0x400_0000;
    // What is damaged: the entry of a table (L1, L2, refcount table), its index, its new value.
    let damages: [(&str, char, u64, u64, i32); 18] = [
        ("an entry behind the end", '2', 0, far, 2),
        ("an unaligned entry", '2', 0, COPIED | 0x5_0200, 2),
        ("reserved bits", '2', 0, COPIED | 0x6_0002, 2),
        ("reserved bits of nothing", '2', 9, 2, 2),
        ("a missing flag", '2', 0, 0x6_0000, 2),
        ("a lost entry", '2', 0, 0, 3),
        ("two entries to one cluster", '2', 3, COPIED | 0x6_0000, 2),
        ("a flag and no cluster", '2', 3, COPIED, 0),
        ("a zero cluster with a place", '2', 0, COPIED | 0x6_0001, 0),
        ("the header as data", '2', 3, COPIED | 0x1_0000, 2),
        ("a compressed cluster with a flag", '2', 3, COPIED | 1 << 62 | 0x6_0000, 2),
        ("a compressed cluster behind the end", '2', 3, 1 << 62 | 0x400_0000, 2),
        ("an L2 table behind the end", '1', 0, far, 2),
        ("reserved bits of L1", '1', 0, 1 << 62 | COPIED | 0x4_0000, 2),
        ("a lost L2 table", '1', 0, 0, 3),
        ("no block", 'r', 0, 0, 2),
        ("a block behind the end", 'r', 0, 0x400_0000, 2),
        ("a block twice", 'r', 1, 0x2_0000, 2),
    ];
    for (what, table, index, entry, code) in damages {
        let stand = Stand::new();
        let image = image(&stand, "");
        let at = match table {
            '1' => word(&image, 40),
            '2' => first_l2(&image),
            _ => word(&image, 48),
        };
        patch(&image, at + index * 8, &entry.to_be_bytes());
        assert_eq!(compare(&stand, &image, what), code, "{what}");
        stand.end();
    }
}

#[test]
fn q137_blocks_that_cannot_be_read_are_errors() {
    let stand = Stand::new();
    let image = image(&stand, "");
    patch(&image, word(&image, 48), &0x2_0200_u64.to_be_bytes());
    assert_eq!(compare(&stand, &image, "an unaligned block"), 1);
    stand.end();
}

#[test]
fn q137_subclusters_are_checked() {
    for (what, at, value, code) in [
        ("both bits", 8, 0x0000_0001_ffff_ffff_u64, 2),
        ("allocated nowhere", 15 * 16 + 8, 1, 2),
        ("a compressed cluster with bits", 4 * 16 + 8, 1, 2),
        ("zero bits alone", 15 * 16 + 8, 1 << 40, 0),
    ] {
        let stand = Stand::new();
        let image = image(&stand, "extended_l2=on");
        patch(&image, first_l2(&image) + at, &value.to_be_bytes());
        assert_eq!(compare(&stand, &image, what), code, "{what}");
        stand.end();
    }
}

#[test]
fn q137_q138_random_refcounts_are_compared() {
    let mut random = fastrand::Rng::with_seed(137);
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let stand = Stand::new();
        let image = image(&stand, &format!("refcount_bits={bits},cluster_size=4k"));
        let block = word(&image, word(&image, 48));
        for _ in 0..4 {
            let at = random.u64(..12);
            patch(&image, block + at, &[random.u8(..)]);
            compare(&stand, &image, &format!("{bits} bits"));
        }
        stand.end();
    }
}

#[test]
fn q16_a_dirty_image_is_checked_as_it_is() {
    let stand = Stand::new();
    let image = image(&stand, "lazy_refcounts=on");
    let mut command = tools::command("qemu-io");
    command.args(["-f", "qcow2", "-c", "write -P 5 768k 128k", "-c", "abort"]).arg(&image);
    tools::finish("qemu-io", &mut command);
    assert_eq!(word(&image, 72) & 1, 1, "it was not closed");
    // QEMU repairs when it checks for writing; as it is, refcounts are missing.
    let before = std::fs::read(&image).unwrap();
    let ours = check(&stand, &image);
    assert!(ours.report.corruptions > 0, "{:?}", ours.findings);
    assert_eq!(compare(&stand, &image, "dirty"), 2);
    let opened = stand.open(&image, json!({}));
    assert_eq!(opened.read(768 << 10, 512).unwrap(), [5; 512]);
    let report = stand.ctx.run(|co| opened.node.co_image(co).unwrap().co_check(co, Repair::None));
    assert_eq!(report.unwrap(), ours.report);
    drop(opened);
    assert_eq!(std::fs::read(&image).unwrap(), before);
    stand.end();
}

#[test]
fn q142_a_table_that_all_entries_lead_to_is_read_once() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=64k", "4T");
    stand.qemu_io(&image, &["write 0 64k".to_owned()]);
    let (l1, entry) = (word(&image, 40), word(&image, word(&image, 40)));
    let all: Vec<u8> = std::iter::repeat_n(entry.to_be_bytes(), 8192).flatten().collect();
    patch(&image, l1, &all);
    let (ours, read) = check_counting(&stand, &image);
    assert_eq!(ours.report.allocated_clusters, 8192);
    // Header, L1, L2, refcount table, its block.
    assert_eq!(read, 24 + 5 * 65536);
    // The table and its cluster have 8192 references, and refcounts of 1.
    assert!(ours.report.corruptions >= 2, "{:?}", ours.findings);
    stand.end();
}

#[test]
fn q10_an_image_without_a_refcount_table_is_checked() {
    let stand = Stand::new();
    let image = image(&stand, "");
    patch(&image, 56, &[0; 4]);
    let why = stand.refusal(&image, json!({}));
    assert!(why.contains("reference count table"), "{why}");
    let ours = check(&stand, &image);
    assert!(ours.report.corruptions > 5, "{:?}", ours.findings);
    stand.end();
}

#[test]
fn q143_an_image_is_checked_while_it_is_written() {
    for options in ["", "cluster_size=4k", "lazy_refcounts=on"] {
        let stand = Stand::in_memory();
        let image = stand.create("image.qcow2", options, "64M");
        let opened = stand.open_writable(&image, json!({}));
        let mut random = fastrand::Rng::with_seed(143);
        for round in 1..=4_u8 {
            // Nothing of it is flushed.
            for _ in 0..20 {
                opened.write(random.u64(..1000) * 65536, &vec![round; 100_000]).unwrap();
            }
            let zeroed = random.u64(..500) * 65536;
            opened.backend().pdiscard(&stand.ctx, zeroed, 1 << 20).unwrap();
            let report = stand.ctx.run(|co| {
                // Writes come in the middle.
                let writer = opened.backend().clone();
                let done = std::rc::Rc::new(std::cell::Cell::new(false));
                let told = std::rc::Rc::clone(&done);
                stand.ctx.spawn("write", move |co| {
                    for cluster in 0..40 {
                        let at = (1000 - u64::from(round) * 50 + cluster) << 16;
                        writer.co_write(co, at, &[round; 65536]).unwrap();
                        writer.co_flush(co).unwrap();
                    }
                    told.set(true);
                });
                let image = opened.node.co_image(co).unwrap();
                let report = image.co_check(co, Repair::None).unwrap();
                while !done.get() {
                    co.yield_now();
                }
                report
            });
            let found = (report.corruptions, report.leaks, report.check_errors);
            assert_eq!(found, (0, 0, 0), "{options}");
            assert!(report.allocated_clusters > 20);
        }
        opened.close();
        assert_eq!(compare(&stand, &image, options), 0);
        stand.end();
    }
}
