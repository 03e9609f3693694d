//! Servers that are killed, restarted and stopped under a load that is verified sector by sector.
//!
//! `COBLK_KILL_ROUNDS` sets how often each server is killed (default 12). `COBLK_HANG_DELAY` sets `reconnect-delay` in
//! seconds for servers that are stopped (default 1), which then are so for three times as long.
#![forbid(unsafe_code)]

mod util;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coblk::{AioContext, BlockNode, Blockdevs, IoThread, options::NodeOptions};
use coblk_tests::load::{KINDS, Kind, Mix, Shared};
use coblk_tests::nbd::Session;
use coblk_tests::random::{Random, option};
use coblk_tests::recorded::{Behaviour, Recorder, SECTOR};
use coblk_tests::register::Registers;
use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::json;
use util::qmp::Client;
use util::servers::{PROGRAMS, Program, Server};
use util::{Daemon, Place, wait_until};

const ROUNDS: u64 = 12;
/// Sectors that the load changes.
const SECTORS: usize = 2048;

/// A node on the server of a place.
fn open(ctx: &AioContext, blockdevs: &Blockdevs, place: &Place, more: &str) -> Arc<BlockNode> {
    let options = format!(
        "nbd,node-name=disk,server.type=unix,server.path={},export=disk{more}",
        tools::text(&place.path("server.sock"))
    );
    blockdevs.open(ctx, NodeOptions::from_keyval(&options).unwrap()).unwrap()
}

fn serve(program: Program, place: &Place) -> Server {
    Server::start(program, &place.image(), &place.path("server.sock"))
}

fn requests(shared: &Shared) -> u64 {
    KINDS.iter().map(|kind| shared.count(*kind).done.load(Ordering::Relaxed)).sum()
}

fn rounds() -> u64 {
    option("COBLK_KILL_ROUNDS").unwrap_or(ROUNDS)
}

/// Requests between two kills, at most.
const BETWEEN: u64 = 48;
/// Coroutines of each context.
const COROUTINES: u64 = 12;

/// Kills and restarts a server, each time after some more requests were answered; how often.
fn kill_and_restart(
    program: Program,
    place: &Place,
    shared: &Shared,
    mut server: Server,
    over: &AtomicBool,
) -> u64 {
    for round in 0..rounds() {
        let wanted = requests(shared) + BETWEEN - round % 7;
        let is_over = || over.load(Ordering::Acquire);
        wait_until("requests are answered", || requests(shared) >= wanted || is_over());
        if is_over() {
            return round;
        }
        server.kill();
        server = serve(program, place);
    }
    // Some servers end with the thread that has started them.
    wait_until("the load is over", || over.load(Ordering::Acquire));
    rounds()
}

/// No request fails, and each sector reads as it must, whatever was in flight when a server died.
fn check_kills(program: Program, contexts: usize) {
    let place = Place::in_memory();
    let zeroes = vec![0; SECTORS * SECTOR];
    std::fs::write(place.image(), &zeroes).unwrap();
    let server = serve(program, &place);
    let ctx = AioContext::for_test().unwrap();
    let threads: Vec<IoThread> = (1..contexts).map(|_| IoThread::new("other").unwrap()).collect();
    let others: Vec<_> = threads.iter().map(IoThread::handle).collect();
    let blockdevs = Blockdevs::new(coblk::drivers());
    let node = open(&ctx, &blockdevs, &place, ",reconnect-delay=60");
    let recorder = Recorder::new(Behaviour::default());
    // More than that: many are answered before the killer looks again.
    let requests = 4 * rounds() * BETWEEN / COROUTINES;
    let mix = Mix { coroutines: COROUTINES, requests, longest: 96, ..Mix::all(16) };
    let mix = mix.without(&[Kind::Compressed]);
    let shared = Shared::new(&ctx, &recorder, Registers::new(&zeroes), 1, mix);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let killer = scope.spawn(|| kill_and_restart(program, &place, &shared, server, &over));
        shared.play(&ctx, &node, &others);
        drop(node);
        blockdevs.close(&ctx, "disk").unwrap();
        over.store(true, Ordering::Release);
        let kills = killer.join().unwrap();
        assert_eq!(shared.fault(), None, "{program:?}, {contexts} contexts");
        assert!(kills > rounds() / 2, "{program:?} was killed {kills} times");
    });
}

