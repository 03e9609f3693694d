//! TCP peers that vanish are noticed.

use std::net::TcpStream;
use std::time::Duration;

use coblk_aio::AioContext;
use coblk_aio::net::{AcceptOptions, Acceptor, InetAddress, KeepAlive, Listener, SocketAddress};
use socket2::SockRef;

/// What a server of this address sets on a connection: whether the peer is asked, after which silence,
/// how often, how many times, and how long data may stay unacknowledged.
fn settings(keep_alive: KeepAlive) -> (bool, [u64; 4]) {
    let ctx = AioContext::for_test().unwrap();
    let mut address = InetAddress::new("127.0.0.1", "0");
    address.keep_alive = keep_alive;
    let listener = Listener::bind(&SocketAddress::Inet(address)).unwrap();
    let port = listener.addresses()[0].socket_addr().unwrap().port();
    let accepted = std::rc::Rc::new(std::cell::Cell::new(None));
    let seen = std::rc::Rc::clone(&accepted);
    let options = AcceptOptions::new("a client");
    let _acceptor = Acceptor::start(&ctx, listener, options, move |_, stream, _| {
        let socket = SockRef::from(&stream);
        let seconds = |time: std::io::Result<Duration>| time.unwrap().as_secs();
        seen.set(Some((
            socket.keepalive().unwrap(),
            [
                seconds(socket.tcp_keepalive_time()),
                seconds(socket.tcp_keepalive_interval()),
                u64::from(socket.tcp_keepalive_retries().unwrap()),
                socket.tcp_user_timeout().unwrap().unwrap_or_default().as_secs(),
            ],
        )));
    })
    .unwrap();
    let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    ctx.run_until(|| {
        let value = accepted.take();
        let is_there = value.is_some();
        accepted.set(value);
        is_there
    });
    accepted.take().unwrap()
}

/// What the system has by default.
fn system(name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_keepalive_{name}")).unwrap();
    text.trim().parse().unwrap()
}

#[test]
fn peers_are_asked_by_default_and_the_times_are_bounded() {
    let idle = system("time").min(60);
    let (interval, count) = (system("intvl").min(10), system("probes").min(6));
    let expected = [idle, interval, count, idle + interval * count];
    assert_eq!(settings(KeepAlive::default()), (true, expected));
}

#[test]
fn the_times_of_an_address_are_kept() {
    let mut wanted = KeepAlive::default();
    (wanted.count, wanted.idle_seconds, wanted.interval_seconds) = (Some(3), Some(100), Some(7));
    assert_eq!(settings(wanted), (true, [100, 7, 3, 121]));
    (wanted.count, wanted.idle_seconds) = (Some(u32::MAX), Some(u32::MAX));
    assert_eq!(settings(wanted), (true, [32767, 7, 127, 32767 + 7 * 127]));
}

#[test]
fn peers_are_not_asked_if_the_address_says_so() {
    let mut wanted = KeepAlive::default();
    wanted.enabled = Some(false);
    let (asked, [.., unacknowledged]) = settings(wanted);
    assert_eq!((asked, unacknowledged), (false, 0));
}
