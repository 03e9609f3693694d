//! Tests that need a world of their own: a small file system, few descriptors, or system calls that
//! fail.
//!
//! Such a test runs its own program again, for itself alone, inside that world, and demands that
//! it passed there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::images::sparse_image;
use crate::tools;

/// Set in the inner run, to its directory.
const INSIDE: &str = "COBLK_TEST_SANDBOX";

/// Runs `code` with a directory on a file system in memory that holds `bytes` bytes. It is mounted
/// in a name space of the inner run's own and goes with it. `test` is the full name of the calling
/// test.
pub fn on_small_file_system(test: &str, bytes: u64, code: impl FnOnce(&Path)) {
    let mount = format!("mount -t tmpfs -o size={bytes} none \"$1\" && shift && exec \"$@\"");
    in_mount_name_space(test, &mount, code);
}

/// Runs `code` with a directory on a read-only file system, in which `prepare`, a shell command,
/// has run before.
pub fn on_read_only_file_system(test: &str, prepare: &str, code: impl FnOnce(&Path)) {
    let mount = format!(
        "mount -t tmpfs none \"$1\" && (cd \"$1\" && {prepare}) && \
         mount -o remount,ro \"$1\" && shift && exec \"$@\""
    );
    in_mount_name_space(test, &mount, code);
}

/// Runs `code` with a directory for files, where it may mount what it likes: no other process sees
/// it, and it goes with the inner run. Needs root.
pub fn with_own_mounts(test: &str, parent: &Path, code: impl FnOnce(&Path)) {
    if let Some(dir) = inside() {
        return code(&dir);
    }
    let dir = tempfile::tempdir_in(parent).expect("a directory for files");
    run_inside("unshare", tools::command("unshare").arg("--mount"), test, dir.path());
}

fn in_mount_name_space(test: &str, mount: &str, code: impl FnOnce(&Path)) {
    if let Some(dir) = inside() {
        return code(&dir);
    }
    let dir = tempfile::tempdir().expect("a directory to mount on");
    let mut unshare = tools::command("unshare");
    unshare.arg("--mount");
    if tools::run("id", ["-u"]).trim() != "0" {
        unshare.arg("--map-root-user");
    }
    unshare.args(["sh", "-c", mount, "sh"]).arg(dir.path());
    run_inside("unshare", &mut unshare, test, dir.path());
}

/// Runs `code` with a directory for files while system calls fail, as `faults` tells `strace`, such
/// as `fdatasync:error=EIO:when=1`. `parent` is where the directory is made.
pub fn with_faults(test: &str, parent: &Path, faults: &[&str], code: impl FnOnce(&Path)) {
    if let Some(dir) = inside() {
        return code(&dir);
    }
    let dir = tempfile::tempdir_in(parent).expect("a directory for files");
    let log = dir.path().join("strace.log");
    let mut strace = tools::command("strace");
    strace.args(["-f", "-qq", "-o"]).arg(&log);
    for fault in faults {
        strace.arg("-e").arg(format!("inject={fault}"));
    }
    run_inside("strace", &mut strace, test, dir.path());
    let log = std::fs::read_to_string(&log).expect("strace's log");
    assert!(log.contains("(INJECTED)"), "no system call was made to fail:\n{log}");
}

/// Runs `code` with a directory for files while system calls are noted; `check` sees a line for each
/// of `calls` that was made, with the paths of its descriptors. `parent` is where the directory is
/// made.
pub fn traced(
    test: &str,
    parent: &Path,
    calls: &str,
    code: impl FnOnce(&Path),
    check: impl FnOnce(&str),
) {
    if let Some(dir) = inside() {
        return code(&dir);
    }
    let dir = tempfile::tempdir_in(parent).expect("a directory for files");
    let log = dir.path().join("strace.log");
    let mut strace = tools::command("strace");
    strace.args(["-f", "-y", "-qq", "-e", &format!("trace={calls}"), "-o"]).arg(&log);
    run_inside("strace", &mut strace, test, dir.path());
    check(&std::fs::read_to_string(&log).expect("strace's log"));
}

/// Runs `code` with a directory for files in a process that may have `most` descriptors. `parent` is
/// where the directory is made.
pub fn with_few_descriptors(test: &str, parent: &Path, most: u32, code: impl FnOnce(&Path)) {
    if let Some(dir) = inside() {
        return code(&dir);
    }
    let dir = tempfile::tempdir_in(parent).expect("a directory for files");
    let mut prlimit = tools::command("prlimit");
    prlimit.arg(format!("--nofile={most}:{most}"));
    run_inside("prlimit", &mut prlimit, test, dir.path());
}

/// Runs `code` with a directory, while system calls on the file `name` in it, which is made with
/// `bytes` bytes, fail as `faults` tells `strace`. `check` sees what `code` told, and a line for each
/// such call that was made. `parent` is where the directory is made.
pub fn with_faults_on_file(
    test: &str,
    parent: &Path,
    (name, bytes): (&str, u64),
    faults: &[&str],
    code: impl FnOnce(&Path) -> String,
    check: impl FnOnce(&str, &str),
) {
    if let Some(dir) = inside() {
        let told = code(&dir);
        return std::fs::write(dir.join("told"), told).expect("a place to tell");
    }
    let dir = tempfile::tempdir_in(parent).expect("a directory for files");
    let (log, file) = (dir.path().join("strace.log"), sparse_image(dir.path(), name, bytes));
    let mut strace = tools::command("strace");
    strace.args(["-f", "-qq", "-o"]).arg(&log).arg("-P").arg(file);
    for fault in faults {
        strace.arg("-e").arg(format!("inject={fault}"));
    }
    run_inside("strace", &mut strace, test, dir.path());
    let read = |name| std::fs::read_to_string(dir.path().join(name)).expect("a file");
    check(&read("told"), &read("strace.log"));
}

fn inside() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(PathBuf::from)
}

/// Has `wrapper` run this program again, for one test.
fn run_inside(program: &str, wrapper: &mut Command, test: &str, dir: &Path) {
    let this = std::env::current_exe().expect("the path of this test program");
    wrapper.arg(this).args(["--exact", test, "--nocapture", "--test-threads=1"]);
    let output = tools::finish(program, wrapper.env(INSIDE, dir));
    let said = tools::expect_success(&format!("{test}, run inside {program},"), &output);
    assert!(said.contains(" 1 passed"), "there is no test '{test}':\n{said}");
}
