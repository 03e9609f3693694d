//! In steady state a request of an NBD client allocates nothing, from its arrival to its reply.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, BlockNode, drivers::Null};
use coblk_nbd::{NbdAddress, NbdExport, NbdOptions, NbdServer};

const BYTES: u32 = 4096;
/// What one client may have in flight.
const DEPTH: u64 = 16;
const COMMANDS: [u16; 4] = [READ, WRITE, FLUSH, TRIM];
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [b"IHAVEOPT", &kind.to_be_bytes()[..], &len, data].concat()
}

/// `DEPTH` requests of all kinds.
fn requests() -> Vec<u8> {
    let mut bytes = Vec::new();
    for cookie in 0..DEPTH {
        let command = COMMANDS[cookie as usize % 4];
        let len = if command == FLUSH { 0 } else { BYTES };
        bytes.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&(cookie * 1_000_000).to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        if command == WRITE {
            bytes.extend_from_slice(&[7; BYTES as usize]);
        }
    }
    bytes
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
        ctx.poll(false);
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
    for (deferred, structured) in [(false, false), (true, false), (true, true)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let ctx = AioContext::new().unwrap();
        let node = BlockNode::new("null", Null::new(1 << 30).deferred(deferred));
        let backend = BlockBackend::new(&ctx, "drive", node);
        let address = NbdAddress::Unix(path.clone());
        let server = NbdServer::listen(&ctx, &address, NbdOptions::default()).unwrap();
        server.add_export(NbdExport::new("disk", backend)).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut start = vec![0, 0, 0, 3];
        let (mut greeting, mut header) = (18 + 10, 16);
        if structured {
            start.extend(option(8, b""));
            (greeting, header) = (greeting + 20, 20 + 8);
        }
        start.extend(option(1, b"disk"));
        exchange(&ctx, &mut client, &start, &mut vec![0; greeting]);

        let requests = requests();
        let (reads, others) = (DEPTH as usize / 4, DEPTH as usize * 3 / 4);
        let mut replies = vec![0; reads * (header + BYTES as usize) + others * 16];
        let mut run = |rounds| {
            (0..rounds).for_each(|_| exchange(&ctx, &mut client, &requests, &mut replies));
        };
        run(50);
        let counted = allocation_counter::measure(|| run(200));
        assert_eq!(counted.count_total, 0, "deferred: {deferred}, structured: {structured}");
    }
}
