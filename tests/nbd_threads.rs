//! An NBD export that several contexts serve. A connection belongs to one of them; all share the node, the
//! limits of the server and its end.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use coblk::block::ReadFlags;
use coblk::nbd::{NbdExportError, NbdOptions, RemoveMode};
use coblk::{AioContext, BlockDriver, BlockNode, Co, CoWaker, IoVector, IoVectorMut, WriteFlags};
use coblk_tests::nbd::{
    MAGIC, Served, Session, choose, choose_structured, hogs, read_structured, request,
};
use coblk_tests::storage_daemon::eventually;

const PARENT: &str = env!("CARGO_TARGET_TMPDIR");
const SIZE: usize = 40 << 20;

/// A disk in memory with a cache that a flush empties. A handle: clones are the same disk.
#[derive(Clone)]
struct Disk(Arc<Shared>);

struct Shared {
    memory: Mutex<Vec<u8>>,
    /// What the last flush has found.
    durable: Mutex<Vec<u8>>,
    /// Requests, by the contexts that they came from.
    contexts: Mutex<BTreeMap<String, usize>>,
    in_flight: AtomicUsize,
    holds: AtomicBool,
    held: Mutex<Vec<CoWaker>>,
}

impl Disk {
    fn new() -> Disk {
        Disk(Arc::new(Shared {
            memory: Mutex::new(vec![1; SIZE]),
            durable: Mutex::new(vec![1; 1 << 20]),
            contexts: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            holds: AtomicBool::new(false),
            held: Mutex::default(),
        }))
    }

    fn node(&self) -> Arc<BlockNode> {
        BlockNode::new("disk0", self.clone())
    }

    /// A request is in flight while the rest of the loop runs.
    fn request(&self, co: &Co<'_>) {
        *self.0.contexts.lock().unwrap().entry(co.context().name().to_owned()).or_default() += 1;
        self.0.in_flight.fetch_add(1, Ordering::SeqCst);
        if self.0.holds.load(Ordering::SeqCst) {
            co.suspend_with(|waker| self.0.held.lock().unwrap().push(waker));
        } else {
            co.yield_now();
        }
    }

    fn done(&self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }

    /// Requests wait from now on.
    fn hold(&self) {
        self.0.holds.store(true, Ordering::SeqCst);
    }

    /// They go on, and do not wait any more.
    fn release(&self) {
        self.0.holds.store(false, Ordering::SeqCst);
        let held = std::mem::take(&mut *self.0.held.lock().unwrap());
        held.into_iter().for_each(CoWaker::wake);
    }

    fn held(&self) -> usize {
        self.0.held.lock().unwrap().len()
    }
}

impl BlockDriver for Disk {
    fn format_name(&self) -> &'static str {
        "cached"
    }

    fn length(&self) -> u64 {
        SIZE as u64
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        self.request(co);
        target.copy_from(0, &self.0.memory.lock().unwrap()[offset as usize..]);
        self.done();
        Ok(())
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _: WriteFlags,
    ) -> io::Result<()> {
        self.request(co);
        let at = offset as usize;
        source.copy_to(0, &mut self.0.memory.lock().unwrap()[at..at + source.len()]);
        self.done();
        Ok(())
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.request(co);
        let mut durable = self.0.durable.lock().unwrap();
        let len = durable.len();
        durable.copy_from_slice(&self.0.memory.lock().unwrap()[..len]);
        drop(durable);
        self.done();
        Ok(())
    }
}

fn serve(disk: &Disk, contexts: usize) -> Served {
    serve_node(&disk.node(), contexts)
}

fn serve_node(node: &Arc<BlockNode>, contexts: usize) -> Served {
    let options = NbdOptions::default().max_connections(0);
    Served::on_contexts(PARENT, options, contexts, |_: &Path| Arc::clone(node))
}

