//! Signals end the daemon in order: what was acknowledged is in the image.

mod util;

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk_tests::nbd::{MAGIC, choose, request};
use coblk_tests::random::{Random, seeds};
use rustix::process::Signal;
use serde_json::json;
use util::qmp::Client;
use util::{Place, SIZE, collect, many_nodes, until_early, wait_until};

const SIGNALS: [Signal; 3] = [Signal::INT, Signal::HUP, Signal::TERM];
const BLOCK: usize = 4096;
const CLIENTS: u64 = 4;

/// What a block holds after its `round`th write.
fn content(round: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    Random::new(round).fill(&mut block);
    block
}

/// Writes its own blocks over and over, until the daemon is gone. Returns the acknowledged rounds.
fn write_until_the_end(mut stream: UnixStream, client: u64, acknowledged: &AtomicU64) -> Vec<u64> {
    let blocks = SIZE / BLOCK as u64 / CLIENTS;
    let mut rounds = vec![0; blocks as usize];
    for number in 0.. {
        let (block, round) = (number % blocks, number / blocks + 1);
        let offset = (client * blocks + block) * BLOCK as u64;
        let mut bytes = request(MAGIC, 0, 1, offset, BLOCK as u32);
        bytes.extend_from_slice(&content(round));
        let mut reply = [0; 16];
        if stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut reply)).is_err() {
            break;
        }
        assert_eq!(reply[4..8], [0; 4], "a write failed");
        rounds[block as usize] = round;
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    rounds
}

#[test]
fn c85_signals_end_it_in_order_under_load() {
    for seed in seeds(6) {
        let place = Place::new();
        let daemon = place.start(&util::NBD.replace("disk,writable", "disk,name=disk,writable"));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (stream, acknowledged) = (choose(&place.socket()), Arc::clone(&acknowledged));
                std::thread::spawn(move || write_until_the_end(stream, client, &acknowledged))
            })
            .collect();
        let moment = Random::new(seed).below(3000);
        wait_until("clients write", || acknowledged.load(Ordering::Relaxed) >= moment);
        daemon.stop(SIGNALS[(seed % 3) as usize]);
        assert!(!place.pid_file().exists() && !place.socket().exists(), "seed {seed}");
        let image = std::fs::File::open(place.image()).unwrap();
        let blocks = SIZE / BLOCK as u64 / CLIENTS;
        for (client, thread) in clients.into_iter().enumerate() {
            for (block, round) in thread.join().unwrap().into_iter().enumerate() {
                let mut there = [0; BLOCK];
                let offset = (client as u64 * blocks + block as u64) * BLOCK as u64;
                image.read_exact_at(&mut there, offset).unwrap();
                // The next one may have been on its way.
                let expected = if round == 0 { [0; BLOCK] } else { content(round) };
                let good = there == expected || there == content(round + 1);
                assert!(good, "seed {seed}: block {block} of client {client}, round {round}");
            }
        }
    }
}

#[test]
fn c85_signals_end_it_during_the_start() {
    for signal in SIGNALS {
        let server = "--nbd-server addr.type=unix,addr.path=@/nbd.sock";
        let (place, mut daemon, _client) = until_early(|place| {
            place.command(&format!("{server}{} --pidfile @/pid", many_nodes()))
        });
        util::kill(daemon.id(), signal);
        assert!(daemon.wait().unwrap().success());
        assert!(!place.pid_file().exists() && !place.socket().exists(), "{signal:?}");
    }
}

/// They have asked for much, and take none of it.
#[test]
fn c85_clients_that_do_not_read_do_not_hold_up_the_end() {
    let place = Place::new();
    let daemon = place.start(&util::NBD.replace("disk,writable", "disk,name=disk,writable"));
    let mut clients: Vec<UnixStream> = (0..1).map(|_| choose(&place.socket())).collect();
    for client in &mut clients {
        for _ in 0..16 {
            client.write_all(&request(MAGIC, 0, 0, 0, 4 << 20)).unwrap();
        }
    }
    // It has begun to answer.
    let mut header = [0; 16];
    clients.iter_mut().for_each(|client| client.read_exact(&mut header).unwrap());
    daemon.stop(Signal::TERM);
}