#[test]
fn servers_killed_under_load_cost_no_request_and_no_sector() {
    for program in PROGRAMS {
        check_kills(program, 1);
    }
}

#[test]
fn servers_killed_under_the_load_of_two_contexts_cost_nothing_either() {
    for program in [Program::Own, Program::QemuNbd] {
        check_kills(program, 2);
    }
}

/// A network that carries bytes between TCP clients and a server at a unix socket, but stalls, delays parts of
/// messages, and loses connections, by seed. Ends with its listener.
fn bad_network(
    listener: &TcpListener,
    server: &Path,
    seed: u64,
    over: &AtomicBool,
    lost: &AtomicU64,
) {
    thread::scope(|scope| {
        for number in 0.. {
            let Ok((client, _)) = listener.accept() else { return };
            if over.load(Ordering::Acquire) {
                return;
            }
            let Ok(server) = UnixStream::connect(server) else { continue };
            let (back, forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let ways: [(Box<dyn Read + Send>, Box<dyn Write + Send>); 2] = [
                (Box::new(client.try_clone().unwrap()), Box::new(server.try_clone().unwrap())),
                (Box::new(back), Box::new(forth)),
            ];
            for (way, (mut from, mut to)) in (0..).zip(ways) {
                let mut random = Random::new(seed ^ number << 1 ^ way);
                let ends = (client.try_clone().unwrap(), server.try_clone().unwrap());
                scope.spawn(move || {
                    let mut part = [0; 3000];
                    while let Ok(bytes @ 1..) = from.read(&mut part) {
                        // The rest of a message may come later, or never.
                        let bytes = match random.below(200) {
                            0 => {
                                lost.fetch_add(1, Ordering::Relaxed);
                                let _ = to.write_all(&part[..bytes / 2]);
                                break;
                            }
                            1..4 => {
                                let (first, rest) = part[..bytes].split_at(bytes / 3);
                                let _ = to.write_all(first);
                                thread::sleep(Duration::from_millis(5));
                                rest
                            }
                            _ => &part[..bytes],
                        };
                        if to.write_all(bytes).is_err() {
                            break;
                        }
                    }
                    let _ = ends.0.shutdown(Shutdown::Both);
                    let _ = ends.1.shutdown(Shutdown::Both);
                });
            }
        }
    });
}

#[test]
fn a_network_that_stalls_and_loses_connections_costs_no_request_and_no_sector() {
    let place = Place::in_memory();
    let zeroes = vec![0; SECTORS * SECTOR];
    std::fs::write(place.image(), &zeroes).unwrap();
    let _server = serve(Program::Own, &place);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (over, lost) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| bad_network(&listener, &place.path("server.sock"), 7, &over, &lost));
        let ctx = AioContext::for_test().unwrap();
        let blockdevs = Blockdevs::new(coblk::drivers());
        let options = format!(
            "nbd,node-name=disk,server.type=inet,server.host=127.0.0.1,server.port={},export=disk,\
             reconnect-delay=60,open-timeout=60",
            address.port()
        );
        let node = blockdevs.open(&ctx, NodeOptions::from_keyval(&options).unwrap()).unwrap();
        let recorder = Recorder::new(Behaviour::default());
        let mix = Mix { coroutines: COROUTINES, requests: 100, longest: 96, ..Mix::all(16) };
        let mix = mix.without(&[Kind::Compressed]);
        let shared = Shared::new(&ctx, &recorder, Registers::new(&zeroes), 1, mix);
        shared.play(&ctx, &node, &[]);
        drop(node);
        blockdevs.close(&ctx, "disk").unwrap();
        over.store(true, Ordering::Release);
        let _ = TcpStream::connect(address);
        assert_eq!(shared.fault(), None);
    });
    let lost = lost.into_inner();
    assert!(lost > 3, "{lost} connections were lost");
}

const MONITOR: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor c0";

/// A daemon that exports a node on the server of its place.
fn start(place: &Place, options: &str) -> Daemon {
    place.start(&format!(
        "--blockdev nbd,node-name=disk,server.type=unix,server.path=@/server.sock,export=disk{options} \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name=disk,writable=on {MONITOR}"
    ))
}

