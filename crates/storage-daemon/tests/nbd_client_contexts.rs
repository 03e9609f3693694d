//! Connections of a node that several contexts use: one each where the server allows it, else one for all.
#![forbid(unsafe_code)]

mod util;

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use coblk::block::is_home;
use coblk::{
    AioContext, AioHandle, BackendOptions, BlockBackend, BlockNode, Blockdevs, Co, IoThread,
};
use coblk::{IoVector, WriteFlags, options::NodeOptions};
use coblk_tests::tools;
use util::Place;
use util::fake::{self, Fake, Style};

const SIZE: u64 = 1 << 20;
const CAN_MULTI_CONN: u16 = 1 << 8;

/// What the server has seen.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    open: AtomicUsize,
    writes: AtomicUsize,
    over: AtomicBool,
}

fn serve(stream: UnixStream, flags: u16, seen: &Seen) {
    // What looks whether the server is there says nothing.
    let Ok(mut fake) = Fake::negotiate(stream, Style::Extended, SIZE, flags) else { return };
    seen.connections.fetch_add(1, Ordering::Relaxed);
    seen.open.fetch_add(1, Ordering::Relaxed);
    while let Ok(asked) = fake.request() {
        if asked.command == fake::DISCONNECT {
            break;
        }
        seen.writes.fetch_add(usize::from(asked.command == fake::WRITE), Ordering::Relaxed);
        let answer = fake.answer(&asked, 0, &[]);
        fake.say(&answer).unwrap();
    }
    seen.open.fetch_sub(1, Ordering::Relaxed);
}

fn write(co: &Co<'_>, node: &Arc<BlockNode>) {
    let backend = BlockBackend::new(co.context(), "test", Arc::clone(node));
    for at in 0..16 {
        let data = [at as u8; 512];
        let source = IoVector::from(&data[..]);
        backend.co_pwritev(co, at * 512, &source, WriteFlags::empty()).unwrap();
    }
}

/// Writes in each of these contexts.
fn write_in(ctx: &AioContext, node: &Arc<BlockNode>, contexts: &[&AioHandle]) {
    for context in contexts {
        let node = Arc::clone(node);
        let written = context.spawn("write", move |co| write(co, &node));
        ctx.run(|co| co.block_on(written)).unwrap();
    }
}

/// How many connections a node makes whose requests come from so many contexts besides that which opens it.
fn connections(flags: u16, more: &str, contexts: usize) -> usize {
    let place = Place::in_memory();
    let path = place.path("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let seen = Seen::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                let stream = listener.accept().unwrap().0;
                if seen.over.load(Ordering::Acquire) {
                    return;
                }
                scope.spawn(|| serve(stream, flags, &seen));
            }
        });
        let ctx = AioContext::for_test().unwrap();
        let threads: Vec<IoThread> = (0..contexts).map(|_| IoThread::new("t").unwrap()).collect();
        let blockdevs = Blockdevs::new(coblk::drivers());
        let options =
            format!("nbd,node-name=disk,server.type=unix,server.path={}{more}", tools::text(&path));
        let node = blockdevs.open(&ctx, NodeOptions::from_keyval(&options).unwrap()).unwrap();
        // A backend that stays keeps the first connection in this context.
        let backend = BlockBackend::new(&ctx, "first", Arc::clone(&node));
        ctx.run(|co| write(co, &node));
        let handles: Vec<_> = threads.iter().map(IoThread::handle).collect();
        write_in(&ctx, &node, &handles);
        write_in(&ctx, &node, &handles);
        assert_eq!(seen.writes.load(Ordering::Relaxed), 16 * (1 + 2 * contexts));
        drop((backend, node));
        blockdevs.close(&ctx, "disk").unwrap();
        util::wait_until("all connections end", || seen.open.load(Ordering::Relaxed) == 0);
        seen.over.store(true, Ordering::Release);
        drop(UnixStream::connect(&path));
    });
    seen.connections.load(Ordering::Relaxed)
}

#[test]
fn each_context_has_a_connection_where_the_server_shows_the_same_on_all() {
    let several = fake::ALL | CAN_MULTI_CONN;
    assert_eq!(connections(several, "", 2), 3);
    assert_eq!(connections(several, "", 6), 4);
    assert_eq!(connections(several, ",x-coblk-connections=2", 3), 2);
    assert_eq!(connections(several, ",x-coblk-connections=1", 2), 1);
}

#[test]
fn a_server_that_does_not_say_so_gets_one() {
    assert_eq!(connections(fake::ALL, "", 2), 1);
}

/// The first backend is in another context than the one that opens the node: the connection goes there.
#[test]
fn the_only_connection_is_where_the_first_backend_is() {
    let place = Place::in_memory();
    let path = place.path("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let seen = Seen::default();
    thread::scope(|scope| {
        scope.spawn(|| serve(listener.accept().unwrap().0, fake::ALL, &seen));
        let ctx = AioContext::for_test().unwrap();
        let thread = IoThread::new("t").unwrap();
        let blockdevs = Blockdevs::new(coblk::drivers());
        let options =
            format!("nbd,node-name=disk,server.type=unix,server.path={}", tools::text(&path));
        let node = blockdevs.open(&ctx, NodeOptions::from_keyval(&options).unwrap()).unwrap();
        assert!(is_home(&ctx.handle()));
        let remote = Arc::clone(&node);
        let wrote = thread.handle().spawn("remote", move |co| {
            let backend = BackendOptions::new("remote").co_open(co, Arc::clone(&remote)).unwrap();
            assert!(is_home(&co.context().handle()));
            write(co, &remote);
            backend.co_remove_medium(co).unwrap();
        });
        ctx.run(|co| co.block_on(wrote)).unwrap();
        assert!(is_home(&ctx.handle()) && !is_home(thread.handle()));
        ctx.run(|co| write(co, &node));
        // One connection all the while, which was moved with its socket: the server takes no other.
        assert_eq!(seen.connections.load(Ordering::Relaxed), 1);
        drop(node);
        blockdevs.close(&ctx, "disk").unwrap();
    });
    assert_eq!(seen.writes.load(Ordering::Relaxed), 32);
}
