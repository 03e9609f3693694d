//! Sockets that listen, from addresses in QAPI's words; also those that the daemon was started with.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixSocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use coblk::aio::bind_unix;
use rustix::net::{AddressFamily, sockopt};

use crate::leftovers::Leftover;
use crate::options::{InetAddress, SocketAddress, UnixAddress};
use crate::socket_activation;

/// The kernel's limit for the name of a unix socket, with a zero at its end.
const MOST_PATH_BYTES: usize = 108;

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// A unix socket cannot be bound.
    #[error("Failed to bind socket to {path}: {source}")]
    BindUnix {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A host or a port is unknown.
    #[error("address resolution failed for {host}:{port}: {source}")]
    Resolve {
        /// The host.
        host: String,
        /// The port.
        port: String,
        /// Why.
        source: io::Error,
    },
    /// A host has no address of the kind that was asked for.
    #[error("no address of {host}:{port} is allowed by 'ipv4' and 'ipv6'")]
    NoAddress {
        /// The host.
        host: String,
        /// The port.
        port: String,
    },
    /// A TCP socket cannot be bound.
    #[error("Failed to bind socket to {host}:{port}: {source}")]
    BindTcp {
        /// The host.
        host: String,
        /// The port.
        port: String,
        /// Why.
        source: io::Error,
    },
    /// There is no such descriptor.
    #[error("Unable to parse FD number {0}")]
    NotAnFd(String),
    /// It is there, and is no socket that listens for streams.
    #[error("File descriptor '{0}' is not a socket")]
    NotASocket(String),
    /// There can only be listened there.
    #[error("only a path, or a host and a port, can be connected to")]
    ListenOnly,
    /// A socket of another kind is needed.
    #[error("Only socket address types 'unix' and 'fd' are supported")]
    UnixOnly,
}

/// Where to listen.
#[derive(Debug)]
pub enum Listening {
    /// At a path, where nobody listens yet. Who does removes it at the end.
    Path(PathBuf),
    /// On a unix socket.
    Unix(UnixListener),
    /// On a TCP socket.
    Tcp(TcpListener),
}

/// Finds out where an address is, and listens there unless it is a path. May block, to ask for the
/// addresses of a host.
///
/// # Errors
/// What cannot be bound, or is not there.
pub fn open(address: &SocketAddress) -> Result<Listening, SocketError> {
    match address {
        SocketAddress::Inet(address) => listen_inet(address).map(Listening::Tcp),
        SocketAddress::Unix(UnixAddress { path, is_abstract: false }) => {
            Ok(Listening::Path(from_anywhere(path)))
        }
        SocketAddress::Unix(UnixAddress { path, is_abstract: true }) => {
            let name = UnixSocketAddr::from_abstract_name(path.as_os_str().as_bytes());
            let bound = name.and_then(|name| UnixListener::bind_addr(&name));
            let path = path.display().to_string();
            bound.map(Listening::Unix).map_err(|source| SocketError::BindUnix { path, source })
        }
        SocketAddress::Fd(name) => inherited(name),
    }
}

/// A path that is still right when the daemon has left its directory, if the name of a socket can be
/// that long.
fn from_anywhere(path: &Path) -> PathBuf {
    match std::path::absolute(path) {
        Ok(absolute) if absolute.as_os_str().len() < MOST_PATH_BYTES => absolute,
        _ => path.to_owned(),
    }
}

/// A socket of any kind that listens for streams, and does not block. A path that was bound is removed
/// with it.
#[derive(Debug)]
pub struct StreamListener {
    socket: OwnedFd,
    path: Option<PathBuf>,
    _leftover: Option<Leftover>,
}

impl AsFd for StreamListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for StreamListener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listens at an address. May block, to ask for the addresses of a host.
///
/// # Errors
/// What cannot be bound, or is not there.
pub fn listen(address: &SocketAddress) -> Result<StreamListener, SocketError> {
    let (socket, path) = match open(address)? {
        Listening::Unix(listener) => (listener.into(), None),
        Listening::Tcp(listener) => (listener.into(), None),
        Listening::Path(path) => {
            let failed =
                |source| SocketError::BindUnix { path: path.display().to_string(), source };
            (OwnedFd::from(bind_unix(&path).map_err(failed)?), Some(path))
        }
    };
    let leftover = path.as_deref().map(Leftover::at);
    let listener = StreamListener { socket, path, _leftover: leftover };
    let never_blocking = rustix::io::ioctl_fionbio(&listener.socket, true);
    never_blocking.map_err(|error| SocketError::NotAnFd(error.to_string()))?;
    Ok(listener)
}

