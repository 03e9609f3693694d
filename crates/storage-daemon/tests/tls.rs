//! The NBD server with TLS: QEMU's and libnbd's clients, with certificates and without.
#![cfg(feature = "tls")]

mod util;

use coblk_tests::certificates::{Authority, Details};
use coblk_tests::tools;
use rustix::process::Signal;
use util::Place;

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
