//! Exports that are deleted, daemons that end or are killed, mounts that others take away.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use coblk_tests::tools;
use serde_json::json;

use super::util::{Daemon, Place, SIZE, wait_until};
use super::{DISK, MIB, QMP, Signal, is_mounted, open, pattern, qmp, start};

#[test]
fn mounts_end_when_exports_do() {
    let place = Place::new();
    let daemon = start(&place, ",writable=on");
    let (mut client, mnt) = (qmp(&place), place.path("mnt"));
    let delete = |mode: &str| json!({"id": "f0", "mode": mode});
    let file = open(&place);
    assert_eq!(client.refused("block-export-del", delete("safe")), "export 'f0' still in use");
    client.run("block-export-del", delete("hard"));
    assert_eq!(client.event("BLOCK_EXPORT_DELETED"), json!({"id": "f0"}));
    let errno = file.read_at(&mut [0; 512], 0).unwrap_err().raw_os_error();
    assert_eq!((errno, is_mounted(&mnt)), (Some(libc::ENOTCONN), false));
    assert_eq!(fs::read(&mnt).unwrap(), b"below");
    // Another one, closed before it is deleted.
    let export = json!({"type": "fuse", "id": "f0", "node-name": "disk", "mountpoint": mnt});
    client.run("block-export-add", export);
    assert_eq!(fs::read(&mnt).unwrap().len() as u64, SIZE);
    wait_until("the file is closed", || {
        client.ask("block-export-del", delete("safe")).get("return").is_some()
    });
    client.event("BLOCK_EXPORT_DELETED");
    client.run("blockdev-del", json!({"node-name": "disk"}));
    client.run("quit", json!({}));
    assert!(daemon.wait().success());
}

#[test]
fn mounts_take_over_from_a_daemon_that_was_killed() {
    let place = Place::new();
    for round in 0..3 {
        let daemon = start_over(&place, round);
        open(&place).write_all_at(&pattern(round), 0).unwrap();
        daemon.signal(Signal::KILL);
        assert!(!daemon.wait().success());
        // Its mount is still there, and nothing is behind it.
        let left = fs::File::open(place.path("mnt")).unwrap_err();
        assert_eq!(
            (left.raw_os_error(), is_mounted(&place.path("mnt"))),
            (Some(libc::ENOTCONN), true)
        );
        fs::remove_file(place.pid_file()).unwrap();
    }
    let daemon = start_over(&place, 3);
    let mut bytes = vec![0; MIB as usize];
    open(&place).read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == pattern(2));
    daemon.stop(Signal::TERM);
    assert!(!is_mounted(&place.path("mnt")));
}

fn start_over(place: &Place, round: u64) -> Daemon {
    if round == 0 {
        return start(place, ",writable=on");
    }
    place.start(&format!("{DISK} --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,writable=on"))
}

/// Held by the policy of the export: requests neither end nor keep the monitor from answering.
#[test]
fn mounts_whose_requests_hang_let_the_daemon_be_asked_and_ended() {
    let place = Place::new();
    fs::write(place.path("mnt"), "").unwrap();
    let daemon = place.start(&format!(
        "--blockdev blkdebug,node-name=disk,image.driver=file,image.filename=@/disk.img,\
         inject-error.0.event=none,inject-error.0.iotype=read {QMP} \
         --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,writable=on,rerror=stop"
    ));
    let mut reader = tools::command("head")
        .args(["-c", "512", tools::text(&place.path("mnt"))])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut client = qmp(&place);
    wait_until("the export has stopped", || {
        let exports = client.run("query-block-exports", json!({}));
        exports[0]["x-coblk-io-status"] == "failed"
    });
    assert_eq!(reader.try_wait().unwrap(), None);
    // It is answered, with its error, before the file goes.
    client.run("block-export-del", json!({"id": "f0", "mode": "hard"}));
    client.event("BLOCK_EXPORT_DELETED");
    assert!(!reader.wait().unwrap().success());
    daemon.stop(Signal::TERM);
}

