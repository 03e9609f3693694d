//! Programs that tests run. One that is missing fails the test, and says what to install.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

/// Which Debian package has a program; `tests/run` installs these.
const PACKAGES: &[(&str, &str)] = &[
    ("nbdkit", "nbdkit"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-storage-daemon", "qemu-system-common"),
    ("timeout", "coreutils"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("strace", "strace"),
    ("unshare", "util-linux"),
    ("prlimit", "util-linux"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("losetup", "mount"),
    ("fusermount3", "fuse3"),
    ("nbdfuse", "libnbd-bin"),
    ("mkfifo", "coreutils"),
    ("gdb", "gdb"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("/usr/bin/python3", "python3-libnbd"),
    ("fio", "fio"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("setpriv", "util-linux"),
    ("fsfreeze", "util-linux"),
    ("fstrim", "util-linux"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_repair", "xfsprogs"),
    ("kill", "procps"),
    ("cryptsetup", "cryptsetup-bin"),
    ("rbd", "ceph-common"),
    ("ceph", "ceph-common"),
];

/// A command; found also where only root looks as a rule.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Runs a program to its end.
#[track_caller]
pub fn output<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Output {
    finish(program, command(program).args(args))
}

/// Runs a command to its end.
#[track_caller]
pub fn finish(program: &str, command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let package = PACKAGES.iter().find(|(name, _)| *name == program);
            let package = package.map_or("?", |(_, package)| package);
            panic!("this test needs {program}: apt-get install {package}")
        }
        Err(error) => panic!("cannot run {program}: {error}"),
    }
}

/// Runs a program that must succeed, and returns what it said.
///
/// An image that was closed may be locked for a moment longer: a program that another test starts has all open
/// files of this process between fork and exec. So one that is refused a lock is run again.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> String {
    let mut command = command(program);
    command.args(args);
    for _ in 0..50 {
        let output = finish(program, &mut command);
        if output.status.success() || !is_refused_a_lock(&output) {
            return expect_success(program, &output);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    expect_success(program, &finish(program, &mut command))
}

fn is_refused_a_lock(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("Failed to get")
}

/// What a program said that must have succeeded.
#[track_caller]
pub fn expect_success(program: &str, output: &Output) -> String {
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} failed with {}:\n{said}", output.status);
    said
}

/// The major version of the qemu-storage-daemon that is there: 7 on a bare Debian 12, which knows no inactive
/// nodes, or 10 from its backports.
///
/// # Panics
/// If there is none.
pub fn qemu_major() -> u32 {
    let said = run("qemu-storage-daemon", ["--version"]);
    let version =
        said.split_whitespace().find(|word| word.starts_with(|it: char| it.is_ascii_digit()));
    let major = version.and_then(|version| version.split('.').next()?.parse().ok());
    major.unwrap_or_else(|| panic!("no version in {said:?}"))
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
