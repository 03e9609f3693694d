//! [`Stream`]: one connection.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::address::{KeepAlive, SocketAddress, UnixAddress, VsockAddress};
use super::error::SocketError;
use super::keep_alive;
use super::listener::{address_of, descriptor, no_vsock};
use super::path::connect_now;
use super::resolve::{Purpose, resolve};
use crate::co::{Co, PoolShare};
use crate::context::FdInterest;
use crate::io_vector::{IoVector, IoVectorMut};
use crate::sync::CoSleep;
use crate::sys;

/// How long a host may take to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Room for the name of a unix socket.
const SUN_PATH_BYTES: usize = 108;

/// A connected socket that never blocks, and never raises SIGPIPE. TCP is sent without delay, and
/// peers that vanish are noticed as the address says.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    is_unix: bool,
}

impl Stream {
    pub(super) fn new(socket: Socket, keep_alive: &KeepAlive) -> io::Result<Stream> {
        socket.set_nonblocking(true)?;
        let domain = socket.domain()?;
        if matches!(domain, Domain::IPV4 | Domain::IPV6) {
            socket.set_tcp_nodelay(true)?;
            keep_alive::set(&SockRef::from(&socket), keep_alive)?;
        }
        Ok(Stream { socket, is_unix: domain == Domain::UNIX })
    }

    /// Takes a socket that is connected.
    ///
    /// # Errors
    /// If it is no such thing.
    pub fn from_fd(socket: impl Into<OwnedFd>) -> io::Result<Stream> {
        let socket = Socket::from(socket.into());
        if socket.r#type()? != Type::STREAM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a stream socket"));
        }
        socket.peer_addr()?;
        Stream::new(socket, &KeepAlive::default())
    }

    /// Connects. Blocks for up to 5 seconds for each address of a host, and to ask for these. Any
    /// thread.
    ///
    /// # Errors
    /// If no process listens there, or it does not answer in time.
    pub fn connect(address: &SocketAddress) -> Result<Stream, SocketError> {
        let failed = |source| SocketError::Connect { address: address.to_string(), source };
        let connected = match address {
            SocketAddress::Unix(unix) => {
                let socket = unix_sockaddr(unix).and_then(|address| connect_now(&address));
                socket.and_then(|socket| Stream::new(socket, &KeepAlive::default()))
            }
            SocketAddress::Vsock(vsock) => {
                let socket = connect_to(Domain::VSOCK, &vsock_sockaddr(vsock)?);
                let socket = socket.map_err(|error| no_vsock(error, failed))?;
                Stream::new(socket, &KeepAlive::default())
            }
            SocketAddress::Inet(inet) => {
                let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
                for address in resolve(inet, Purpose::Connect)? {
                    result = connect_to(Domain::for_address(address), &address.into());
                    if result.is_ok() {
                        break;
                    }
                }
                result.and_then(|socket| Stream::new(socket, &inet.keep_alive))
            }
            SocketAddress::Fd(number) => {
                return Stream::from_fd(descriptor(number)?)
                    .map_err(|_| SocketError::NotASocket(number.clone()));
            }
        };
        connected.map_err(failed)
    }

    /// Connects without blocking: waits for up to `limit` for each address of a host. Only a host that has
    /// a name is asked for by a worker.
    ///
    /// # Errors
    /// If no process listens there, or it does not answer in time.
    pub fn co_connect(
        co: &Co<'_>,
        address: &SocketAddress,
        limit: Duration,
    ) -> Result<Stream, SocketError> {
        let SocketAddress::Inet(inet) = address else {
            return match address {
                SocketAddress::Vsock(_) => PoolShare::once(co, || Stream::connect(address)),
                _ => Stream::connect(address),
            };
        };
        let addresses = match address.socket_addr() {
            Some(address) => vec![address],
            None => PoolShare::once(co, || resolve(inet, Purpose::Connect))?,
        };
        let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
        for address in addresses {
            result = co_connect_to(co, Domain::for_address(address), &address.into(), limit);
            if result.is_ok() {
                break;
            }
        }
        let stream = result.and_then(|socket| Stream::new(socket, &inet.keep_alive));
        stream.map_err(|source| SocketError::Connect { address: address.to_string(), source })
    }

    /// Whether it is a unix socket: its two ends are on one host.
    pub fn is_unix(&self) -> bool {
        self.is_unix
    }

    /// The address of the other end. That of a unix socket is empty unless it has bound one, as
    /// clients seldom do.
    ///
    /// # Errors
    /// If the peer is gone.
    pub fn peer_address(&self) -> io::Result<SocketAddress> {
        Ok(address_of(&self.socket.peer_addr()?))
    }

    /// Reads what there is, up to the length of `target`; 0 at the end.
    ///
    /// # Errors
    /// Also `WouldBlock`, if there is nothing yet.
    pub fn read(&self, target: &mut [u8]) -> io::Result<usize> {
        (&self.socket).read(target)
    }

    /// Writes as much as there is room for, at least a byte.
    ///
    /// # Errors
    /// Also `WouldBlock`, if there is no room; `BrokenPipe`, and no signal, if the peer is gone.
    pub fn write(&self, source: &[IoSlice<'_>]) -> io::Result<usize> {
        match source {
            [one] => self.socket.send_with_flags(one, libc::MSG_NOSIGNAL),
            all => self.socket.send_vectored_with_flags(all, libc::MSG_NOSIGNAL),
        }
    }

    /// [`read`](Self::read) into a vector.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn read_vectored(&self, target: &mut IoVectorMut<'_>) -> io::Result<usize> {
        sys::receive(self.socket.as_fd(), target)
    }

    /// [`write`](Self::write) from a vector.
    ///
    /// # Errors
    /// Those of [`write`](Self::write).
    pub fn write_vectored(&self, source: &IoVector<'_>) -> io::Result<usize> {
        sys::send(self.socket.as_fd(), source)
    }

    /// Whether there is something to read, or to be told. An error of the connection is left for the
    /// next [`read`](Self::read), which a look at the first byte would take.
    pub fn has_input(&self) -> bool {
        let ready = sys::wait_readable(self.socket.as_raw_fd(), Duration::ZERO);
        ready.unwrap_or(true)
    }

    /// Ends both directions: a peer that waits is told, and so is a handler of this end.
    pub fn shutdown(&self) {
        // Fails if the peer was faster.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Says that nothing more will be written.
    ///
    /// # Errors
    /// If the peer is gone.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Stream> for OwnedFd {
    fn from(stream: Stream) -> OwnedFd {
        stream.socket.into()
    }
}

