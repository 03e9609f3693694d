//! Files of TLS credentials for the NBD server: which are refused, and which clients they let in.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use coblk::BlockNode;
use coblk::drivers::Null;
use coblk::nbd::{NbdOptions, TlsCredentials, TlsError};
use coblk_tests::certificates::{Authority, Details};
use coblk_tests::events::Recording;
use coblk_tests::nbd::{SIZE, Served};
use coblk_tests::tools;

const PARENT: &str = env!("CARGO_TARGET_TMPDIR");
const CUT_OFF: &str = "-----BEGIN X509 CRL-----\nMIIB\n";

#[track_caller]
fn refusal(dir: &Path, verify_peer: bool) -> TlsError {
    TlsCredentials::from_dir(dir, verify_peer).expect_err("it must be refused")
}

fn served(dir: &Path) -> Served {
    let options = NbdOptions::default().handshake_timeout(Duration::from_secs(10));
    let options = options.tls(TlsCredentials::from_dir(dir, true).unwrap());
    let any_port = "127.0.0.1:0".parse().unwrap();
    let node = |_: &Path| BlockNode::new("disk0", Null::new(SIZE).read_zeroes(true));
    Served::with_options(PARENT, options, Some(any_port), node)
}

/// Whether a client with certificates from `dir` is served.
fn is_served(served: &Served, dir: &Path) -> bool {
    let port = served.address.socket_addr().expect("a TCP server").port();
    let dir = tools::text(dir);
    let uri = format!("nbds://localhost:{port}/disk?tls-certificates={dir}");
    tools::output("nbdinfo", ["--size", &uri]).status.success()
}

#[test]
fn a_list_of_the_revoked_is_read_or_refused() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let authority = Authority::new(dir.path());
    let server = authority.server("s");
    let path = server.join("ca-crl.pem");
    assert!(TlsCredentials::from_dir(&server, true).is_ok(), "it may be missing");
    authority.revoke(&server, 66);
    assert!(TlsCredentials::from_dir(&server, true).is_ok());
    let good = fs::read_to_string(&path).unwrap();
    let commented = format!("Revoked lately:\n{good}\nThe end.\n");
    fs::write(&path, commented).unwrap();
    assert!(TlsCredentials::from_dir(&server, true).is_ok());

    let certificate = fs::read_to_string(server.join("ca-cert.pem")).unwrap();
    let other_label = good.replace("X509 CRL", "CRL");
    let bad = [
        String::new(),
        "<html>404</html>\n".to_owned(),
        certificate.clone(),
        // Lists behind which there is something that would be passed over.
        format!("{good}{certificate}"),
        format!("{good}{other_label}"),
        format!("{good}{CUT_OFF}"),
        // PEM, but of nothing.
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n".to_owned(),
    ];
    // It is looked at also when clients need no certificate.
    for (bad, verify_peer) in bad.iter().flat_map(|bad| [(bad, true), (bad, false)]) {
        fs::write(&path, bad).unwrap();
        let said = refusal(&server, verify_peer).to_string();
        assert!(said.contains(tools::text(&path)), "{bad}: {said}");
    }
    fs::remove_file(&path).unwrap();
    // There is one, and it cannot be had: elsewhere, no file, or beyond what may be reached.
    let unreachable = |target: &str| {
        symlink(target, &path).unwrap();
        let error = refusal(&server, true);
        assert!(matches!(error, TlsError::Unreadable(..)), "{target}: {error}");
        fs::remove_file(&path).unwrap();
    };
    ["nowhere", "ca-crl.pem", "."].into_iter().for_each(unreachable);
}

#[test]
fn other_lists_are_not_passed_over_in_part_either() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let authority = Authority::new(dir.path());
    let server = authority.server("s");
    for (name, keys_are_ignored) in [("ca-cert.pem", false), ("server-cert.pem", true)] {
        let path = server.join(name);
        let good = fs::read_to_string(&path).unwrap();
        let cut_off = CUT_OFF.replace("X509 CRL", "CERTIFICATE");
        let (trusted, with_key) = (
            good.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
            format!("{good}{}", authority.key()),
        );
        for bad in ["", "no PEM", &format!("{good}{cut_off}"), &trusted] {
            fs::write(&path, bad).unwrap();
            let error = refusal(&server, true);
            assert!(matches!(error, TlsError::Malformed(..)), "{error}");
            assert!(error.to_string().contains(tools::text(&path)), "{error}");
        }
        // A key beside its certificate is common; beside authorities it is a mistake.
        fs::write(&path, with_key).unwrap();
        let taken = TlsCredentials::from_dir(&server, true).is_ok();
        assert_eq!(taken, keys_are_ignored, "{name}");
        fs::write(&path, good).unwrap();
    }
    let key = server.join("server-key.pem");
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    fs::write(&key, encrypted).unwrap();
    let said = refusal(&server, true).to_string();
    assert!(said.contains("server-key.pem") && said.contains("encrypted"), "{said}");
    fs::write(&key, authority.key()).unwrap();
    let said = refusal(&server, true).to_string();
    assert!(said.contains("server-key.pem") && said.contains("not the key of"), "{said}");
}

