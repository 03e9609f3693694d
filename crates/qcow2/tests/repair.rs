//! A repair does what `qemu-img check -r` does, and loses nothing.

mod util;

use std::fs;
use std::path::{Path, PathBuf};

use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, CheckReport, Repair};
use coblk_qcow2::check::{Check, CheckOptions, co_check_with};
use coblk_tests::tools;
use serde_json::{Value, json};
use util::{Stand, first_l2, patch, word};

const COPIED: u64 = 1 << 63;

/// Repairs an image without opening it.
fn repair(stand: &Stand, image: &Path, repair: Repair) -> Result<Check, String> {
    let file = json!({"driver": "file", "filename": tools::text(image)});
    let node = stand.blockdevs.open(&stand.ctx, NodeOptions::from_value(file).unwrap()).unwrap();
    let backend = BackendOptions::new("check").open(&stand.ctx, node.clone()).unwrap();
    let options = CheckOptions::new(repair);
    let check = stand.ctx.run(|co| co_check_with(co, &backend, &options));
    drop(backend);
    stand.blockdevs.close(&stand.ctx, node.name()).unwrap();
    check.map_err(|error| error.to_string())
}

/// The exit code of `qemu-img check` with such an outcome.
fn code(check: &Result<Check, String>) -> i32 {
    match check {
        Err(_) => 1,
        Ok(check) if check.report.check_errors > 0 => 1,
        Ok(check) if check.report.corruptions > 0 => 2,
        Ok(check) if check.report.leaks > 0 => 3,
        Ok(_) => 0,
    }
}

/// The members of the report that `qemu-img check` has, in its words.
fn shown(report: &CheckReport) -> Vec<(&'static str, u64)> {
    vec![
        ("corruptions", report.corruptions),
        ("corruptions-fixed", report.corruptions_fixed),
        ("leaks", report.leaks),
        ("leaks-fixed", report.leaks_fixed),
        ("check-errors", report.check_errors),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
        ("image-end-offset", report.image_end_offset.unwrap_or(0)),
    ]
}

fn name(repair: Repair) -> &'static str {
    match repair {
        Repair::None => unreachable!("a repair mends something"),
        Repair::Leaks => "leaks",
        Repair::All => "all",
    }
}

/// `qemu-img check -r` of an image: its exit code and its figures.
fn qemu_repair(stand: &Stand, image: &Path, repair: Repair) -> (i32, Value) {
    let mut command = tools::command("qemu-img");
    command.current_dir(stand.dir.path());
    command.args(["check", "-f", "qcow2", "-r", name(repair), "--output=json"]).arg(image);
    let output = tools::finish("qemu-img", &mut command);
    // Findings are said before.
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map_or("null", |at| &text[at..]);
    (output.status.code().unwrap(), serde_json::from_str(json).unwrap_or(Value::Null))
}

/// A copy of an image.
fn copy(stand: &Stand, image: &Path, to: &str) -> PathBuf {
    let path = stand.path(to);
    fs::copy(image, &path).unwrap();
    path
}

/// What a guest reads, by clusters of 64 KiB; or with what error.
fn read(stand: &Stand, image: &Path) -> Vec<Result<Vec<u8>, i32>> {
    let opened = stand.open(image, json!({}));
    let clusters = (0..opened.node.length()).step_by(65536);
    clusters.map(|at| opened.read(at, 65536).map_err(|it| it.raw_os_error().unwrap())).collect()
}

/// Repairs copies of an image in both ways, and compares with QEMU. Returns our exit codes.
#[track_caller]
fn compare(stand: &Stand, image: &Path, what: &str) -> [i32; 2] {
    let before = read(stand, image);
    [Repair::Leaks, Repair::All].map(|way| {
        let what = format!("{what}, {}", name(way));
        let (ours, theirs) = (copy(stand, image, "ours"), copy(stand, image, "theirs"));
        let (their_code, their_figures) = qemu_repair(stand, &theirs, way);
        let check = repair(stand, &ours, way);
        assert_eq!(code(&check), their_code, "{what}: {check:#?}");
        let Ok(check) = check else { return 1 };
        for (name, value) in shown(&check.report) {
            let theirs = their_figures[name].as_u64().unwrap_or(0);
            assert_eq!(value, theirs, "{what}: {name}\n{:#?}", check.findings);
        }
        // What is left is what they find.
        let (_, left) = stand.qemu_img("check", &ours);
        assert_eq!(left, their_code, "{what}: {:#?}", check.findings);
        assert_second_is_nothing(stand, &ours, way, &what);
        for (before, after) in before.iter().zip(read(stand, &ours)) {
            // What could not be read may be mended.
            assert!(before.is_err() || *before == after, "{what}: the guest reads something else");
        }
        left
    })
}

#[track_caller]
fn assert_second_is_nothing(stand: &Stand, image: &Path, way: Repair, what: &str) {
    let before = fs::read(image).unwrap();
    let again = repair(stand, image, way).unwrap();
    let fixed = (again.report.corruptions_fixed, again.report.leaks_fixed);
    assert_eq!(fixed, (0, 0), "{what}: {:#?}", again.findings);
    assert!(fs::read(image).unwrap() == before, "{what}: a second repair changed something");
}

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

/// Damages an image: the entry of a table (L1, L2, refcount table, or of a block, of 16 bits), its index
/// there, its new value.
fn damage(image: &Path, (table, index, entry): (char, u64, u64)) {
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
    let damages: [(&str, (char, u64, u64), [i32; 2]); 24] = [
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
