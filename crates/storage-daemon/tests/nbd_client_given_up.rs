//! What is given up, and when: requests at servers that hang, connections that are of no use.
#![forbid(unsafe_code)]

mod util;

use std::cell::Cell;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coblk::{BlockBackend, BlockNode, Co, IoThread, IoVector, IoVectorMut, WriteFlags};
use coblk_tests::tools;
use util::fake::{self, Fake, Style};
use util::stage::{BLOCK, SIZE, Stage, accept, answer_all};

const CAN_MULTI_CONN: u16 = 1 << 8;
/// The NBD number of a server that ends.
const ESHUTDOWN: u32 = 108;

fn write(co: &Co<'_>, node: &Arc<BlockNode>, byte: u8) -> std::io::Result<()> {
    let backend = BlockBackend::new(co.context(), "test", Arc::clone(node));
    let data = vec![byte; BLOCK as usize];
    backend.co_pwritev(co, u64::from(byte) * BLOCK, &IoVector::from(&data), WriteFlags::empty())
}

/// Begins a write; what has become of it.
fn begin(stage: &Stage, node: &Arc<BlockNode>, byte: u8) -> Rc<Cell<Option<bool>>> {
    let (node, result) = (Arc::clone(node), Rc::new(Cell::new(None)));
    let told = Rc::clone(&result);
    stage.ctx.spawn("write", move |co| told.set(Some(write(co, &node, byte).is_ok())));
    result
}

/// Has the listening end, whatever becomes of the test.
struct End<'a> {
    over: &'a AtomicBool,
    path: PathBuf,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        let _ = UnixStream::connect(&self.path);
    }
}

/// A server whose first connection is like any other, and that greets no client on further ones.
fn with_a_shy_server(then: impl FnOnce(&Stage, &Arc<BlockNode>, &IoThread)) {
    let (stage, listener) = Stage::new();
    let path = stage.place.path("server.sock");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let stream = listener.accept().unwrap().0;
            let flags = fake::ALL | CAN_MULTI_CONN;
            let mut first = Fake::negotiate(stream, Style::Structured, SIZE, flags).unwrap();
            scope.spawn(move || answer_all(&mut first));
            let mut others = Vec::new();
            while !over.load(Ordering::Acquire) {
                others.push(listener.accept().unwrap().0);
            }
        });
        let server = format!("server.type=unix,server.path={}", tools::text(&path));
        let _end = End { over: &over, path };
        let node = stage.open_at(&server);
        let thread = IoThread::new("other").unwrap();
        // It keeps the connection here.
        let backend = BlockBackend::new(&stage.ctx, "first", Arc::clone(&node));
        then(&stage, &node, &thread);
        drop((backend, node));
        stage.blockdevs.close(&stage.ctx, "disk").unwrap();
    });
}

