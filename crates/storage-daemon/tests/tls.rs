//! The NBD server with TLS: QEMU's and libnbd's clients, with certificates and without.
#![cfg(feature = "tls")]

mod util;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use coblk_tests::certificates::{Authority, Details};
use coblk_tests::nbd::option;
use coblk_tests::storage_daemon::{StorageDaemon, eventually};
use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::json;
use util::Place;
use util::qmp::Client;

#[test]
fn clients_are_let_in_with_certificates_only() {
    let place = Place::new();
    let authority = Authority::new(place.path("").as_path());
    let (server, client) = (authority.server("server"), authority.client("client", 7));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let daemon = place.start(&format!(
        "--object tls-creds-x509,id=t0,endpoint=server,verify-peer=on,dir={} \
         --blockdev file,node-name=disk,filename=@/disk.img \
         --nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port={port},tls-creds=t0 \
         --export nbd,id=e0,node-name=disk,writable=on",
        tools::text(&server)
    ));
    let object = format!("tls-creds-x509,id=c0,endpoint=client,dir={}", tools::text(&client));
    let disk = format!("driver=nbd,host=127.0.0.1,port={port},export=disk");
    for command in ["write -P 7 4096 4096", "read -P 7 4096 4096"] {
        let with_tls = format!("{disk},tls-creds=c0");
        let arguments = ["--object", &object, "-c", command, "--image-opts", &with_tls];
        let said = tools::run("qemu-io", arguments);
        assert!(said.contains("4096/4096") && !said.contains("failed"), "{said}");
    }
    let uri = |dir: &std::path::Path| {
        format!("nbds://localhost:{port}/disk?tls-certificates={}", tools::text(dir))
    };
    let size = tools::run("nbdinfo", ["--size", &uri(&client)]);
    assert_eq!(size.trim(), util::SIZE.to_string());
    for refused in [uri(&authority.anonymous("nobody")), format!("nbd://localhost:{port}/disk")] {
        assert!(!tools::output("nbdinfo", ["--size", &refused]).status.success(), "{refused}");
    }
    daemon.stop(Signal::TERM);
}

/// As in QEMU, a server keeps its credentials when their object is deleted. What is printed makes it again.
#[test]
fn deleted_credentials_of_a_server_are_printed_as_long_as_it_runs() {
    let place = Place::new();
    let authority = Authority::new(place.path("").as_path());
    let object = format!(
        "tls-creds-x509,id=t0,dir={},endpoint=server",
        tools::text(&authority.server("server"))
    );
    let monitor = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor c0";
    let server = "--nbd-server addr.type=unix,addr.path=@/nbd.sock,tls-creds=t0";
    let daemon = place.start(&format!("{monitor} --object {object} {server}"));
    let mut client = Client::new(&place.path("qmp.sock"));
    let printed = |client: &mut Client| {
        let config = client.run("x-coblk-config", json!({}));
        let words = config["arguments"].as_array().unwrap().iter();
        words.map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let objects = |words: &[String]| words.iter().filter(|it| it.starts_with("tls-creds")).count();
    let before = printed(&mut client);
    client.run("object-del", json!({"id": "t0"}));
    let deleted = printed(&mut client);
    assert_eq!((objects(&before), &deleted), (1, &before));
    client.run("nbd-server-stop", json!({}));
    assert_eq!(objects(&printed(&mut client)), 0);
    client.run("quit", json!({}));
    assert!(daemon.wait().success());

    let again = place.start(&deleted.join(" "));
    assert_eq!(printed(&mut Client::new(&place.path("qmp.sock"))), before);
    again.stop(Signal::TERM);
}

#[test]
fn an_expired_certificate_is_taken_without_sanity_checks() {
    let place = Place::new();
    let authority = Authority::new(place.path("").as_path());
    let expired = Details { years: (2000, 2001), ..Details::default() };
    let server = authority.server_like("server", &expired);
    let object = format!(
        "--object tls-creds-x509,id=t0,endpoint=server,dir={},sanity-check",
        tools::text(&server)
    );
    place.start(&format!("{object}=off")).stop(Signal::TERM);
    let output = place.output(&format!("{object}=on"));
    let said = util::stderr(&output);
    assert!(
        !output.status.success() && said.contains("server-cert.pem: certificate expired"),
        "{said}"
    );
}

/// A network full of clients without certificates writes a line a second, which says how many they were.
#[test]
fn clients_that_are_refused_do_not_fill_the_log() {
    const CLIENTS: usize = 300;
    const EXPORT_NAME: u32 = 1;
    const STARTTLS: u32 = 5;
    let place = Place::new();
    let authority = Authority::new(place.path("").as_path());
    let object =
        format!("tls-creds-x509,id=t0,endpoint=server,dir={}", tools::text(&authority.server("s")));
    let server = "addr.type=unix,addr.path=DIR/nbd.sock,tls-creds=t0,max-connections=0";
    let arguments = ["--object", &object, "--nbd-server", server];
    let daemon = StorageDaemon::start(
        env!("CARGO_BIN_EXE_coblk-storage-daemon").as_ref(),
        place.path("").as_path(),
        &[],
        &arguments,
    );
    let begin = Instant::now();
    let refuse = |tries_tls: bool| {
        let mut client = UnixStream::connect(daemon.nbd_socket()).unwrap();
        client.read_exact(&mut [0; 18]).unwrap();
        client.write_all(&[0, 0, 0, 3]).unwrap();
        if tries_tls {
            client.write_all(&option(STARTTLS, b"")).unwrap();
            client.read_exact(&mut [0; 20]).unwrap();
            client.write_all(b"no TLS at all").unwrap();
        } else {
            client.write_all(&option(EXPORT_NAME, b"disk")).unwrap();
        }
        // Until it is disconnected.
        let _ = client.read_to_end(&mut Vec::new());
    };
    (0..CLIENTS).for_each(|number| refuse(number % 2 == 0));
    let lines = || {
        let log = daemon.log();
        let lines = log.lines().filter(|line| line.contains("an NBD client is refused"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let logged = lines().len();
    let most = begin.elapsed().as_secs() as usize + 1;
    assert!(
        (1..=most).contains(&logged),
        "{logged} lines about {CLIENTS} clients: {}",
        daemon.log()
    );
    // One more is not refused within the same second for ever.
    eventually("the next line", || {
        refuse(false);
        lines().len() > logged
    });
    let last = lines().pop().unwrap();
    let unlogged = last.split("unlogged=").nth(1).and_then(|it| it.split(' ').next());
    assert!(unlogged.unwrap().parse::<usize>().unwrap() > 0, "{last}");
    daemon.stop();
}
