//! A chain of qcow2 images as the disk of a guest, over vhost-user with two queues on two contexts. The base is
//! made by QEMU, the overlay by the daemon; QEMU checks and compares what the guest leaves.

use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use coblk_tests::random::Random;
use coblk_tests::storage_daemon::StorageDaemon;
use coblk_tests::{image_dir, images, tools};
use serde_json::{Value, json};

use crate::PROGRAM;
use crate::machine::Machine;
use crate::util::qmp::Client;

const MIB: u64 = 1 << 20;
/// Of the file system in the base.
const BASE: u64 = 64 * MIB;
/// Of the overlay: longer than its base, and never filled.
const OVERLAY: u64 = 100 << 30;
/// Processes of the guest that write, to a file each.
const WRITERS: RangeInclusive<usize> = 1..=4;

const MONITOR: [&str; 4] =
    ["--chardev", "socket,id=c0,path=DIR/qmp.sock,server=on,wait=off", "--monitor", "chardev=c0"];

/// A compressed qcow2 image of a file system with one file, `/base`. Returns the sum of that.
fn make_base(dir: &Path) -> String {
    let content = dir.join("content");
    fs::create_dir(&content).unwrap();
    let mut bytes = vec![0; 4 * MIB as usize];
    Random::new(232).fill(&mut bytes);
    fs::write(content.join("base"), bytes).unwrap();
    let raw = images::mkfs_ext4(dir, "base.img", BASE, &content);
    let base = dir.join("base.qcow2");
    let arguments = ["convert", "-c", "-f", "raw", "-O", "qcow2"];
    tools::run("qemu-img", [&arguments[..], &[tools::text(&raw), tools::text(&base)]].concat());
    sum(&content.join("base"))
}

fn sum(path: &Path) -> String {
    let said = tools::run("sha256sum", [path]);
    said.split(' ').next().unwrap().to_owned()
}

/// Creates an image, by a job.
fn create(qmp: &mut Client, options: Value) {
    qmp.run("blockdev-create", json!({"job-id": "create", "options": options}));
    while qmp.event("JOB_STATUS_CHANGE")["status"] != "concluded" {}
    let jobs = qmp.run("query-jobs", json!({}));
    assert_eq!(jobs[0].get("error"), None, "{jobs}");
    qmp.run("job-dismiss", json!({"id": "create"}));
}

/// Has a daemon make the overlay.
fn make_overlay(dir: &Path) {
    let daemon = StorageDaemon::start(PROGRAM.as_ref(), dir, &[], &MONITOR);
    let mut qmp = Client::new(&dir.join("qmp.sock"));
    let file = dir.join("top.qcow2");
    create(&mut qmp, json!({"driver": "file", "filename": file, "size": 0}));
    let node = json!({"driver": "file", "node-name": "file", "filename": file});
    qmp.run("blockdev-add", node);
    create(
        &mut qmp,
        json!({"driver": "qcow2", "file": "file", "size": OVERLAY,
               "backing-file": "base.qcow2", "backing-fmt": "qcow2"}),
    );
    daemon.stop();
}

/// The overlay on a socket for a virtual machine.
fn serve(dir: &Path) -> (StorageDaemon, Client) {
    let arguments = [
        "--object",
        "iothread,id=t0",
        "--object",
        "iothread,id=t1",
        "--blockdev",
        "file,node-name=file,filename=DIR/top.qcow2,discard=unmap",
        "--blockdev",
        "qcow2,node-name=disk,file=file,discard=unmap",
        "--export",
        "vhost-user-blk,id=v0,node-name=disk,writable=on,num-queues=2,iothread.0=t0,iothread.1=t1,\
         addr.type=unix,addr.path=DIR/vhost.sock",
    ];
    let arguments = [&MONITOR[..], &arguments].concat();
    let daemon = StorageDaemon::start(PROGRAM.as_ref(), dir, &[], &arguments);
    let qmp = Client::new(&dir.join("qmp.sock"));
    (daemon, qmp)
}

