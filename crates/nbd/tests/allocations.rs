//! In steady state a request of an NBD client allocates nothing, from its arrival to its reply.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, BlockNode, drivers::Null};
use coblk_nbd::{NbdExport, NbdOptions, NbdServer, SocketAddress};

const BYTES: u32 = 4096;
/// What one client may have in flight.
const DEPTH: u64 = 16;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const BLOCK_STATUS: u16 = 7;

/// How a client wants to be answered, and how soon the disk does it.
#[derive(Debug)]
struct Mode {
    deferred: bool,
    structured: bool,
    /// Reads ask for one chunk, which is then data and no hole.
    one_chunk: bool,
}

impl Mode {
    /// What the client sends over and over, and how long each reply is.
    fn commands(&self) -> Vec<(u16, usize)> {
        let read = match (self.structured, self.one_chunk) {
            (false, _) => 16 + BYTES as usize,
            (true, true) => 28 + BYTES as usize,
            (true, false) => 20 + 12,
        };
        let mut commands = vec![(READ, read), (WRITE, 16), (FLUSH, 16), (TRIM, 16), (CACHE, 16)];
        if self.structured {
            commands.push((BLOCK_STATUS, 20 + 4 + 8));
        }
        commands
    }

    fn greeting(&self) -> (Vec<u8>, usize) {
        let mut start = vec![0, 0, 0, 3];
        if !self.structured {
            return ([start, option(1, b"disk")].concat(), 18 + 10);
        }
        let context = [&[0, 0, 0, 4], &b"disk"[..], &[0, 0, 0, 1, 0, 0, 0, 15], b"base:allocation"];
        start.extend(option(8, b""));
        start.extend(option(10, &context.concat()));
        start.extend(option(1, b"disk"));
        (start, 18 + 20 + (20 + 4 + 15) + 20 + 10)
    }
}

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [b"IHAVEOPT", &kind.to_be_bytes()[..], &len, data].concat()
}

/// `DEPTH` requests of all kinds, and how many bytes the replies have.
fn requests(mode: &Mode) -> (Vec<u8>, usize) {
    let (mut bytes, mut replies) = (Vec::new(), 0);
    for (cookie, (command, reply)) in (0..DEPTH).zip(mode.commands().into_iter().cycle()) {
        let flags = if mode.one_chunk && command == READ { 4u16 } else { 0 };
        let len = if command == FLUSH { 0 } else { BYTES };
        bytes.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&(cookie * 1_000_000).to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        if command == WRITE {
            bytes.extend_from_slice(&[7; BYTES as usize]);
        }
        replies += reply;
    }
    (bytes, replies)
}

/// Sends all of `bytes` and takes as many as fill `replies`, while the server runs on this thread.
fn exchange(ctx: &AioContext, client: &mut UnixStream, mut bytes: &[u8], replies: &mut [u8]) {
    let mut taken = 0;
    while !bytes.is_empty() || taken < replies.len() {
        if !bytes.is_empty() {
            match client.write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        ctx.try_poll();
        match client.read(&mut replies[taken..]) {
            Ok(0) => assert_eq!(taken, replies.len(), "the server has hung up"),
            Ok(more) => taken += more,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

#[test]
fn a_request_allocates_nothing() {
    let one = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(one.count_total, 1, "the counter counts");
    let mode = |deferred, structured, one_chunk| Mode { deferred, structured, one_chunk };
    let modes = [
        mode(false, false, false),
        mode(true, false, false),
        mode(true, true, false),
        mode(true, true, true),
    ];
    for mode in modes {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let ctx = AioContext::for_test().unwrap();
        let null = Null::new(1 << 30).read_zeroes(true).deferred(mode.deferred);
        let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("null", null));
        let address = SocketAddress::unix(path.clone());
        let server = NbdServer::listen(&ctx, &address, NbdOptions::default()).unwrap();
        server.add_export(NbdExport::new("disk", backend)).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_nonblocking(true).unwrap();
        let (start, greeting) = mode.greeting();
        exchange(&ctx, &mut client, &start, &mut vec![0; greeting]);

        let (requests, replies) = requests(&mode);
        let mut replies = vec![0; replies];
        let mut run = |rounds| {
            (0..rounds).for_each(|_| exchange(&ctx, &mut client, &requests, &mut replies));
        };
        run(50);
        let counted = allocation_counter::measure(|| run(200));
        assert_eq!(counted.count_total, 0, "{mode:?}");
    }
}