#[test]
fn a_certificate_of_the_server_is_the_authoritys_and_valid() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let (parent, other) = (dir.path(), dir.path().join("other"));
    fs::create_dir(&other).unwrap();
    let authority = Authority::new(parent);
    let years = |years| Details { years, ..Details::default() };
    let expired = authority.server_like("expired", &years((2000, 2001)));
    let early = authority.server_like("early", &years((2900, 3000)));
    let stranger = authority.server("stranger");
    let of_other = Authority::new(&other).server("s");
    fs::copy(of_other.join("ca-cert.pem"), stranger.join("ca-cert.pem")).unwrap();
    for (dir, reason) in
        [(&expired, "expired"), (&early, "not valid yet"), (&stranger, "no authority")]
    {
        let said = refusal(dir, true).to_string();
        assert!(said.contains("server-cert.pem") && said.contains(reason), "{said}");
        assert!(TlsCredentials::from_dir_unchecked(dir, true).is_ok(), "{reason}");
    }
}

#[test]
fn keys_are_of_any_curve_that_there_is() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let authority = Authority::new(dir.path());
    for (at, algorithm) in
        [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ECDSA_P521_SHA512, &rcgen::PKCS_RSA_SHA256]
            .into_iter()
            .enumerate()
    {
        let details = Details { algorithm, ..Details::default() };
        let server = authority.server_like(&format!("s{at}"), &details);
        let client = authority.client_like(&format!("c{at}"), 2, &details);
        assert!(is_served(&served(&server), &client), "{algorithm:?}");
    }
}

/// As `openssl x509 -req` makes them, unless it is told of extensions.
#[test]
fn a_certificate_of_the_server_may_be_of_version_1() {
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let authority = Authority::new(dir.path());
    let server = authority.server("s");
    let at = |name: &str| tools::text(&server.join(name)).to_owned();
    fs::write(server.join("ca-key.pem"), authority.key()).unwrap();
    let (key, request, certificate) = (at("server-key.pem"), at("request"), at("server-cert.pem"));
    let name = "/CN=localhost";
    tools::run("openssl", ["req", "-new", "-key", &key, "-subj", name, "-out", &request]);
    let (ca, ca_key) = (at("ca-cert.pem"), at("ca-key.pem"));
    let by = ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-set_serial", "5"];
    tools::run("openssl", by.into_iter().chain(["-days", "9", "-out", &certificate]));
    assert!(tools::run("openssl", ["x509", "-in", &certificate, "-text"]).contains("Version: 1"));
    let qemu = authority.client("c", 2);
    assert!(is_served(&served(&server), &qemu));
    // Its key is looked at all the same.
    fs::copy(authority.server("other").join("server-key.pem"), &key).unwrap();
    assert!(matches!(refusal(&server, true), TlsError::Refused(_)));
}

#[test]
fn clients_that_are_refused_are_logged_with_address_and_reason() {
    let recording = Recording::begin();
    let dir = tempfile::tempdir_in(PARENT).unwrap();
    let authority = Authority::new(dir.path());
    let server = authority.server("s");
    authority.revoke(&server, 66);
    let expired = Details { years: (2000, 2001), ..Details::default() };
    for (client, reason) in [
        (authority.client("revoked", 66), "Revoked"),
        (authority.client_like("expired", 3, &expired), "expired"),
        (authority.anonymous("nobody"), "no certificates"),
    ] {
        // Its first refusal: later ones may be left out for a second.
        let refusing = served(&server);
        recording.take();
        assert!(!is_served(&refusing, &client), "{reason}");
        // It was logged before the client was told.
        let logged = recording.take();
        let is_refusal = |event: &&coblk_tests::events::Event| {
            let (client, message) = (event.field("client"), event.field("message"));
            event.level == tracing::Level::WARN
                && client.contains("127.0.0.1:")
                && message.contains(reason)
        };
        assert!(logged.iter().any(|event| is_refusal(&event)), "{reason}: {logged:?}");
    }
    assert!(is_served(&served(&server), &authority.client("known", 2)));
}
