//! A repair does what `qemu-img check -r` does, and loses nothing.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use coblk_aio::Wanted;
use coblk_block::Repair;
use coblk_qcow2::check::CheckOptions;
use coblk_qcow2::layout::Snapshot;
use coblk_tests::tools;
use serde_json::json;

use crate::util;
use crate::util::repair::{
    assert_second_is_nothing, code, compare, copy, read, repair, repair_with,
};
use crate::util::{Stand, first_l2, patch, word};

const COPIED: u64 = 1 << 63;

/// An image with data, zeroes and compressed clusters.
fn image(stand: &Stand, options: &str) -> PathBuf {
    let image = stand.create("image.qcow2", options, "1M");
    // A compressed cluster is written whole.
    if !options.contains("2M") {
        stand.qemu_io(&image, &["write -c -P 9 256k 64k".to_owned()]);
    }
    stand.qemu_io(&image, &["write -P 7 0 128k", "write -z 512k 64k"].map(str::to_owned));
    image
}

/// The entry of a table (L1, L2, refcount table, or of a block, of 16 bits), its index there, its new value.
type Damage = (char, u64, u64);

fn damage(image: &Path, (table, index, entry): Damage) {
    let at = match table {
        '1' => word(image, 40),
        '2' => first_l2(image),
        'r' => word(image, 48),
        _ => {
            let block = word(image, word(image, 48));
            return patch(image, block + index * 2, &(entry as u16).to_be_bytes());
        }
    };
    patch(image, at + index * 8, &entry.to_be_bytes());
}

#[test]
fn q139_q140_repairs_are_those_of_qemu_img() {
    let far = COPIED | 0x400_0000;
    let damages: [(&str, Damage, [i32; 2]); 24] = [
        ("nothing", ('2', 12, 0), [0, 0]),
        ("a leak", ('2', 0, 0), [0, 0]),
        ("a high refcount", ('b', 5, 3), [0, 0]),
        ("a low refcount", ('b', 5, 0), [1, 0]),
        ("the header counts too little", ('b', 0, 0), [1, 0]),
        ("a missing flag", ('2', 0, 0x6_0000), [0, 0]),
        ("a missing flag of L1", ('1', 0, 0x4_0000), [0, 0]),
        ("an entry behind the end", ('2', 0, far), [2, 2]),
        ("an unaligned entry", ('2', 0, COPIED | 0x6_0200), [2, 2]),
        ("unaligned zeroes", ('2', 0, COPIED | 0x6_0201), [2, 0]),
        ("unaligned zeroes over others", ('2', 3, COPIED | 0x6_0201), [2, 0]),
        ("reserved bits", ('2', 0, COPIED | 0x6_0002), [2, 2]),
        ("two entries to one cluster", ('2', 3, COPIED | 0x6_0000), [2, 0]),
        ("a flag and no cluster", ('2', 3, COPIED), [0, 0]),
        ("a zero cluster with a place", ('2', 0, COPIED | 0x6_0001), [0, 0]),
        ("a compressed cluster with a flag", ('2', 3, COPIED | 1 << 62 | 0x5_0000), [2, 2]),
        ("a compressed cluster behind the end", ('2', 3, 1 << 62 | 0x400_0000), [2, 2]),
        ("an L2 table behind the end", ('1', 0, far), [2, 2]),
        ("reserved bits of L1", ('1', 0, 1 << 62 | COPIED | 0x4_0000), [2, 2]),
        ("a lost L2 table", ('1', 0, 0), [0, 0]),
        ("no block", ('r', 0, 0), [1, 0]),
        ("a block twice", ('r', 1, 0x2_0000), [1, 0]),
        ("a block that is a table", ('r', 1, 0x4_0000), [1, 0]),
        ("a block that is data", ('r', 1, 0x6_0000), [1, 0]),
    ];
    for (what, entry, codes) in damages {
        let stand = Stand::new();
        let image = image(&stand, "");
        damage(&image, entry);
        assert_eq!(compare(&stand, &image, what), codes, "{what}");
        stand.end();
    }
}

/// `qemu-img check` of an image: its exit code.
fn qemu_check(stand: &Stand, image: &Path) -> i32 {
    stand.qemu_img("check", image).1
}

