//! NBD nodes whose connection has TLS: certificates on both sides, names, keys with a password.
#![cfg(feature = "tls")]
#![forbid(unsafe_code)]

mod util;

use std::path::Path;
use std::process::Command;

use coblk_tests::certificates::Authority;
use coblk_tests::nbd::Session;
use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::{Value, json};
use util::qmp::Client;
use util::servers::Server;
use util::{Daemon, Place, SIZE};

const MONITOR: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor c0";

/// A server of a place's image that takes clients with certificates alone.
fn own_server(place: &Place, certificates: &Path) -> Server {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coblk-storage-daemon"));
    let certificates = tools::text(certificates);
    command.args(["--object", &format!("tls-creds-x509,id=t0,endpoint=server,dir={certificates}")]);
    let image = place.image();
    command.args(["--blockdev", &format!("file,node-name=disk,filename={}", tools::text(&image))]);
    let socket = place.path("server.sock");
    let server = format!("addr.type=unix,addr.path={},tls-creds=t0", tools::text(&socket));
    command.args(["--nbd-server", &server]);
    command.args(["--export", "nbd,id=e0,node-name=disk,writable=on"]);
    Server::run(command, &socket)
}

fn qemu_server(place: &Place, certificates: &Path) -> Server {
    let mut command = tools::command("qemu-nbd");
    let (socket, image) = (place.path("server.sock"), place.image());
    let object = format!("tls-creds-x509,id=t0,endpoint=server,dir={}", tools::text(certificates));
    command.args(["-t", "-f", "raw", "-x", "disk", "-k", tools::text(&socket)]);
    command.args(["--object", &object, "--tls-creds", "t0", tools::text(&image)]);
    Server::run(command, &socket)
}

fn object(dir: &Path) -> Value {
    json!({"qom-type": "tls-creds-x509", "id": "c", "endpoint": "client", "dir": tools::text(dir)})
}

fn node(place: &Place) -> Value {
    let path = place.path("server.sock");
    json!({"driver": "nbd", "node-name": "n", "export": "disk", "tls-creds": "c",
        "tls-hostname": "localhost", "server": {"type": "unix", "path": tools::text(&path)}})
}

/// A daemon that exports such a node.
fn start(place: &Place, certificates: &Path) -> Daemon {
    place.start(&format!(
        "--object tls-creds-x509,id=c,endpoint=client,dir={} \
         --blockdev nbd,node-name=disk,server.type=unix,server.path=@/server.sock,export=disk,\
         tls-creds=c,tls-hostname=localhost,reconnect-delay=60 \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name=disk,writable=on",
        tools::text(certificates)
    ))
}

#[test]
fn a_node_is_read_and_written_over_tls_and_reconnects() {
    type Serve = fn(&Place, &Path) -> Server;
    for serve in [own_server as Serve, qemu_server as Serve] {
        let place = Place::new();
        let authority = Authority::new(place.path("").as_path());
        let (certificates, own) = (authority.server("server"), authority.client("client", 7));
        let server = serve(&place, &certificates);
        let daemon = start(&place, &own);
        let (source, back) = (place.path("source"), place.path("back"));
        let bytes: Vec<u8> = (0..SIZE as usize).map(|at| (at / 777) as u8).collect();
        std::fs::write(&source, &bytes).unwrap();
        tools::run("nbdcopy", [tools::text(&source), &place.uri("disk")]);
        tools::run("nbdcopy", [&place.uri("disk"), tools::text(&back)]);
        assert!(std::fs::read(&back).unwrap() == bytes);
        assert!(std::fs::read(place.image()).unwrap() == bytes);
        server.kill();
        let server = serve(&place, &certificates);
        Session::open(&place.socket()).check(1);
        daemon.stop(Signal::TERM);
        drop(server);
    }
}

