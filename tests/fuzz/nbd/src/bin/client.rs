//! A libFuzzer target: a node on a server that says what the fuzzer likes, from its greeting to its end.
//! `tests/fuzz/run` compiles and runs it.
//!
//! The first byte says how far the server behaves: it says all as it likes, or it has negotiated, in one of the
//! three styles. The node is asked for everything that it can do then, all at once. Each request ends.
#![forbid(unsafe_code)]
#![no_main]

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, Co};
use coblk_block::options::NodeOptions;
use coblk_block::{BlockBackend, BlockNode, Blockdevs, ZeroFlags};
use coblk_nbd::{Nbd, NbdNodeOptions, SocketAddress};

const SIZE: u64 = 1 << 20;
/// Polls after which a conversation counts as hung: far more than the longest one takes.
const MAX_POLLS: usize = 1_000_000;

struct Stage {
    ctx: AioContext,
    blockdevs: Rc<Blockdevs>,
}

type Request = fn(&Co<'_>, &BlockBackend) -> std::io::Result<()>;

fn read(co: &Co<'_>, backend: &BlockBackend, offset: u64, bytes: usize) -> std::io::Result<()> {
    backend.co_read(co, offset, &mut vec![0; bytes])
}

fn write(co: &Co<'_>, backend: &BlockBackend, offset: u64, bytes: usize) -> std::io::Result<()> {
    backend.co_write(co, offset, &vec![7; bytes])
}

/// In this order: the cookies that the fuzzer has to find are those of the first ones.
const REQUESTS: [Request; 8] = [
    |co, it| read(co, it, 0, 4096),
    |co, it| read(co, it, 512, 512),
    |co, it| write(co, it, 8192, 512),
    |co, it| it.co_block_status(co, 0, SIZE).map(drop),
    |co, it| it.co_flush(co),
    |co, it| read(co, it, 65536, 65536),
    |co, it| it.co_pwrite_zeroes(co, 4096, 4096, ZeroFlags::empty()),
    |co, it| it.co_pdiscard(co, 0, 65536),
];

impl Stage {
    fn new() -> Stage {
        let ctx = AioContext::for_test().expect("a context");
        let mut drivers = coblk_block::drivers();
        drivers.add::<Nbd>();
        Stage { ctx, blockdevs: Rc::new(Blockdevs::new(drivers)) }
    }

    fn run(&self, bytes: &[u8]) {
        let (client, mut server) = UnixStream::pair().expect("a pair");
        server.set_nonblocking(true).expect("a socket");
        let done = Rc::new(Cell::new(0));
        let options = NbdNodeOptions::new(SocketAddress::Fd(client.as_raw_fd().to_string()), "");
        let mut options = NodeOptions::new(options);
        options.node_name = Some("disk".to_owned());
        let (blockdevs, ended) = (Rc::clone(&self.blockdevs), Rc::clone(&done));
        self.ctx.spawn("open", move |co| {
            if let Ok(node) = blockdevs.co_open(co, options) {
                ask_all(co, node);
                blockdevs.co_close(co, "disk").expect("it closes");
            }
            ended.set(1);
        });
        let (mut rest, mut said) = (bytes, [0; 65536]);
        for _ in 0..MAX_POLLS {
            match server.write(rest) {
                _ if rest.is_empty() => {}
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => rest = &[],
            }
            if rest.is_empty() {
                let _ = server.shutdown(Shutdown::Write);
            }
            self.ctx.try_poll();
            let _ = server.read(&mut said);
            if done.get() == 1 {
                return;
            }
        }
        panic!("the conversation does not end");
    }
}

/// Makes all requests, and waits for their ends.
fn ask_all(co: &Co<'_>, node: Arc<BlockNode>) {
    let backend = Rc::new(BlockBackend::new(co.context(), "fuzz", node));
    let asked = REQUESTS.map(|request| {
        let backend = Rc::clone(&backend);
        co.context().spawn_join("request", move |co| drop(request(co, &backend)))
    });
    for request in asked {
        let _ = co.block_on(request);
    }
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let magic = 0x0003_e889_0455_65a9u64.to_be_bytes();
    let len = (data.len() as u32).to_be_bytes();
    [&magic[..], &option.to_be_bytes(), &kind.to_be_bytes(), &len, data].concat()
}

/// What comes before the bytes of the fuzzer.
fn beginning(kind: u8) -> Vec<u8> {
    const ACK: u32 = 1;
    const UNSUPPORTED: u32 = 0x8000_0001;
    if kind % 4 == 0 {
        return Vec::new();
    }
    let greeting = [&b"NBDMAGICIHAVEOPT"[..], &[0, 3]].concat();
    let context =
        [reply(10, 4, &[&[0, 0, 0, 7], &b"base:allocation"[..]].concat()), reply(10, ACK, &[])];
    let options = match kind % 4 {
        1 => [reply(11, UNSUPPORTED, &[]), reply(8, UNSUPPORTED, &[])].concat(),
        2 => [reply(11, UNSUPPORTED, &[]), reply(8, ACK, &[]), context.concat()].concat(),
        _ => [reply(11, ACK, &[]), context.concat()].concat(),
    };
    // All that a server can do but several connections.
    let flags = (1u16 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6).to_be_bytes();
    let export = [&[0, 0][..], &SIZE.to_be_bytes(), &flags].concat();
    [greeting, options, reply(7, 3, &export), reply(7, ACK, &[])].concat()
}

thread_local! {
    static STAGE: Stage = Stage::new();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((kind, rest)) = bytes.split_first() {
        STAGE.with(|stage| stage.run(&[beginning(*kind), rest.to_vec()].concat()));
    }
});
