//! NBD exports with iothreads: their clients are served there, and all that is said of the export holds over
//! all threads.
#![forbid(unsafe_code)]

mod util;

use std::io::Write;
use std::os::unix::net::UnixStream;

use coblk_tests::nbd::{MAGIC, Session, choose, request};
use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Daemon, Place, wait_until};

const MONITOR: &str =
    "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0";
const THREADS: &str = "--object iothread,id=t0 --object iothread,id=t1";

fn start(place: &Place, arguments: &str) -> (Daemon, Client) {
    let server = "--nbd-server addr.type=unix,addr.path=@/nbd.sock";
    let daemon = place.start(&format!("{MONITOR} {THREADS} {arguments} {server}"));
    let client = Client::new(&place.path("qmp.sock"));
    (daemon, client)
}

/// For how long each of the iothreads has run, in nanoseconds.
fn run_ns(daemon: &Daemon, qmp: &mut Client) -> Vec<u64> {
    let threads = qmp.run("query-iothreads", json!({}));
    let run_ns = |thread: &Value| {
        let stat = format!("/proc/{}/task/{}/schedstat", daemon.pid(), thread["thread-id"]);
        let stat = std::fs::read_to_string(stat).unwrap();
        stat.split(' ').next().unwrap().parse().unwrap()
    };
    threads.as_array().unwrap().iter().map(run_ns).collect()
}

fn writes(qmp: &mut Client) -> Value {
    let all = qmp.run("query-blockstats", json!({}));
    assert_eq!(all.as_array().unwrap().len(), 1);
    all[0]["stats"]["wr_operations"].clone()
}

#[test]
fn clients_are_served_by_the_threads_of_a_list_and_counted_together() {
    let place = Place::new();
    let disk = "--blockdev file,node-name=disk,filename=@/disk.img";
    let (daemon, mut qmp) = start(&place, disk);
    let export = json!({
        "type": "nbd", "id": "e0", "node-name": "disk", "writable": true, "name": "disk",
        "iothread": ["t0", "t1", "t0"], "fixed-iothread": true,
    });
    qmp.run("block-export-add", export);
    let before = run_ns(&daemon, &mut qmp);
    let mut sessions: Vec<_> = (0..4).map(|_| Session::open(&place.socket())).collect();
    for round in 0..100 {
        for (number, session) in sessions.iter_mut().enumerate() {
            let (at, data) = (((round * 4 + number) * 512) as u64, [round as u8; 512]);
            session.write(at, &data).unwrap();
            assert_eq!(session.read(at, 512).unwrap(), data);
        }
    }
    let after = run_ns(&daemon, &mut qmp);
    let ran = before.iter().zip(&after).map(|(before, after)| after - before);
    assert!(ran.clone().all(|ns| ns > 200_000), "{:?}", ran.collect::<Vec<_>>());
    assert_eq!(writes(&mut qmp), 400);
    let refused = qmp.refused("object-del", json!({"id": "t1"}));
    assert_eq!(refused, "object 't1' is in use, can not be deleted");
    let refused = qmp.refused("block-export-del", json!({"id": "e0"}));
    assert_eq!(refused, "export 'e0' still in use");
    // QEMU's client, whose flushes cover all.
    let said =
        tools::run("qemu-io", ["-f", "raw", "-c", "write -f -P 5 1M 64k", &place.uri("disk")]);
    assert!(said.contains("wrote 65536/65536"), "{said}");

    // An image stays where it is when its export goes, and when the server does.
    qmp.run("block-export-del", json!({"id": "e0", "mode": "hard"}));
    assert_eq!(qmp.event("BLOCK_EXPORT_DELETED")["id"], "e0");
    qmp.run("object-del", json!({"id": "t1"}));
    let again = json!({
        "type": "nbd", "id": "e1", "node-name": "disk", "name": "disk", "iothread": "t0",
    });
    qmp.run("block-export-add", again);
    let mut session = Session::open(&place.socket());
    assert_eq!(session.read(1 << 20, 512).unwrap(), [5; 512]);
    assert!(session.write(0, &[1; 512]).is_err(), "it is read-only");
    qmp.run("nbd-server-stop", json!({}));
    assert_eq!(qmp.event("BLOCK_EXPORT_DELETED")["id"], "e1");
    qmp.run("object-del", json!({"id": "t0"}));
    qmp.run("blockdev-del", json!({"node-name": "disk"}));
    daemon.stop(Signal::TERM);
}