fn connect_to(domain: Domain, address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.connect_timeout(address, CONNECT_LIMIT)?;
    Ok(socket)
}

fn co_connect_to(
    co: &Co<'_>,
    domain: Domain,
    address: &SockAddr,
    limit: Duration,
) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(address) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        result => return result.map(|()| socket),
    }
    let sleep = CoSleep::new();
    let waker = sleep.clone();
    let watched = co.context().fd_handler(socket, FdInterest::Write, move |_, _| waker.wake())?;
    let is_there = sleep.sleep(co, limit);
    let socket = watched.into_descriptor();
    match socket.take_error()? {
        Some(error) => Err(error),
        None if is_there => Ok(socket),
        None => Err(io::ErrorKind::TimedOut.into()),
    }
}

pub(super) fn unix_sockaddr(unix: &UnixAddress) -> io::Result<SockAddr> {
    if !unix.is_abstract {
        return SockAddr::unix(&unix.path);
    }
    // The zero before it says that it is abstract.
    let mut name = vec![0];
    name.extend_from_slice(unix.path.as_os_str().as_bytes());
    if !unix.is_tight && name.len() < SUN_PATH_BYTES {
        name.resize(SUN_PATH_BYTES, 0);
    }
    SockAddr::unix(std::ffi::OsStr::from_bytes(&name))
}

pub(super) fn vsock_sockaddr(vsock: &VsockAddress) -> Result<SockAddr, SocketError> {
    let number = |what, text: &String| {
        let number = text.parse::<u32>();
        number.map_err(|_| SocketError::NotANumber { what, text: text.clone() })
    };
    Ok(SockAddr::vsock(number("cid", &vsock.cid)?, number("port", &vsock.port)?))
}