/// Options of the node of [`start`], without more.
fn same_node(place: &Place) -> serde_json::Value {
    json!({"driver": "nbd", "node-name": "disk", "export": "disk",
        "server": {"type": "unix", "path": tools::text(&place.path("server.sock"))}})
}

/// The NBD number of an I/O error.
const EIO: u32 = 5;

#[test]
fn requests_to_a_server_that_stops_fail_after_the_delay_and_go_on_with_the_server() {
    let wanted = option("COBLK_HANG_DELAY");
    let delay = Duration::from_secs(wanted.unwrap_or(1));
    for program in PROGRAMS {
        let place = Place::new();
        let server = serve(program, &place);
        let daemon = start(&place, &format!(",reconnect-delay={}", delay.as_secs()));
        let mut session = Session::open(&place.socket());
        session.check(1);
        server.signal(Signal::STOP);
        let begun = Instant::now();
        session.send(1, 0, 4096, &[7; 4096]);
        let over = AtomicBool::new(false);
        let (failed, longest) = thread::scope(|scope| {
            // Whatever fails here, the other thread ends.
            let end = End(&over);
            let monitor = scope.spawn(|| ask_again_and_again(&place, &over));
            assert_eq!(session.answer(), Err(EIO), "{program:?}");
            let failed = begun.elapsed();
            while wanted.is_some() && begun.elapsed() < 3 * delay {
                assert_eq!(session.read(0, 512).err(), Some(EIO), "{program:?}");
                thread::sleep(Duration::from_millis(100));
            }
            drop(end);
            (failed, monitor.join().unwrap())
        });
        assert!(failed >= delay, "{program:?}");
        println!("{program:?}: failed after {failed:?}; longest command {longest:?}");
        server.signal(Signal::CONT);
        wait_until("the connection is made anew", || session.read(0, 512).is_ok());
        session.check(2);
        server.signal(Signal::STOP);
        session.send(1, 0, 4096, &[7; 4096]);
        let begun = Instant::now();
        Client::new(&place.path("qmp.sock")).run("quit", json!({}));
        assert!(daemon.wait().success());
        println!("{program:?}: ended after {:?}", begun.elapsed());
    }
}

/// Has it be over when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Asks a daemon of this and that until it is over; the longest time that an answer took.
fn ask_again_and_again(place: &Place, over: &AtomicBool) -> Duration {
    let mut monitor = Client::new(&place.path("qmp.sock"));
    let mut longest = Duration::ZERO;
    while !over.load(Ordering::Acquire) {
        for command in ["query-block-exports", "query-named-block-nodes", "query-jobs"] {
            let begun = Instant::now();
            monitor.run(command, json!({}));
            longest = longest.max(begun.elapsed());
        }
        thread::sleep(Duration::from_millis(20));
    }
    longest
}

/// A server that hangs is waited for as long as `reconnect-delay` says, without one for ever; not by a drain.
#[test]
fn a_drain_gives_requests_up_at_a_server_that_hangs() {
    for delay in [0, 3600] {
        let place = Place::new();
        let server = serve(Program::Own, &place);
        let daemon = start(&place, &format!(",reconnect-delay={delay}"));
        let mut monitor = Client::new(&place.path("qmp.sock"));
        let mut session = Session::open(&place.socket());
        session.check(1);
        server.signal(Signal::STOP);
        session.send(1, 0, 512, &[1; 512]);
        let mut same = same_node(&place);
        same["reconnect-delay"] = json!(delay);
        monitor.send("blockdev-reopen", json!({"options": [same]}));
        assert_eq!(session.answer(), Err(EIO), "{delay}");
        // A reopen flushes, for which the server is missed; what counts is that it ends.
        monitor.answer();
        server.signal(Signal::CONT);
        wait_until("the connection is made anew", || session.write(0, &[2; 512]).is_ok());
        daemon.stop(Signal::TERM);
    }
}

