//! Limits of the NBD server on its clients, and a TCP address.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coblk::nbd::{NbdOptions, NbdServer, SocketAddress};
use coblk::{AioContext, BlockNode, drivers::Null};
use coblk_tests::nbd::{MAGIC, SIZE, Served, choose, option, request};
use coblk_tests::tools;

const PARENT: &str = env!("CARGO_TARGET_TMPDIR");

fn zeroes(_: &Path) -> Arc<BlockNode> {
    BlockNode::new("disk0", Null::new(SIZE).read_zeroes(true))
}

#[test]
fn clients_come_over_tcp() {
    let any_port = "127.0.0.1:0".parse().unwrap();
    let served = Served::with_options(PARENT, NbdOptions::default(), Some(any_port), zeroes);
    let uri = served.uri("disk");
    assert!(uri.starts_with("nbd://127.0.0.1:") && !uri.contains(":0/"), "{uri}");
    let said = tools::run("nbdinfo", ["--size", &uri]);
    assert_eq!(said.trim(), SIZE.to_string());
    let said = tools::run("qemu-io", ["-f", "raw", "-c", "read -P 0 1000 2M", &uri]);
    assert!(said.contains("read 2097152/2097152") && !said.contains("failed"), "{said}");
    // More than the socket's buffers take, both ways at once.
    tools::run("qemu-img", ["bench", "-f", "raw", "-c", "64", "-d", "16", "-s", "1M", &uri]);
}

/// Whether the server has said anything to this client within `limit`.
fn is_greeted(client: &mut UnixStream, limit: Duration) -> bool {
    client.set_read_timeout(Some(limit)).unwrap();
    match client.read_exact(&mut [0; 18]) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn clients_beyond_the_limit_wait_for_one_to_leave() {
    let options = NbdOptions::default().max_connections(2);
    let served = Served::with_options(PARENT, options, None, zeroes);
    let (first, mut second) = (choose(&served.socket()), choose(&served.socket()));
    let mut third = served.connect();
    assert!(!is_greeted(&mut third, Duration::from_millis(200)), "the third is let in");
    // Who is in is served meanwhile.
    second.write_all(&request(MAGIC, 0, 0, 0, 512)).unwrap();
    second.read_exact(&mut [0; 16 + 512]).unwrap();
    drop(first);
    assert!(is_greeted(&mut third, Duration::from_secs(20)), "nobody lets the third in");
}

#[test]
fn a_client_has_limited_time_to_choose() {
    const LIMIT: Duration = Duration::from_millis(300);
    let options = NbdOptions::default().max_connections(2).handshake_timeout(LIMIT);
    let served = Served::with_options(PARENT, options, None, zeroes);
    let mut chosen = choose(&served.socket());
    let mut idle = served.connect();
    let begin = Instant::now();
    let mut said = Vec::new();
    idle.read_to_end(&mut said).expect("it is disconnected");
    assert_eq!(said.len(), 18, "the greeting alone");
    let took = begin.elapsed();
    assert!(took > LIMIT / 2 && took < 20 * LIMIT, "disconnected after {took:?}");

    // Neither do drops of bytes win time.
    let mut slow = served.connect();
    let begin = Instant::now();
    let endless = [&[0, 0, 0, 3][..], &option(99, &[0; 1000])].concat();
    let sent = endless.iter().take_while(|byte| {
        std::thread::sleep(LIMIT / 10);
        slow.write_all(&[**byte]).is_ok()
    });
    assert!(sent.count() < endless.len(), "a slow client stays");
    let took = begin.elapsed();
    assert!(took > LIMIT / 2 && took < 20 * LIMIT, "disconnected after {took:?}");
    // Who has chosen may be idle for longer than that.
    chosen.write_all(&request(MAGIC, 0, 0, 0, 512)).unwrap();
    chosen.read_exact(&mut [0; 16 + 512]).expect("it is still served");
}

/// Sends the same again and again, and takes all replies, until it is disconnected; not if that
/// takes longer than `limit`.
fn is_flood_ended(mut client: UnixStream, bytes: &[u8], limit: Duration) -> bool {
    let begin = Instant::now();
    client.set_write_timeout(Some(limit)).unwrap();
    client.write_all(&[0, 0, 0, 3]).unwrap();
    let mut replies = client.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while replies.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
        });
        let ended = loop {
            match client.write_all(bytes) {
                Ok(()) if begin.elapsed() < limit => {}
                Ok(()) => break false,
                Err(error) => break error.kind() != ErrorKind::WouldBlock,
            }
        };
        client.shutdown(std::net::Shutdown::Both).ok();
        ended
    })
}

#[test]
fn a_flood_of_options_wins_no_time() {
    let limit = Duration::from_millis(300);
    let options = NbdOptions::default().handshake_timeout(limit);
    let served = Served::with_options(PARENT, options, None, zeroes);
    let mut chosen = choose(&served.socket());
    for options in [option(99, b"").repeat(4096), option(99, &[0; 40_000]).repeat(8)] {
        let ended = is_flood_ended(served.connect(), &options, Duration::from_secs(20));
        assert!(ended, "a client with options of {} bytes in all stays", options.len());
    }
    chosen.write_all(&request(MAGIC, 0, 0, 0, 512)).unwrap();
    chosen.read_exact(&mut [0; 16 + 512]).expect("it is still served");
}

#[test]
fn options_in_bulk_are_answered_over_several_turns_of_the_loop() {
    const OPTIONS: usize = 200;
    const REPLY: usize = 20 + "the option is not supported".len();
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let path = dir.path().join("nbd.sock");
    let ctx = AioContext::for_test().unwrap();
    let address = SocketAddress::unix(path.clone());
    let server = NbdServer::listen(&ctx, &address, NbdOptions::default()).unwrap();
    let mut client = UnixStream::connect(path).unwrap();
    client.write_all(&[&[0, 0, 0, 3][..], &option(99, b"").repeat(OPTIONS)].concat()).unwrap();
    client.set_nonblocking(true).unwrap();

    let (mut left, mut buffer) = (18 + OPTIONS * REPLY, vec![0; 64 << 10]);
    let begin = Instant::now();
    while left > 0 {
        assert!(begin.elapsed() < Duration::from_secs(20), "{left} bytes do not come");
        ctx.try_poll();
        let mut turn = 0;
        while let Ok(bytes) = client.read(&mut buffer) {
            assert!(bytes > 0, "disconnected");
            turn += bytes;
        }
        // The one for which it gave way, and 64 more.
        assert!(turn <= 18 + 65 * REPLY, "{turn} bytes of replies in one turn");
        left -= turn;
    }
    drop(server);
}
