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
use util::qmp::Client;
use util::{Place, wait_until};

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

/// A server that listens at this port of this machine; what each of its clients sees of it.
fn is_let_in(client: &std::path::Path, port: u16) -> bool {
    let object = format!("tls-creds-x509,id=c0,endpoint=client,dir={}", tools::text(client));
    let disk = format!("driver=nbd,host=127.0.0.1,port={port},export=disk,tls-creds=c0");
    let arguments = ["info", "--object", &object, "--image-opts", &disk];
    tools::output("qemu-img", arguments).status.success()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// QEMU's server is of the same opinion of a client that is let in, and one that is not.
fn check_peer(place: &Place, objects: &[serde_json::Value], clients: [&std::path::Path; 2]) {
    let port = free_port();
    let mut peer = tools::command("qemu-nbd");
    for object in objects {
        peer.args(["--object", &object.to_string()]);
    }
    peer.args(["--tls-creds=t0", "--tls-authz=simple", "-t", "-x", "disk", "-f", "raw"]);
    peer.args([&format!("--port={port}"), "--bind=127.0.0.1", tools::text(&place.image())]);
    let mut peer = peer.spawn().unwrap();
    wait_until("the peer lets the client in", || is_let_in(clients[0], port));
    assert!(!is_let_in(clients[1], port));
    peer.kill().unwrap();
    peer.wait().unwrap();
}

#[test]
fn clients_are_let_in_by_the_names_of_their_certificates_as_qemu_reads_them() {
    let place = Place::new();
    let authority = Authority::new(place.path("").as_path());
    let server = authority.server("server");
    let subject: Vec<(&[u64], &str)> = vec![
        (&[2, 5, 4, 6], "GB"),
        (&[2, 5, 4, 10], "A, B \"x\"; c"),
        (&[2, 5, 4, 3], "#lap#top "),
        (&[0, 9, 2342, 19_200_300, 100, 1, 1], "u1"),
        (&[2, 5, 4, 97], "OI"),
    ];
    let identity = r#"C=GB,O=A\, B \"x\"\; c,CN=\#lap#top\ ,UID=u1,2.5.4.97=#0c024f49"#;
    let known = authority.client_like("known", 2, &Details { subject, ..Details::default() });
    let other = authority.client("other", 3);
    let list = place.path("list.json");
    let write_list = |rules: serde_json::Value| {
        let new = place.path("new.json");
        std::fs::write(&new, json!({"policy": "deny", "rules": rules}).to_string()).unwrap();
        std::fs::rename(&new, &list).unwrap();
    };
    write_list(json!([{"match": "*UID=u1*", "policy": "allow", "format": "glob"}]));
    let objects = [
        json!({"qom-type": "tls-creds-x509", "id": "t0", "endpoint": "server", "dir": server}),
        json!({"qom-type": "authz-simple", "id": "simple", "identity": identity}),
        json!({"qom-type": "authz-list", "id": "list", "policy": "allow",
            "rules": [{"match": "CN=client", "policy": "deny"}]}),
        json!({"qom-type": "authz-list-file", "id": "file", "filename": list}),
    ];

    check_peer(&place, &objects[..2], [&known, &other]);
    let monitor = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor c0";
    let disk = "--blockdev file,node-name=disk,filename=@/disk.img";
    let daemon = place.start(&format!("{monitor} {disk}"));
    let mut qmp = Client::new(&place.path("qmp.sock"));
    for object in &objects {
        qmp.run("object-add", object.clone());
    }
    let port = free_port();
    for authz in ["simple", "list", "file"] {
        let address =
            json!({"type": "inet", "data": {"host": "127.0.0.1", "port": port.to_string()}});
        let server = json!({"addr": address, "tls-creds": "t0", "tls-authz": authz});
        qmp.run("nbd-server-start", server);
        qmp.run("nbd-server-add", json!({"device": "disk"}));
        assert_eq!([&known, &other].map(|dir| is_let_in(dir, port)), [true, false], "{authz}");
        let refused = qmp.refused("object-del", json!({"id": authz}));
        assert!(refused.contains("is in use"), "{refused}");
        if authz == "file" {
            // It is read again when it has changed; what is no list changes nothing.
            write_list(json!([{"match": "CN=client", "policy": "allow"}]));
            assert_eq!([&known, &other].map(|dir| is_let_in(dir, port)), [false, true]);
            std::fs::write(&list, "{").unwrap();
            assert_eq!([&known, &other].map(|dir| is_let_in(dir, port)), [false, true]);
        }
        qmp.run("nbd-server-stop", json!({}));
        qmp.run("object-del", json!({"id": authz}));
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