#[test]
fn a_server_that_is_not_the_one_that_is_meant_is_refused_and_so_is_a_client() {
    let place = Place::new();
    let authority = Authority::new(place.path("").as_path());
    let stranger_dir = place.path("other");
    std::fs::create_dir(&stranger_dir).unwrap();
    let stranger = Authority::new(&stranger_dir);
    let _server = own_server(&place, &authority.server("server"));
    let daemon = place.start(MONITOR);
    let mut monitor = Client::new(&place.path("qmp.sock"));
    // In the clear.
    let mut clear = node(&place);
    clear.as_object_mut().unwrap().retain(|name, _| !name.starts_with("tls"));
    assert!(monitor.refused("blockdev-add", clear).contains("TLS is required"));
    // Another name.
    monitor.run("object-add", object(&authority.client("client", 7)));
    let mut other = node(&place);
    other["tls-hostname"] = json!("elsewhere");
    let said = monitor.refused("blockdev-add", other);
    assert!(said.contains("certificate") && said.contains("elsewhere"), "{said}");
    // No name at all, as a unix socket has none.
    let mut nameless = node(&place);
    nameless.as_object_mut().unwrap().remove("tls-hostname");
    assert!(monitor.refused("blockdev-add", nameless).contains("tls-hostname"));
    monitor.run("blockdev-add", node(&place));
    monitor.run("blockdev-del", json!({"node-name": "n"}));
    monitor.run("object-del", json!({"id": "c"}));
    // An authority that has issued neither certificate.
    monitor.run("object-add", object(&stranger.client("client", 7)));
    let said = monitor.refused("blockdev-add", node(&place));
    assert!(said.contains("certificate"), "{said}");
    monitor.run("object-del", json!({"id": "c"}));
    // A client without a certificate: the server says so when the client has believed it already.
    monitor.run("object-add", object(&authority.anonymous("anonymous")));
    monitor.refused("blockdev-add", node(&place));
    monitor.run("object-del", json!({"id": "c"}));
    // Credentials of a server.
    let server = json!({"qom-type": "tls-creds-x509", "id": "c", "endpoint": "server",
        "dir": tools::text(&place.path("server"))});
    monitor.run("object-add", server);
    assert!(monitor.refused("blockdev-add", node(&place)).contains("'c'"));
    daemon.stop(Signal::TERM);
}

const SERVED: &str = "--blockdev file,node-name=disk,filename=@/disk.img \
    --nbd-server addr.type=unix,addr.path=@/server.sock,tls-creds=t0 \
    --export nbd,id=e0,node-name=disk,writable=on";

/// Encrypts the key of a directory with a password.
fn seal(key: &Path, password: &str) {
    let sealed = key.with_extension("sealed");
    let (from, to) = (tools::text(key), tools::text(&sealed));
    let pass = format!("pass:{password}");
    tools::run("openssl", ["pkcs8", "-topk8", "-in", from, "-out", to, "-passout", &pass]);
    std::fs::rename(&sealed, key).unwrap();
}

#[test]
fn keys_with_a_password_are_opened_by_a_secret_on_both_sides() {
    let place = Place::new();
    let authority = Authority::new(place.path("").as_path());
    let (certificates, own) = (authority.server("server"), authority.client("client", 7));
    seal(&certificates.join("server-key.pem"), "of the server");
    seal(&own.join("client-key.pem"), "of the client");
    let mut command = place.command("--pidfile @/pid --object secret,id=s0,file=@/password");
    std::fs::write(place.path("password"), "of the server").unwrap();
    let dir = tools::text(&certificates);
    let object_of_server = format!("tls-creds-x509,id=t0,endpoint=server,dir={dir},passwordid=s0");
    command.args(["--object", &object_of_server]);
    command.args(place.command(SERVED).get_args());
    let server = place.start_command(command);
    let other = Place::new();
    let daemon = other.start(MONITOR);
    let mut monitor = Client::new(&other.path("qmp.sock"));
    let secret = |id: &str, data: &str| json!({"qom-type": "secret", "id": id, "data": data});
    monitor.run("object-add", secret("right", "of the client"));
    monitor.run("object-add", secret("wrong", "of another"));
    assert!(monitor.refused("object-add", object(&own)).contains("encrypted"));
    let with = |id: &str| {
        let mut object = object(&own);
        object["passwordid"] = json!(id);
        object
    };
    assert!(monitor.refused("object-add", with("wrong")).contains("does not open it"));
    assert!(monitor.refused("object-add", with("none")).contains("No secret with id 'none'"));
    monitor.run("object-add", with("right"));
    monitor.run("blockdev-add", node(&place));
    daemon.stop(Signal::TERM);
    server.stop(Signal::TERM);
}
