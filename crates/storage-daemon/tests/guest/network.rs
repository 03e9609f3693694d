//! Storage over the network: an RBD image as the disk of a guest, and daemons in a guest that talk by vsock.

use std::fs;
use std::path::{Path, PathBuf};

use coblk_tests::ceph::{Image, conf, rbd};
use coblk_tests::storage_daemon::StorageDaemon;
use coblk_tests::{image_dir, images, tools};

use crate::machine::Machine;
use crate::{MIB, PROGRAM};

fn compare(image: &Path, with: &str) {
    tools::run("qemu-img", ["compare", "-f", "raw", "-F", "raw", tools::text(image), with]);
}

/// An image of RBD over vhost-user and NBD at once. What the guest leaves is what the NBD client reads, and what Ceph's
/// own program and QEMU's driver find afterwards.
#[test]
fn boots_with_an_image_of_ceph_on_vhost_user() {
    let (dir, image) = (image_dir!(), Image::new("rbd", 64 * MIB, &["--object-size", "1M"]));
    let node = format!("{},node-name=disk,discard=unmap", image.options());
    let vhost = "vhost-user-blk,id=v0,node-name=disk,writable=on,num-queues=2,iothread.0=t0,iothread.1=t1,\
                 addr.type=unix,addr.path=DIR/vhost.sock";
    let args = [
        ["--object", "iothread,id=t0"],
        ["--object", "iothread,id=t1"],
        ["--blockdev", &node],
        ["--export", vhost],
        ["--nbd-server", "addr.type=unix,addr.path=DIR/nbd.sock"],
        ["--export", "nbd,id=e0,node-name=disk"],
    ];
    let daemon = StorageDaemon::start(PROGRAM.as_ref(), dir.path(), &[], args.as_flattened());
    let mut guest = Machine::boot(
        dir.path(),
        &[
            "-chardev",
            "socket,id=vhost,path=DIR/vhost.sock",
            "-device",
            "vhost-user-blk-pci,chardev=vhost,num-queues=2",
        ],
    );
    guest.run("mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/vda");
    guest.run("mount /dev/vda /mnt");
    guest.run("dd if=/dev/urandom of=/mnt/keep bs=1M count=8 conv=fsync");
    let writers = "for writer in 1 2 3; do (cp /mnt/keep /mnt/copy.$writer; sync) & done; wait";
    guest.run(writers);
    guest.run("rm /mnt/copy.*; sync; fstrim /mnt; umount /mnt; echo 3 >/proc/sys/vm/drop_caches");
    guest.run("e2fsck -fn /dev/vda && mount -o ro /dev/vda /mnt");
    let sum = guest.run("sha256sum /mnt/keep");
    let sum = sum.split(' ').next().unwrap();
    guest.run("umount /mnt");
    guest.power_off();

    let export = |name: &str| -> PathBuf {
        let copy = dir.path().join(name);
        rbd(&["export", "--no-progress", &image.spec(), tools::text(&copy)]);
        copy
    };
    let uri = format!("nbd+unix:///disk?socket={}", tools::text(&daemon.nbd_socket()));
    compare(&export("live"), &uri);
    daemon.stop();
    let copy = export("closed");
    // QEMU has its driver in a package of its own.
    let name = format!("rbd:{}:conf={}", image.spec(), conf());
    if tools::output("qemu-img", ["info", "-f", "raw", &name]).status.success() {
        compare(&copy, &name);
    }
    images::assert_clean_ext4(&copy);
    let kept = dir.path().join("kept");
    fs::write(&kept, images::ext4_cat(&copy, "/keep")).unwrap();
    assert_eq!(tools::run("sha256sum", [&kept]).split(' ').next(), Some(sum));
}

/// A file system with the daemon, and the libraries that it needs.
fn programs(dir: &Path) -> PathBuf {
    let content = dir.join("content");
    fs::create_dir(&content).unwrap();
    fs::copy(PROGRAM, content.join("daemon")).unwrap();
    for line in tools::run("ldd", [PROGRAM]).lines() {
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
        let path = Path::new(path.split(' ').next().unwrap());
        // Some are the kernel's.
        if let Some(name) = path.file_name().filter(|_| path.is_absolute()) {
            fs::copy(path, content.join(name)).unwrap();
        }
    }
    let bytes: u64 =
        fs::read_dir(&content).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum();
    images::mkfs_ext4(dir, "programs.img", (bytes / MIB + 32) * MIB, &content)
}

/// Two daemons, of which one has its disk of the other. A guest's kernel has a vsock that leads back to itself.
#[test]
fn boots_with_an_nbd_server_at_a_vsock_address() {
    let dir = image_dir!();
    let image = tools::text(&programs(dir.path())).to_owned();
    let mut guest = Machine::boot(
        dir.path(),
        &[
            "-blockdev",
            &format!("file,node-name=programs,filename={image},read-only=on"),
            "-device",
            "virtio-blk-pci,drive=programs",
        ],
    );
    guest.run("modprobe vsock_loopback && mount -o ro /dev/vda /mnt");
    guest.run("dd if=/dev/urandom of=/run/disk.img bs=1M count=8");
    let loader = "/mnt/ld-linux-x86-64.so.2 --library-path /mnt /mnt/daemon";
    let server = format!(
        "{loader} --blockdev file,node-name=disk,filename=/run/disk.img \
         --nbd-server addr.type=vsock,addr.cid=1,addr.port=10809 \
         --export nbd,id=e0,node-name=disk,writable=on --pidfile /run/server.pid"
    );
    guest.run(&format!(
        "{server} >/run/server.log 2>&1 & while [ ! -s /run/server.pid ]; do sleep 1; done"
    ));
    let client = format!(
        "{loader} --blockdev nbd,node-name=far,server.type=vsock,server.cid=1,server.port=10809,export=disk,\
         reconnect-delay=60 --nbd-server addr.type=unix,addr.path=/run/nbd.sock \
         --export nbd,id=e1,node-name=far,writable=on --pidfile /run/client.pid"
    );
    guest.run(&format!(
        "{client} >/run/client.log 2>&1 & while [ ! -s /run/client.pid ]; do sleep 1; done"
    ));
    guest.run("nbd-client -N far -unix /run/nbd.sock /dev/nbd0");
    guest.run("cmp /dev/nbd0 /run/disk.img");
    // A server that dies, and another one.
    guest.run("dd if=/dev/urandom of=/dev/nbd0 bs=64k count=16 oflag=direct");
    guest.run("kill -9 $(cat /run/server.pid); rm /run/server.pid");
    // The address is in use until the first one has ended.
    let again = format!("while [ ! -s /run/server.pid ]; do {server} >>/run/server.log 2>&1; done");
    guest.run(&format!("({again}) & while [ ! -s /run/server.pid ]; do sleep 1; done"));
    guest.run("dd if=/dev/urandom of=/dev/nbd0 bs=64k seek=16 count=16 oflag=direct conv=fsync");
    guest.run("echo 3 >/proc/sys/vm/drop_caches; cmp /dev/nbd0 /run/disk.img");
    guest.run("nbd-client -d /dev/nbd0");
    guest.power_off();
}
