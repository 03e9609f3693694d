//! What one client of the NBD server has written or read, no other gets to see by way of a buffer
//! that is used again.
#![forbid(unsafe_code)]

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk::block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk::block::{ErrorPolicies, ErrorPolicy, RequestKind};
use coblk::drivers::{File, Null};
use coblk::nbd::{NbdExport, NbdOptions, NbdServer, SocketAddress};
use coblk::{AioContext, BlockBackend, BlockNode};
use coblk_tests::nbd::{SIZE, Served, Session, choose_structured, hogs, read_structured};

const PARENT: &str = env!("CARGO_TARGET_TMPDIR");
const SECRET: u8 = 0x55;
/// One for each way a payload can go: small, counted, cut into chunks.
const LENGTHS: [usize; 6] = [1, 512, 4096, 64 << 10, 1 << 20, 4 << 20];

/// A device that leaves the buffers of reads as they are.
fn unwritten(_: &Path) -> Arc<BlockNode> {
    BlockNode::new("disk0", Null::new(SIZE))
}

fn leaves_secrets(path: &Path, len: usize) {
    let mut client = Session::open(path);
    assert_eq!(client.write(0, &vec![SECRET; len]), Ok(()));
}

#[track_caller]
fn finds_none(data: &[u8]) {
    let found = data.iter().filter(|byte| **byte == SECRET).count();
    assert_eq!(found, 0, "of {} bytes these are another client's", data.len());
}

#[test]
fn a_read_that_writes_nothing_shows_nothing_of_other_clients() {
    let served = Served::with_node(PARENT, unwritten);
    for len in LENGTHS {
        leaves_secrets(&served.socket(), len);
        finds_none(&Session::open(&served.socket()).read(0, len).unwrap());
        leaves_secrets(&served.socket(), len);
        // Less than what the other had, and then all of it.
        let mut client = Session::choose(&served.socket(), "ro");
        finds_none(&client.read(0, len.div_ceil(2)).unwrap());
        finds_none(&client.read(0, len).unwrap());
        leaves_secrets(&served.socket(), len);
        let mut client: UnixStream = choose_structured(&served.socket());
        for flags in [0, 4] {
            finds_none(&read_structured(&mut client, flags, 0, len as u32).data);
        }
    }
}

#[test]
fn neither_does_one_in_pieces() {
    let served = Served::with_node(PARENT, unwritten);
    // Buffers as long as a piece.
    leaves_secrets(&served.socket(), 256 << 10);
    let _hogs = hogs(&served, 6, 16 << 20);
    finds_none(&Session::open(&served.socket()).read(0, 32 << 20).unwrap());
    leaves_secrets(&served.socket(), 32 << 20);
    finds_none(&Session::open(&served.socket()).read(0, 32 << 20).unwrap());
}

/// A failed read that is reported as done has written nothing either.
#[test]
fn an_error_that_is_ignored_shows_nothing_of_other_clients() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let (path, image) = (dir.path().join("nbd.sock"), dir.path().join("disk.img"));
    std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let file = BlockNode::new("file0", File::options().open(&image).unwrap());
    let rules = Rules::new(1);
    rules.add(Rule::fail(libc::EIO).on(RequestKind::Read));
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("disk0", BlkDebug::new(file, rules));
    let backend = BlockBackend::new(&ctx, "drive", node);
    let ignored = ErrorPolicy::Ignore;
    backend.set_error_policies(ErrorPolicies { read: ignored, ..ErrorPolicies::default() });
    let address = SocketAddress::unix(path.clone());
    let server = NbdServer::listen(&ctx, &address, NbdOptions::default()).unwrap();
    server.add_export(NbdExport::new("disk", backend)).unwrap();

    let (handle, done) = (ctx.handle(), Arc::new(AtomicBool::new(false)));
    let is_done = Arc::clone(&done);
    let clients = std::thread::spawn(move || {
        let read = |len| {
            leaves_secrets(&path, len);
            Session::open(&path).read(0, len).unwrap()
        };
        let read = LENGTHS.map(read);
        is_done.store(true, Ordering::Release);
        handle.schedule(|_| ());
        read
    });
    ctx.run_until(|| done.load(Ordering::Acquire));
    clients.join().unwrap().iter().for_each(|data| finds_none(data));
}
