//! Addresses: sockets that the daemon was started with, TCP, and abstract names.

mod util;

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::Command;

use coblk_tests::tools;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use util::{Place, stderr};

const DISK: &str = "--blockdev file,node-name=disk,filename=@/disk.img";
const EXPORT: &str = "--export nbd,id=e0,node-name=disk,writable=on";

/// A socket that what is started inherits, under its own number.
fn inherited(socket: impl AsFd) -> i32 {
    fcntl_setfd(&socket, FdFlags::empty()).unwrap();
    socket.as_fd().as_raw_fd()
}

#[test]
fn a_socket_that_was_inherited_is_served_under_its_number() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let fd = inherited(&listener);
    // A client is early.
    let mut early = UnixStream::connect(place.socket()).unwrap();
    let server = format!("--nbd-server addr.type=fd,addr.str={fd}");
    let daemon = place.start(&format!("{DISK} {server} {EXPORT}"));
    let mut greeting = [0; 8];
    std::io::Read::read_exact(&mut early, &mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGIC");
    place.check();
    daemon.stop(Signal::TERM);
    assert!(place.socket().exists(), "it is not the daemon's to remove");
    // The socket outlives the daemon: the next one goes on with it.
    let daemon = place.start(&format!("{DISK} {server} {EXPORT}"));
    place.check();
    daemon.stop(Signal::TERM);
}

/// As systemd does it.
#[test]
fn a_socket_that_was_inherited_is_served_under_its_name() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let fd = inherited(&listener);
    let shell = |variables: &str| {
        let arguments =
            format!("{DISK} --nbd-server addr.type=fd,addr.str=blocks {EXPORT} --pidfile @/pid");
        let program = env!("CARGO_BIN_EXE_coblk-storage-daemon");
        let script = format!("{variables} exec {program} {} 4<&{fd}", place.fill_in(&arguments));
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        command
    };
    let variables = "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=other:blocks";
    let daemon = place.start_command(shell(variables));
    place.check();
    daemon.stop(Signal::TERM);
    for variables in
        ["", "LISTEN_PID=1 LISTEN_FDS=2 LISTEN_FDNAMES=other:blocks", "LISTEN_PID=$$ LISTEN_FDS=2"]
    {
        let output = shell(variables).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{variables}");
        assert!(stderr(&output).contains("FD number blocks"), "{}", stderr(&output));
    }
}

#[test]
fn what_is_no_socket_is_refused() {
    let place = Place::new();
    let file = std::fs::File::open(place.image()).unwrap();
    let (pair, _other) = UnixStream::pair().unwrap();
    let datagrams = std::os::unix::net::UnixDatagram::bind(place.path("dgram")).unwrap();
    for fd in [inherited(&file), inherited(&pair), inherited(&datagrams), 999, -1] {
        let server = format!("--nbd-server addr.type=fd,addr.str={fd}");
        let output = place.output(&format!("{DISK} {server} {EXPORT}"));
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("is not a socket"), "{}", stderr(&output));
    }
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let export = "--export vhost-user-blk,id=v,node-name=disk,addr.type=fd,addr.str";
    let output = place.output(&format!("{DISK} {export}={}", inherited(&tcp)));
    assert!(stderr(&output).contains("'unix' and 'fd'"), "{}", stderr(&output));
}

#[test]
fn a_tcp_address_is_served_and_the_next_free_port_is_taken() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let last = port.saturating_add(100);
    let address = format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}");
    let output = place.output(&format!("--nbd-server {address}"));
    let said = stderr(&output);
    assert!(said.contains(&format!("Failed to bind socket to 127.0.0.1:{port}")), "{said}");
    let server = format!("--nbd-server {address},addr.to={last},addr.ipv4=on");
    let daemon = place.start(&format!("{DISK} {server} {EXPORT}"));
    let found = (port + 1..=last).find(|port| {
        let uri = format!("nbd://127.0.0.1:{port}/disk");
        TcpStream::connect(("127.0.0.1", *port)).is_ok()
            && tools::output("nbdinfo", ["--size", &uri]).status.success()
    });
    assert!(found.is_some(), "no port between {port} and {last}");
    daemon.stop(Signal::TERM);
}

#[test]
fn a_name_in_the_abstract_name_space_is_served() {
    let place = Place::new();
    let name = place.fill_in("@/abstract");
    let server = "--nbd-server addr.type=unix,addr.abstract=on,addr.path=@/abstract";
    let daemon = place.start(&format!("{DISK} {server} {EXPORT}"));
    let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
    let mut client = UnixStream::connect_addr(&address).unwrap();
    let mut greeting = [0; 8];
    std::io::Read::read_exact(&mut client, &mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGIC");
    assert!(!place.path("abstract").exists());
    daemon.stop(Signal::TERM);
}

/// A node on a connection that the daemon was started with. It cannot be made anew.
#[test]
fn a_connection_that_was_inherited_is_a_node() {
    let (place, server) = (Place::new(), Place::new());
    let far = server.start(&format!(
        "{DISK} --nbd-server addr.type=unix,addr.path=@/nbd.sock {EXPORT},name=disk"
    ));
    let connection = UnixStream::connect(server.socket()).unwrap();
    let fd = inherited(&connection);
    let node = format!("--blockdev nbd,node-name=disk,server.type=fd,server.str={fd},export=disk");
    let near =
        format!("{node} --nbd-server addr.type=unix,addr.path=@/nbd.sock {EXPORT},name=disk");
    let daemon = place.start(&near);
    drop(connection);
    place.check();
    let mut session = coblk_tests::nbd::Session::open(&place.socket());
    session.check(1);
    far.stop(Signal::TERM);
    assert!(session.write(0, &[1; 512]).is_err());
    assert!(session.read(0, 512).is_err(), "there is no other way to the server");
    daemon.stop(Signal::TERM);
}

/// Most machines have no other end of it: what is said names the address.
#[test]
fn a_server_at_vsock_that_is_not_there_is_named() {
    let place = Place::new();
    let node = "--blockdev nbd,node-name=n,server.type=vsock,server.cid=1,server.port=4242";
    let said = stderr(&place.output(node));
    assert!(said.contains("vsock") && said.contains("4242"), "{said}");
}
