//! TCP addresses: protocols, ports and names, as QEMU has them; vsock.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use coblk_aio::net::{InetAddress, Listener, SocketAddress, SocketError, VsockAddress};

/// Listens at a port that the system chooses.
fn listen(host: &str, ipv4: Option<bool>, ipv6: Option<bool>) -> Result<Listener, SocketError> {
    let mut address = InetAddress::new(host, "0");
    (address.ipv4, address.ipv6) = (ipv4, ipv6);
    Listener::bind(&SocketAddress::Inet(address))
}

fn port(listener: &Listener) -> u16 {
    let ports: Vec<u16> = listener
        .addresses()
        .iter()
        .map(|address| address.socket_addr().expect("a TCP address").port())
        .collect();
    assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
    ports[0]
}

/// Whether clients of IPv4 and of IPv6 get through.
fn lets_in(listener: &Listener) -> (bool, bool) {
    let port = port(listener);
    let connects = |address: SocketAddr| TcpStream::connect(address).is_ok();
    (connects((Ipv4Addr::LOCALHOST, port).into()), connects((Ipv6Addr::LOCALHOST, port).into()))
}

#[test]
fn ipv4_and_ipv6_are_what_was_asked_for() {
    let (on, off) = (Some(true), Some(false));
    for (host, ipv4, ipv6, expected) in [
        ("", None, None, (true, true)),
        ("", None, on, (false, true)),
        ("", None, off, (true, false)),
        ("", on, None, (true, false)),
        ("", off, None, (false, true)),
        ("", on, off, (true, false)),
        ("", off, on, (false, true)),
        ("", on, on, (true, true)),
        ("::", None, None, (true, true)),
        ("::", off, None, (false, true)),
        ("::", None, on, (false, true)),
        ("::", on, on, (true, true)),
        ("127.0.0.1", None, None, (true, false)),
        ("::1", None, None, (false, true)),
    ] {
        let listener = listen(host, ipv4, ipv6).unwrap();
        assert_eq!(lets_in(&listener), expected, "{host} {ipv4:?} {ipv6:?}");
    }
}

#[test]
fn without_a_protocol_there_is_no_listener() {
    let refused = listen("", Some(false), Some(false)).unwrap_err();
    assert_eq!(refused.to_string(), "Cannot disable IPv4 and IPv6 at same time");
    for (host, ipv4) in [("::1", Some(true)), ("127.0.0.1", Some(false))] {
        let error = listen(host, ipv4, None).unwrap_err();
        assert!(matches!(error, SocketError::Resolve { .. }), "{error}");
    }
}

fn at(host: &str, port: &str, change: impl FnOnce(&mut InetAddress)) -> SocketAddress {
    let mut address = InetAddress::new(host, port);
    change(&mut address);
    SocketAddress::Inet(address)
}

#[test]
fn ports_may_be_names_of_services() {
    // Two daemons could be at it, so only the name's meaning counts.
    match Listener::bind(&at("127.0.0.1", "nbd", |_| ())) {
        Ok(listener) => assert_eq!(port(&listener), 10809),
        Err(error) => assert!(matches!(error, SocketError::Bind { .. }), "{error}"),
    }
    let error = Listener::bind(&at("127.0.0.1", "nosuchservice", |_| ())).unwrap_err();
    assert!(error.to_string().starts_with("address resolution failed for 127.0.0.1:nosuch"));
    let error = Listener::bind(&at("127.0.0.1", "65537", |_| ())).unwrap_err();
    assert!(error.to_string().ends_with("the port is above 65535"), "{error}");
}

#[test]
fn numeric_addresses_are_not_looked_up() {
    drop(Listener::bind(&at("localhost", "0", |_| ())).unwrap());
    drop(Listener::bind(&at("127.0.0.1", "0", |address| address.numeric = true)).unwrap());
    for (host, port) in [("localhost", "0"), ("127.0.0.1", "nbd")] {
        let error = Listener::bind(&at(host, port, |it| it.numeric = true)).unwrap_err();
        assert!(matches!(error, SocketError::Resolve { .. }), "{error}");
    }
}

#[test]
fn ranges_of_ports_are_tried_in_order() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let first = taken.local_addr().unwrap().port();
    let text = first.to_string();
    let error = Listener::bind(&at("127.0.0.1", &text, |_| ())).unwrap_err();
    assert!(matches!(error, SocketError::Bind { .. }), "{error}");
    let last = first.saturating_add(100);
    let found = Listener::bind(&at("127.0.0.1", &text, |it| it.to = Some(last))).unwrap();
    assert!((first + 1..=last).contains(&port(&found)));
    let error = Listener::bind(&at("127.0.0.1", &text, |it| it.to = Some(first - 1))).unwrap_err();
    assert!(error.to_string().contains("is below the port"), "{error}");
}

#[test]
fn vsock_is_listened_at_or_missed_clearly() {
    let vsock =
        |cid: &str, port: &str| Listener::bind(&SocketAddress::Vsock(VsockAddress::new(cid, port)));
    let text = vsock("x", "1").unwrap_err().to_string();
    assert_eq!(text, "Failed to parse cid 'x'");
    let text = vsock("1", "1-2").unwrap_err().to_string();
    assert_eq!(text, "Failed to parse port '1-2'");
    // Any machine, any port.
    match vsock("4294967295", "4294967295") {
        Ok(listener) => match &listener.addresses()[0] {
            SocketAddress::Vsock(address) => assert_ne!(address.port, "4294967295"),
            other => panic!("{other:?}"),
        },
        Err(error) => assert_eq!(error.to_string(), "the kernel has no vsock sockets"),
    }
}
