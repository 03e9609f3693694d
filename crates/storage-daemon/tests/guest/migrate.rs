//! A guest that moves to another QEMU and back, with writes under way on its disk: one image on storage that
//! two daemons share, each of which serves it while the guest is there.
//!
//! It moves while its processors stand still. `tests/migrate-guest` moves one while they run.

use std::fs;
use std::path::PathBuf;

use coblk_tests::storage_daemon::StorageDaemon;
use coblk_tests::{image_dir, images, tools};
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::util::qmp::Client;
use crate::util::wait_until;
use crate::{MIB, PROGRAM};

/// Of the disk. The first part is read, the second written.
const SIZE: u64 = 64 * MIB;
const READ_MIB: u64 = 16;
const WRITERS: u64 = 2;

/// A machine of the data centre: a daemon, and a guest that may be there.
struct Host {
    dir: PathBuf,
    _daemon: StorageDaemon,
    monitor: Client,
    guest: Option<Machine>,
}

impl Host {
    /// Its daemon has the image, and does not use it.
    fn start(dir: PathBuf, contexts: &str) -> Host {
        fs::create_dir(&dir).unwrap();
        let export = format!(
            "vhost-user-blk,id=v0,node-name=disk,writable=on,allow-inactive=on,num-queues=2,\
             addr.type=unix,addr.path=DIR/vhost.sock{contexts}"
        );
        let mut args: Vec<&str> = "--chardev socket,id=c0,path=DIR/qmp,server=on,wait=off \
             --monitor chardev=c0 --object iothread,id=t0 --object iothread,id=t1 \
             --blockdev file,node-name=disk,filename=DIR/../disk.img,locking=on,active=off --export"
            .split(' ')
            .filter(|word| !word.is_empty())
            .collect();
        args.push(&export);
        let daemon = StorageDaemon::start(PROGRAM.as_ref(), &dir, &[], &args);
        let monitor = Client::of_peer(&dir.join("qmp"));
        Host { dir, _daemon: daemon, monitor, guest: None }
    }

    fn set_active(&mut self, active: bool) {
        self.monitor.run("blockdev-set-active", json!({"node-name": "disk", "active": active}));
    }

    /// Arguments of QEMU here.
    fn devices(&self) -> Vec<String> {
        let dir = tools::text(&self.dir);
        let arguments = [
            "-qmp",
            "unix:DIR/qemu,server=on,wait=off",
            "-chardev",
            "socket,id=vhost,path=DIR/vhost.sock",
            "-device",
            "vhost-user-blk-pci,chardev=vhost,num-queues=2",
        ];
        arguments.map(|it| it.replace("DIR", dir)).into()
    }

    fn guest(&mut self) -> &mut Machine {
        self.guest.as_mut().expect("the guest is here")
    }

    /// QEMU, to be told to migrate.
    fn qemu(&self) -> Client {
        let mut qemu = Client::of_peer(&self.dir.join("qemu"));
        let capability = json!({"capability": "pause-before-switchover", "state": true});
        qemu.run("migrate-set-capabilities", json!({"capabilities": [capability]}));
        qemu
    }
}

fn status(qemu: &mut Client) -> Value {
    let status = qemu.run("query-migrate", json!({}));
    assert_ne!(status["status"], "failed", "{status}");
    status
}

/// The guest moves, and its page cache with it.
fn move_guest(from: &mut Host, to: &mut Host, sum: &str) {
    let socket = format!("unix:{}", tools::text(&to.dir.join("migration")));
    let mut devices = to.devices();
    devices.extend(["-incoming", "defer"].map(str::to_owned));
    to.guest = Some(Machine::start(&to.dir, &devices));
    // Answered once it listens there.
    to.qemu().run("migrate-incoming", json!({"uri": socket}));
    from.guest().run("echo 3 >/proc/sys/vm/drop_caches");
    from.guest().run(&format!("dd if=/dev/vda of=/dev/null bs=1M count={READ_MIB}"));

    let mut qemu = from.qemu();
    qemu.run("stop", json!({}));
    let fast = json!({"max-bandwidth": 4u64 << 30, "downtime-limit": 2000});
    qemu.run("migrate-set-parameters", fast);
    qemu.run("migrate", json!({"uri": socket}));
    wait_until("all is copied", || status(&mut qemu)["status"] == "pre-switchover");

    // Queues have stopped; the image changes hands.
    from.set_active(false);
    to.set_active(true);
    qemu.run("migrate-continue", json!({"state": "pre-switchover"}));
    wait_until("the guest has moved", || status(&mut qemu)["status"] == "completed");
    from.guest = None;
    to.qemu().run("cont", json!({}));
    let found =
        to.guest().run(&format!("dd if=/dev/vda bs=1M count={READ_MIB} 2>/dev/null | sha256sum"));
    assert_eq!(found.split(' ').next(), Some(sum), "the page cache is stale: {found:?}");
}

/// Writers that read what they have written, past the page cache, and compare.
fn begin_to_write(guest: &mut Machine) {
    for writer in 0..WRITERS {
        let first = READ_MIB + writer * 8;
        guest.run(&format!(
            "(n=0; while [ ! -e /enough ]; do \
                 n=$((n + 1)); at=$(({first} + n % 8)); from=$((n % {READ_MIB})); \
                 dd if=/pattern of=/dev/vda bs=1M count=1 skip=$from seek=$at oflag=direct && \
                 dd if=/dev/vda of=/read.{writer} bs=1M count=1 skip=$at iflag=direct && \
                 dd if=/pattern bs=1M count=1 skip=$from | cmp - /read.{writer} || exit 1; \
             done 2>/err.{writer}; echo $n >/outcome.{writer}) &"
        ));
    }
}

#[test]
fn boots_with_a_disk_and_moves() {
    let dir = image_dir!();
    images::sparse_image(dir.path(), "disk.img", SIZE);
    let two = ",iothread.0=t0,iothread.1=t1";
    let host = |name: &str, contexts: &str| Host::start(dir.path().join(name), contexts);
    let mut hosts = [host("a", two), host("b", "")];
    hosts[0].set_active(true);
    let devices = hosts[0].devices();
    hosts[0].guest = Some(Machine::boot(&hosts[0].dir.clone(), &devices));
    let guest = hosts[0].guest();
    guest.run(&format!("dd if=/dev/urandom of=/pattern bs=1M count={READ_MIB}"));
    guest.run("dd if=/pattern of=/dev/vda bs=1M oflag=direct");
    let sum = guest.run("sha256sum </pattern");
    let sum = sum.split(' ').next().unwrap();
    begin_to_write(guest);

    for _ in 0..2 {
        let [from, to] = &mut hosts;
        move_guest(from, to, sum);
        hosts.reverse();
    }
    let guest = hosts[0].guest();
    guest.run("touch /enough; wait");
    for writer in 0..WRITERS {
        let rounds = guest.run(&format!("cat /err.{writer} >&2; cat /outcome.{writer}"));
        let rounds = rounds.lines().last().and_then(|it| it.parse::<u64>().ok());
        assert!(rounds > Some(0), "writer {writer}");
    }
    guest.run("echo 3 >/proc/sys/vm/drop_caches");
    let found =
        guest.run(&format!("dd if=/dev/vda bs=1M count={READ_MIB} 2>/dev/null | sha256sum"));
    assert_eq!(found.split(' ').next(), Some(sum), "on the disk: {found:?}");
}
