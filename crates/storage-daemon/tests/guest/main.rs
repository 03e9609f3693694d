//! A Linux guest in QEMU on disks of the daemon: with virtio-blk over vhost-user, and with the NBD client
//! of its kernel. What it writes is in the image, what it discards is not, what it syncs is synced.
//!
//! Needs what `prepare`, beside this file, makes. Where that cannot be had, `tests/run` counts tests whose
//! names have `boots_with_` in them as not run.
#![forbid(unsafe_code)]

mod chain;
mod machine;
mod migrate;
mod network;
#[path = "../util/mod.rs"]
mod util;

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io::Write};

use coblk_tests::storage_daemon::StorageDaemon;
use coblk_tests::{image_dir, images, tools};
use machine::Machine;
use rustix::io::{FdFlags, fcntl_setfd};

const PROGRAM: &str = env!("CARGO_BIN_EXE_coblk-storage-daemon");
const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// The disk. Its flushes and discards are system calls, for `strace` to see.
const DISK: &str = "file,node-name=disk,filename=DIR/disk.img,aio=threads,discard=unmap";

/// The daemon, with what it asks of its file system on record.
struct Served {
    daemon: StorageDaemon,
    image: PathBuf,
    /// What `strace` has written.
    calls: PathBuf,
}

impl Served {
    /// A full image, so that a discard shows.
    fn start(dir: &Path, args: &[&str]) -> Served {
        let image = dir.join("disk.img");
        let mut file = fs::File::create(&image).unwrap();
        file.write_all(&vec![0xff; SIZE as usize]).unwrap();
        let calls = dir.join("calls");
        let wrapper =
            ["strace", "-f", "-qq", "-e", "trace=fdatasync,fsync", "-o", tools::text(&calls)];
        let args = [&["--blockdev", DISK], args].concat();
        let daemon = StorageDaemon::start(PROGRAM.as_ref(), dir, &wrapper, &args);
        Served { daemon, image, calls }
    }

    /// How often the file system was asked to sync, and has done it.
    fn syncs(&self) -> usize {
        let calls = fs::read_to_string(&self.calls).unwrap();
        calls.lines().filter(|line| line.contains("sync") && line.ends_with("= 0")).count()
    }

    /// Bytes that the image takes of the file system.
    fn allocated(&self) -> u64 {
        fs::metadata(&self.image).unwrap().blocks() * 512
    }

    /// What a guest does with a disk in its life. Says what `/keep` has in the file system that it leaves.
    fn live_through(&self, guest: &mut Machine, disk: &str) -> String {
        // Only what is synced is.
        let before = self.syncs();
        guest.run(&format!("dd if=/dev/urandom of={disk} bs=64k count=16 oflag=direct"));
        assert_eq!(self.syncs(), before, "synced, and not asked to");
        guest.run(&format!("dd if=/dev/urandom of={disk} bs=64k count=16 conv=fsync"));
        assert_eq!(self.syncs(), before + 1, "fsync of the disk");

        // mkfs discards.
        assert!(self.allocated() >= SIZE);
        guest.run(&format!("mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 {disk}"));
        let empty = self.allocated();
        assert!(empty < SIZE / 4, "{empty} bytes after mkfs");
        guest.run(&format!("mount {disk} /mnt"));
        let before = self.syncs();
        guest.run("dd if=/dev/urandom of=/mnt/keep bs=1M count=8 conv=fsync");
        assert!(self.syncs() > before, "fsync of a file");

        // Full, by several writers at once, and trimmed.
        guest.run(
            "for writer in 1 2 3 4; do \
                 (n=0; while cp /mnt/keep /mnt/fill.$writer.$n 2>/dev/null; do n=$((n + 1)); done) & \
             done; wait; sync",
        );
        let full = self.allocated();
        assert!(full > SIZE / 4 * 3, "{full} bytes of a full disk");
        guest.run("rm /mnt/fill.*; sync; fstrim /mnt");
        let trimmed = self.allocated();
        assert!(trimmed < SIZE / 2, "{trimmed} bytes after fstrim");

        // Whole, to the guest that reads it anew.
        guest.run("umount /mnt; echo 3 >/proc/sys/vm/drop_caches");
        guest.run(&format!("e2fsck -fn {disk}"));
        guest.run(&format!("mount -o ro {disk} /mnt"));
        let sum = guest.run("sha256sum /mnt/keep");
        guest.run("umount /mnt");
        sum.split(' ').next().unwrap().to_owned()
    }
}

/// Ends a daemon, and finds in its image what the guest has left there.
#[track_caller]
fn finish(daemon: StorageDaemon, sum: &str) {
    let dir = daemon.dir.clone();
    daemon.stop();
    let image = dir.join("disk.img");
    images::assert_clean_ext4(&image);
    let kept = dir.join("kept");
    fs::write(&kept, images::ext4_cat(&image, "/keep")).unwrap();
    assert_eq!(tools::run("sha256sum", [&kept]).split(' ').next(), Some(sum));
}

/// Has QEMU make packed rings.
const PACKED: &str = ",packed=on";

/// The guest's driver uses packed rings for its disk, or it does not.
#[track_caller]
fn assert_packed(guest: &mut Machine, packed: bool) {
    // Features, from bit 0 on.
    let features = guest.run("cat /sys/block/vda/device/features");
    assert_eq!(features.as_bytes()[34], if packed { b'1' } else { b'0' }, "{features}");
}