/// Requests that an error has stopped, and those that wait for their turn, do not hold up the end.
#[test]
fn c85_what_is_held_does_not_hold_up_the_end() {
    let place = Place::new();
    let daemon = place.start(
        "--object throttle-group,id=g,limits.bps-total=1 \
         --blockdev file,node-name=disk,filename=@/disk.img \
         --blockdev throttle,node-name=slow,throttle-group=g,file=disk \
         --blockdev blkdebug,node-name=bad,image=slow,inject-error.0.iotype=read \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name=bad,name=disk,writable=on,rerror=stop",
    );
    // The first write takes what there is, the second would wait for an hour.
    let mut slow = choose(&place.socket());
    for offset in [0, 4096] {
        let mut bytes = request(MAGIC, 0, 1, offset, BLOCK as u32);
        bytes.extend_from_slice(&content(1));
        slow.write_all(&bytes).unwrap();
    }
    let mut held = choose(&place.socket());
    held.write_all(&request(MAGIC, 0, 0, 0, BLOCK as u32)).unwrap();
    let mut reply = [0; 16];
    slow.read_exact(&mut reply).unwrap();
    daemon.stop(Signal::TERM);
}

#[test]
fn c85_a_daemon_that_cannot_start_undoes_what_it_has_begun() {
    let place = Place::new();
    let output = place.output(&format!("{} --export nbd,id=e0,node-name=disk", util::NBD));
    assert_eq!(output.status.code(), Some(1));
    let said = util::stderr(&output);
    assert!(said.contains("Block export id 'e0' is already in use"), "{said}");
    assert!(!place.socket().exists());
    place.start_nbd().stop(Signal::TERM);
}

/// A request to this disk takes an hour.
const SLOW: &str = "--blockdev null-co,node-name=disk,latency-ns=3600000000000 \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock --chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off \
    --monitor chardev=c0 --metrics unix:@/metrics.sock \
    --export vhost-user-blk,id=v0,node-name=disk,addr.type=unix,addr.path=@/vhost.sock \
    --export nbd,id=e0,node-name=disk";

#[test]
fn c85_what_is_in_the_way_of_the_end_is_told_and_a_second_signal_ends_it_at_once() {
    for signal in SIGNALS {
        let place = Place::new();
        let mut daemon = place.start(SLOW);
        let said = collect(daemon.take_stderr());
        let mut client = choose(&place.socket());
        client.write_all(&request(MAGIC, 0, 0, 4096, 512)).unwrap();
        // Its answer says that the request before it has been read.
        client.write_all(&request(MAGIC, 0, 99, 0, 0)).unwrap();
        client.read_exact(&mut [0; 16]).unwrap();
        let names = ["pid", "nbd.sock", "qmp.sock", "metrics.sock", "vhost.sock"];
        assert_eq!(names.map(|name| place.path(name).exists()), [true; 5]);
        daemon.signal(Signal::TERM);
        let expected = "node 'disk', backend 'e0': read of 512 bytes at offset 4096, ";
        daemon.wait_until("what is in the way is told", || said.lock().unwrap().contains(expected));
        assert!(place.pid_file().exists(), "it is still there");
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(1), "{signal:?}: {}", said.lock().unwrap());
        let last = "a second signal: ended at once, with what was in flight on node 'disk'";
        wait_until("what hangs is named", || said.lock().unwrap().contains(last));
        assert_eq!(names.map(|name| place.path(name).exists()), [false; 5], "{signal:?}");
    }
}

/// TERM and HUP from one manager are one wish.
#[test]
fn c85_signals_that_come_together_are_one() {
    let place = Place::new();
    let daemon = place.start_nbd();
    SIGNALS.into_iter().for_each(|signal| daemon.signal(signal));
    assert!(daemon.wait().success());
}