#[test]
fn q15_q16_bits_are_cleared_when_no_corruption_is_left() {
    for bit in [1, 2] {
        let stand = Stand::new();
        let image = image(&stand, "lazy_refcounts=on");
        let mut command = tools::command("qemu-io");
        command.args(["-f", "qcow2", "-c", "write -P 5 768k 128k", "-c", "abort"]).arg(&image);
        tools::finish("qemu-io", &mut command);
        patch(&image, 72, &u64::to_be_bytes(bit));
        // Clusters in use have no refcounts.
        assert_eq!(compare(&stand, &image, "after a crash"), [1, 0]);
        let ours = copy(&stand, &image, "ours");
        let report = repair(&stand, &ours, Repair::All).unwrap().report;
        assert!(report.corruptions_fixed > 0, "{report:?}");
        assert_eq!(word(&ours, 72), 0);
        // What cannot be mended keeps the bit.
        patch(&image, first_l2(&image), &(COPIED | 0x6_0002).to_be_bytes());
        let check = repair(&stand, &image, Repair::All);
        assert_eq!((code(&check), word(&image, 72)), (2, bit));
        stand.end();
    }
}

#[test]
fn q18_q30_a_repair_clears_features_and_drops_bitmaps_that_are_void() {
    let stand = Stand::new();
    let base = stand.create("base", "", "64M");
    let backing = format!("backing_file={},backing_fmt=qcow2", tools::text(&base));
    let image = stand.create("image.qcow2", &backing, "64M");
    let text = tools::text(&image).to_owned();
    tools::run("qemu-img", ["bitmap", "--add", &text, "bits"]);
    stand.qemu_io(&image, &["write -P 7 0 128k".to_owned()]);
    // Known bits stay; so do bitmaps that are those of the data.
    let whole = copy(&stand, &image, "whole");
    patch(&whole, 88, &(1_u64 << 40 | 1).to_be_bytes());
    assert_eq!(repair(&stand, &whole, Repair::Leaks).unwrap().report.leaks_fixed, 0);
    assert_eq!(word(&whole, 88), 1);
    assert_eq!(
        stand.qemu_img("info", &whole).0["format-specific"]["data"]["bitmaps"][0]["name"],
        "bits"
    );
    patch(&image, 88, &(1_u64 << 40).to_be_bytes());
    assert_eq!(compare(&stand, &image, "void bitmaps"), [0, 0]);
    let ours = copy(&stand, &image, "ours");
    assert!(repair(&stand, &ours, Repair::Leaks).unwrap().report.leaks_fixed > 0);
    assert_eq!(word(&ours, 88), 0);
    let (before, after) = (fs::read(&image).unwrap(), fs::read(&ours).unwrap());
    let magic = 0x2385_2875_u32.to_be_bytes();
    let has = |bytes: &[u8]| bytes[..65536].windows(4).any(|it| it == magic);
    assert!(has(&before) && !has(&after));
    let info = stand.qemu_img("info", &ours).0;
    assert_eq!(info["backing-filename"], tools::text(&base));
    stand.end();
}

/// Gives the first snapshot of an image other extra data.
fn set_extra(image: &Path, extra: &[u8]) {
    let at = word(image, 64) as usize;
    let bytes = fs::read(image).unwrap();
    let (first, len) = Snapshot::parse(&bytes[at..]).unwrap();
    let mut entry = bytes[at..at + 40].to_vec();
    entry[36..40].copy_from_slice(&(extra.len() as u32).to_be_bytes());
    for part in [extra, &first.id, &first.name] {
        entry.extend(part);
    }
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry.extend(&bytes[at + len..(at + len + 200).min(bytes.len())]);
    patch(image, at as u64, &entry);
}

#[test]
fn q49_q140_the_snapshot_table_is_written_anew() {
    for extra in [8, 2000] {
        let stand = Stand::new();
        let image = image(&stand, "");
        for name in ["one", "two"] {
            tools::run("qemu-img", ["snapshot", "-c", name, tools::text(&image)]);
            stand.qemu_io(&image, &["write -P 3 64k 64k".to_owned()]);
        }
        let before = stand.qemu_img("info", &image).0["snapshots"].clone();
        // No state of a machine, the length of the disk, and what is not known.
        let mut data = [0, 1 << 20, u64::MAX].map(u64::to_be_bytes).concat();
        data.resize(extra, 0);
        set_extra(&image, &data);
        assert_eq!(code(&repair(&stand, &copy(&stand, &image, "leaks"), Repair::Leaks)), 2);
        let ours = copy(&stand, &image, "ours");
        let report = repair(&stand, &ours, Repair::All).unwrap().report;
        assert_eq!((report.corruptions_fixed, report.corruptions, report.leaks), (1, 0, 0));
        assert_eq!(qemu_check(&stand, &ours), 0);
        let after = stand.qemu_img("info", &ours).0["snapshots"].clone();
        for (before, after) in before.as_array().unwrap().iter().zip(after.as_array().unwrap()) {
            assert_eq!((&before["id"], &before["name"]), (&after["id"], &after["name"]));
        }
        // The bytes of both are there.
        for name in ["one", "two"] {
            let apply = ["snapshot", "-a", name, tools::text(&ours)];
            tools::run("qemu-img", apply);
            let pattern = if name == "one" { "7" } else { "3" };
            stand.qemu_io(&ours, &[format!("read -P {pattern} 64k 64k")]);
        }
        stand.end();
    }
}

