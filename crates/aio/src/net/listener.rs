//! [`Listener`]: one or several sockets that listen at an address.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr as UnixSocketAddr;
use std::path::PathBuf;

use socket2::{Domain, SockAddr, Socket, Type};

use super::address::{InetAddress, KeepAlive, SocketAddress, UnixAddress, VsockAddress};
use super::error::SocketError;
use super::path::{BoundPath, listen_at};
use super::resolve::{Purpose, is_dual, resolve};
use super::stream::{Stream, unix_sockaddr, vsock_sockaddr};
use crate::sys;

/// Connections that wait to be accepted at one socket.
pub const BACKLOG: i32 = 128;

/// Sockets that listen at one address: several if a host has several addresses. They do not block.
/// Dropping it closes them, and removes the path of a unix socket that it has bound.
#[derive(Debug)]
#[must_use = "dropping it closes its sockets"]
pub struct Listener {
    sockets: Vec<ListeningSocket>,
    addresses: Vec<SocketAddress>,
    keep_alive: KeepAlive,
}

/// One socket of a listener.
#[derive(Debug)]
pub(super) struct ListeningSocket {
    /// Before the socket: it goes first.
    _path: Option<BoundPath>,
    socket: Socket,
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl ListeningSocket {
    /// The next client; `None` if it has gone at once.
    pub(super) fn accept(&self, keep_alive: &KeepAlive) -> io::Result<Option<Stream>> {
        let (socket, _) = self.socket.accept()?;
        Ok(Stream::new(socket, keep_alive).ok())
    }
}

impl From<Socket> for ListeningSocket {
    fn from(socket: Socket) -> ListeningSocket {
        ListeningSocket { _path: None, socket }
    }
}

impl Listener {
    /// Listens at an address. A unix socket that a dead process has left at a path is replaced; the
    /// new one is removed with the listener. May block: to ask for the addresses of a host, and while
    /// another server starts or ends at the same path. Any thread.
    ///
    /// # Errors
    /// If the address is taken, unknown, or of a kind that the system does not have. Nothing is left
    /// behind then.
    pub fn bind(address: &SocketAddress) -> Result<Listener, SocketError> {
        let bind = |source| SocketError::Bind { address: address.to_string(), source };
        let mut keep_alive = KeepAlive::default();
        let sockets = match address {
            SocketAddress::Unix(UnixAddress { path, is_abstract: false, .. }) => {
                let (path, socket) = listen_at(path).map_err(bind)?;
                vec![ListeningSocket { _path: Some(path), socket }]
            }
            SocketAddress::Unix(unix) => {
                let bound = unix_sockaddr(unix).and_then(|it| listen(Domain::UNIX, &it, None));
                vec![bound.map_err(bind)?.into()]
            }
            SocketAddress::Vsock(vsock) => {
                let bound = listen(Domain::VSOCK, &vsock_sockaddr(vsock)?, None);
                vec![bound.map_err(|error| no_vsock(error, bind))?.into()]
            }
            SocketAddress::Inet(inet) => {
                keep_alive = inet.keep_alive;
                listen_inet(inet)?.into_iter().map(ListeningSocket::from).collect()
            }
            SocketAddress::Fd(number) => {
                return Listener::from_fd(descriptor(number)?)
                    .map_err(|_| SocketError::NotASocket(number.clone()));
            }
        };
        Listener::new(sockets, keep_alive).map_err(bind)
    }

    /// Takes a socket that listens already, as one that systemd has passed. Its path, if it has one,
    /// stays at the end.
    ///
    /// # Errors
    /// If it is no unix, TCP or vsock socket that listens for streams.
    pub fn from_fd(socket: impl Into<OwnedFd>) -> io::Result<Listener> {
        let socket = Socket::from(socket.into());
        let is_known =
            matches!(socket.domain()?, Domain::UNIX | Domain::IPV4 | Domain::IPV6 | Domain::VSOCK);
        if !is_known || socket.r#type()? != Type::STREAM || !socket.is_listener()? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening socket"));
        }
        Listener::new(vec![socket.into()], KeepAlive::default())
    }

    fn new(sockets: Vec<ListeningSocket>, keep_alive: KeepAlive) -> io::Result<Listener> {
        let mut addresses = Vec::new();
        for ListeningSocket { socket, .. } in &sockets {
            socket.set_nonblocking(true)?;
            addresses.push(address_of(&socket.local_addr()?));
        }
        Ok(Listener { sockets, addresses, keep_alive })
    }

    /// Where it listens, one for each socket; with the port that the system has chosen. The path of
    /// a socket that has no name is empty.
    pub fn addresses(&self) -> &[SocketAddress] {
        &self.addresses
    }