/// Reads and changes the file system that the base has, and finds it whole.
fn use_base(guest: &mut Machine, sum: &str) {
    guest.run("mount /dev/vda /mnt");
    let said = guest.run("sha256sum /mnt/base");
    assert!(said.starts_with(sum), "{said} is not {sum}");
    guest.run("cp /mnt/base /run/base");
    for at in ["/mnt/base", "/run/base"] {
        guest
            .run(&format!("dd if=/run/pool of={at} bs=512 count=999 seek=1001 conv=notrunc,fsync"));
    }
    guest.run("umount /mnt; echo 3 >/proc/sys/vm/drop_caches");
    guest.run("e2fsck -fn /dev/vda");
    guest.run("mount -o ro /dev/vda /mnt && cmp /mnt/base /run/base");
    guest.run("umount /mnt; rm /run/base");
}

/// A process of the guest: writes ranges of a file, and the same to one in memory, until `/enough` is there. Told
/// the name, bytes of a unit, the longest range in units, the file's length in units, and how it is to write.
const WRITER: &str = "writer() { \
    n=0; \
    while [ ! -e /enough ]; do \
        count=$((RANDOM % $3 + 1)); at=$((RANDOM % ($4 - count))); from=$((RANDOM % 16)); \
        range=\"if=/run/pool bs=$2 skip=$from seek=$at count=$count conv=notrunc\"; \
        dd $range of=/run/$1 && dd $range of=/mnt/$1 $5 || break; \
        [ $((n % 8)) != 0 ] || sync /mnt/$1 || break; \
        n=$((n + 1)); echo $n >/run/rounds.$1; \
    done; \
    [ -e /enough ] || touch /run/failed; }";

/// Starts writers. Half of them go past the guest's page cache.
fn start_writers(guest: &mut Machine) {
    guest.run(WRITER);
    for writer in WRITERS {
        let kind = ["4096 16 512 oflag=direct", "512 128 4096"][writer % 2];
        guest.run(&format!("head -c 2M /dev/zero >/run/{writer}; cp /run/{writer} /mnt/{writer}"));
        guest.run(&format!("echo 0 >/run/rounds.{writer}"));
        guest.run(&format!("writer {writer} {kind} 2>/run/said.{writer} &"));
    }
    more_rounds(guest);
}

/// Waits until each writer has done some rounds more.
fn more_rounds(guest: &mut Machine) {
    for writer in WRITERS {
        guest.run(&format!(
            "while begun=$(cat /run/rounds.{writer}); [ -z \"$begun\" ]; do :; done; \
             end=$((begun + 8)); \
             until [ \"$(cat /run/rounds.{writer})\" -ge $end ] || [ -e /run/failed ]; do \
                 usleep 10000; \
             done 2>/dev/null; \
             [ ! -e /run/failed ] || {{ cat /run/said.*; false; }}"
        ));
    }
}

/// Ends the writers, and finds what they have written, by reads of the disk.
fn end_writers(guest: &mut Machine) {
    guest.run("touch /enough; wait; [ ! -e /run/failed ]");
    guest.run("umount /mnt; echo 3 >/proc/sys/vm/drop_caches");
    guest.run("e2fsck -fn /dev/vda");
    guest.run("mount /dev/vda /mnt");
    for writer in WRITERS {
        guest.run(&format!("cmp /mnt/{writer} /run/{writer}"));
    }
}

/// Writes a file, deletes it, and finds its place given back to the host. Over a backing file zeroes take L2 tables,
/// up to 12.5 MiB of them for this disk.
fn trim(guest: &mut Machine, image: &Path) {
    let allocated = || fs::metadata(image).unwrap().blocks() * 512;
    guest.run("dd if=/dev/urandom of=/mnt/fill bs=1M count=32 conv=fsync");
    let full = allocated();
    guest.run("rm /mnt/fill; sync; fstrim /mnt; sync");
    let trimmed = allocated();
    assert!(trimmed + 8 * MIB < full, "{trimmed} bytes after fstrim, and {full} before");
}

