//! A daemon without rights.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use coblk_tests::tools;

use super::util::{self, Place};
use super::{MIB, Signal, is_mounted};

/// A command of a user without rights. Descriptor 3 is the daemon's program, which root has opened, so that it
/// is found wherever it lies.
fn command() -> Command {
    // Where no udev has made the device, only root may open it.
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666))
        .expect("root, and /dev/fuse");
    let script = "exec 3<\"$0\" setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
    let mut command = tools::command("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_coblk-storage-daemon")]);
    command
}

/// A user without rights has `fusermount3` mount, over files of its own.
#[test]
fn mounts_of_a_user_are_made_by_the_helper() {
    let place = Place::in_memory();
    let dir = place.path("");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    for (name, owner) in [("mnt", 65534), ("theirs", 0), ("disk", 65534)] {
        File::create(place.path(name)).unwrap().set_len(MIB).unwrap();
        std::os::unix::fs::chown(place.path(name), Some(owner), Some(owner)).unwrap();
    }
    let daemon = |mountpoint: &str| {
        let mut command = command();
        let arguments = format!(
            "/proc/self/fd/3 --blockdev file,node-name=disk,filename=@/disk --pidfile @/pid \
             --export fuse,id=f0,node-name=disk,mountpoint=@/{mountpoint},writable=on"
        );
        command.args(arguments.split_whitespace().map(|it| place.fill_in(it)));
        command
    };
    let output = daemon("theirs").output().unwrap();
    let said = util::stderr(&output);
    assert!(!output.status.success() && said.contains("fusermount3: "), "{said}");
    let running = place.start_command(daemon("mnt"));
    let as_user = |script: &str| {
        let mut command = command();
        command.args(["sh", "-c", script, "sh"]).arg(place.path("mnt")).output().unwrap()
    };
    assert!(as_user("printf user | dd of=\"$1\" bs=4 seek=1024 conv=notrunc").status.success());
    running.signal(Signal::KILL);
    running.wait();
    // What was left is taken away by the helper, too.
    assert!(!as_user("cat \"$1\"").status.success());
    fs::remove_file(place.pid_file()).unwrap();
    let running = place.start_command(daemon("mnt"));
    let read = as_user("dd if=\"$1\" bs=4 skip=1024 count=1 2>/dev/null");
    assert_eq!(read.stdout, b"user");
    running.stop(Signal::TERM);
    assert!(!is_mounted(&place.path("mnt")));
}