    /// Whether its sockets are unix sockets.
    pub fn is_unix(&self) -> bool {
        self.addresses.iter().all(|address| matches!(address, SocketAddress::Unix(_)))
    }

    /// Its sockets, to be waited for. Accepting is for [`Acceptor`](super::Acceptor).
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    /// Its sockets, each by itself, and how their clients are noticed to have vanished.
    pub(super) fn into_sockets(self) -> (Vec<ListeningSocket>, KeepAlive) {
        (self.sockets, self.keep_alive)
    }
}

/// Another descriptor for the one with this number.
pub(super) fn descriptor(number: &str) -> Result<OwnedFd, SocketError> {
    let parsed = number.parse().map_err(|_| SocketError::NotAnFd(number.to_owned()))?;
    sys::duplicate_fd(parsed).map_err(|_| SocketError::NotASocket(number.to_owned()))
}

pub(super) fn no_vsock(
    error: io::Error,
    otherwise: impl FnOnce(io::Error) -> SocketError,
) -> SocketError {
    match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT) => SocketError::NoVsock,
        _ => otherwise(error),
    }
}

/// A socket that listens at an address. `is_dual`: one of IPv6 takes clients of IPv4 too.
fn listen(domain: Domain, address: &SockAddr, is_dual: Option<bool>) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    if matches!(domain, Domain::IPV4 | Domain::IPV6) {
        socket.set_reuse_address(true)?;
    }
    if let (Domain::IPV6, Some(is_dual)) = (domain, is_dual) {
        socket.set_only_v6(!is_dual)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Listens at each address of a host, as many as can be had; at least one.
fn listen_inet(inet: &InetAddress) -> Result<Vec<Socket>, SocketError> {
    let mut sockets: Vec<Socket> = Vec::new();
    let mut failure = None;
    for address in resolve(inet, Purpose::Listen)? {
        match listen_in_range(inet, with_port_of(address, &sockets)) {
            Ok(socket) => sockets.push(socket),
            Err(error @ SocketError::NoPorts { .. }) => return Err(error),
            Err(error) => drop(failure.get_or_insert(error)),
        }
    }
    match failure {
        Some(error) if sockets.is_empty() => Err(error),
        _ => Ok(sockets),
    }
}

/// If the system has chosen the port of one socket, the others have the same.
fn with_port_of(mut address: SocketAddr, sockets: &[Socket]) -> SocketAddr {
    let first = sockets.first().and_then(|first| first.local_addr().ok()?.as_socket());
    if let (0, Some(first)) = (address.port(), first) {
        address.set_port(first.port());
    }
    address
}

/// Listens at the first port from that of the address on that is free.
fn listen_in_range(inet: &InetAddress, address: SocketAddr) -> Result<Socket, SocketError> {
    let first = address.port();
    let last = inet.to.unwrap_or(first);
    if last < first {
        return Err(SocketError::NoPorts { port: first, to: last });
    }
    let mut failure = io::Error::from(io::ErrorKind::AddrInUse);
    for port in first..=last {
        match listen_dual(SocketAddr::new(address.ip(), port), is_dual(inet)) {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error,
        }
        if failure.kind() != io::ErrorKind::AddrInUse {
            break;
        }
    }
    let address = SocketAddress::Inet(inet.clone()).to_string();
    Err(SocketError::Bind { address, source: failure })
}

/// Where IPv4 has the port already, as by the socket before this one, IPv6 is taken alone.
fn listen_dual(address: SocketAddr, is_dual: bool) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    match listen(domain, &address.into(), Some(is_dual)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && address.is_ipv6() && is_dual => {
            listen(domain, &address.into(), Some(false))
        }
        result => result,
    }
}

pub(super) fn address_of(address: &SockAddr) -> SocketAddress {
    if let Some(address) = address.as_socket() {
        return SocketAddress::tcp(address);
    }
    if let Some((cid, port)) = address.as_vsock_address() {
        return SocketAddress::Vsock(VsockAddress::new(cid.to_string(), port.to_string()));
    }
    let mut unix = UnixAddress::new(PathBuf::new());
    match address.as_unix() {
        Some(address) => name_of(&address, &mut unix),
        None => return SocketAddress::Unix(unix),
    }
    SocketAddress::Unix(unix)
}

fn name_of(address: &UnixSocketAddr, unix: &mut UnixAddress) {
    if let Some(path) = address.as_pathname() {
        unix.path = path.to_owned();
    } else if let Some(name) = address.as_abstract_name() {
        unix.path = PathBuf::from(std::ffi::OsStr::from_bytes(name));
        unix.is_abstract = true;
    }
}