#[test]
fn eight_connections_use_all_contexts_and_a_flush_of_one_covers_what_was_answered_on_the_others() {
    let disk = Disk::new();
    let served = serve(&disk, 4);
    let mut sessions: Vec<_> = (0..8).map(|_| Session::open(&served.socket())).collect();
    for session in &mut sessions {
        session.read(0, 4096).unwrap();
    }
    let expected = (0..4).map(|number| (format!("t{number}"), 2));
    assert_eq!(*disk.0.contexts.lock().unwrap(), expected.collect());
    for round in 0..400 {
        let (writer, flusher) = (round % 8, (round / 8 + round) % 8);
        let data = [round as u8; 512];
        let at = round * 512;
        sessions[writer].write(at as u64, &data).unwrap();
        sessions[flusher].flush().unwrap();
        assert_eq!(disk.0.durable.lock().unwrap()[at..at + 512], data, "round {round}");
    }
    // Connections that have gone leave their places to the next.
    sessions.drain(..6);
    eventually("clients to go", || served.connections() == 2);
    disk.0.contexts.lock().unwrap().clear();
    sessions.extend((0..2).map(|_| Session::open(&served.socket())));
    for session in &mut sessions {
        session.read(0, 4096).unwrap();
    }
    assert_eq!(disk.0.contexts.lock().unwrap().len(), 4, "{:?}", disk.0.contexts);
}

/// Clients that check what they read, each in a part of its own, until told to stop.
fn verified_load(served: &Served, clients: usize, stop: &Arc<AtomicBool>) -> Vec<Loader> {
    let load = |number: usize| {
        let (path, stop) = (served.socket(), Arc::clone(stop));
        thread::spawn(move || {
            let mut session = Session::open(&path);
            let (mut rounds, at) = (0, (number * 4096) as u64);
            while !stop.load(Ordering::Acquire) {
                let data = vec![(rounds + number) as u8; 4096];
                session.write(at, &data).unwrap();
                assert!(session.read(at, 4096).unwrap() == data, "client {number}");
                rounds += 1;
            }
            rounds
        })
    };
    (0..clients).map(load).collect()
}

type Loader = thread::JoinHandle<usize>;

#[test]
fn a_drain_finds_no_request_in_any_context() {
    let disk = Disk::new();
    let node = disk.node();
    let served = serve_node(&node, 3);
    let stop = Arc::new(AtomicBool::new(false));
    let clients = verified_load(&served, 6, &stop);
    eventually("all contexts to be busy", || disk.0.contexts.lock().unwrap().len() == 3);
    let ctx = AioContext::for_test().unwrap();
    for round in 0..200 {
        let before = disk.0.contexts.lock().unwrap().values().sum::<usize>();
        let drained = node.drain(&ctx);
        for _ in 0..20 {
            assert_eq!(disk.0.in_flight.load(Ordering::SeqCst), 0, "round {round}");
            thread::yield_now();
        }
        drop(drained);
        eventually("requests to go on", || {
            disk.0.contexts.lock().unwrap().values().sum::<usize>() > before
        });
    }
    stop.store(true, Ordering::Release);
    assert!(clients.into_iter().all(|client| client.join().unwrap() > 0));
}

#[test]
fn clients_that_come_and_go_in_storms_leave_nothing_behind() {
    let disk = Disk::new();
    let served = serve(&disk, 3);
    let stop = Arc::new(AtomicBool::new(false));
    let honest = verified_load(&served, 3, &stop);
    let storm = |seed: usize| {
        let path = served.socket();
        thread::spawn(move || {
            for round in 0..60 {
                let mut client = choose(&path);
                // Large reads that it does not take, a write that it does not end, half a header, nothing.
                match (round + seed) % 4 {
                    0 => drop(client.write_all(&request(MAGIC, 0, 0, 0, 8 << 20).repeat(3))),
                    1 => {
                        let write = request(MAGIC, 0, 1, 30 << 20, 4 << 20);
                        let _ = client.write_all(&[write, vec![1; 100_000]].concat());
                    }
                    2 => drop(client.write_all(&request(MAGIC, 0, 0, 0, 512)[..9])),
                    _ => {}
                }
            }
        })
    };
    let storms: Vec<_> = (0..6).map(storm).collect();
    storms.into_iter().for_each(|storm| storm.join().unwrap());
    eventually("the storms to end", || served.connections() == 3);
    stop.store(true, Ordering::Release);
    assert!(honest.into_iter().all(|client| client.join().unwrap() > 0));
    // All of the memory has come back: a long reply goes in one piece.
    let mut client = choose_structured(&served.socket());
    let reply = read_structured(&mut client, 0, 0, 32 << 20);
    assert_eq!((reply.chunks, reply.error), (1, None));
}

