//! Repairs of images by ours and by QEMU's program.

use std::fs;
use std::path::{Path, PathBuf};

use coblk_aio::Wanted;
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, CheckReport, Repair};
use coblk_qcow2::check::{Check, CheckOptions, co_check_with};
use coblk_tests::tools;
use serde_json::{Value, json};

use super::Stand;

/// Repairs an image without opening it.
pub fn repair(stand: &Stand, image: &Path, repair: Repair) -> Result<Check, String> {
    repair_with(stand, image, &CheckOptions::new(repair))
}

/// [`repair`], with options.
pub fn repair_with(
    stand: &Stand,
    image: &Path,
    options: &CheckOptions<'_>,
) -> Result<Check, String> {
    repair_while(stand, image, options, &Wanted::new())
}

/// [`repair_with`], for a requester that may go.
pub fn repair_while(
    stand: &Stand,
    image: &Path,
    options: &CheckOptions<'_>,
    wanted: &Wanted,
) -> Result<Check, String> {
    let file = json!({"driver": "file", "filename": tools::text(image)});
    let node = stand.blockdevs.open(&stand.ctx, NodeOptions::from_value(file).unwrap()).unwrap();
    let backend = BackendOptions::new("check").open(&stand.ctx, node.clone()).unwrap();
    let check =
        stand.ctx.run(|co| co.while_wanted(wanted, || co_check_with(co, &backend, options)));
    drop(backend);
    stand.blockdevs.close(&stand.ctx, node.name()).unwrap();
    check.map_err(|error| error.to_string())
}

/// The exit code of `qemu-img check` with such an outcome.
pub fn code(check: &Result<Check, String>) -> i32 {
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
pub fn copy(stand: &Stand, image: &Path, to: &str) -> PathBuf {
    let path = stand.path(to);
    fs::copy(image, &path).unwrap();
    path
}

/// What a guest reads, by clusters of 64 KiB; or with what error.
pub fn read(stand: &Stand, image: &Path) -> Vec<Result<Vec<u8>, i32>> {
    let opened = stand.open(image, json!({}));
    let clusters = (0..opened.node.length()).step_by(65536);
    clusters.map(|at| opened.read(at, 65536).map_err(|it| it.raw_os_error().unwrap())).collect()
}

/// Repairs copies of an image in both ways, and compares with QEMU. Returns our exit codes.
#[track_caller]
pub fn compare(stand: &Stand, image: &Path, what: &str) -> [i32; 2] {
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
pub fn assert_second_is_nothing(stand: &Stand, image: &Path, way: Repair, what: &str) {
    let before = fs::read(image).unwrap();
    let again = repair(stand, image, way).unwrap();
    let fixed = (again.report.corruptions_fixed, again.report.leaks_fixed);
    assert_eq!(fixed, (0, 0), "{what}: {:#?}", again.findings);
    assert!(fs::read(image).unwrap() == before, "{what}: a second repair changed something");
}
