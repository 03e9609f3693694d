//! Nodes as files of this machine: the requests that programs make, beside a plain file; where exports may
//! be mounted; and their end. Needs root and `/dev/fuse`. Where those cannot be had, `tests/run` counts tests
//! whose names have `mounts_` in them as not run.

mod ends;
mod file_systems;
mod odd;
mod ring;
mod steps;
mod user;
#[path = "../util/mod.rs"]
mod util;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::json;
use util::qmp::Client;
use util::{Daemon, Place, SIZE, wait_until};

const DISK: &str = "--blockdev file,node-name=disk,filename=@/disk.img,discard=unmap";
const QMP: &str = "--chardev socket,id=q,path=@/qmp.sock,server=on,wait=off --monitor chardev=q";
const MIB: u64 = 1 << 20;

/// A place with a file to mount over, and a daemon that does so.
fn start(place: &Place, options: &str) -> Daemon {
    fs::write(place.path("mnt"), "below").unwrap();
    place.start(&format!(
        "{DISK} {QMP} --export fuse,id=f0,node-name=disk,mountpoint=@/mnt{options}"
    ))
}

fn open(place: &Place) -> File {
    OpenOptions::new().read(true).write(true).open(place.path("mnt")).unwrap()
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(tools::text(path)))
}

fn qmp(place: &Place) -> Client {
    Client::new(&place.path("qmp.sock"))
}

/// Asks for an export that must be refused; says why.
fn refusal(client: &mut Client, mountpoint: &Path) -> String {
    let export = json!({"type": "fuse", "id": "no", "node-name": "disk", "mountpoint": mountpoint});
    client.refused("block-export-add", export)
}

fn pattern(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(number * MIB + at as u64).wrapping_mul(0x9e37_79b9).to_ne_bytes());
    }
    bytes
}

#[test]
fn mounts_a_file_that_programs_copy_in_and_out() {
    let place = Place::new();
    let daemon = start(&place, ",writable=on");
    let source = place.path("source");
    fs::write(&source, (0..SIZE / MIB).flat_map(pattern).collect::<Vec<u8>>()).unwrap();
    let (mnt, back) = (place.path("mnt"), place.path("back"));
    tools::run("cp", [&source, &mnt]);
    tools::run("cmp", [&source, &mnt]);
    tools::run("cmp", [&source, &place.image()]);
    tools::run("cp", ["--sparse=always", tools::text(&mnt), tools::text(&back)]);
    tools::run("cmp", [&source, &back]);
    tools::run(
        "qemu-img",
        ["compare", "-f", "raw", "-F", "raw", tools::text(&mnt), tools::text(&source)],
    );
    let mapped = "import mmap,sys; f=open(sys.argv[1],'r+b'); m=mmap.mmap(f.fileno(),0); \
        assert m[:]==open(sys.argv[2],'rb').read(); m[5:9]=b'mmap'; m.flush()";
    tools::run("/usr/bin/python3", ["-c", mapped, tools::text(&mnt), tools::text(&source)]);
    let mut bytes = [0; 6];
    File::open(place.image()).unwrap().read_exact_at(&mut bytes, 4).unwrap();
    assert_eq!(bytes[1..5], *b"mmap");
    daemon.stop(Signal::TERM);
    assert_eq!(fs::read(place.path("mnt")).unwrap(), b"below");
}

#[test]
fn mounts_only_over_regular_files_that_are_free() {
    let place = Place::new();
    let daemon = start(&place, ",writable=on");
    let mut client = qmp(&place);
    let (mnt, missing) = (place.path("mnt"), place.path("missing"));
    let said = refusal(&mut client, &missing);
    assert!(
        said.starts_with(&format!("Failed to stat '{}': No such file", missing.display())),
        "{said}"
    );
    let dir = place.path("dir");
    fs::create_dir(&dir).unwrap();
    let regular = format!("'{}' is not a regular file", dir.display());
    assert_eq!(refusal(&mut client, &dir), regular);
    // Also by another name.
    std::os::unix::fs::symlink(&mnt, place.path("link")).unwrap();
    for name in ["mnt", "link", "dir/../mnt"] {
        let expected = format!("There already is a FUSE export on '{}'", mnt.display());
        assert_eq!(refusal(&mut client, &place.path(name)), expected, "{name}");
    }
    // Another daemon does not take it away.
    let other = Place::new();
    let second = start(&other, "");
    let said = refusal(&mut qmp(&other), &mnt);
    assert_eq!(said, format!("'{}' is a mount point of another FUSE file system", mnt.display()));
    second.stop(Signal::TERM);
    // Nothing was left behind, and a second export of the node has its own.
    let file = place.path("second");
    fs::write(&file, "").unwrap();
    let export = json!({"type": "fuse", "id": "f1", "node-name": "disk", "mountpoint": file, "writable": true});
    client.run("block-export-add", export);
    open(&place).write_all_at(b"both", 4096).unwrap();
    let mut bytes = [0; 4];
    File::open(&file).unwrap().read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, *b"both");
    daemon.stop(Signal::TERM);
    assert!(!is_mounted(&mnt) && !is_mounted(&file));
}

/// Each writer knows what it has written, whatever the node goes through.
#[test]
fn mounts_served_by_several_threads_lose_nothing_while_the_node_is_drained() {
    let place = Place::new();
    fs::write(place.path("mnt"), "").unwrap();
    let daemon = place.start(&format!(
        "--object iothread,id=t0 --object iothread,id=t1 {DISK} {QMP} \
         --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,writable=on,\
         iothread.0=t0,iothread.1=t1"
    ));
    let mut client = qmp(&place);
    write_while_drained(&place, &mut client);
    daemon.stop(Signal::TERM);
}

