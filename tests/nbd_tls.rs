//! The NBD server with TLS: other people's clients with certificates, and clients without.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use coblk::BlockNode;
use coblk::drivers::File;
use coblk::nbd::{NbdOptions, TlsCredentials, TlsError};
use coblk_tests::certificates::Authority;
use coblk_tests::nbd::{MAGIC, SIZE, Served, option, request};
use coblk_tests::tools;

const PARENT: &str = env!("CARGO_TARGET_TMPDIR");
const STARTTLS: u32 = 5;

/// A server on TCP with these credentials, and a second to choose an export.
fn served(credentials: TlsCredentials) -> Served {
    let limit = Duration::from_secs(1);
    let options = NbdOptions::default().handshake_timeout(limit);
    Served::with_options(
        PARENT,
        options.tls(credentials),
        Some("127.0.0.1:0".parse().unwrap()),
        |dir| {
            let image = dir.join("disk.img");
            std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
            BlockNode::new("disk0", File::options().open(&image).unwrap())
        },
    )
}

fn port(served: &Served) -> u16 {
    served.address.socket_addr().expect("a TCP server").port()
}

/// Where libnbd's clients find the export with certificates from `dir`.
fn secure_uri(served: &Served, dir: &Path) -> String {
    format!("nbds://localhost:{}/disk?tls-certificates={}", port(served), tools::text(dir))
}

/// How QEMU's programs are told the same.
fn qemu_args(served: &Served, dir: &Path) -> [String; 4] {
    let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", tools::text(dir));
    let port = port(served);
    let disk = format!("driver=nbd,host=127.0.0.1,port={port},export=disk,tls-creds=tls0");
    ["--object".to_owned(), object, "--image-opts".to_owned(), disk]
}

/// A connection that the server has greeted, and that has sent its flags and `bytes`.
fn greeted(served: &Served, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port(served))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&[&[0, 0, 0, 3], bytes].concat()).unwrap();
    stream
}

/// The kind of the next reply to an option.
fn reply_kind(stream: &mut TcpStream) -> u32 {
    let mut header = [0; 20];
    stream.read_exact(&mut header).unwrap();
    let [kind, len] = [12, 16].map(|at| u32::from_be_bytes(header[at..at + 4].try_into().unwrap()));
    stream.read_exact(&mut vec![0; len as usize]).unwrap();
    kind
}

/// Whether the server hangs up, whatever it says before.
fn is_ended(stream: &mut TcpStream) -> bool {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn clients_of_qemu_and_libnbd_are_served() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let authority = Authority::new(dir.path());
    let served = served(TlsCredentials::from_dir(&authority.server("s"), true).unwrap());
    let client = authority.client("c", 2);

    let uri = secure_uri(&served, &client);
    let said = tools::run("nbdinfo", [&uri]);
    assert!(said.contains("with TLS") && said.contains("base:allocation"), "{said}");
    let source = dir.path().join("source");
    let bytes: Vec<u8> = (0..SIZE as usize).map(|at| (at / 777) as u8).collect();
    std::fs::write(&source, &bytes).unwrap();
    tools::run("nbdcopy", [tools::text(&source), &uri]);

    let qemu = qemu_args(&served, &client);
    let back = dir.path().join("back");
    let convert = ["convert", "-O", "raw"].map(str::to_owned);
    let to = [tools::text(&back).to_owned()];
    tools::run("qemu-img", convert.iter().chain(&qemu).chain(&to));
    assert!(std::fs::read(&back).unwrap() == bytes, "qemu-img got back other bytes");
    let commands = ["-c", "write -P 9 1000 3M", "-c", "read -P 9 1000 3M"].map(str::to_owned);
    let said = tools::run("qemu-io", commands.iter().chain(&qemu));
    assert!(said.contains("read 3145728/3145728") && !said.contains("failed"), "{said}");
}

