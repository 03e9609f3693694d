//! Sockets of all servers: whose a path is, and what becomes of it at the end.

mod util;

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};

use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::json;
use util::qmp::Client;
use util::{Place, kill, stderr, wait_until};

const NODE: &str = "--blockdev null-co,node-name=disk,read-zeroes=on";
/// One of each kind.
const SERVERS: &str = "--metrics unix:@/m --nbd-server addr.type=unix,addr.path=@/n \
    --chardev socket,id=c,path=@/q,server=on,wait=off --monitor chardev=c \
    --export vhost-user-blk,id=v,node-name=disk,addr.type=unix,addr.path=@/v";
const SOCKETS: [&str; 4] = ["m", "n", "q", "v"];

fn is_served(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

fn names(place: &Place) -> Vec<String> {
    let entries = std::fs::read_dir(place.path("")).unwrap();
    let names = entries.map(|it| it.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !["disk.img", "pid", "pid2"].contains(&name.as_str())).collect()
}

#[test]
fn a_daemon_that_ends_removes_its_own_sockets_and_no_others() {
    let place = Place::new();
    let first = place.start(&format!("{NODE} {SERVERS}"));
    for name in SOCKETS {
        std::fs::remove_file(place.path(name)).unwrap();
    }
    std::fs::remove_file(place.pid_file()).unwrap();
    let second = place.start(&format!("{NODE} {SERVERS}"));
    first.stop(Signal::TERM);
    for name in SOCKETS {
        assert!(is_served(&place.path(name)), "{name} of the second daemon");
        std::fs::remove_file(place.path(name)).unwrap();
        std::fs::write(place.path(name), "precious").unwrap();
    }
    assert!(place.pid_file().exists());
    second.stop(Signal::TERM);
    for name in SOCKETS {
        assert_eq!(std::fs::read(place.path(name)).unwrap(), b"precious");
        std::fs::remove_file(place.path(name)).unwrap();
    }
    let third = place.start(&format!("{NODE} {SERVERS}"));
    third.stop(Signal::TERM);
    assert_eq!(names(&place), [""; 0]);
}

#[test]
fn of_daemons_that_start_at_once_one_has_the_socket() {
    for round in 0..4 {
        let place = Place::new();
        if round % 2 == 0 {
            drop(UnixListener::bind(place.socket()).unwrap());
        }
        let server = format!("{NODE} --nbd-server addr.type=unix,addr.path=@/nbd.sock");
        let start = |_| place.command(&server).stderr(Stdio::null()).spawn().unwrap();
        let mut daemons: Vec<Child> = (0..6).map(start).collect();
        wait_until("all but one daemon have ended", || {
            daemons.retain_mut(|daemon| daemon.try_wait().unwrap().is_none());
            daemons.len() <= 1
        });
        wait_until("the one that is left listens", || is_served(&place.socket()));
        kill(daemons[0].id(), Signal::TERM);
        assert!(daemons[0].wait().unwrap().success());
        assert_eq!(names(&place), [""; 0]);
    }
}

#[test]
fn an_export_that_fails_leaves_no_socket() {
    let place = Place::new();
    // A parent that lets no other user write.
    let parent = "--blockdev blkdebug,node-name=b,image=disk,unshare-child-perms.0=write";
    let export = "--export vhost-user-blk,id=v,node-name=disk,addr.type=unix,addr.path=@/v";
    let output = place.output(&format!("{NODE} {parent} {export},writable=on"));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(names(&place), [""; 0]);
    // In a daemon that goes on.
    let monitor = "--chardev socket,id=c,path=@/q,server=on,wait=off --monitor chardev=c";
    let daemon = place.start(&format!("{NODE} {parent} {monitor}"));
    let mut client = Client::new(&place.path("q"));
    let mut export = json!({
        "type": "vhost-user-blk", "id": "v", "node-name": "disk", "writable": true,
        "addr": {"type": "unix", "path": place.path("v")},
    });
    client.refused("block-export-add", export.clone());
    assert!(!place.path("v").exists());
    export["writable"] = json!(false);
    client.run("block-export-add", export);
    assert!(is_served(&place.path("v")));
    daemon.stop(Signal::TERM);
    assert_eq!(names(&place), [""; 0]);
}

#[test]
fn clients_of_an_inherited_socket_are_refused_when_its_server_has_stopped() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let monitor = "--chardev socket,id=c,path=@/q,server=on,wait=off --monitor chardev=c";
    let server = "--nbd-server addr.type=fd,addr.str=0";
    let mut command = place.command(&format!("{NODE} {server} {monitor} --pidfile @/pid"));
    // As its standard input, and so in no other process; but that another test may be about to start.
    command.stdin(std::os::fd::OwnedFd::from(listener));
    let daemon = place.start_command(command);
    assert!(is_served(&place.socket()));
    let mut client = Client::new(&place.path("q"));
    client.run("nbd-server-stop", json!({}));
    util::wait_until("clients are refused", || match UnixStream::connect(place.socket()) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            true
        }
    });
    let again = json!({"addr": {"type": "fd", "data": {"str": "0"}}});
    let text = client.refused("nbd-server-start", again);
    assert_eq!(text, "File descriptor '0' is not a socket");
    daemon.stop(Signal::TERM);
}