/// A mirror whose target hangs.
#[test]
fn a_forced_cancel_does_not_wait_for_a_server_that_hangs() {
    let place = Place::new();
    let server = serve(Program::Own, &place);
    let daemon = start(&place, "");
    let mut monitor = Client::new(&place.path("qmp.sock"));
    monitor.run("block-export-del", json!({"id": "e0"}));
    monitor.event("BLOCK_EXPORT_DELETED");
    let source = place.path("source");
    std::fs::write(&source, vec![7; std::fs::metadata(place.image()).unwrap().len() as usize])
        .unwrap();
    monitor.run(
        "blockdev-add",
        json!({"driver": "file", "node-name": "source", "filename": tools::text(&source)}),
    );
    server.signal(Signal::STOP);
    monitor.run(
        "blockdev-mirror",
        json!({"job-id": "j", "device": "source", "target": "disk", "sync": "full"}),
    );
    wait_until("requests are at the server", || {
        let jobs = monitor.run("query-block-jobs", json!({}));
        jobs[0]["status"] == json!("running")
    });
    monitor.run("block-job-cancel", json!({"device": "j", "force": true}));
    monitor.event("BLOCK_JOB_CANCELLED");
    drop(server);
    daemon.stop(Signal::TERM);
}

/// It would be killed by the test if it waited.
#[test]
fn a_daemon_ends_at_once_though_its_server_has_stopped_or_is_gone() {
    for options in ["", ",reconnect-delay=3600"] {
        for is_gone in [false, true] {
            let place = Place::new();
            let server = serve(Program::Own, &place);
            let daemon = start(&place, options);
            let mut session = Session::open(&place.socket());
            session.check(1);
            let stopped = match is_gone {
                true => {
                    server.kill();
                    None
                }
                false => {
                    server.signal(Signal::STOP);
                    Some(server)
                }
            };
            session.send(1, 0, 512, &[1; 512]);
            let mut monitor = Client::new(&place.path("qmp.sock"));
            monitor.run("quit", json!({}));
            assert!(daemon.wait().success(), "{options:?} {is_gone}");
            drop(stopped);
        }
    }
}

#[test]
fn a_drain_and_a_hard_removal_give_waiting_requests_up() {
    let place = Place::new();
    let server = serve(Program::Own, &place);
    let daemon = start(&place, ",reconnect-delay=3600");
    let mut monitor = Client::new(&place.path("qmp.sock"));
    let mut session = Session::open(&place.socket());
    session.check(1);
    server.kill();
    session.send(1, 0, 512, &[1; 512]);
    // It waits for a server that does not come: the monitor is answered meanwhile.
    monitor.run("query-block-exports", json!({}));
    let mut same = same_node(&place);
    same["reconnect-delay"] = json!(3600);
    monitor.send("blockdev-reopen", json!({"options": [same]}));
    assert_eq!(session.answer(), Err(EIO));
    // Fails, as a reopen flushes, and there is no server; what counts is that it ends.
    assert!(monitor.answer().get("error").is_some());
    // The server is back, goes once more, and the export goes with what waits.
    let server = serve(Program::Own, &place);
    wait_until("the connection is made anew", || session.read(0, 512).is_ok());
    server.kill();
    session.send(1, 0, 512, &[1; 512]);
    monitor.run("block-export-del", json!({"id": "e0", "mode": "hard"}));
    monitor.event("BLOCK_EXPORT_DELETED");
    daemon.stop(Signal::TERM);
}

/// For `open-timeout` seconds the server is tried to reach.
#[test]
fn a_node_is_opened_when_its_server_comes_in_time() {
    let place = Place::new();
    let daemon = place.start(MONITOR);
    let mut monitor = Client::new(&place.path("qmp.sock"));
    let path = place.path("server.sock");
    let mut node = json!({"driver": "nbd", "node-name": "n", "export": "disk",
        "server": {"type": "unix", "path": tools::text(&path)}});
    node["open-timeout"] = json!(60);
    monitor.send("blockdev-add", node.clone());
    assert!(!monitor.is_answered());
    let server = serve(Program::QemuNbd, &place);
    assert_eq!(monitor.answer(), json!({"return": {}}));
    monitor.run("blockdev-del", json!({"node-name": "n"}));
    drop(server);
    std::fs::remove_file(&path).ok();
    node["open-timeout"] = json!(1);
    let begun = Instant::now();
    monitor.refused("blockdev-add", node);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    daemon.stop(Signal::TERM);
}
