//! A libFuzzer target: a client from its connection to its end, against a server in the same thread.
//! `tests/fuzz/run` compiles and runs it.
//!
//! The first byte says how far the client behaves: it is greeted only, or it has chosen the export,
//! with replies of one of the three styles. The others it sends as they are.
#![forbid(unsafe_code)]
#![no_main]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, BlockNode, drivers::Null};
use coblk_nbd::{NbdExport, NbdOptions, NbdServer, SocketAddress};

/// Small, so that replies are.
const SIZE: u64 = 1 << 20;
/// Polls after which a session counts as hung: far more than the longest reply takes.
const MAX_POLLS: usize = 1_000_000;

struct Stage {
    _dir: tempfile::TempDir,
    path: PathBuf,
    server: NbdServer,
    ctx: AioContext,
}

impl Stage {
    fn new() -> Stage {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nbd.sock");
        let ctx = AioContext::for_test().expect("a context");
        let node = BlockNode::new("disk0", Null::new(SIZE).read_zeroes(true));
        let backend = BlockBackend::new(&ctx, "drive", node);
        let address = SocketAddress::unix(path.clone());
        let server = NbdServer::listen(&ctx, &address, NbdOptions::default()).expect("a server");
        server.add_export(NbdExport::new("d", backend)).expect("an export");
        Stage { _dir: dir, path, server, ctx }
    }

    /// Lets a client say `bytes` and end its side, and takes what it is told until it is hung up on.
    fn session(&self, mut bytes: &[u8]) {
        let mut client = UnixStream::connect(&self.path).expect("a connection");
        client.set_nonblocking(true).expect("a socket");
        let mut said = [0; 65536];
        for _ in 0..MAX_POLLS {
            if !bytes.is_empty() {
                match client.write(bytes) {
                    Ok(sent) => bytes = &bytes[sent..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => bytes = &[],
                }
                if bytes.is_empty() {
                    let _ = client.shutdown(Shutdown::Write);
                }
            }
            self.ctx.try_poll();
            match client.read(&mut said) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(more) if more > 0 => {}
                // It was hung up on; nothing of it is left.
                _ if self.server.connections() == 0 => return,
                _ => {}
            }
        }
        panic!("the session does not end");
    }
}

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [b"IHAVEOPT", &kind.to_be_bytes()[..], &len, data].concat()
}

/// What comes before the bytes of the fuzzer.
fn beginning(kind: u8) -> Vec<u8> {
    let context = [&[0, 0, 0, 1], &b"d"[..], &[0, 0, 0, 1, 0, 0, 0, 15], b"base:allocation"].concat();
    let go = option(7, &[0, 0, 0, 1, b'd', 0, 0]);
    let options = match kind % 4 {
        0 => Vec::new(),
        1 => go,
        2 => [option(8, b""), option(10, &context), go].concat(),
        _ => [option(11, b""), option(10, &context), go].concat(),
    };
    [&[0, 0, 0, 3], &options[..]].concat()
}

thread_local! {
    static STAGE: Stage = Stage::new();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((kind, rest)) = bytes.split_first() {
        STAGE.with(|stage| stage.session(&[beginning(*kind), rest.to_vec()].concat()));
    }
});