/// A port that is free now, on all addresses.
fn free_port() -> u16 {
    TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

/// Starts a daemon at a port, and says whether clients of IPv4 and IPv6 get through.
fn lets_in(arguments: impl Fn(u16) -> String) -> (bool, bool) {
    let place = Place::new();
    let port = free_port();
    let daemon = place.start(&format!("{NODE} {}", arguments(port)));
    let connects = |host| TcpStream::connect((host, port)).is_ok();
    let result = (connects("127.0.0.1"), connects("::1"));
    daemon.stop(Signal::TERM);
    result
}

#[test]
fn every_server_lets_in_the_protocols_that_it_was_told() {
    for (members, expected) in [
        ("", (true, true)),
        ("ipv6=on", (false, true)),
        ("ipv4=off", (false, true)),
        ("ipv6=off", (true, false)),
        ("ipv4=on,ipv6=on", (true, true)),
    ] {
        let nested: String = members
            .split(',')
            .filter(|it| !it.is_empty())
            .map(|it| format!(",addr.{it}"))
            .collect();
        let flat = if members.is_empty() { String::new() } else { format!(",{members}") };
        let server =
            |port| format!("--nbd-server addr.type=inet,addr.host=,addr.port={port}{nested}");
        assert_eq!(lets_in(server), expected, "--nbd-server {members}");
        let metrics =
            |port| format!("--metrics addr.type=inet,addr.host=,addr.port={port}{nested}");
        assert_eq!(lets_in(metrics), expected, "--metrics {members}");
        let monitor = |port| {
            format!(
                "--chardev socket,id=c,host=,port={port},server=on,wait=off{flat} \
                 --monitor chardev=c"
            )
        };
        assert_eq!(lets_in(monitor), expected, "--chardev {members}");
    }
}

#[test]
fn addresses_that_make_no_sense_are_refused() {
    let place = Place::new();
    for (members, text) in [
        ("host=,addr.port=0,addr.ipv4=off,addr.ipv6=off", "Cannot disable IPv4 and IPv6"),
        ("host=127.0.0.1,addr.port=20000,addr.to=19999", "'to' (19999) is below the port (20000)"),
        ("host=localhost,addr.port=0,addr.numeric=on", "address resolution failed for localhost:0"),
        ("host=127.0.0.1,addr.port=nosuchservice", "address resolution failed for"),
        ("host=127.0.0.1,addr.port=0,addr.cid=1", "Parameter 'addr.cid' is unexpected"),
    ] {
        for option in ["--nbd-server", "--metrics"] {
            let output = place.output(&format!("{option} addr.type=inet,addr.{members}"));
            assert_eq!(output.status.code(), Some(1), "{members}");
            assert!(stderr(&output).contains(text), "{members}: {}", stderr(&output));
        }
    }
    let output = place.output("--nbd-server addr.type=vsock,addr.cid=x,addr.port=1");
    assert!(stderr(&output).contains("Failed to parse cid 'x'"), "{}", stderr(&output));
    let output = place.output("--nbd-server addr.type=vsock,addr.port=1");
    assert!(stderr(&output).contains("Parameter 'addr.cid' is missing"), "{}", stderr(&output));
}

#[test]
fn every_server_probes_its_tcp_clients() {
    let place = Place::new();
    let ports = [(); 4].map(|()| free_port());
    let [nbd, qmp, metrics, unprobed] = ports;
    let address = |port| format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}");
    let daemon = place.start(&format!(
        "{NODE} --nbd-server {} --metrics {} \
         --chardev socket,id=c,host=127.0.0.1,port={qmp},server=on,wait=off --monitor chardev=c \
         --chardev socket,id=d,host=127.0.0.1,port={unprobed},server=on,wait=off,keep-alive=off \
         --monitor chardev=d",
        address(nbd),
        address(metrics),
    ));
    for port in ports {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let filter = format!("sport = :{port}");
        let timers = || tools::run("ss", ["-Htno", "state", "established", &filter]);
        let is_probed = || timers().contains("timer:(keepalive");
        if port == metrics {
            // It says nothing before it is asked, so when it has accepted is not known.
            wait_until("clients for metrics are probed", is_probed);
        } else {
            client.read_exact(&mut [0; 8]).unwrap();
            assert_eq!(is_probed(), port != unprobed, "{port}: {}", timers());
        }
    }
    daemon.stop(Signal::TERM);
}