/// A second context whose connection does not come about has its requests carried out by the first one's.
#[test]
fn a_request_does_not_wait_for_a_further_connection_of_a_server_that_hangs() {
    with_a_shy_server(|stage, node, thread| {
        let begun = Instant::now();
        for byte in [1, 2] {
            let node = Arc::clone(node);
            let written = thread.handle().spawn("write", move |co| write(co, &node, byte));
            stage.ctx.run(|co| co.block_on(written)).unwrap().unwrap();
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
    });
}

/// What waits for one is given up by a cancel, and by a drain goes elsewhere.
#[test]
fn a_further_connection_is_given_up() {
    for is_drain in [false, true] {
        with_a_shy_server(|stage, node, thread| {
            let other = Arc::clone(node);
            let begun = Instant::now();
            let written = thread.handle().spawn("write", move |co| write(co, &other, 1));
            stage.ctx.run(|co| co.sleep(Duration::from_millis(100)));
            match is_drain {
                true => stage.ctx.run(|co| drop(node.co_drain(co))),
                false => node.cancel_in_flight(),
            }
            let result = stage.ctx.run(|co| co.block_on(written)).unwrap();
            assert_eq!(result.is_ok(), is_drain);
            let took = begun.elapsed();
            assert!(took < Duration::from_millis(900), "{is_drain} {took:?}");
        });
    }
}

/// A job of two that use a node is cancelled. The other one goes on to wait for a server that goes.
#[test]
fn a_cancel_is_for_what_is_in_flight_and_no_later_request() {
    let (stage, listener) = Stage::new();
    let server = thread::spawn(move || {
        let mut first = accept(&listener);
        let old = first.request().unwrap();
        let later = first.request().unwrap();
        assert_eq!((old.payload[0], later.payload[0]), (1, 2));
        // The later one stays in flight: there is no moment without one.
        first.say(&first.answer(&old, 0, &[])).unwrap();
        thread::sleep(Duration::from_millis(200));
        drop(first);
        let mut second = accept(&listener);
        let again = second.request().unwrap();
        assert_eq!(again.payload[0], 2);
        second.say(&second.answer(&again, 0, &[])).unwrap();
        answer_all(&mut second).unwrap();
    });
    let node = stage.open();
    let old = begin(&stage, &node, 1);
    stage.ctx.run(|co| co.sleep(Duration::from_millis(50)));
    node.cancel_in_flight();
    stage.ctx.run(|co| co.sleep(Duration::from_millis(50)));
    let later = begin(&stage, &node, 2);
    stage.ctx.run_until(|| old.get().is_some() && later.get().is_some());
    assert_eq!((old.get(), later.get()), (Some(true), Some(true)));
    drop(node);
    stage.close();
    server.join().unwrap();
}

/// Serves connections by `converse` until the test is over; how many there were.
fn count_connections(
    reconnect_delay: &str,
    converse: impl Fn(Fake) + Sync,
    then: impl FnOnce(&Stage, &Arc<BlockNode>),
) -> usize {
    let (stage, listener) = Stage::new();
    let path = stage.place.path("server.sock");
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                let stream = listener.accept().unwrap().0;
                if over.load(Ordering::Acquire) {
                    return;
                }
                count.fetch_add(1, Ordering::Relaxed);
                if let Ok(fake) = Fake::negotiate(stream, Style::Structured, SIZE, fake::ALL) {
                    converse(fake);
                }
            }
        });
        let _end = End { over: &over, path };
        let node = stage.open_with(reconnect_delay);
        then(&stage, &node);
        let counted = count.load(Ordering::Relaxed);
        drop(node);
        stage.blockdevs.close(&stage.ctx, "disk").unwrap();
        counted
    })
}

/// It is not asked for ever, nor as fast as it can.
#[test]
fn a_request_fails_at_a_server_that_is_always_about_to_end() {
    let refuse_all = |mut fake: Fake| {
        while let Ok(asked) = fake.request() {
            let answer = fake.answer(&asked, ESHUTDOWN, &[]);
            if asked.command == fake::DISCONNECT || fake.say(&answer).is_err() {
                return;
            }
        }
    };
    let connections = count_connections("1", refuse_all, |stage, node| {
        let begun = Instant::now();
        let failed = begin(stage, node, 1);
        stage.ctx.run_until(|| failed.get().is_some());
        let took = begun.elapsed();
        assert_eq!(failed.get(), Some(false));
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
    });
    assert!(connections < 12, "{connections} connections");
}

/// A byte of an answer is no use.
#[test]
fn a_server_that_hangs_up_at_once_is_asked_less_and_less() {
    let hang_up = |mut fake: Fake| _ = fake.say(&[0x66]);
    let connections = count_connections("0", hang_up, |stage, _| {
        stage.ctx.run(|co| co.sleep(Duration::from_secs(1)));
    });
    assert!(connections < 12, "{connections} connections");
}

