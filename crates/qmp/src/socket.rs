//! Where sessions come from: [`SocketAddress`], listening there, and connecting to it.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use coblk_aio::bind_unix;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A socket's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// A unix socket at this path. Who listens makes it, and removes it at the end; one that is left
    /// from a program that is gone is replaced.
    Unix(PathBuf),
    /// A TCP address. To listen at port 0 lets the system choose.
    Tcp(SocketAddr),
}

/// One connection. A stream of either kind is read and written alike, so it is just a descriptor,
/// which never blocks.
pub type Stream = File;

/// A socket that listens already, for [`Monitor::from_listener`](crate::Monitor::from_listener).
#[derive(Debug)]
pub enum QmpListener {
    /// A unix socket. Its path, if it has one, is left alone.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// A socket that listens, and never blocks; with the path that is removed at the end.
pub struct Listener {
    socket: QmpListener,
    path: Option<PathBuf>,
}

impl Listener {
    pub fn bind(address: &SocketAddress) -> io::Result<Listener> {
        let listener = match address {
            SocketAddress::Unix(path) => {
                let socket = QmpListener::Unix(bind_unix(path)?);
                Listener { socket, path: Some(path.clone()) }
            }
            SocketAddress::Tcp(address) => {
                Listener { socket: QmpListener::Tcp(TcpListener::bind(address)?), path: None }
            }
        };
        listener.never_blocking()
    }

    pub fn from_open(socket: QmpListener) -> io::Result<Listener> {
        Listener { socket, path: None }.never_blocking()
    }

    fn never_blocking(self) -> io::Result<Listener> {
        match &self.socket {
            QmpListener::Unix(socket) => socket.set_nonblocking(true)?,
            QmpListener::Tcp(socket) => socket.set_nonblocking(true)?,
        }
        Ok(self)
    }

    /// Where it listens, if that has a name.
    pub fn local_address(&self) -> Option<SocketAddress> {
        match &self.socket {
            QmpListener::Unix(socket) => {
                let address = socket.local_addr().ok()?;
                address.as_pathname().map(|path| SocketAddress::Unix(path.to_owned()))
            }
            QmpListener::Tcp(socket) => socket.local_addr().ok().map(SocketAddress::Tcp),
        }
    }

    pub fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            QmpListener::Unix(socket) => socket.accept().and_then(|(stream, _)| unix(stream)),
            QmpListener::Tcp(socket) => socket.accept().and_then(|(stream, _)| tcp(stream)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            QmpListener::Unix(socket) => socket.as_fd(),
            QmpListener::Tcp(socket) => socket.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody may have removed it already.
            let _ = fs::remove_file(path);
        }
    }
}

/// Connects. Blocks for up to 5 seconds, while a host does not answer.
pub fn connect(address: &SocketAddress) -> io::Result<Stream> {
    match address {
        SocketAddress::Unix(path) => {
            // The standard library's would block, without end, while the queue of who listens is full.
            let stream = mio::net::UnixStream::connect(path)?;
            Ok(File::from(OwnedFd::from(stream)))
        }
        SocketAddress::Tcp(address) => {
            TcpStream::connect_timeout(address, CONNECT_LIMIT).and_then(tcp)
        }
    }
}

fn unix(stream: UnixStream) -> io::Result<Stream> {
    stream.set_nonblocking(true)?;
    Ok(File::from(OwnedFd::from(stream)))
}

fn tcp(stream: TcpStream) -> io::Result<Stream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(File::from(OwnedFd::from(stream)))
}