/// `count` queues of `size` entries, with `more` options of the device, through the life of a disk.
fn disk_over_vhost_user(count: u32, size: u32, more: &str) {
    let dir = image_dir!();
    let export = format!(
        "vhost-user-blk,id=v0,node-name=disk,writable=on,num-queues={count},\
         addr.type=unix,addr.path=DIR/vhost.sock"
    );
    let served = Served::start(dir.path(), &["--export", &export]);
    let mut guest = Machine::boot(
        dir.path(),
        &[
            "-chardev",
            "socket,id=vhost,path=DIR/vhost.sock",
            "-device",
            &format!("vhost-user-blk-pci,chardev=vhost,num-queues={count},queue-size={size}{more}"),
        ],
    );
    assert_packed(&mut guest, more == PACKED);
    assert_eq!(guest.run("ls /sys/block/vda/mq | wc -l"), format!("{count}\n"));
    assert_eq!(guest.run("cat /sys/block/vda/mq/0/nr_tags"), format!("{size}\n"));
    let sum = served.live_through(&mut guest, "/dev/vda");
    guest.power_off();
    finish(served.daemon, &sum);
}

#[test]
fn boots_with_a_disk_over_vhost_user() {
    disk_over_vhost_user(1, 128, "");
}

#[test]
fn boots_with_a_disk_of_packed_queues() {
    disk_over_vhost_user(2, 256, PACKED);
}

#[test]
fn boots_with_a_disk_of_two_queues() {
    disk_over_vhost_user(2, 256, "");
}

#[test]
fn boots_with_a_disk_of_long_queues() {
    disk_over_vhost_user(2, 512, "");
}

/// Started again, it goes on with what the guest had in flight. The guest only waits.
#[test]
fn boots_with_a_disk_whose_daemon_is_killed() {
    kill_the_daemon_of("");
}

#[test]
fn boots_with_a_disk_of_packed_queues_whose_daemon_is_killed() {
    kill_the_daemon_of(PACKED);
}

fn kill_the_daemon_of(more: &str) {
    let dir = image_dir!();
    images::sparse_image(dir.path(), "disk.img", SIZE);
    let export = "vhost-user-blk,id=v0,node-name=disk,writable=on,num-queues=2,\
                  addr.type=unix,addr.path=DIR/vhost.sock";
    let args = ["--blockdev", DISK, "--export", export];
    let start = || StorageDaemon::start(PROGRAM.as_ref(), dir.path(), &[], &args);
    let mut daemon = start();
    let mut guest = Machine::boot(
        dir.path(),
        &[
            "-chardev",
            "socket,id=vhost,path=DIR/vhost.sock,reconnect=1",
            "-device",
            &format!("vhost-user-blk-pci,chardev=vhost,num-queues=2{more}"),
        ],
    );
    assert_packed(&mut guest, more == PACKED);
    guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt");
    guest.run("dd if=/dev/urandom of=/mnt/keep bs=1M count=4");
    let sum = guest.run("sha256sum /mnt/keep");
    let sum = sum.split(' ').next().unwrap();
    // Writes that do not end before the last kill.
    guest.run(
        "(while [ ! -e /enough ]; do cp /mnt/keep /mnt/copy && sync /mnt/copy || exit; done; \
          echo good) >/outcome 2>&1 &",
    );
    for round in 1..=3 {
        drop(daemon);
        fs::remove_file(dir.path().join("vhost.sock")).unwrap();
        fs::remove_file(dir.path().join("pid")).unwrap();
        daemon = start();
        guest.run(&format!("cp /mnt/keep /mnt/{round} && sync /mnt/{round}"));
    }
    guest.run("touch /enough; wait");
    assert_eq!(guest.run("cat /outcome"), "good\n");
    guest.run("umount /mnt; echo 3 >/proc/sys/vm/drop_caches; mount /dev/vda /mnt");
    for line in guest.run("sha256sum /mnt/keep /mnt/copy /mnt/1 /mnt/2 /mnt/3").lines() {
        assert!(line.starts_with(sum), "{line} is not {sum}");
    }
    guest.run("umount /mnt");
    guest.power_off();
    finish(daemon, sum);
}

#[test]
fn boots_with_a_disk_over_nbd() {
    let dir = image_dir!();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let server = format!("addr.type=fd,addr.str={}", listener.as_raw_fd());
    let export = "nbd,id=e0,node-name=disk,writable=on";
    let served = Served::start(dir.path(), &["--nbd-server", &server, "--export", export]);
    let mut guest = Machine::boot(dir.path(), &machine::network_to(listener.local_addr().unwrap()));
    guest.run("ip link set eth0 up; ip address add 10.0.2.15/24 dev eth0");
    guest.run("nbd-client -N disk -C 2 -b 4096 10.0.2.100 10809 /dev/nbd0");
    assert_eq!(guest.run("ls /sys/block/nbd0/mq | wc -l"), "2\n");
    let sum = served.live_through(&mut guest, "/dev/nbd0");
    guest.run("nbd-client -d /dev/nbd0");
    guest.power_off();
    finish(served.daemon, &sum);
}