/// [`open`], for those who talk to unix sockets only. Does not block.
///
/// # Errors
/// What cannot be bound, or that the address is of another kind.
pub fn open_unix(address: &SocketAddress) -> Result<Listening, SocketError> {
    match address {
        SocketAddress::Inet(_) => Err(SocketError::UnixOnly),
        address => open(address),
    }
}

/// Where to connect to. May block, to ask for the addresses of a host.
///
/// # Errors
/// What is unknown, or an address that nobody connects to.
pub fn peer(address: &SocketAddress) -> Result<coblk::qmp::SocketAddress, SocketError> {
    match address {
        SocketAddress::Unix(UnixAddress { path, is_abstract: false }) => {
            Ok(coblk::qmp::SocketAddress::Unix(from_anywhere(path)))
        }
        SocketAddress::Inet(address) => match resolve(address)?.first() {
            Some(found) => Ok(coblk::qmp::SocketAddress::Tcp(*found)),
            None => Err(SocketError::NoAddress {
                host: address.host.clone(),
                port: address.port.clone(),
            }),
        },
        _ => Err(SocketError::ListenOnly),
    }
}

fn listen_inet(address: &InetAddress) -> Result<TcpListener, SocketError> {
    let (host, port) = (address.host.clone(), address.port.clone());
    let addresses = resolve(address)?;
    let Some(first) = addresses.first() else {
        return Err(SocketError::NoAddress { host, port });
    };
    let last_port = address.to.unwrap_or(first.port()).max(first.port());
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for port in first.port()..=last_port {
        let addresses: Vec<SocketAddr> =
            addresses.iter().map(|address| SocketAddr::new(address.ip(), port)).collect();
        match TcpListener::bind(&addresses[..]) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(SocketError::BindTcp { host, port, source: failure })
}

/// The addresses of a host, those of IPv4 first.
fn resolve(address: &InetAddress) -> Result<Vec<SocketAddr>, SocketError> {
    let InetAddress { host, port, ipv4, ipv6, .. } = address;
    let failed = |source| SocketError::Resolve { host: host.clone(), port: port.clone(), source };
    let unknown = || failed(io::Error::other("the port is not a number from 0 to 65535"));
    let number: u16 = port.parse().map_err(|_| unknown())?;
    // As `ipv4` and `ipv6` are in QEMU: on alone excludes the other.
    let v4 = ipv4.unwrap_or(*ipv6 != Some(true));
    let v6 = ipv6.unwrap_or(*ipv4 != Some(true));
    let name = match host.as_str() {
        "" if v4 => "0.0.0.0",
        "" => "::",
        name => name,
    };
    let found = (name, number).to_socket_addrs().map_err(failed)?;
    let mut found: Vec<SocketAddr> =
        found.filter(|it| if it.is_ipv4() { v4 } else { v6 }).collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    Ok(found)
}

/// A socket that this process was started with, under its number or its name.
fn inherited(name: &str) -> Result<Listening, SocketError> {
    let number = name.parse().ok().or_else(|| socket_activation::number_of(name));
    let number = number.ok_or_else(|| SocketError::NotAnFd(name.to_owned()))?;
    let not_a_socket = || SocketError::NotASocket(name.to_owned());
    let socket = coblk::aio::sys::duplicate_fd(number).map_err(|_| not_a_socket())?;
    listening(socket).ok_or_else(not_a_socket)
}

/// `None` if it does not listen for streams.
fn listening(socket: OwnedFd) -> Option<Listening> {
    if !sockopt::socket_acceptconn(socket.as_fd()).ok()? {
        return None;
    }
    if sockopt::socket_type(socket.as_fd()).ok()? != rustix::net::SocketType::STREAM {
        return None;
    }
    match sockopt::socket_domain(socket.as_fd()).ok()? {
        AddressFamily::UNIX => Some(Listening::Unix(socket.into())),
        AddressFamily::INET | AddressFamily::INET6 => Some(Listening::Tcp(socket.into())),
        _ => None,
    }
}
