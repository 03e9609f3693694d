//! Nodes that a daemon exports, and a cluster that lets it down.
//!
//! `COBLK_OSD_ROUNDS` sets how often an OSD is killed (default 1).

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use coblk::IoThread;
use coblk_tests::ceph::{Image, Osd, admin, rbd};
use coblk_tests::load::{KINDS, Kind, Mix, Shared};
use coblk_tests::nbd::{MAGIC, choose, request};
use coblk_tests::random::option;
use coblk_tests::recorded::{Behaviour, Recorder, SECTOR};
use coblk_tests::register::Registers;
use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::json;

use crate::util::qmp::Client;
use crate::util::{Place, collect, wait_until};
use crate::vhost;
use crate::{Bench, MIB};

const MONITOR: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor c0";

/// A disk over vhost-user, on two threads.
#[test]
fn ceph_a_disk_over_vhost_user_and_the_image_agree() {
    let (place, image) = (Place::new(), Image::new("rbd", 16 * MIB, &["--object-size", "1M"]));
    let daemon = place.start(&format!(
        "--object iothread,id=t0 --object iothread,id=t1 --blockdev {},node-name=disk \
         --export vhost-user-blk,id=v0,node-name=disk,writable=on,num-queues=2,\
         addr.type=unix,addr.path=@/vhost.sock,iothread.0=t0,iothread.1=t1",
        image.options()
    ));
    let mut client = vhost::Client::connect(&place.path("vhost.sock"), 2);
    for queue in 0..2 {
        client.check(queue, queue as u64 * MIB, 65536, 7 + queue as u8);
    }
    assert_eq!(client.one(0, vhost::Op::Flush, 0, 0), 0);
    drop(client);
    daemon.stop(Signal::TERM);
    let copy = place.path("copy");
    rbd(&["export", "--no-progress", &image.spec(), tools::text(&copy)]);
    let bytes = std::fs::read(copy).unwrap();
    let written = |at: usize| bytes[at..at + 65536].iter().any(|byte| *byte != 0);
    assert_eq!([0, MIB, 2 * MIB].map(|at| written(at as usize)), [true, true, false]);
}

/// What a client has written to an export is in the image, and what it reads is that of the image.
#[test]
fn ceph_an_export_and_the_image_agree() {
    let (place, image) = (Place::new(), Image::new("rbd", 16 * MIB, &["--object-size", "1M"]));
    let daemon = place.start(&format!(
        "--blockdev {},node-name=disk,discard=unmap --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name=disk,name=disk,writable=on",
        image.options()
    ));
    let uri = place.uri("disk");
    let commands =
        ["write -P 1 0 3M", "write -P 2 5000k 64k", "write -z -u 1M 1M", "discard 2M 1M"];
    for command in commands.into_iter().chain(["flush"]) {
        tools::run("qemu-io", ["-f", "raw", "-d", "unmap", "-c", command, &uri]);
    }
    // While it is exported, and afterwards.
    let compare = |name: &str, with: &str| {
        let copy = place.path(name);
        let copy = tools::text(&copy);
        rbd(&["export", "--no-progress", &image.spec(), copy]);
        tools::run("qemu-img", ["compare", "-f", "raw", "-F", "raw", copy, with]);
    };
    compare("live", &uri);
    let said = tools::run("nbdinfo", ["--map", &uri]);
    assert!(said.contains("hole,zero") && said.contains("data"), "{said}");
    tools::run(
        "qemu-img",
        ["convert", "-n", "-f", "raw", "-O", "raw", tools::text(&place.image()), &uri],
    );
    compare("written", tools::text(&place.image()));
    daemon.stop(Signal::TERM);
    compare("closed", tools::text(&place.image()));
    assert!(!rbd(&["status", &image.spec()]).contains("watcher="), "it is open still");
}

fn requests(shared: &Shared) -> u64 {
    KINDS.iter().map(|kind| shared.count(*kind).done.load(Ordering::Relaxed)).sum()
}

/// Kills an OSD of three, again and again, and has it come back; the longest time without an answer.
fn kill_and_restart(shared: &Shared, over: &AtomicBool) -> Duration {
    let (mut longest, mut last, mut seen) = (Duration::ZERO, Instant::now(), 0);
    let mut look = |for_ms: u64| {
        for _ in 0..for_ms / 5 {
            thread::sleep(Duration::from_millis(5));
            let now = requests(shared);
            if now != seen || over.load(Ordering::Acquire) {
                (last, seen) = (Instant::now(), now);
            }
            longest = longest.max(last.elapsed());
        }
        longest
    };
    for round in 0..option("COBLK_OSD_ROUNDS").unwrap_or(1) {
        let osd = Osd(1 + round as u32 % 2);
        let wanted = requests(shared) + 50;
        while requests(shared) < wanted && !over.load(Ordering::Acquire) {
            look(5);
        }
        osd.kill();
        wait_until("the OSD is missed", || {
            look(100);
            admin(&["osd", "stat"]).contains("2 up")
        });
        look(500);
        osd.start();
        wait_until("the OSD is back", || {
            look(200);
            admin(&["osd", "stat"]).contains("3 up")
        });
        // What it has lost comes back from the others, before the next one dies.
        wait_until("the objects are whole", || {
            look(200);
            let health = admin(&["status"]);
            !health.contains("degraded")
                && !health.contains("peering")
                && !health.contains("inactive")
        });
    }
    shared.stop();
    look(5)
}

