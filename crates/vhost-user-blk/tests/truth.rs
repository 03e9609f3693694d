//! What an export says is true: a flush has reached the medium, and an export in use is in use.

mod util;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use coblk_aio::AioContext;
use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{BlockNode, RequestKind, drivers};
use coblk_vhost_user_blk::{RemoveMode, VhostUserBlk, VhostUserBlkError, VhostUserBlkOptions};
use coblk_virtio_blk::VirtioBlkConfig;
use util::daemon::Daemon;
use util::guest::{Guest, UNTOUCHED, WRITE, negotiate};
use util::{Client, DISK_BYTES, Op};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

#[test]
fn daemon() {
    util::daemon::run_if_asked();
}

/// What a daemon does for what `work` asks of it: successful calls of fdatasync. `strace` counts what
/// really happens.
fn syncs(work: impl FnOnce(&Path)) -> u64 {
    let directory = util::directory();
    File::create(directory.path().join("disk")).unwrap().set_len(DISK_BYTES).unwrap();
    let log = directory.path().join("strace");
    let strace = ["strace", "-f", "-qq", "-e", "trace=fdatasync", "-o", log.to_str().unwrap()];
    let daemon = Daemon::start(directory.path(), &strace);
    work(&directory.path().join("vhost.sock"));
    drop(daemon);
    let log = std::fs::read_to_string(log).unwrap();
    let synced = log.lines().filter(|line| line.contains("fdatasync") && line.ends_with("= 0"));
    synced.count() as u64
}

const ROUNDS: u64 = 10;

#[test]
fn each_flush_of_a_guest_is_an_fdatasync() {
    let count = syncs(|socket| {
        let mut client = Client::connect(socket, 1);
        for round in 0..ROUNDS {
            assert_eq!(client.one(0, Op::Write, round * 4096, 4096), 0);
            assert_eq!(client.one(0, Op::Flush, 0, 0), 0);
        }
    });
    assert_eq!(count, ROUNDS);
}

/// VIRTIO_BLK_F_FLUSH.
const FLUSH: u64 = 1 << 9;
/// Where `writeback` is in the configuration space.
const WRITEBACK: u32 = 32;

#[test]
fn a_guest_that_turns_the_write_cache_off_has_each_write_synced() {
    let count = syncs(|socket| {
        let mut front = negotiate(socket, 0);
        let mut guest = Guest::new();
        guest.start(&mut front);
        // On, off, on, off.
        for writeback in [1, 0, 1, 0] {
            let flags = VhostUserConfigFlags::WRITABLE;
            front.set_config(WRITEBACK, flags, &[writeback]).unwrap();
            assert_eq!(front.get_config(WRITEBACK, 1, flags, &[0]).unwrap().1, [writeback]);
            for block in 0..ROUNDS {
                assert_eq!(guest.one(WRITE, block, 7), 0);
            }
        }
    });
    assert_eq!(count, 2 * ROUNDS);
}

#[test]
fn a_guest_that_knows_no_flush_has_each_write_synced() {
    let count = syncs(|socket| {
        let mut front = negotiate(socket, FLUSH);
        let mut guest = Guest::new();
        guest.start(&mut front);
        for block in 0..ROUNDS {
            assert_eq!(guest.one(WRITE, block, 7), 0);
        }
    });
    assert_eq!(count, ROUNDS);
}

#[test]
fn c86_an_export_in_use_is_removed_only_in_mode_hard() {
    let directory = util::directory();
    let (image, socket) = (directory.path().join("disk"), directory.path().join("vhost.sock"));
    File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    let ctx = AioContext::for_test().unwrap();
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

#[test]
fn an_export_that_fails_leaves_no_socket_behind() {
    let directory = util::directory();
    let (image, socket) = (directory.path().join("disk"), directory.path().join("vhost.sock"));
    File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("disk", drivers::File::options().open(&image).unwrap());
    let device = VirtioBlkConfig::default().num_queues(0);
    let options = VhostUserBlkOptions::new(device);
    assert!(VhostUserBlk::listen(&ctx, &socket, &node, options).is_err());
    assert!(!socket.exists());
}

#[test]
fn an_export_that_is_dropped_answers_what_it_has_taken() {
    let directory = util::directory();
    let (image, socket) = (directory.path().join("disk"), directory.path().join("vhost.sock"));
    File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    let ctx = AioContext::for_test().unwrap();
    let rules = Rules::new(1);
    rules.add(Rule::delay(Duration::from_millis(100)));
    let node = BlockNode::new("disk", drivers::File::options().open(&image).unwrap());
    let node = BlockNode::new("debug", BlkDebug::new(node, rules.clone()));
    let options = VhostUserBlkOptions::default();
    let export = VhostUserBlk::listen(&ctx, &socket, &node, options).unwrap();
    let at = socket.clone();
    let front = std::thread::spawn(move || {
        let (mut front, mut guest) = (negotiate(&at, 0), Guest::new());
        guest.start(&mut front);
        guest.submit(0, WRITE, 1, 0x11);
        guest.kick.write(1).unwrap();
        (front, guest)
    });
    ctx.run_until(|| front.is_finished() && rules.kind_counts(RequestKind::Write).requests > 0);
    let (front, mut guest) = front.join().unwrap();
    drop(export);
    assert!(!socket.exists());
    guest.submit(1, WRITE, 2, 0x22);
    guest.kick.write(1).unwrap();
    ctx.run_until(|| node.backends().is_empty());
    // The second was there in time, or was not.
    let answers = guest.reap();
    assert!(answers.starts_with(&[(0, 0)]), "{answers:?}");
    assert_eq!(answers.len() == 2, guest.status(1) != UNTOUCHED);
    while ctx.try_poll() {}
    guest.kick.write(1).unwrap();
    assert!(!ctx.try_poll(), "the queue is not looked at any more");
    drop(front);
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
    let daemon = Daemon::start(directory.path(), &strace);
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
    drop((client, daemon));
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
