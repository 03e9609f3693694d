//! The order in which requests are sent again when a connection is lost: no old write ends above a newer one.
#![forbid(unsafe_code)]

mod util;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use coblk::{
    AioContext, BlockBackend, BlockNode, Blockdevs, IoVector, WriteFlags, options::NodeOptions,
};
use coblk_tests::tools;
use util::Place;
use util::fake::{self, Asked, Fake, Style};

const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// For so long a test looks whether something happens that must not.
const WATCH: Duration = Duration::from_millis(300);

/// A node on a server that the test plays, and its loop.
struct Stage {
    place: Place,
    ctx: AioContext,
    blockdevs: Blockdevs,
}

impl Stage {
    fn new() -> (Stage, UnixListener) {
        let place = Place::in_memory();
        let listener = UnixListener::bind(place.path("server.sock")).unwrap();
        let ctx = AioContext::for_test().unwrap();
        (Stage { place, ctx, blockdevs: Blockdevs::new(coblk::drivers()) }, listener)
    }

    fn open(&self) -> Arc<BlockNode> {
        let options = format!(
            "nbd,node-name=disk,server.type=unix,server.path={},reconnect-delay=60",
            tools::text(&self.place.path("server.sock"))
        );
        self.blockdevs.open(&self.ctx, NodeOptions::from_keyval(&options).unwrap()).unwrap()
    }

    /// Writes blocks of these bytes at these offsets, all at once, in this order; when all have ended.
    fn write_all(&self, node: Arc<BlockNode>, writes: &[(u64, u8)]) {
        let backend = Rc::new(BlockBackend::new(&self.ctx, "test", node));
        let left = Rc::new(std::cell::Cell::new(writes.len()));
        for (offset, byte) in writes.iter().copied() {
            let (backend, left) = (Rc::clone(&backend), Rc::clone(&left));
            self.ctx.spawn("write", move |co| {
                let data = vec![byte; BLOCK as usize];
                let flags = WriteFlags::empty();
                backend.co_pwritev(co, offset, &IoVector::from(&data), flags).unwrap();
                drop(backend);
                left.set(left.get() - 1);
            });
        }
        self.ctx.run_until(|| left.get() == 0);
        drop(backend);
    }

    fn close(self) {
        self.blockdevs.close(&self.ctx, "disk").unwrap();
    }
}

fn accept(listener: &UnixListener) -> Fake {
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    Fake::negotiate(stream, Style::Structured, SIZE, fake::ALL).unwrap()
}

/// What a write is, in short.
fn brief(asked: &Asked) -> (u64, u8) {
    assert_eq!((asked.command, asked.length), (fake::WRITE, BLOCK));
    (asked.offset, asked.payload[0])
}

/// Whether another request, or a connection, comes within [`WATCH`].
fn comes(source: &impl AsFd) -> bool {
    let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: WATCH.as_nanos() as i64 };
    let mut fds = [rustix::event::PollFd::new(source, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0
}

/// Answers all until the client disconnects.
fn answer_all(fake: &mut Fake) -> io::Result<()> {
    loop {
        let asked = fake.request()?;
        if asked.command == fake::DISCONNECT {
            return Ok(());
        }
        let answer = fake.answer(&asked, 0, &[]);
        fake.say(&answer)?;
    }
}

/// Three writes to one block and one to another: of the three, one is with the server at a time, and the one that
/// it had when it died comes first again.
#[test]
fn a_newer_write_waits_for_an_older_one_of_its_range_also_across_connections() {
    let (stage, listener) = Stage::new();
    let server = thread::spawn(move || {
        let mut first = accept(&listener);
        let mut seen = vec![brief(&first.request().unwrap()), brief(&first.request().unwrap())];
        seen.sort_unstable();
        assert_eq!(seen, [(0, 1), (8 * BLOCK, 9)]);
        assert!(!comes(&first.stream), "a newer write is sent beside an older one");
        drop(first);
        let mut second = accept(&listener);
        let again = [second.request().unwrap(), second.request().unwrap()];
        let mut seen = again.each_ref().map(brief);
        seen.sort_unstable();
        assert_eq!(seen, [(0, 1), (8 * BLOCK, 9)]);
        assert!(!comes(&second.stream), "a newer write overtakes an older one");
        for asked in &again {
            let answer = second.answer(asked, 0, &[]);
            second.say(&answer).unwrap();
        }
        for byte in [2, 3] {
            let asked = second.request().unwrap();
            assert_eq!(brief(&asked), (0, byte));
            let answer = second.answer(&asked, 0, &[]);
            second.say(&answer).unwrap();
        }
        answer_all(&mut second).unwrap();
    });
    let node = stage.open();
    stage.write_all(node, &[(0, 1), (8 * BLOCK, 9), (0, 2), (0, 3)]);
    stage.close();
    server.join().unwrap();
}

/// A server that goes on with what it has received after the client has lost it: nothing is sent elsewhere before
/// it has closed.
#[test]
fn a_new_connection_waits_until_the_server_has_closed_the_old_one() {
    let (stage, listener) = Stage::new();
    let (says, hears): (Sender<()>, Receiver<()>) = channel();
    let server = thread::spawn(move || {
        let mut first = accept(&listener);
        let old = first.request().unwrap();
        assert_eq!(brief(&old), (0, 1));
        // It breaks the protocol, so the client gives the connection up, and keeps the request.
        first.say(&[0xee; 64]).unwrap();
        let mut rest = Vec::new();
        io::Read::read_to_end(&mut first.stream, &mut rest).unwrap();
        assert!(!comes(&listener), "a new connection is made beside the old one");
        drop(first);
        let mut second = accept(&listener);
        let again = second.request().unwrap();
        assert_eq!(brief(&again), (0, 1));
        let answer = second.answer(&again, 0, &[]);
        second.say(&answer).unwrap();
        answer_all(&mut second).unwrap();
        says.send(()).unwrap();
    });
    let node = stage.open();
    stage.write_all(node, &[(0, 1)]);
    stage.close();
    hears.recv().unwrap();
    server.join().unwrap();
}

/// Reads are not held up by writes, nor writes by those that they do not meet.
#[test]
fn requests_that_do_not_meet_are_with_the_server_at_once() {
    let (stage, listener) = Stage::new();
    let server = thread::spawn(move || {
        let mut fake = accept(&listener);
        let all: Vec<Asked> = (0..16).map(|_| fake.request().unwrap()).collect();
        for asked in all.iter().rev() {
            let answer = fake.answer(asked, 0, &[]);
            fake.say(&answer).unwrap();
        }
        answer_all(&mut fake).unwrap();
    });
    let node = stage.open();
    let writes: Vec<_> = (0..16).map(|at| (at * BLOCK, at as u8)).collect();
    stage.write_all(node, &writes);
    stage.close();
    server.join().unwrap();
}
