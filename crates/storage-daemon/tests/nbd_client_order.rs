//! The order in which requests are sent again when a connection is lost: no old write ends above a newer one.
#![forbid(unsafe_code)]

mod util;

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use coblk::{BlockBackend, BlockNode, Co, IoThread, IoVector, WriteFlags};
use util::fake::{self, Asked, Fake, Style};
use util::stage::{BLOCK, SIZE, Stage, WATCH, accept, answer_all, comes};

/// What a write is, in short.
fn brief(asked: &Asked) -> (u64, u8) {
    assert_eq!((asked.command, asked.length), (fake::WRITE, BLOCK));
    (asked.offset, asked.payload[0])
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

/// Writes a block of these bytes, at the beginning.
fn write(co: &Co<'_>, node: &Arc<BlockNode>, byte: u8) -> io::Result<()> {
    let backend = BlockBackend::new(co.context(), "test", Arc::clone(node));
    let data = vec![byte; BLOCK as usize];
    backend.co_pwritev(co, 0, &IoVector::from(&data), WriteFlags::empty())
}

/// Does so again and again until it is done.
fn write_at_last(co: &Co<'_>, node: &Arc<BlockNode>, byte: u8) {
    for _ in 0..12_000 {
        if write(co, node, byte).is_ok() {
            return;
        }
        co.sleep(Duration::from_millis(5));
    }
    panic!("it is not written in a minute");
}

/// A write fails, as its server hangs, and is carried out later than one thinks: a newer one, which has a connection by
/// then, is not sent before the server has closed the old one.
#[test]
fn a_newer_write_waits_for_one_that_has_failed_and_may_still_be_carried_out() {
    let (stage, listener) = Stage::new();
    let server = thread::spawn(move || {
        let mut first = accept(&listener);
        assert_eq!(brief(&first.request().unwrap()), (0, 1));
        let mut second = accept(&listener);
        assert!(!comes(&second.stream), "a newer write is sent while an older one may come");
        drop(first);
        let asked = second.request().unwrap();
        assert_eq!(brief(&asked), (0, 2));
        let answer = second.answer(&asked, 0, &[]);
        second.say(&answer).unwrap();
        answer_all(&mut second).unwrap();
    });
    let node = stage.open_with("1");
    stage.ctx.run(|co| {
        assert!(write(co, &node, 1).is_err());
        write_at_last(co, &node, 2);
    });
    drop(node);
    stage.close();
    server.join().unwrap();
}

/// What a connection of a server has seen that hangs: the byte of a write, and whether the first one was closed before.
type Sight = (u8, bool);

/// Answers all, and tells of the writes.
fn tell_writes(mut fake: Fake, says: &Sender<Sight>, is_closed: &AtomicBool) {
    while let Ok(asked) = fake.request() {
        match asked.command {
            fake::WRITE => {
                says.send((asked.payload[0], is_closed.load(Ordering::Acquire))).unwrap();
            }
            fake::DISCONNECT => return,
            _ => {}
        }
        let answer = fake.answer(&asked, 0, &[]);
        let _ = fake.say(&answer);
    }
}

/// The other context has a connection that was never lost.
#[test]
fn a_newer_write_of_another_context_waits_for_one_that_has_failed_too() {
    const CAN_MULTI_CONN: u16 = 1 << 8;
    let (stage, listener) = Stage::new();
    let (says, sees): (Sender<Sight>, Receiver<Sight>) = channel();
    let (over, is_closed) = (AtomicBool::new(false), AtomicBool::new(false));
    let thread = IoThread::new("other").unwrap();
    let path = stage.place.path("server.sock");
    let new_connection = |listener: &UnixListener| loop {
        let stream = listener.accept().unwrap().0;
        if over.load(Ordering::Acquire) {
            return None;
        }
        let flags = fake::ALL | CAN_MULTI_CONN;
        if let Ok(fake) = Fake::negotiate(stream, Style::Structured, SIZE, flags) {
            return Some(fake);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut first = new_connection(&listener).unwrap();
            let other = new_connection(&listener).unwrap();
            scope.spawn(|| tell_writes(other, &says, &is_closed));
            assert_eq!(brief(&first.request().unwrap()), (0, 1));
            // Both contexts come again, while the first connection is open.
            for _ in 0..2 {
                let Some(again) = new_connection(&listener) else { return };
                scope.spawn(|| tell_writes(again, &says, &is_closed));
            }
            thread::sleep(WATCH);
            is_closed.store(true, Ordering::Release);
            drop(first);
            while !over.load(Ordering::Acquire) {
                let _ = listener.accept();
            }
        });
        let node = stage.open_with("1");
        let in_thread = |byte: u8, is_first: bool| {
            let (node, handle) = (Arc::clone(&node), thread.handle());
            let written = handle.spawn("write", move |co| match is_first {
                true => write(co, &node, byte).unwrap(),
                false => write_at_last(co, &node, byte),
            });
            stage.ctx.run(|co| co.block_on(written)).unwrap();
        };
        // Its connection.
        in_thread(7, true);
        assert_eq!(sees.recv().unwrap(), (7, false));
        stage.ctx.run(|co| assert!(write(co, &node, 1).is_err()));
        in_thread(2, false);
        let (byte, was_closed) = sees.recv().unwrap();
        assert_eq!(byte, 2);
        drop(node);
        stage.blockdevs.close(&stage.ctx, "disk").unwrap();
        over.store(true, Ordering::Release);
        UnixStream::connect(&path).unwrap();
        assert!(was_closed, "a newer write is sent while an older one may come");
    });
}

/// What lies in the client's kernel when its connection is given up never gets to the server.
#[test]
fn a_write_that_has_failed_is_not_sent_any_more() {
    const LONG: usize = 16 << 20;
    let (stage, _) = Stage::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // What it takes of what is not read.
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 64 << 10).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (says, hears): (Sender<()>, Receiver<()>) = channel();
    let server = thread::spawn(move || {
        // A type of streams, whatever they are.
        let stream = UnixStream::from(OwnedFd::from(listener.accept().unwrap().0));
        let size = 2 * LONG as u64;
        let mut fake = Fake::negotiate(stream, Style::Structured, size, fake::ALL).unwrap();
        hears.recv().unwrap();
        let mut rest = Vec::new();
        let ended = io::Read::read_to_end(&mut fake.stream, &mut rest);
        assert!(rest.len() < 1 << 20, "{} bytes arrive: {ended:?}", rest.len());
    });
    let server_at = format!("server.type=inet,server.host=127.0.0.1,server.port={port}");
    let node = stage.open_at(&format!("{server_at},reconnect-delay=1"));
    stage.ctx.run(|co| {
        let backend = BlockBackend::new(co.context(), "test", Arc::clone(&node));
        let data = vec![1; LONG];
        assert!(backend.co_pwritev(co, 0, &IoVector::from(&data), WriteFlags::empty()).is_err());
    });
    drop(node);
    stage.close();
    says.send(()).unwrap();
    server.join().unwrap();
}