#[test]
fn tls_moves_with_a_connection_to_the_context_that_serves_it() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let authority = Authority::new(dir.path());
    let credentials = TlsCredentials::from_dir(&authority.server("s"), true).unwrap();
    let options = NbdOptions::default().tls(credentials);
    let served = Served::on_contexts(PARENT, options, 3, |dir| {
        let image = dir.join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        BlockNode::new("disk0", File::options().open(&image).unwrap())
    });
    let client = authority.client("c", 2);
    let uri = format!(
        "nbds+unix:///disk?socket={}&tls-certificates={}&tls-hostname=localhost",
        tools::text(&served.socket()),
        tools::text(&client)
    );
    // Several connections, as the server allows that, with several requests each.
    let (source, back) = (dir.path().join("source"), dir.path().join("back"));
    let bytes: Vec<u8> = (0..SIZE as usize).map(|at| (at / 777) as u8).collect();
    std::fs::write(&source, &bytes).unwrap();
    tools::run("nbdcopy", ["--connections=6", "--flush", tools::text(&source), &uri]);
    tools::run("nbdcopy", ["--connections=6", &uri, tools::text(&back)]);
    assert!(std::fs::read(&back).unwrap() == bytes, "other bytes came back");
    let said = tools::run("nbdinfo", [&uri]);
    assert!(said.contains("with TLS") && said.contains("can_multi_conn: true"), "{said}");
}

#[test]
fn nothing_is_possible_before_tls() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let credentials = TlsCredentials::from_dir(&Authority::new(dir.path()).server("s"), false);
    let served = served(credentials.unwrap());
    let go = [&[0, 0, 0, 4][..], b"disk", &[0, 0]].concat();
    let mut plain = greeted(&served, &[]);
    for kind in [3, 6, 7, 8, 9, 10, 11, 99] {
        plain.write_all(&option(kind, if kind == 7 { &go } else { b"" })).unwrap();
        assert_eq!(reply_kind(&mut plain), 0x8000_0005, "option {kind}");
    }
    // However long they are.
    for kind in [3, 6, 7, 9, 99] {
        plain.write_all(&option(kind, &[0; 40_000])).unwrap();
        assert_eq!(reply_kind(&mut plain), 0x8000_0005, "option {kind}, too long");
    }
    plain.write_all(&option(STARTTLS, &[0; 40_000])).unwrap();
    assert_eq!(reply_kind(&mut plain), 0x8000_0003);
    plain.write_all(&option(STARTTLS, b"data")).unwrap();
    assert_eq!(reply_kind(&mut plain), 0x8000_0003);
    plain.write_all(&option(2, b"")).unwrap();
    assert_eq!(reply_kind(&mut plain), 0x8000_0005);
    assert!(is_ended(&mut plain), "ABORT ends it all the same");
    let mut plain = greeted(&served, &[]);
    plain.write_all(&option(1, b"disk")).unwrap();
    plain.write_all(&request(MAGIC, 0, 0, 0, 512)).unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert_eq!(said, [0; 0], "a client without TLS was told something");
    assert!(!tools::output("nbdinfo", [served.uri("disk")]).status.success());
}

#[test]
fn hostile_beginnings_of_tls_do_no_harm() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let authority = Authority::new(dir.path());
    let served = served(TlsCredentials::from_dir(&authority.server("s"), false).unwrap());
    let client = authority.anonymous("c");
    // A record of the handshake that claims more than it has, and never gets it.
    let unfinished = [&[22, 3, 1, 0x3f, 0xff][..], &[1; 100]].concat();
    let garbage = [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 10_000], &[22; 70_000], &unfinished];
    for bytes in garbage {
        let mut stream = greeted(&served, &option(STARTTLS, b""));
        assert_eq!(reply_kind(&mut stream), 1);
        // The server may hang up before it has read all.
        let _ = stream.write_all(bytes);
        assert!(is_ended(&mut stream), "it waits for a client that never begins");
    }
    // Said in the clear behind STARTTLS: not to be taken for something the client says with TLS.
    let mut smuggler = greeted(&served, &[option(STARTTLS, b""), option(2, b"")].concat());
    assert_eq!(reply_kind(&mut smuggler), 1);
    assert!(is_ended(&mut smuggler));
    // Says nothing, until its time is over.
    let mut silent = greeted(&served, &option(STARTTLS, b""));
    assert_eq!(reply_kind(&mut silent), 1);
    assert!(is_ended(&mut silent));
    tools::run("nbdinfo", [secure_uri(&served, &client)]);
}