/// To zero it would take a quarter of an hour, in pieces. The export goes, or the daemon.
#[test]
fn mounts_whose_file_is_zeroed_for_long_end_with_a_piece() {
    let place = Place::new();
    let mnt = place.path("mnt");
    fs::write(&mnt, "").unwrap();
    let daemon = place.start(&format!(
        "--object throttle-group,id=g,limits.iops-total=5 \
         --blockdev file,node-name=file,filename=@/disk.img \
         --blockdev throttle,node-name=slow,throttle-group=g,file=file \
         --blockdev blkdebug,node-name=disk,image=slow,max-write-zero=4096 {QMP} \
         --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,writable=on"
    ));
    let image = fs::OpenOptions::new().read(true).write(true).open(place.image()).unwrap();
    let zero = || {
        image.write_all_at(&[1; 512], 0).unwrap();
        let size = SIZE.to_string();
        let child = tools::command("fallocate")
            .args(["--zero-range", "--keep-size", "--length", &size, tools::text(&mnt)])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut first = [0];
        wait_until("zeroes are written", || {
            image.read_exact_at(&mut first, 0).unwrap();
            first == [0]
        });
        child
    };
    let mut client = qmp(&place);
    let mut child = zero();
    client.run("block-export-del", json!({"id": "f0", "mode": "hard"}));
    client.event("BLOCK_EXPORT_DELETED");
    assert!(!child.wait().unwrap().success());
    let export = json!({
        "type": "fuse", "id": "f0", "node-name": "disk", "mountpoint": mnt, "writable": true,
    });
    client.run("block-export-add", export);
    let mut child = zero();
    daemon.stop(Signal::TERM);
    assert!(!child.wait().unwrap().success());
}

/// The node takes an hour for a read. By the first signal the file goes, and what it waits for is told; by the second
/// one the daemon.
#[test]
fn mounts_whose_requests_hang_do_not_outlive_a_second_signal() {
    for signal in [Signal::INT, Signal::TERM] {
        let place = Place::new();
        let mnt = place.path("mnt");
        fs::write(&mnt, "below").unwrap();
        let mut daemon = place.start(
            "--blockdev null-co,node-name=disk,size=1048576,latency-ns=3600000000000 \
             --export fuse,id=f0,node-name=disk,mountpoint=@/mnt",
        );
        let mut reader = tools::command("head")
            .args(["-c", "512", tools::text(&mnt)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(daemon.take_stderr());
        // Its request is with the daemon when it is told of: the file is open from then on.
        wait_until("the file is read", || has_open(reader.id(), &mnt));
        daemon.signal(signal);
        let mut lines = said.lines().map(|line| line.unwrap());
        let hangs = "node 'disk', backend 'f0': read of ";
        assert!(lines.any(|line| line.contains(hangs)), "what hangs is told");
        wait_until("it is unmounted", || !is_mounted(&mnt));
        assert_eq!(reader.try_wait().unwrap(), None);
        daemon.signal(signal);
        let last = "a second signal: ended at once, with what was in flight on node 'disk'";
        assert!(lines.any(|line| line.contains(last)), "what hangs is named");
        assert_eq!(daemon.wait().code(), Some(1));
        assert!(!reader.wait().unwrap().success());
        assert_eq!(fs::read(&mnt).unwrap(), b"below");
    }
}

/// Whether a process waits in a read of its third descriptor or a later one, which is of that file.
fn has_open(process: u32, file: &Path) -> bool {
    let is_it = fs::read_link(format!("/proc/{process}/fd/3")).is_ok_and(|it| it == file);
    let call = fs::read_to_string(format!("/proc/{process}/syscall")).unwrap_or_default();
    is_it && call.starts_with("0 0x3 ")
}

/// What is mounted there by then is another's.
#[test]
fn mounts_that_were_taken_away_are_left_alone() {
    let place = Place::new();
    let daemon = start(&place, ",writable=on");
    let (mut client, mnt) = (qmp(&place), place.path("mnt"));
    tools::run("umount", [&mnt]);
    tools::run("mount", ["--bind", tools::text(&place.image()), tools::text(&mnt)]);
    client.run("block-export-del", json!({"id": "f0", "mode": "hard"}));
    client.event("BLOCK_EXPORT_DELETED");
    assert!(is_mounted(&mnt));
    tools::run("umount", [&mnt]);
    assert_eq!(fs::read(&mnt).unwrap(), b"below");
    // The place is free again.
    let export = json!({"type": "fuse", "id": "f0", "node-name": "disk", "mountpoint": mnt});
    client.run("block-export-add", export);
    assert_eq!(fs::metadata(&mnt).unwrap().len(), SIZE);
    // A daemon whose file was unmounted ends as usual.
    tools::run("umount", [&mnt]);
    daemon.stop(Signal::TERM);
}