/// A server that sends a byte of an answer now and then is never silent.
#[test]
fn a_cancel_ends_though_the_server_dribbles() {
    let (stage, listener) = Stage::new();
    let server = thread::spawn(move || {
        let mut fake = accept(&listener);
        let asked = fake.request().unwrap();
        let answer = fake.answer(&asked, 0, &vec![7; asked.length as usize]);
        for byte in &answer {
            if fake.stream.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(200));
        }
        drop(fake);
        // The client may come again.
        let _ = listener.set_nonblocking(true);
        drop(listener.accept());
    });
    let node = stage.open_with("0");
    let failed = Rc::new(Cell::new(false));
    let (own, told) = (Arc::clone(&node), Rc::clone(&failed));
    stage.ctx.spawn("read", move |co| {
        let backend = BlockBackend::new(co.context(), "test", own);
        let mut data = vec![0; BLOCK as usize];
        let mut target = IoVectorMut::from(&mut data[..]);
        told.set(backend.co_preadv(co, 0, &mut target).is_err());
    });
    stage.ctx.run(|co| co.sleep(Duration::from_millis(300)));
    let begun = Instant::now();
    node.cancel_in_flight();
    stage.ctx.run_until(|| failed.get());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    drop(node);
    stage.close();
    server.join().unwrap();
}

/// A server that breaks the protocol, has said a lot by then, and closes: that is seen at once.
#[test]
fn the_end_of_a_connection_is_seen_behind_what_was_said_before() {
    let (stage, listener) = Stage::new();
    let (says, hears) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        let mut first = accept(&listener);
        rustix::net::sockopt::set_socket_send_buffer_size(&first.stream, 4 << 20).unwrap();
        first.request().unwrap();
        first.stream.set_nonblocking(true).unwrap();
        let mut said = 0;
        while let Ok(bytes) = first.stream.write(&[0xee; 64 << 10]) {
            said += bytes;
        }
        drop(first);
        says.send(said).unwrap();
        let mut second = accept(&listener);
        let again = second.request().unwrap();
        second.say(&second.answer(&again, 0, &[])).unwrap();
        answer_all(&mut second).unwrap();
    });
    let node = stage.open();
    let written = begin(&stage, &node, 1);
    // Has the request sent, and the loop find all at once.
    stage.ctx.poll_timeout(Duration::ZERO);
    let said = hears.recv().unwrap();
    assert!(said > 192 << 10, "only {said} bytes");
    let begun = Instant::now();
    stage.ctx.run_until(|| written.get().is_some());
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(900), "{took:?}");
    drop(node);
    stage.close();
    server.join().unwrap();
}

/// Negotiates so much, and answers all.
fn serve_once(listener: &UnixListener, style: Style, size: u64, is_last: bool) {
    let stream = listener.accept().unwrap().0;
    let mut fake = Fake::negotiate(stream, style, size, fake::ALL).unwrap();
    if is_last {
        return answer_all(&mut fake).unwrap();
    }
    while let Ok(asked) = fake.request() {
        if asked.command == fake::WRITE {
            return;
        }
        fake.say(&fake.answer(&asked, 0, &[])).unwrap();
    }
}

/// The next server knows of no extents, and its export is longer by a part of a block.
#[test]
fn a_server_that_knows_less_takes_the_place_of_one() {
    let (stage, listener) = Stage::new();
    let server = thread::spawn(move || {
        serve_once(&listener, Style::Structured, SIZE, false);
        serve_once(&listener, Style::Simple, SIZE + 2 * 512 + 100, true);
    });
    let node = stage.open();
    stage.ctx.run(|co| {
        let backend = BlockBackend::new(co.context(), "test", Arc::clone(&node));
        assert!(backend.co_block_status(co, 0, BLOCK).unwrap().data);
        write(co, &node, 1).unwrap();
        let extent = backend.co_block_status(co, 0, BLOCK).unwrap();
        assert_eq!((extent.data, extent.zero, extent.bytes), (true, false, BLOCK));
        assert_eq!(node.co_refresh_length(co).unwrap(), SIZE + 2 * 512);
        drop(backend);
    });
    drop(node);
    stage.close();
    server.join().unwrap();
}
