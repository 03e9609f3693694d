//! What an export says is true: a flush has reached the medium, and an export in use is in use.

mod util;

use std::fs::File;
use std::time::Duration;

use coblk_aio::AioContext;
use coblk_block::{BlockNode, drivers};
use coblk_vhost_user_blk::{RemoveMode, VhostUserBlk, VhostUserBlkError, VhostUserBlkOptions};
use util::{Client, DISK_BYTES, Op};

#[test]
fn daemon() {
    util::daemon::run_if_asked();
}

/// `strace` counts what really happens.
#[test]
fn each_flush_of_a_guest_is_an_fdatasync() {
    const FLUSHES: u64 = 10;
    let directory = util::directory();
    File::create(directory.path().join("disk")).unwrap().set_len(DISK_BYTES).unwrap();
    let log = directory.path().join("strace");
    let strace = ["strace", "-f", "-qq", "-e", "trace=fdatasync", "-o", log.to_str().unwrap()];
    let mut daemon = util::daemon::start(directory.path(), &[&strace[..], &["-I1", "--"]].concat());
    let mut client = Client::connect(&directory.path().join("vhost.sock"), 1);
    for round in 0..FLUSHES {
        assert_eq!(client.one(0, Op::Write, round * 4096, 4096), 0);
        assert_eq!(client.one(0, Op::Flush, 0, 0), 0);
    }
    drop(client);
    // Told to end, strace ends what it has started.
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    daemon.wait().unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    let synced = log.lines().filter(|line| line.contains("fdatasync") && line.ends_with("= 0"));
    assert_eq!(synced.count() as u64, FLUSHES, "{log}");
}

#[test]
fn c86_an_export_in_use_is_removed_only_in_mode_hard() {
    let directory = util::directory();
    let (image, socket) = (directory.path().join("disk"), directory.path().join("vhost.sock"));
    File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    let ctx = AioContext::new().unwrap();
    let node = BlockNode::new("disk", drivers::File::options().open(&image).unwrap());
    let options = VhostUserBlkOptions::default();
    let export = VhostUserBlk::listen(&ctx, &socket, &node, options).unwrap();
    let front = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    front.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    ctx.run_until(|| export.is_in_use());
    let refused = ctx.run(|co| export.co_remove(co, RemoveMode::Safe));
    assert!(matches!(refused, Err(VhostUserBlkError::InUse(_))));
    assert!(export.is_in_use() && socket.exists());
    ctx.run(|co| export.co_remove(co, RemoveMode::Hard)).unwrap();
    assert_eq!(std::io::Read::read(&mut &front, &mut [0]).unwrap(), 0, "it is disconnected");
    assert!(!export.is_in_use() && !socket.exists());
}

/// `strace` makes calls on the disk fail: so many requests fail, and the export goes on.
#[test]
fn a_guest_is_told_of_each_call_that_fails() {
    let directory = util::directory();
    let disk = directory.path().join("disk");
    File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
    let log = directory.path().join("strace");
    let files = ["-o", log.to_str().unwrap(), "-P", disk.to_str().unwrap()];
    let mut strace = ["strace", "-f", "-qq"].to_vec();
    strace.extend(files);
    for fault in [
        "inject=pwritev:error=ENOSPC:when=3+5",
        // Reads in place are made again by a worker.
        "inject=preadv2:error=EIO",
        "inject=preadv:error=EIO:when=2+4",
        "inject=fdatasync:error=EIO:when=2",
    ] {
        strace.extend(["-e", fault]);
    }
    strace.extend(["-I1", "--"]);
    let mut daemon = util::daemon::start(directory.path(), &strace);
    let mut client = Client::connect(&directory.path().join("vhost.sock"), 1);
    let eio = -rustix::io::Errno::IO.raw_os_error();
    let mut failed = [0; 3];
    let mut succeeds = |what: usize, op, block: u64| {
        let result = client.one(0, op, block * 4096, 4096);
        assert!(result == 0 || result == eio, "{op:?}: {result}");
        failed[what] += usize::from(result != 0);
        result == 0
    };
    for block in 0..40 {
        succeeds(0, Op::Write, block);
        succeeds(1, Op::Read, block);
    }
    let mut flushed = 0;
    while succeeds(2, Op::Flush, 0) {
        flushed += 1;
        while !succeeds(0, Op::Write, 0) {}
    }
    assert!(!succeeds(2, Op::Flush, 0), "a flush after one that failed");
    while !succeeds(1, Op::Read, 0) {}
    drop(client);
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    daemon.wait().unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    let calls = |call: &str, end: &str| {
        log.lines().filter(|line| line.contains(call) && line.ends_with(end)).count()
    };
    assert_eq!(failed[0], calls(" pwritev(", "(INJECTED)"), "{log}");
    assert_eq!(failed[1], calls(" preadv(", "(INJECTED)"), "{log}");
    assert_eq!(calls(" fdatasync(", "(INJECTED)"), 1, "{log}");
    assert_eq!(flushed, calls(" fdatasync(", "= 0"), "{log}");
    assert!(failed[0] > 4 && failed[1] > 4, "{failed:?}");
}