#[test]
fn ceph_an_osd_that_is_killed_under_load_costs_no_request_and_no_sector() {
    const SECTORS: usize = 4096;
    let image = Image::new("three", (SECTORS * SECTOR) as u64, &["--object-size", "64K"]);
    let bench = Bench::new();
    let thread = IoThread::new("other").unwrap();
    let node = bench.open(&format!("{},node-name=disk,discard=unmap", image.options()));
    let recorder = Recorder::new(Behaviour::default());
    let mix = Mix { coroutines: 8, requests: u64::MAX, longest: 96, ..Mix::all(16) };
    let mix = mix.without(&[Kind::Compressed]);
    let zeroes = vec![0; SECTORS * SECTOR];
    let shared = Shared::new(&bench.ctx, &recorder, Registers::new(&zeroes), 1, mix);
    let over = AtomicBool::new(false);
    let longest = thread::scope(|scope| {
        let killer = scope.spawn(|| kill_and_restart(&shared, &over));
        shared.play(&bench.ctx, &node, &[thread.handle()]);
        over.store(true, Ordering::Release);
        killer.join().unwrap()
    });
    println!("{}; longest stall {longest:?}", shared.counts());
    assert_eq!(shared.fault(), None);
    drop(node);
    bench.blockdevs.close(&bench.ctx, "disk").unwrap();
}

/// Tests that stop an OSD run one after the other: one with a limit of time would fail beside another.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An OSD that answers nothing, until this is dropped.
struct Stopped(Osd);

impl Stopped {
    fn new() -> Stopped {
        let stopped = Stopped(Osd(0));
        stopped.0.stop(true);
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.stop(false);
    }
}

/// A cluster that does not answer keeps requests for as long as Ceph's own timeout says, and nothing else.
#[test]
fn ceph_a_cluster_that_hangs_keeps_neither_the_monitor_nor_the_end() {
    let _alone = alone();
    let (place, image) = (Place::new(), Image::new("rbd", MIB, &[]));
    let settings = "x-coblk-settings.0.name=rados_osd_op_timeout,x-coblk-settings.0.value=1";
    let daemon = place.start(&format!(
        "--blockdev {},node-name=disk,{settings} --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name=disk,name=disk,writable=on {MONITOR}",
        image.options()
    ));
    let mut client = Client::new(&place.path("qmp.sock"));
    let uri = place.uri("disk");
    let write = |byte: u8| {
        let command = format!("write -P {byte} 0 64k");
        let output = tools::output("qemu-io", ["-f", "raw", "-c", &*command, "-c", "flush", &*uri]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(write(1).contains("wrote 65536/65536"));
    let stopped = Stopped::new();
    let failed = thread::scope(|scope| {
        let failed = scope.spawn(|| write(2));
        while !failed.is_finished() {
            // Answers come while the request waits.
            client.run("query-block-exports", json!({}));
            thread::sleep(Duration::from_millis(20));
        }
        failed.join().unwrap()
    });
    assert!(failed.contains("failed"), "{failed}");
    drop(stopped);
    wait_until("it answers again", || write(3).contains("wrote 65536/65536"));

    let _stopped = Stopped::new();
    client.run("quit", json!({}));
    assert!(daemon.wait().success());
    // The cluster knows that it is closed half a minute later, and removes no image that is open.
    std::mem::forget(image);
}

/// A write that the cluster does not answer, ever, is in the way of the end, and is named there.
#[test]
fn ceph_c85_a_second_signal_ends_a_daemon_whose_cluster_hangs() {
    let _alone = alone();
    let (place, image) = (Place::new(), Image::new("rbd", MIB, &[]));
    let mut daemon = place.start(&format!(
        "--blockdev {},node-name=disk --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name=disk,name=disk,writable=on",
        image.options()
    ));
    let said = collect(daemon.take_stderr());
    let told = |what: &str| said.lock().unwrap().contains(what);
    let _stopped = Stopped::new();
    let mut client = choose(&place.socket());
    client.write_all(&request(MAGIC, 0, 1, 4096, 512)).unwrap();
    client.write_all(&[7; 512]).unwrap();
    // Its answer says that the write before it has been read.
    client.write_all(&request(MAGIC, 0, 99, 0, 0)).unwrap();
    client.read_exact(&mut [0; 16]).unwrap();
    daemon.signal(Signal::TERM);
    daemon.wait_until("the write is in the way", || {
        told("node 'disk', backend 'e0': write of 512 bytes at offset 4096, ")
    });
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(1));
    println!("ended {:?} after the second signal", begun.elapsed());
    wait_until("what hangs is named", || {
        told("a second signal: ended at once, with what was in flight on node 'disk'")
    });
    // The cluster knows later that it is closed, and removes no image that is open.
    std::mem::forget(image);
}

/// A cluster that cannot be reached keeps a command, and nothing else.
#[test]
fn a_cluster_that_is_not_there_keeps_neither_the_monitor_nor_the_end() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let place = Place::new();
    let daemon = place.start(MONITOR);
    let mut waits = Client::new(&place.path("qmp.sock"));
    let node = json!({"driver": "rbd", "node-name": "disk", "pool": "rbd", "image": "a",
        "conf": "/dev/null", "auth-client-required": ["none"],
        "server": [{"host": "127.0.0.1", "port": port}]});
    waits.send("blockdev-add", node);
    let _connection = listener.accept().unwrap();
    assert!(!waits.is_answered());
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
}
