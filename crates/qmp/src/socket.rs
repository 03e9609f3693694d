//! Where sessions come from: [`SocketAddress`], listening there, and connecting to it.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

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

pub enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    pub fn bind(address: &SocketAddress) -> io::Result<Listener> {
        match address {
            SocketAddress::Unix(path) => {
                let listener = Listener::Unix(bind_unix(path)?, path.clone());
                if let Listener::Unix(listener, _) = &listener {
                    listener.set_nonblocking(true)?;
                }
                Ok(listener)
            }
            SocketAddress::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Listener::Tcp(listener))
            }
        }
    }

    pub fn local_address(&self) -> io::Result<SocketAddress> {
        match self {
            Listener::Unix(_, path) => Ok(SocketAddress::Unix(path.clone())),
            Listener::Tcp(listener) => listener.local_addr().map(SocketAddress::Tcp),
        }
    }

    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Unix(listener, _) => listener.accept().and_then(|(stream, _)| unix(stream)),
            Listener::Tcp(listener) => listener.accept().and_then(|(stream, _)| tcp(stream)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener, _) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
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

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
            let is_dead = UnixStream::connect(path)
                .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
            if !is_socket || !is_dead {
                return Err(error);
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}