/// Four writers, each of which reads what it has written, while the node is changed again and again.
fn write_while_drained(place: &Place, client: &mut Client) {
    let (file, ended) = (open(place), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (file, ended) = (&file, &ended);
                scope.spawn(move || {
                    let mut round = 0;
                    while round < 40 || !ended.load(Ordering::Relaxed) {
                        let data = pattern(writer * 1000 + round % 50);
                        // A length that needs both blocks of a request, and one that does not.
                        let data = &data[..if round % 2 == 0 { 700_000 } else { 4096 }];
                        let mut back = vec![0; data.len()];
                        file.write_all_at(data, writer * 2 * MIB + 512).unwrap();
                        file.read_exact_at(&mut back, writer * 2 * MIB + 512).unwrap();
                        assert!(back == data, "writer {writer}, round {round}");
                        round += 1;
                    }
                })
            })
            .collect();
        for round in 0..20 {
            let option = if round % 2 == 0 { "off" } else { "on" };
            let options = json!({"options": [{"driver": "file", "node-name": "disk",
                "filename": place.image(), "discard": "unmap", "detect-zeroes": option}]});
            client.run("blockdev-reopen", options);
        }
        ended.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
}

/// How many requests of the export are on their way.
fn in_flight(place: &Place) -> usize {
    let mut metrics = UnixStream::connect(place.path("metrics")).unwrap();
    metrics.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    metrics.read_to_string(&mut text).unwrap();
    let line = text.lines().find(|line| line.starts_with("coblk_export_in_flight{")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Requests come one by one, so that both threads sleep before each, and none is answered. One thread is woken
/// for each, until it has as many as it may.
#[test]
fn mounts_leave_requests_to_the_threads_that_have_room() {
    let place = Place::new();
    fs::write(place.path("mnt"), "").unwrap();
    let daemon = place.start(
        "--object iothread,id=t0 --object iothread,id=t1 --metrics unix:@/metrics \
         --blockdev null-co,node-name=disk,size=1048576,latency-ns=3600000000000 \
         --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,iothread.0=t0,iothread.1=t1",
    );
    // Processes of their own: what another test starts would inherit a file of this one, and wait when that is
    // closed.
    let mut readers = Vec::new();
    for number in 1..=150 {
        let mut reader = tools::command("head");
        reader.args(["-c", "512", tools::text(&place.path("mnt"))]);
        readers.push(reader.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_until("the request is served", || in_flight(&place) == number);
    }
    daemon.signal(Signal::KILL);
    readers.into_iter().for_each(|mut reader| assert!(!reader.wait().unwrap().success()));
    daemon.wait();
    tools::run("umount", ["--lazy", tools::text(&place.path("mnt"))]);
}

/// Requests wait in the kernel, and take no memory of the daemon, while it has as many as it may.
#[test]
fn mounts_hold_a_bounded_amount_of_data() {
    let place = Place::new();
    fs::write(place.path("mnt"), "").unwrap();
    for kind in ["--rw=randwrite", "--rw=randread"] {
        let daemon = place.start(
            "--blockdev null-co,node-name=slow,size=1073741824,latency-ns=100000000 \
             --export fuse,id=f0,node-name=slow,mountpoint=@/mnt,writable=on",
        );
        let file = format!("--filename={}", place.path("mnt").display());
        let args = ["--name=many", &file, "--ioengine=libaio", "--direct=1", "--iodepth=250"];
        let more = [kind, "--bs=1m", "--io_size=400m", "--norandommap", "--minimal"];
        tools::run("fio", args.into_iter().chain(more));
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        // 32 MiB of data, and the program itself. The kernel would send 128 MiB.
        assert!(peak < 100 << 10, "{kind}: {peak} KiB");
        daemon.stop(Signal::TERM);
        let _ = fs::remove_file(place.pid_file());
    }
}

/// As `blklogwrites` has it: a write through a file that is open so is durable when it is answered.
#[test]
fn mounts_keep_the_promise_of_synchronous_writes() {
    let place = Place::new();
    for name in ["mnt", "log"] {
        File::create(place.path(name)).unwrap().set_len(MIB).unwrap();
    }
    let daemon = place.start(&format!(
        "{DISK} --blockdev file,node-name=log,filename=@/log \
         --blockdev blklogwrites,node-name=l,file=disk,log=log \
         --export fuse,id=f0,node-name=l,mountpoint=@/mnt,writable=on"
    ));
    for flags in [0, libc::O_DSYNC, libc::O_SYNC] {
        let mut options = OpenOptions::new();
        let file = options.write(true).custom_flags(flags).open(place.path("mnt")).unwrap();
        file.write_all_at(&[1; 512], 4096).unwrap();
    }
    daemon.stop(Signal::TERM);
    let log = fs::read(place.path("log")).unwrap();
    let word = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().unwrap());
    // A sector for the head of the log, and for each entry; those that write have data behind them.
    let (mut at, mut flags) = (512, Vec::new());
    while at + 32 <= log.len() && flags.len() < word(16) as usize {
        if word(at + 8) > 0 {
            flags.push(word(at + 16) & 2);
        }
        at += 512 + word(at + 8) as usize * 512;
    }
    assert_eq!(flags[..3], [0, 2, 2]);
}
