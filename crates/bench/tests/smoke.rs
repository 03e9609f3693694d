//! Every subcommand runs, and prints JSON and nothing else when asked to.

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_coblk-bench"))
        .args(arguments)
        .output()
        .expect("the program starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    // No progress bar where there is no terminal.
    assert!(error.is_empty(), "{arguments:?} says on standard error: {error}");
    output
}

/// The rows a subcommand prints with `--json`; each line must be one.
fn rows(arguments: &[&str]) -> Vec<Value> {
    let output = bench(&[arguments, &["--json", "--quick"]].concat());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn names(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["work"].as_str().expect("a name")).collect()
}

#[test]
fn micro_prints_every_work_once() {
    let rows = rows(&["micro", "--suspended", "500"]);
    let names = names(&rows);
    let listed = String::from_utf8(bench(&["list"]).stdout).unwrap();
    let listed: Vec<&str> = listed.lines().collect();
    assert_eq!(names, listed[..names.len()]);
    // These are asked for by name elsewhere.
    for name in ["resume+suspend", "create+run+end", "null QD64", "worker QD64", "two contexts"] {
        assert!(names.contains(&name), "{name}");
    }
    for row in &rows {
        assert!(row["unit"].is_string(), "{row}");
        assert!(row["ours"].is_number(), "{row}");
    }
    for name in ["resume+suspend", "create+run+end", "bh local", "null QD64"] {
        let row = rows.iter().find(|row| row["work"] == name).unwrap();
        // None, but for one that falls into so short a run by chance.
        assert!(row["allocs_per_op"].as_f64().is_some_and(|allocs| allocs < 0.05), "{row}");
        assert!(row["cpu_ns_per_op"].is_number(), "{row}");
    }
    let switch = rows.iter().find(|row| row["work"] == "resume+suspend").unwrap();
    for peer in ["corosensei", "generator", "swapcontext"] {
        assert!(switch["peers"][peer].is_number() && switch["ratio"][peer].is_number(), "{switch}");
    }
}

#[test]
fn a_row_of_qcow2_runs_alone() {
    // Images are made by qemu-img.
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return;
    }
    for row in ["qcow2 first write threads QD64", "qcow2 flush after 1 first write"] {
        assert!(bench(&["child", row, "16"]).stdout.is_empty());
    }
}

/// Of one program in both places: each command is one that it knows.
#[test]
fn images_are_converted_compared_and_checked() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return;
    }
    let rows = rows(&["compare", "img", "--size", "3m", "--program", "qemu-img"]);
    let listed = String::from_utf8(bench(&["list"]).stdout).unwrap();
    let listed: Vec<&str> = listed.lines().filter(|name| name.starts_with("img ")).collect();
    assert_eq!((names(&rows), listed.len()), (listed.clone(), 14));
    for row in &rows {
        let (name, ratio) = (row["work"].as_str().unwrap(), &row["ratio"]);
        assert!(ratio["qemu-img"].is_number() && row["cpu_ns_per_op"].is_number(), "{row}");
        assert!(row["notes"].is_null(), "{row}");
        let is_plain = name.contains("convert") && !name.contains("compressed");
        assert_eq!(ratio["copy loop"].is_number(), is_plain, "{row}");
        assert_eq!(ratio["read loop"].is_number(), name.contains("compare"), "{row}");
        let is_converted = name.contains("convert");
        assert_eq!(row["stored_bytes"].as_f64().is_some(), is_converted, "{row}");
    }
}

#[test]
fn only_narrows_the_rows() {
    assert_eq!(names(&rows(&["micro", "--only", "bh local x64"])), ["bh local x64"]);
    assert_eq!(names(&rows(&["compare", "--only", "virtio null"])), ["virtio null QD64"]);
}

#[test]
fn null_prints_a_row() {
    let rows = rows(&["null", "--count", "1000", "--latency", "--numjobs", "2"]);
    assert_eq!(names(&rows), ["null randread 4k QD64 x2"]);
    assert!(rows[0]["ours"].is_number() && rows[0]["p99_ns"].is_number());
}

#[test]
fn file_prints_a_row() {
    for engine in ["threads", "io_uring"] {
        // A kernel may refuse a ring; then the program says so and fails.
        let probe = ["file", "--quick", "--size", "64k", "--count", "1", "--engine", engine];
        let probe = Command::new(env!("CARGO_BIN_EXE_coblk-bench")).args(probe).output().unwrap();
        if !probe.status.success() && engine == "io_uring" {
            assert!(String::from_utf8_lossy(&probe.stderr).contains("does not run here"));
            continue;
        }
        let words = ["--rw", "randrw", "--bs", "4k", "--iodepth", "8", "--size", "1m"];
        let rows = rows(&[&["file", "--engine", engine, "--count", "300"], &words[..]].concat());
        assert_eq!(names(&rows), [format!("file {engine} buffered randrw 4k QD8")]);
        assert!(rows[0]["mib_per_s"].is_number() && rows[0]["p999_ns"].is_number());
    }
}

#[test]
fn compare_draws() {
    let directory = tempfile::tempdir().unwrap();
    let plots = directory.path().join("plots");
    let words = ["compare", "--only", "page cache threads QD1", "--size", "1m", "--count", "64"];
    let rows = rows(&[&words[..], &["--plot", plots.to_str().unwrap()]].concat());
    assert_eq!(names(&rows)[0], "page cache threads QD1");
    assert!(rows[0]["peers"]["bare pread loop"].is_number());
    for picture in ["ratios.svg", "latency.svg"] {
        let text = std::fs::read_to_string(plots.join(picture)).unwrap();
        assert!(text.starts_with("<svg") && text.contains("</svg>"), "{picture}");
    }
}

#[test]
fn mistakes_are_named() {
    for (arguments, says) in [
        (&["micro", "--only", "nonsense"][..], "no work is called 'nonsense'"),
        (&["file", "--filename", "/nowhere/a.img", "--size", "1m"], "No such file or directory"),
        (&["file", "--bs", "4q"], "'4q' is not a size"),
        (&["null", "--size", "512", "--bs", "4k"], "does not fit"),
    ] {
        let program = env!("CARGO_BIN_EXE_coblk-bench");
        let output = Command::new(program).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(says), "{arguments:?}: {error}");
        assert!(output.stdout.is_empty());
    }
}