#[test]
fn peers_are_verified() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let (parent, other) = (dir.path(), dir.path().join("other"));
    std::fs::create_dir(&other).unwrap();
    let authority = Authority::new(parent);
    let server = authority.server("s");
    authority.revoke(&server, 66);
    let served = served(TlsCredentials::from_dir(&server, true).unwrap());
    let none = authority.anonymous("none");
    let revoked = authority.client("revoked", 66);
    // It knows the server's authority, and has a certificate of another one.
    let stranger = Authority::new(&other).client("stranger", 2);
    std::fs::copy(none.join("ca-cert.pem"), stranger.join("ca-cert.pem")).unwrap();
    for client in [&none, &revoked, &stranger] {
        let output = tools::output("nbdinfo", [secure_uri(&served, client)]);
        assert!(!output.status.success(), "{client:?} was let in");
        let info = ["info".to_owned()];
        let output = tools::output("qemu-img", info.iter().chain(&qemu_args(&served, client)));
        assert!(!output.status.success(), "{client:?} was let in");
    }
    let known = authority.client("known", 2);
    tools::run("nbdinfo", [secure_uri(&served, &known)]);
    // A client does not trust a server of another authority either.
    let wary = Authority::new(&other).client("wary", 2);
    assert!(!tools::output("nbdinfo", [secure_uri(&served, &wary)]).status.success());
}

#[test]
fn tls_may_be_optional_and_may_be_missing() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let authority = Authority::new(dir.path());
    let credentials = TlsCredentials::from_dir(&authority.server("s"), false).unwrap();
    let both = served(credentials.optional());
    tools::run("nbdinfo", [both.uri("disk")]);
    tools::run("nbdinfo", [secure_uri(&both, &authority.anonymous("c"))]);

    let plain = Served::new(PARENT);
    let mut client = plain.connect();
    client.write_all(&[&[0, 0, 0, 3][..], &option(STARTTLS, b"")].concat()).unwrap();
    let mut said = [0; 38];
    client.read_exact(&mut said).unwrap();
    assert_eq!(said[30..34], [0x80, 0, 0, 2], "an error of policy");
}

#[test]
fn useless_credentials_say_what_is_wrong() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let authority = Authority::new(dir.path());
    let fails = |dir: &Path| TlsCredentials::from_dir(dir, true).expect_err("it must fail");
    let good = authority.server("good");
    for (at, file) in ["ca-cert.pem", "server-cert.pem", "server-key.pem"].iter().enumerate() {
        let broken = authority.server(&format!("broken{at}"));
        std::fs::write(broken.join(file), "no PEM").unwrap();
        let error = fails(&broken);
        assert!(matches!(error, TlsError::Malformed(..)), "{error}");
        assert!(error.to_string().contains(file), "{error}");
        std::fs::remove_file(broken.join(file)).unwrap();
        let error = fails(&broken);
        assert!(matches!(error, TlsError::Unreadable(..)), "{error}");
        assert!(error.to_string().contains(file), "{error}");
    }
    // The key of another certificate.
    let other = authority.server("other");
    std::fs::copy(good.join("server-key.pem"), other.join("server-key.pem")).unwrap();
    assert!(matches!(fails(&other), TlsError::Refused(_)));
    assert!(TlsCredentials::from_dir(&good, true).is_ok());
}