#[test]
fn q49_q140_what_a_snapshot_table_had_a_share_of_is_mended_at_once() {
    let stand = Stand::new();
    let image = image(&stand, "");
    // The table of snapshots is an L2 table, and is written anew elsewhere. A flag is wrong in the L2 table.
    let table = first_l2(&image);
    patch(&image, 60, &1_u32.to_be_bytes());
    patch(&image, 64, &table.to_be_bytes());
    patch(&image, table, &(word(&image, table) & !COPIED).to_be_bytes());
    // Its entry has no extra data.
    patch(&image, table + 32, &[0; 8]);
    let check = repair(&stand, &image, Repair::All).unwrap();
    assert!(check.report.corruptions_fixed > 0, "{:#?}", check.findings);
    assert_ne!(word(&image, 64), table);
    assert_second_is_nothing(&stand, &image, Repair::All, "a snapshot table in an L2 table");
    stand.end();
}

#[test]
fn q141_a_file_does_not_grow_to_reach_what_lies_behind_its_end() {
    // A refcount block; and one, an entry of L1 and one of L2.
    for others in [false, true] {
        let stand = Stand::new();
        let image = image(&stand, "lazy_refcounts=on");
        let length = fs::metadata(&image).unwrap().len();
        damage(&image, ('r', 0, 1 << 40));
        if others {
            damage(&image, ('1', 0, COPIED | 1 << 41));
            damage(&image, ('r', 1, 1 << 42));
        }
        patch(&image, 72, &1_u64.to_be_bytes());
        let check = repair(&stand, &image, Repair::All);
        assert_eq!(code(&check), if others { 2 } else { 0 }, "{check:?}");
        assert_eq!(qemu_check(&stand, &image), if others { 2 } else { 0 });
        assert!(fs::metadata(&image).unwrap().len() <= length + 4 * 65536);
        assert_second_is_nothing(&stand, &image, Repair::All, "behind the end");
        stand.end();
    }
}

#[test]
fn q141_entries_behind_the_end_do_not_come_to_share_new_blocks() {
    let stand = Stand::new();
    let image = image(&stand, "");
    let end = fs::metadata(&image).unwrap().len().next_multiple_of(65536);
    damage(&image, ('2', 3, COPIED | end));
    damage(&image, ('b', 5, 0));
    let before = fs::read(&image).unwrap();
    let why = repair(&stand, &image, Repair::All).unwrap_err();
    assert!(why.contains("behind the end of the file"), "{why}");
    assert!(fs::read(&image).unwrap() == before);
    // Farther away than the file will be, they do not matter.
    damage(&image, ('2', 3, COPIED | end << 8));
    assert_eq!(code(&repair(&stand, &image, Repair::All)), 2);
    assert!(read(&stand, &image)[3].is_err());
    stand.end();
}

#[test]
fn q137_q142_q214_owners_that_cannot_share_a_cluster_are_found_though_counts_agree() {
    // Data where a table, a block, the header's table, or compressed data is; two entries to one table.
    for (what, entry) in [
        ("an L2 table as data", ('2', 3, 0x4_0000)),
        ("the L1 table as data", ('2', 3, 0x3_0000)),
        ("the refcount table as data", ('2', 3, 0x1_0000)),
        ("compressed data as data", ('2', 3, 0x5_0000)),
        ("two entries of L1 to a table", ('1', 1, 0x4_0000)),
    ] {
        let stand = Stand::new();
        let image = stand.create("image.qcow2", "", "1G");
        stand.qemu_io(&image, &["write -c -P 9 256k 64k", "write -P 7 0 128k"].map(str::to_owned));
        damage(&image, entry);
        let theirs = copy(&stand, &image, "theirs");
        // Theirs counts both, and is content.
        let mut command = tools::command("qemu-img");
        command.args(["check", "-q", "-f", "qcow2", "-r", "all"]).arg(&theirs);
        tools::expect_success("qemu-img check", &tools::finish("qemu-img", &mut command));
        for image in [&theirs, &image] {
            let check = repair(&stand, image, Repair::All);
            assert_eq!(code(&check), 2, "{what}: {check:?}");
            let check = check.unwrap();
            let is_told = |it: &String| it.contains("owners that cannot share it");
            assert!(check.findings.iter().any(is_told), "{what}: {:?}", check.findings);
            assert_second_is_nothing(&stand, image, Repair::All, what);
        }
        stand.end();
    }
}

