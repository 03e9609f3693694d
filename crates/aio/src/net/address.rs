//! [`SocketAddress`]: where a server listens, or a client connects to.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// An address of a stream socket, as QAPI's `SocketAddress`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SocketAddress {
    /// `inet`: TCP.
    Inet(InetAddress),
    /// `unix`: a path, or an abstract name.
    Unix(UnixAddress),
    /// `vsock`: a port of a virtual machine or of its host.
    Vsock(VsockAddress),
    /// `fd`: a socket that the process has, by the number of its descriptor.
    Fd(String),
}

/// A TCP address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InetAddress {
    /// A name or an address; empty for all of this machine's.
    pub host: String,
    /// A number or the name of a service. 0 or empty lets the system choose.
    pub port: String,
    /// The host is an address and the port a number: nothing is looked up.
    pub numeric: bool,
    /// Listening tries the ports up to this one, and takes the first that is free.
    pub to: Option<u16>,
    /// Whether IPv4 is used. Alone it excludes IPv6.
    pub ipv4: Option<bool>,
    /// Whether IPv6 is used. Alone it excludes IPv4.
    pub ipv6: Option<bool>,
    /// How a peer that has vanished is noticed.
    pub keep_alive: KeepAlive,
}

/// When a peer counts as gone from which nothing is heard. What is `None` has the default: after
/// 60 s of silence a probe each 10 s, and the end after 6; or what the system has, where that is
/// shorter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeepAlive {
    /// Whether it is asked at all; it is by default.
    pub enabled: Option<bool>,
    /// Probes that may stay unanswered.
    pub count: Option<u32>,
    /// Seconds of silence before the first.
    pub idle_seconds: Option<u32>,
    /// Seconds between two.
    pub interval_seconds: Option<u32>,
}

/// The address of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnixAddress {
    /// The path, or the abstract name.
    pub path: PathBuf,
    /// The name is in Linux's abstract name space and not in the file system.
    pub is_abstract: bool,
    /// An abstract name ends where its text does. Otherwise zeroes fill it up, as programs do that
    /// pass the whole of a `sockaddr_un`.
    pub is_tight: bool,
}

/// An address of a virtual machine's own sockets. Both numbers are texts, as in QAPI.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VsockAddress {
    /// Which machine: 4294967295 is any, 2 the host.
    pub cid: String,
    /// The port.
    pub port: String,
}

impl SocketAddress {
    /// A unix socket at a path.
    pub fn unix(path: impl Into<PathBuf>) -> SocketAddress {
        SocketAddress::Unix(UnixAddress::new(path))
    }

    /// A TCP address. Port 0 lets the system choose.
    pub fn tcp(address: impl Into<SocketAddr>) -> SocketAddress {
        let address: SocketAddr = address.into();
        let mut inet = InetAddress::new(address.ip().to_string(), address.port().to_string());
        inet.numeric = true;
        SocketAddress::Inet(inet)
    }

    /// The path of a unix socket that is in the file system.
    pub fn path(&self) -> Option<&Path> {
        match self {
            SocketAddress::Unix(UnixAddress { path, is_abstract: false, .. }) => Some(path),
            _ => None,
        }
    }

    /// The numbers of a TCP address, if it has no names.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            SocketAddress::Inet(InetAddress { host, port, .. }) => {
                Some(SocketAddr::new(host.parse().ok()?, port.parse().ok()?))
            }
            _ => None,
        }
    }
}

impl InetAddress {
    /// One with nothing but a host and a port.
    pub fn new(host: impl Into<String>, port: impl Into<String>) -> InetAddress {
        InetAddress { host: host.into(), port: port.into(), ..InetAddress::default() }
    }
}

impl UnixAddress {
    /// A path in the file system.
    pub fn new(path: impl Into<PathBuf>) -> UnixAddress {
        UnixAddress { path: path.into(), is_abstract: false, is_tight: true }
    }
}

impl VsockAddress {
    /// Both numbers, as texts.
    pub fn new(cid: impl Into<String>, port: impl Into<String>) -> VsockAddress {
        VsockAddress { cid: cid.into(), port: port.into() }
    }
}

impl From<SocketAddr> for SocketAddress {
    fn from(address: SocketAddr) -> SocketAddress {
        SocketAddress::tcp(address)
    }
}

/// For messages.
impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketAddress::Inet(InetAddress { host, port, .. }) if host.contains(':') => {
                write!(f, "[{host}]:{port}")
            }
            SocketAddress::Inet(InetAddress { host, port, .. }) => write!(f, "{host}:{port}"),
            SocketAddress::Unix(address) => write!(f, "{}", address.path.display()),
            SocketAddress::Vsock(VsockAddress { cid, port }) => write!(f, "vsock:{cid}:{port}"),
            SocketAddress::Fd(name) => write!(f, "fd:{name}"),
        }
    }
}