#[test]
fn c85_a_disk_that_was_never_used_does_not_hold_up_the_end() {
    let place = Place::new();
    place.start(SLOW).stop(Signal::TERM);
}

/// A server that others listen at is not removed by one that ends late.
#[test]
fn c85_a_daemon_that_ends_at_once_leaves_the_socket_of_its_successor() {
    let place = Place::new();
    let mut daemon = place.start(SLOW);
    let said = collect(daemon.take_stderr());
    let mut client = choose(&place.socket());
    client.write_all(&request(MAGIC, 0, 0, 4096, 512)).unwrap();
    client.write_all(&request(MAGIC, 0, 99, 0, 0)).unwrap();
    client.read_exact(&mut [0; 16]).unwrap();
    std::fs::remove_file(place.path("qmp.sock")).unwrap();
    let _successor = std::os::unix::net::UnixListener::bind(place.path("qmp.sock")).unwrap();
    daemon.signal(Signal::TERM);
    daemon.wait_until("it waits", || said.lock().unwrap().contains("the end waits for node"));
    daemon.signal(Signal::TERM);
    daemon.wait();
    assert!(place.path("qmp.sock").exists());
}

#[test]
fn a_reader_that_is_gone_does_not_end_it() {
    let place = Place::new();
    let mut daemon = place.start(SLOW);
    drop(daemon.take_stderr());
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_ne!(ignored & 1 << (Signal::PIPE.as_raw() - 1), 0, "SIGPIPE would end it");
    // It says why it waits, and no reader is there.
    let mut client = choose(&place.socket());
    client.write_all(&request(MAGIC, 0, 0, 4096, 512)).unwrap();
    client.write_all(&request(MAGIC, 0, 99, 0, 0)).unwrap();
    client.read_exact(&mut [0; 16]).unwrap();
    wait_until("it ends", || {
        daemon.signal(Signal::TERM);
        daemon.has_ended()
    });
    assert_eq!(daemon.wait().code(), Some(1));
}

/// It would take an hour and a half, in pieces.
#[test]
fn c85_a_long_request_ends_with_its_piece_when_its_client_or_the_daemon_goes() {
    let place = Place::new();
    let daemon = place.start(
        "--blockdev null-co,node-name=slow,size=1073741824,latency-ns=20000000 \
         --blockdev blkdebug,node-name=disk,image=slow,max-write-zero=4096 \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
         --export nbd,id=e0,node-name=disk,writable=on",
    );
    let long_request = || {
        let mut client = choose(&place.socket());
        client.write_all(&request(MAGIC, 0, 6, 0, 1 << 30)).unwrap();
        client.write_all(&request(MAGIC, 0, 99, 0, 0)).unwrap();
        client.read_exact(&mut [0; 16]).unwrap();
        client
    };
    let mut qmp = Client::new(&place.path("qmp.sock"));
    drop(long_request());
    // Also one that waits for so many that the server does not look for more.
    let mut greedy = choose(&place.socket());
    greedy.write_all(&request(MAGIC, 0, 6, 0, 1 << 30).repeat(20)).unwrap();
    drop(greedy);
    // Its client has gone, and so has it: nothing uses the export any more.
    wait_until("the export is free", || {
        qmp.ask("block-export-del", json!({"id": "e0"})).get("return").is_some()
    });
    qmp.event("BLOCK_EXPORT_DELETED");
    let export = json!({"type": "nbd", "id": "e0", "node-name": "disk", "writable": true});
    qmp.run("block-export-add", export.clone());
    let _kept = long_request();
    qmp.run("block-export-del", json!({"id": "e0", "mode": "hard"}));
    qmp.event("BLOCK_EXPORT_DELETED");
    qmp.run("block-export-add", export);
    let _kept = long_request();
    daemon.stop(Signal::TERM);
}