#[test]
fn q143_a_check_tells_how_far_it_is_and_ends_when_it_is_not_wanted() {
    let stand = Stand::new();
    let image = image(&stand, "cluster_size=512");
    patch(&image, first_l2(&image), &[0; 8]);
    for way in [Repair::None, Repair::Leaks, Repair::All] {
        let copy = copy(&stand, &image, "copy");
        let steps = RefCell::new(Vec::new());
        let tell = |done, all| steps.borrow_mut().push((done, all));
        let mut options = CheckOptions::new(way);
        options.progress = &tell;
        repair_with(&stand, &copy, &options).unwrap();
        let steps = steps.into_inner();
        assert!(steps.is_sorted() && steps.len() > 3, "{steps:?}");
        assert!(steps.iter().all(|(done, all)| done <= all && *all == steps[0].1));
        assert_eq!(steps.last().unwrap().0, steps[0].1, "it has come to its end");
    }
    // It is given up in the middle.
    for stop in [1, 5] {
        let copy = copy(&stand, &image, "copy");
        let wanted = Wanted::new();
        let count = std::cell::Cell::new(0);
        let tell = |_, _| {
            count.set(count.get() + 1);
            if count.get() == stop {
                wanted.give_up();
            }
        };
        let mut options = CheckOptions::new(Repair::All);
        options.progress = &tell;
        let why = util::repair::repair_while(&stand, &copy, &options, &wanted).unwrap_err();
        assert!(why.contains("canceled"), "{why}");
        assert_eq!(count.get(), stop);
        assert!(fs::read(&copy).unwrap() == fs::read(&image).unwrap());
    }
    stand.end();
}

#[test]
fn q139_q140_random_repairs_are_those_of_qemu_img() {
    for seed in coblk_tests::random::seeds(8) {
        let mut random = fastrand::Rng::with_seed(seed);
        let stand = Stand::new();
        let shape =
            *random.choice(&["", "compat=0.10", "refcount_bits=16,cluster_size=4k"]).unwrap();
        let image = image(&stand, shape);
        let clusters =
            fs::metadata(&image).unwrap().len() / if shape.contains("4k") { 4096 } else { 65536 };
        for _ in 0..random.u32(1..5) {
            let index = random.u64(..clusters);
            let entry = word(&image, first_l2(&image) + random.u64(..32) * 8);
            let (place, l1) = (random.u64(..32), word(&image, word(&image, 40)));
            damage(
                &image,
                match random.u32(..5) {
                    0 => ('2', place, entry & !COPIED),
                    1 => ('2', place, 0),
                    2 => ('1', 0, l1 ^ COPIED),
                    // Seldom none.
                    _ => ('b', index, random.u64(..8) % 5),
                },
            );
        }
        compare(&stand, &image, &format!("seed {seed}"));
        stand.end();
    }
}

#[test]
fn q16_q17_a_dirty_image_is_repaired_before_it_is_written_or_not_opened() {
    let dirty = |stand: &Stand| {
        let image = image(stand, "lazy_refcounts=on");
        let mut command = tools::command("qemu-io");
        command.args(["-f", "qcow2", "-c", "write -P 5 768k 128k", "-c", "abort"]).arg(&image);
        tools::finish("qemu-io", &mut command);
        assert_eq!(word(&image, 72), 1);
        image
    };
    let stand = Stand::new();
    let image = dirty(&stand);
    let before = read(&stand, &image);
    let opened = stand.open_writable(&image, json!({}));
    // It is marked again for as long as it is written, if at all.
    assert_eq!(opened.read(768 << 10, 512).unwrap(), [5; 512]);
    opened.write(0, &[6; 65536]).unwrap();
    opened.close();
    stand.check(&image);
    assert_eq!(word(&image, 72), 0);
    let after = read(&stand, &image);
    assert_eq!(after[0], Ok(vec![6; 65536]));
    assert!(after[1..] == before[1..]);
    stand.end();

    let stand = Stand::new();
    let image = dirty(&stand);
    patch(&image, first_l2(&image), &(COPIED | 0x6_0002).to_be_bytes());
    let why = stand.refusal(&image, json!({"read-only": false}));
    assert!(why.contains("a repair leaves 1 corruptions"), "{why}");
    assert!(why.contains("reserved bits"), "{why}");
    assert_eq!(word(&image, 72), 1);
    // For reads it opens.
    assert_eq!(stand.open(&image, json!({})).read(768 << 10, 512).unwrap(), [5; 512]);
    stand.end();
}