#[test]
fn an_error_stops_the_clients_of_one_thread_and_a_resume_lets_them_go_on() {
    let place = Place::new();
    let disk = "--blockdev blkdebug,node-name=disk,image.driver=file,image.filename=@/disk.img,\
                inject-error.0.errno=28,inject-error.0.once=on,\
                inject-error.0.sector=8,inject-error.0.iotype=write";
    let (daemon, mut qmp) = start(&place, disk);
    let export = json!({
        "type": "nbd", "id": "e0", "node-name": "disk", "writable": true, "name": "disk",
        "iothread": ["t0", "t1"], "werror": "stop",
    });
    qmp.run("block-export-add", export);
    let (mut first, mut second) = (Session::open(&place.socket()), Session::open(&place.socket()));
    second.send(1, 4096, 512, &[9; 512]);
    let status = |qmp: &mut Client| {
        let exports = qmp.run("query-block-exports", json!({}));
        exports[0]["x-coblk-io-status"].as_str().map(str::to_owned)
    };
    wait_until("the export to stop", || status(&mut qmp).is_some_and(|it| it == "nospace"));
    first.write(8192, &[8; 512]).unwrap();
    qmp.run("x-coblk-export-resume", json!({"id": "e0"}));
    second.answer().unwrap();
    assert_eq!(second.read(4096, 512).unwrap(), [9; 512]);
    assert_eq!(status(&mut qmp).as_deref(), Some("ok"));
    daemon.stop(Signal::TERM);
}

#[test]
fn the_end_finds_the_clients_of_all_threads() {
    let place = Place::new();
    let disk = "--blockdev file,node-name=disk,filename=@/disk.img";
    let export = "--export nbd,id=e0,node-name=disk,writable=on,iothread.0=t0,iothread.1=t1";
    let server = "--nbd-server addr.type=unix,addr.path=@/nbd.sock,max-connections=3";
    let daemon = place.start(&format!("{MONITOR} {THREADS} {disk} {server} {export}"));
    let clients: Vec<_> = (0..3).map(|_| choose(&place.socket())).collect();
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let exports = qmp.run("query-block-exports", json!({}));
    assert_eq!(exports[0]["id"], "e0");
    daemon.stop(Signal::TERM);
    drop(clients);
}

/// Clients of a crowd; `COBLK_NBD_CLIENTS` in its place, for larger ones.
fn crowd() -> usize {
    std::env::var("COBLK_NBD_CLIENTS").ok().map_or(60, |text| text.parse().expect("a number"))
}

/// A tenth of them ask for large data that they never take, or begin what they do not end. The others each write and
/// read a block of their own, and must find it as it was written.
#[test]
fn a_crowd_is_served_beside_hostile_clients_and_in_bounded_memory() {
    let clients = crowd();
    let place = Place::new();
    std::fs::File::options().write(true).open(place.image()).unwrap().set_len(128 << 20).unwrap();
    let server = "--nbd-server addr.type=unix,addr.path=@/nbd.sock,max-connections=0";
    let threads = (0..4).map(|it| format!("--object iothread,id=c{it} ")).collect::<String>();
    let daemon = place.start(&format!(
        "{threads} --blockdev file,node-name=disk,filename=@/disk.img {server} \
         --export nbd,id=e0,node-name=disk,writable=on,\
         iothread.0=c0,iothread.1=c1,iothread.2=c2,iothread.3=c3"
    ));
    let hostile: Vec<_> = (0..clients / 10).map(|number| hostile(&place, number)).collect();
    std::thread::scope(|scope| {
        for number in 0..clients - clients / 10 {
            let path = place.socket();
            scope.spawn(move || {
                let (mut session, at) = (Session::open(&path), (number * 4096) as u64);
                for round in 0..30 {
                    let data = vec![(round * 7 + number) as u8; 4096];
                    session.write(at, &data).unwrap();
                    assert!(session.read(at, 4096).unwrap() == data, "client {number}");
                }
            });
        }
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    // The hostile ones alone have asked for 64 MiB each.
    assert!(peak < 400 << 10, "{peak} KiB");
    drop(hostile);
    daemon.stop(Signal::TERM);
}

fn hostile(place: &Place, number: usize) -> UnixStream {
    let mut client = choose(&place.socket());
    match number % 3 {
        0 => client.write_all(&request(MAGIC, 0, 0, 0, 32 << 20).repeat(2)).unwrap(),
        1 => {
            let write = request(MAGIC, 0, 1, 96 << 20, 4 << 20);
            client.write_all(&[write, vec![1; 100_000]].concat()).unwrap();
        }
        _ => client.write_all(&request(MAGIC, 0, 0, 0, 512)[..9]).unwrap(),
    }
    client
}