/// The file system in `image`, of which a journal may have to be replayed, has the file `/keep`.
fn assert_keeps(image: &Path, sum_of_keep: &str) {
    let replayed = tools::output("e2fsck", ["-p", tools::text(image)]);
    assert!(replayed.status.code().is_some_and(|code| code <= 1), "{replayed:?}");
    images::assert_clean_ext4(image);
    let kept = image.with_file_name("kept");
    fs::write(&kept, images::ext4_cat(image, "/keep")).unwrap();
    assert_eq!(sum(&kept), sum_of_keep);
}

/// What QEMU finds in the images, and reads of them.
fn look_with_qemu(dir: &Path, sum_of_keep: &str) {
    let top = dir.join("top.qcow2");
    let top = tools::text(&top);
    // Neither corruptions nor leaks, which have a status of their own.
    tools::run("qemu-img", ["check", "-f", "qcow2", top]);
    let list = tools::run("qemu-img", ["snapshot", "-l", top]);
    assert!(list.contains("first") && !list.contains("second"), "{list}");
    let [now, first] = ["now.img", "first.img"].map(|name| dir.join(name));
    let convert = |more: &[&str], to: &Path| {
        let convert = ["convert", "-f", "qcow2", "-O", "raw"];
        tools::run("qemu-img", [&convert, more, &[top, tools::text(to)]].concat());
    };
    convert(&[], &now);
    convert(&["-l", "snapshot.name=first"], &first);
    assert_keeps(&first, sum_of_keep);
    assert_keeps(&now, sum_of_keep);
    // Both programs read the same, to the last byte.
    let blockdev = "qcow2,node-name=disk,read-only=on,file.driver=file,file.filename=DIR/top.qcow2";
    let server = "addr.type=unix,addr.path=DIR/nbd.sock";
    let arguments =
        ["--blockdev", blockdev, "--nbd-server", server, "--export", "nbd,id=e0,node-name=disk"];
    let daemon = StorageDaemon::start(PROGRAM.as_ref(), dir, &[], &arguments);
    let uri = format!("nbd+unix:///disk?socket={}", tools::text(&daemon.nbd_socket()));
    tools::run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", top, &uri]);
    daemon.stop();
}

#[test]
fn q232_boots_with_a_chain_of_images() {
    let dir = image_dir!();
    let dir = dir.path();
    let sum_of_base = make_base(dir);
    let base_before = sum(&dir.join("base.qcow2"));
    make_overlay(dir);
    let (daemon, mut qmp) = serve(dir);
    let mut guest = Machine::boot(
        dir,
        &[
            "-chardev",
            "socket,id=vhost,path=DIR/vhost.sock,reconnect=1",
            "-device",
            "vhost-user-blk-pci,chardev=vhost,num-queues=2",
        ],
    );
    assert_eq!(guest.run("ls /sys/block/vda/mq | wc -l"), "2\n");
    guest.run("dd if=/dev/urandom of=/run/pool bs=64k count=16");
    use_base(&mut guest, &sum_of_base);

    guest.run("mkfs.ext4 -qF -J size=16 /dev/vda && mount /dev/vda /mnt");
    guest.run("dd if=/dev/urandom of=/mnt/keep bs=1M count=4 conv=fsync");
    let keep = guest.run("sha256sum /mnt/keep");
    let keep = keep.split(' ').next().unwrap();
    start_writers(&mut guest);
    let (create, delete) =
        ("blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync");
    for name in ["first", "second"] {
        qmp.run(create, json!({"device": "disk", "name": name}));
        more_rounds(&mut guest);
    }
    qmp.run(delete, json!({"device": "disk", "name": "second"}));
    more_rounds(&mut guest);
    // The guest's requests wait for the next daemon.
    drop(qmp);
    daemon.stop();
    let (daemon, _qmp) = serve(dir);
    more_rounds(&mut guest);
    end_writers(&mut guest);
    trim(&mut guest, &dir.join("top.qcow2"));
    guest.run("umount /mnt");
    guest.power_off();
    daemon.stop();
    look_with_qemu(dir, keep);
    assert_eq!(sum(&dir.join("base.qcow2")), base_before, "the base is only read");
}
