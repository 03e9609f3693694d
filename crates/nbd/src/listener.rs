//! Where clients come in: [`NbdAddress`], and the coroutine that accepts them.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::{Co, FdInterest, bind_unix};

use crate::server::Shared;
use crate::socket::Socket;

/// How long nobody is accepted after that has failed, for want of descriptors for one.
const PAUSE: Duration = Duration::from_millis(200);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    /// A unix socket at this path. It is made, and removed at the end; one that is left from a
    /// program that is gone is replaced. Empty: an open socket that has no path.
    Unix(PathBuf),
    /// A TCP address. Port 0 lets the system choose.
    Tcp(SocketAddr),
}

/// A socket that listens already, for [`NbdServer::from_listener`](crate::NbdServer::from_listener).
#[derive(Debug)]
pub enum NbdListener {
    /// A unix socket. Its path, if it has one, is left alone.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

pub enum Listener {
    /// With the path that is removed at the end.
    Unix(UnixListener, Option<PathBuf>),
    Tcp(TcpListener),
}

impl Listener {
    pub fn bind(address: &NbdAddress) -> io::Result<Listener> {
        match address {
            NbdAddress::Unix(path) => {
                let listener = bind_unix(path)?;
                // Before anything can fail, so that the socket is removed then.
                Listener::Unix(listener, Some(path.clone())).never_blocking()
            }
            NbdAddress::Tcp(address) => Listener::Tcp(TcpListener::bind(address)?).never_blocking(),
        }
    }

    pub fn from_open(listener: NbdListener) -> io::Result<Listener> {
        match listener {
            NbdListener::Unix(listener) => Listener::Unix(listener, None).never_blocking(),
            NbdListener::Tcp(listener) => Listener::Tcp(listener).never_blocking(),
        }
    }

    fn never_blocking(self) -> io::Result<Listener> {
        match &self {
            Listener::Unix(listener, _) => listener.set_nonblocking(true)?,
            Listener::Tcp(listener) => listener.set_nonblocking(true)?,
        }
        Ok(self)
    }

    pub fn local_address(&self) -> io::Result<NbdAddress> {
        match self {
            Listener::Unix(_, Some(path)) => Ok(NbdAddress::Unix(path.clone())),
            Listener::Unix(listener, None) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().map(Path::to_owned);
                Ok(NbdAddress::Unix(path.unwrap_or_default()))
            }
            Listener::Tcp(listener) => listener.local_addr().map(NbdAddress::Tcp),
        }
    }

    fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Unix(listener, _) => listener.accept().and_then(|(s, _)| Socket::unix(s)),
            Listener::Tcp(listener) => listener.accept().and_then(|(s, _)| Socket::tcp(s)),
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
        if let Listener::Unix(_, Some(path)) = self {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Accepts clients until the server stops. The body of the coroutine.
pub fn accept_clients(co: &Co<'_>, server: &Rc<Shared>, listener: &Listener) -> io::Result<()> {
    let ctx = co.context();
    let own = Rc::downgrade(server);
    let _watched = ctx.fd_handler(listener, FdInterest::Read, move |_, _| {
        if let Some(own) = own.upgrade() {
            own.may_accept.set(true);
            own.poke_acceptor();
        }
    })?;
    while !server.stopping.get() {
        if server.is_crowded() || !server.may_accept.get() || server.paused.get() {
            server.wait_to_accept(co);
            continue;
        }
        match listener.accept() {
            Ok(socket) => server.adopt(ctx, socket),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => server.may_accept.set(false),
                ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                _ => {
                    tracing::warn!(%error, "cannot accept an NBD client");
                    co.sleep(PAUSE);
                }
            },
        }
    }
    Ok(())
}