#[test]
fn memory_that_clients_of_one_context_hold_is_missing_in_the_others() {
    let disk = Disk::new();
    let served = serve(&disk, 4);
    let first = hogs(&served, 1, 0);
    let mut others: Vec<_> = (0..3).map(|_| choose_structured(&served.socket())).collect();
    let second = hogs(&served, 2, 0);
    for other in &mut others {
        let reply = read_structured(other, 0, 0, 32 << 20);
        assert!(reply.error.is_none() && reply.data.iter().all(|byte| *byte == 1));
        assert!(reply.chunks > 1, "there was room for all of it");
    }
    drop((first, second));
    eventually("the hogs to go", || served.connections() == 3);
    for other in &mut others {
        assert_eq!(read_structured(other, 0, 0, 32 << 20).chunks, 1);
    }
}

#[test]
fn an_export_is_removed_while_other_contexts_serve_it() {
    let disk = Disk::new();
    let served = serve(&disk, 3);
    let remove = |mode| served.at_server(move |_, server| server.remove_export("disk", mode));
    let mut clients: Vec<_> = (0..5).map(|_| choose(&served.socket())).collect();
    let mut other = Session::choose(&served.socket(), "ro");
    disk.hold();
    for client in &mut clients {
        client.write_all(&request(MAGIC, 0, 0, 0, 4096).repeat(3)).unwrap();
    }
    eventually("requests to be in flight", || disk.held() == 15);
    let refused = remove(RemoveMode::Safe).unwrap_err();
    assert_eq!(refused, NbdExportError::InUse { name: "disk".to_owned(), connections: 5 });
    remove(RemoveMode::Hard).unwrap();
    // They are disconnected at once, and are clients until their requests are done.
    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    }
    assert_eq!(served.connections(), 6);
    disk.release();
    eventually("the clients to be gone", || served.connections() == 1);
    assert_eq!(other.read(0, 512).unwrap(), [1; 512]);
    assert_eq!(remove(RemoveMode::Hard), Err(NbdExportError::NotFound("disk".to_owned())));
}

#[test]
fn a_server_that_ends_lets_the_clients_of_all_contexts_have_their_replies() {
    let disk = Disk::new();
    let served = serve(&disk, 3);
    let mut clients: Vec<_> = (0..6).map(|_| choose(&served.socket())).collect();
    disk.hold();
    for client in &mut clients {
        client.write_all(&request(MAGIC, 0, 0, 0, 4096).repeat(2)).unwrap();
    }
    eventually("requests to be in flight", || disk.held() == 12);
    let (released, path) = (disk.clone(), served.socket());
    let release = thread::spawn(move || {
        // All contexts have been told when the listener is closed.
        eventually("the server to end", || UnixStream::connect(&path).is_err());
        released.release();
    });
    drop(served);
    release.join().unwrap();
    for client in &mut clients {
        let mut replies = Vec::new();
        client.read_to_end(&mut replies).unwrap();
        assert_eq!(replies.len(), 2 * (16 + 4096));
    }
}

#[test]
fn the_limit_of_clients_holds_over_all_contexts() {
    let disk = Disk::new();
    let options = NbdOptions::default().max_connections(3);
    let served = Served::on_contexts(PARENT, options, 2, |_: &Path| disk.node());
    let mut first: Vec<_> = (0..3).map(|_| Session::open(&served.socket())).collect();
    first.iter_mut().for_each(|session| drop(session.read(0, 512).unwrap()));
    let mut next = served.connect();
    next.set_nonblocking(true).unwrap();
    let waits = |next: &mut UnixStream| next.read(&mut [0]).unwrap_err().kind();
    for _ in 0..5 {
        first[0].read(0, 512).unwrap();
        assert_eq!(waits(&mut next), io::ErrorKind::WouldBlock, "the fourth is let in");
    }
    assert_eq!(served.connections(), 3);
    first.pop();
    next.set_nonblocking(false).unwrap();
    next.read_exact(&mut [0; 18]).unwrap();
}
