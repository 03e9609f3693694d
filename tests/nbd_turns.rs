//! How much the NBD server does for a client before others have their turn, by bytes.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coblk::block::{ReadFlags, RequestKind};
use coblk::nbd::{NbdExport, NbdOptions, NbdServer, SocketAddress};
use coblk::{
    AioContext, BlockBackend, BlockDriver, BlockNode, Co, IoVector, IoVectorMut, WriteFlags,
    drivers::Null,
};
use coblk_tests::nbd::{MAGIC, SIZE, choose, request};

const PARENT: &str = env!("CARGO_TARGET_TMPDIR");
/// A client has 1 MiB, and one request more, when its coroutine runs as one that is ready, and again
/// when its socket is.
const TURN: u64 = 2 << 20;

/// One connection to a server on this thread, whose export is a device that never waits.
struct Alone {
    ctx: AioContext,
    _server: NbdServer,
    backend: BlockBackend,
    client: UnixStream,
    _dir: tempfile::TempDir,
}

impl Alone {
    fn new() -> Alone {
        let zeroes = Null::new(SIZE).read_zeroes(true);
        Alone::with_node(BlockNode::new("disk0", zeroes))
    }

    fn with_node(node: Arc<BlockNode>) -> Alone {
        let dir = tempfile::tempdir_in(PARENT).unwrap();
        let path = dir.path().join("nbd.sock");
        let ctx = AioContext::for_test().unwrap();
        let backend = BlockBackend::new(&ctx, "drive", node);
        let address = SocketAddress::unix(path.clone());
        let server = NbdServer::listen(&ctx, &address, NbdOptions::default()).unwrap();
        server.add_export(NbdExport::new("disk", backend.clone())).unwrap();
        let chosen = std::thread::spawn(move || choose(&path));
        while !chosen.is_finished() {
            ctx.try_poll();
        }
        let client = chosen.join().unwrap();
        Alone { ctx, _server: server, backend, client, _dir: dir }
    }

    /// The most bytes that the device has moved in one turn of the loop, until it has moved `total`.
    fn most_in_a_turn(&self, kind: RequestKind, total: u64) -> u64 {
        let begin = Instant::now();
        let moved = || self.backend.statistics().of(kind).bytes;
        let (first, mut most) = (moved(), 0);
        while moved() - first < total {
            assert!(begin.elapsed() < Duration::from_secs(60), "{} bytes moved", moved() - first);
            let before = moved();
            self.ctx.try_poll();
            most = most.max(moved() - before);
        }
        most
    }
}

#[test]
fn requests_for_much_data_are_carried_out_over_several_turns_of_the_loop() {
    const LEN: u32 = 1 << 20;
    // READ, CACHE. Of replies nothing is taken.
    for (command, count) in [(0, 16), (5, 64)] {
        let mut alone = Alone::new();
        alone.client.write_all(&request(MAGIC, 0, command, 0, LEN).repeat(count)).unwrap();
        let most = alone.most_in_a_turn(RequestKind::Read, count as u64 * u64::from(LEN));
        assert!(most <= TURN + u64::from(LEN), "command {command}: {most} bytes in one turn");
    }
}

/// A device whose client has sent more by the time that it has written something.
#[derive(Clone)]
struct Feeding {
    bytes: Arc<[u8]>,
    /// How many of them are sent, and the client to send the rest.
    sent: Arc<Mutex<(usize, Option<UnixStream>)>>,
}

impl Feeding {
    fn feed(&self) {
        let mut sent = self.sent.lock().unwrap();
        let (sent, client) = &mut *sent;
        while let Some(client) = client {
            match client.write(&self.bytes[*sent..]) {
                Ok(more) if more > 0 => *sent += more,
                _ => break,
            }
        }
    }
}

impl BlockDriver for Feeding {
    fn format_name(&self) -> &'static str {
        "feeding"
    }

    fn length(&self) -> u64 {
        SIZE
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        target.fill_from(0, 0);
        Ok(())
    }

    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        self.feed();
        Ok(())
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn writes_as_fast_as_they_are_served_are_served_over_several_turns_of_the_loop() {
    const LEN: u32 = 64 << 10;
    const COUNT: usize = 200;
    let write = [request(MAGIC, 0, 1, 0, LEN), vec![7; LEN as usize]].concat();
    let device = Feeding { bytes: write.repeat(COUNT).into(), sent: Arc::default() };
    let alone = Alone::with_node(BlockNode::new("disk0", device.clone()));
    alone.client.set_nonblocking(true).unwrap();
    device.sent.lock().unwrap().1 = Some(alone.client.try_clone().unwrap());
    device.feed();
    let most = alone.most_in_a_turn(RequestKind::Write, COUNT as u64 * u64::from(LEN));
    assert!(most <= TURN + u64::from(LEN), "{most} bytes written in one turn");
}

/// A reply goes out in parts if its client takes it as fast as it is sent.
#[test]
fn a_fast_reader_lets_others_have_their_turn() {
    const LEN: usize = 32 << 20;
    let alone = Alone::new();
    let mut client = alone.client.try_clone().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![1; 1 << 20];
        for _ in 0..16 {
            client.write_all(&request(MAGIC, 0, 0, 0, LEN as u32)).unwrap();
            let mut left = 16 + LEN;
            while left > 0 {
                let len = left.min(buffer.len());
                let bytes = client.read(&mut buffer[..len]).unwrap();
                counter.fetch_add(bytes, Ordering::Relaxed);
                left -= bytes;
            }
        }
    });
    let mut most = 0;
    while !reader.is_finished() {
        let before = taken.load(Ordering::Relaxed);
        alone.ctx.try_poll();
        most = most.max(taken.load(Ordering::Relaxed) - before);
    }
    reader.join().unwrap();
    // The client's own coroutine sends, what was left over is sent, and the socket has room again; and
    // what was in the socket's buffer before is not of this turn.
    assert!(most <= 8 << 20, "{most} bytes taken in one turn");
}
