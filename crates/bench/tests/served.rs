//! `compare nbd`, `compare vhost-user` and `compare fuse`, with real servers: ours, and those of others where they are
//! installed. Whatever the figures are, they have their place.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

/// Our server, beside the program. It belongs to another package, so it may not be built yet. Asked for
/// in this way it is the one that the tests of the workspace use, and not built once more without what
/// they ask of its dependencies.
static SERVER: LazyLock<PathBuf> = LazyLock::new(|| {
    let program = Path::new(env!("CARGO_BIN_EXE_coblk-bench"));
    let (profile, target) = (program.parent().unwrap(), program.ancestors().nth(2).unwrap());
    let name = if profile.ends_with("release") { "release" } else { "dev" };
    let cargo = Command::new(env!("CARGO"))
        .args(["test", "--locked", "--quiet", "--workspace", "--no-run", "--test", "start"])
        .args(["--profile", name, "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    profile.join("coblk-storage-daemon")
});

fn compare(arguments: &[&str]) -> Output {
    compare_in(&std::env::temp_dir(), arguments)
}

/// Temporary files of the program are in a directory of its own.
fn compare_in(temporary: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_coblk-bench"))
        .env("TMPDIR", temporary)
        .args(["compare", arguments[0], "--json", "--quick", "--size", "1m", "--count", "64"])
        .args(&arguments[1..])
        .output()
        .expect("the program starts")
}

fn rows(arguments: &[&str]) -> Vec<Value> {
    assert!(SERVER.exists());
    rows_of(arguments, compare(arguments))
}

fn rows_of(arguments: &[&str], output: Output) -> Vec<Value> {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{arguments:?}: {error}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
}

/// Each peer has all its figures, or the package that brings it is named.
fn check(row: &Value, peers: &[(&str, f64)]) {
    assert_eq!(row["unit"], "IOPS");
    assert!(row["ours"].as_f64().is_some_and(|ours| ours > 0.0), "{row}");
    assert!(row["cpu_ns_per_op"].is_number(), "{row}");
    assert!(row["notes"].is_null(), "{row}");
    for (peer, goal) in peers {
        if row["missing"][peer].is_string() {
            assert!(row["peers"][peer].is_null(), "{row}");
            continue;
        }
        for field in ["peers", "ratio", "peers_cpu_ns_per_op"] {
            assert!(row[field][peer].is_number(), "{field} of {peer}: {row}");
        }
        assert_eq!(row["goal"][peer], *goal);
    }
}

#[test]
fn nbd_servers_take_turns() {
    let rows = rows(&["nbd", "--only", "4k QD32", "--only", "page cache write 1m"]);
    let names: Vec<&str> = rows.iter().filter_map(|row| row["work"].as_str()).collect();
    let wanted = [
        "nbd null randread 4k QD32",
        "nbd null randwrite 4k QD32",
        "nbd null randread 4k QD32 x2",
        "nbd page cache randread 4k QD32",
        "nbd page cache randwrite 4k QD32",
        "nbd page cache randread 4k QD32 x2",
        "nbd page cache write 1m QD4",
    ];
    assert_eq!(names, wanted);
    for row in &rows {
        match row["work"].as_str().unwrap().ends_with(" x2") {
            true => check(row, &[("coblk, 1 iothread", 1.8), ("qemu-storage-daemon", 5.0)]),
            false => check(row, &[("qemu-storage-daemon", 1.5), ("nbdkit", 1.0)]),
        }
    }
}

#[test]
fn vhost_user_servers_take_turns() {
    let directory = tempfile::tempdir().unwrap();
    let plot = directory.path().to_str().unwrap();
    let rows = rows(&["vhost-user", "--only", "QD32", "--plot", plot]);
    // And one for each depth of the curve, two with a log, and one of packed rings.
    assert_eq!(rows.len(), 8 + 6 + 2 + 1);
    for row in &rows {
        match row["work"].as_str().unwrap().rsplit_once(", ") {
            Some((_, "dirty log")) => check(row, &[("coblk, no log", 0.9)]),
            Some((_, "packed")) => assert!(row["ratio"]["coblk, split"].is_number(), "{row}"),
            _ => check(row, &[("qemu-storage-daemon", 2.0)]),
        }
    }
    let picture = |name| std::fs::read_to_string(directory.path().join(name)).unwrap();
    assert!(picture("ratios.svg").contains("vhost-user null randread 4k QD32 x2"));
    assert!(picture("latency.svg").contains(">coblk<"));
}

/// Needs root, and `/dev/fuse`.
#[test]
fn mounts_of_both_daemons_take_turns() {
    assert!(SERVER.exists());
    let temporary = tempfile::tempdir().unwrap();
    let arguments = ["fuse", "--only", "randread 4k QD32"];
    let rows = rows_of(&arguments, compare_in(temporary.path(), &arguments));
    let names: Vec<_> = rows.iter().map(|row| row["work"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "fuse null randread 4k QD32",
            "fuse page cache randread 4k QD32",
            "fuse null randread 4k QD32 x2",
            "fuse page cache randread 4k QD32 x2"
        ]
    );
    rows.iter().for_each(|row| check(row, &[("qemu-storage-daemon", 2.0)]));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(temporary.path().to_str().unwrap()), "{mounts}");
}

#[test]
fn peers_that_are_missing_are_named_with_their_packages() {
    assert!(SERVER.exists());
    let output = Command::new(env!("CARGO_BIN_EXE_coblk-bench"))
        .args(["compare", "nbd", "--json", "--quick", "--count", "64"])
        .args(["--only", "nbd null randread 4k QD32"])
        .env("PATH", "/nowhere")
        .output()
        .expect("the program starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let row: Value = serde_json::from_str(text.lines().next().unwrap()).expect("a row");
    assert_eq!(row["missing"]["nbdkit"], "nbdkit");
    assert_eq!(row["missing"]["qemu-storage-daemon"], "qemu-system-common or qemu-utils");
    check(&row, &[("qemu-storage-daemon", 1.5), ("nbdkit", 1.0)]);
}

#[test]
fn a_server_that_is_not_there_or_fails_is_named() {
    for (server, says) in [("/nowhere/server", "/nowhere/server"), ("/bin/false", "exit status: 1")]
    {
        let only = "null randread 4k QD1";
        let output = compare(&["nbd", "--only", only, "--server", server]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(says), "{error}");
        assert!(output.stdout.is_empty());
    }
}
