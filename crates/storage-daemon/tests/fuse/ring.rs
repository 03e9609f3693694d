//! Exports whose requests come over io_uring.

use std::fs;
use std::os::unix::fs::FileExt;

use super::steps::compare;
use super::util::{Daemon, Place, SIZE, wait_until};
use super::{DISK, MIB, QMP, Signal, is_mounted, open, pattern, qmp, write_while_drained};

/// Whether the kernel offers it. Tells on purpose nothing back: what has it on meanwhile keeps it.
const ENABLED: &str = "/sys/module/fuse/parameters/enable_uring";

/// A daemon with two contexts, which says what its requests come over, into a file.
fn start(place: &Place) -> Daemon {
    let mut command = place.command(&format!(
        "--object iothread,id=t0 --object iothread,id=t1 {DISK} {QMP} --pidfile @/pid \
         --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,writable=on,growable=on,\
         io-uring=on,iothread.0=t0,iothread.1=t1"
    ));
    command.env("RUST_LOG", "coblk_fuse=debug");
    let mut daemon = place.start_command(command);
    let mut log = fs::File::create(place.path("log")).unwrap();
    let mut stderr = daemon.take_stderr();
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut log));
    daemon
}

fn said(place: &Place, what: &str) -> bool {
    fs::read_to_string(place.path("log")).unwrap().contains(what)
}

/// One test, for the parameter is the kernel's. Where there is none, or it says no, the device does the same.
#[test]
fn mounts_over_io_uring_do_what_those_by_the_device_do() {
    let before = fs::read_to_string(ENABLED).ok();
    let enable = |word: &str| before.as_ref().map(|_| fs::write(ENABLED, word).unwrap());
    // What it says, and what it does not.
    let [ring, device] = ["requests come over io_uring", "the kernel has no FUSE over io_uring"];
    enable("N");
    let place = Place::new();
    fs::write(place.path("mnt"), "below").unwrap();
    let daemon = start(&place);
    open(&place).write_all_at(&pattern(1), 0).unwrap();
    wait_until("it says so", || said(&place, device));
    assert!(!said(&place, ring));
    daemon.stop(Signal::TERM);

    let is_offered = enable("Y").is_some();
    fs::File::create(place.image()).unwrap().set_len(SIZE).unwrap();
    let daemon = start(&place);
    let file = open(&place);
    compare(&place, &file);
    file.set_len(SIZE).unwrap();
    write_while_drained(&place, &mut qmp(&place));
    let (says, is_silent) = if is_offered { (ring, device) } else { (device, ring) };
    wait_until("it says so", || said(&place, says));
    assert!(!said(&place, is_silent));
    ends(&place, daemon, &file);
    if let Some(before) = &before {
        enable(before);
    }
}

/// A daemon that is killed leaves what can be taken over. A file that is open when its export goes, or its daemon,
/// fails.
fn ends(place: &Place, daemon: Daemon, file: &fs::File) {
    let data = pattern(7);
    file.write_all_at(&data, 3 * MIB).unwrap();
    let gone = |file: &fs::File| file.read_at(&mut [0; 512], 0).is_err();
    daemon.signal(Signal::KILL);
    daemon.wait();
    wait_until("the session ends", || gone(file));
    assert!(is_mounted(&place.path("mnt")));
    fs::remove_file(place.pid_file()).unwrap();
    let daemon = start(place);
    let (file, mut back) = (open(place), vec![0; data.len()]);
    file.read_exact_at(&mut back, 3 * MIB).unwrap();
    assert!(back == data);
    let mut client = qmp(place);
    client.run("block-export-del", serde_json::json!({"id": "f0", "mode": "hard"}));
    client.event("BLOCK_EXPORT_DELETED");
    wait_until("the session ends", || gone(&file));
    assert!(!is_mounted(&place.path("mnt")));
    daemon.stop(Signal::TERM);
}
