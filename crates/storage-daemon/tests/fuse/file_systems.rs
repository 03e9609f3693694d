//! File systems on loop devices on exports: what a loop device sends is what most programs do not, many
//! requests at once from pages that it writes to again as soon as it is answered.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use coblk_tests::tools;

use super::util::{Place, wait_until};
use super::{Signal, is_mounted};

/// MiB that are written to a file system; `COBLK_FUSE_MIB` in its place, for longer runs.
fn mib() -> u64 {
    std::env::var("COBLK_FUSE_MIB").ok().map_or(8, |text| text.parse().expect("a number"))
}

/// Over io_uring with `COBLK_FUSE_IO_URING`, where root has enabled that.
fn ring() -> &'static str {
    if std::env::var_os("COBLK_FUSE_IO_URING").is_some() { ",io-uring=on" } else { "" }
}

/// The smallest disk for xfs, in MiB.
const XFS_MIB: u64 = 300;

/// A loop device with direct I/O or not, detached with the value.
struct Loop(String);

impl Loop {
    fn new(file: &Path, direct: bool) -> Loop {
        let direct = if direct { "--direct-io=on" } else { "--direct-io=off" };
        let said = tools::run("losetup", ["--find", "--show", direct, tools::text(file)]);
        Loop(said.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tools::output("losetup", ["--detach", &self.0]);
    }
}

/// Something mounted, until the value is dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let output = tools::output("umount", [self.0]);
        assert!(output.status.success() || std::thread::panicking());
    }
}

/// Writes that are verified, over a file system that is checked afterwards.
fn check(make: &[&str], fsck: &[&str], direct: bool) {
    let place = Place::new();
    fs::write(place.path("mnt"), "").unwrap();
    fs::File::options()
        .write(true)
        .open(place.image())
        .unwrap()
        .set_len((4 * mib()).max(XFS_MIB) << 20)
        .unwrap();
    let daemon = place.start(&format!(
        "--object iothread,id=t0 --object iothread,id=t1 \
         --blockdev file,node-name=disk,filename=@/disk.img,discard=unmap \
         --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,writable=on,\
         iothread.0=t0,iothread.1=t1{}",
        ring()
    ));
    let (mnt, dir) = (place.path("mnt"), place.path("fs"));
    fs::create_dir(&dir).unwrap();
    let device = Loop::new(&mnt, direct);
    tools::run(make[0], make[1..].iter().copied().chain([device.0.as_str()]));
    tools::run("mount", ["-o", "discard", &device.0, tools::text(&dir)]);
    let mounted = Mounted(&dir);
    let file = format!("--filename={}/data", dir.display());
    let size = format!("--size={}m", mib());
    for (engine, direct) in [("libaio", "--direct=1"), ("psync", "--direct=0")] {
        let engine = format!("--ioengine={engine}");
        let args = ["--name=verify", &file, &size, &engine, direct, "--rw=randwrite"];
        let more = ["--bsrange=4k-256k", "--bs_unaligned=0", "--iodepth=16", "--end_fsync=1"];
        let verify = [
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randseed=7",
            "--minimal",
        ];
        tools::run("fio", args.into_iter().chain(more).chain(verify));
    }
    fs::remove_file(dir.join("data")).unwrap();
    tools::run("fstrim", [&dir]);
    drop(mounted);
    // A mount namespace that another test has made meanwhile may have it still.
    wait_until("the device is not in use", || {
        OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device.0).is_ok()
    });
    tools::run(fsck[0], fsck[1..].iter().copied().chain([device.0.as_str()]));
    drop(device);
    daemon.stop(Signal::TERM);
    assert!(!is_mounted(&mnt));
}

const EXT4: &[&str] = &["mkfs.ext4", "-q", "-F"];
const E2FSCK: &[&str] = &["e2fsck", "-f", "-n"];
const XFS: &[&str] = &["mkfs.xfs", "-q", "-f"];
const XFS_REPAIR: &[&str] = &["xfs_repair", "-n"];

#[test]
fn mounts_bear_ext4_on_a_loop_device() {
    check(EXT4, E2FSCK, false);
}

#[test]
fn mounts_bear_ext4_on_a_loop_device_with_direct_io() {
    check(EXT4, E2FSCK, true);
}

#[test]
fn mounts_bear_xfs_on_loop_devices() {
    check(XFS, XFS_REPAIR, false);
    check(XFS, XFS_REPAIR, true);
}
