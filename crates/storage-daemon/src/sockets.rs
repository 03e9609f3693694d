//! Sockets that listen, from addresses in QAPI's words; also those that the daemon was started with.

use coblk::Co;
use coblk::aio::PoolShare;
pub use coblk::aio::net::SocketError;
use coblk::aio::net::{Listener, SocketAddress};
use coblk::aio::sys;
use coblk::vhost_user_blk::Sockets;

use crate::socket_activation;

/// The kernel's limit for the name of a unix socket, with a zero at its end.
const MAX_PATH_BYTES: usize = 108;

/// Listens at an address: [`listen`], on a worker thread.
///
/// # Errors
/// What cannot be bound, or is not there.
pub fn co_listen(co: &Co<'_>, address: &SocketAddress) -> Result<Listener, SocketError> {
    PoolShare::once(co, || listen(address))
}

/// Listens at an address. May block: to ask for the addresses of a host, and while another daemon
/// starts or ends at the same path.
///
/// # Errors
/// What cannot be bound, or is not there.
pub fn listen(address: &SocketAddress) -> Result<Listener, SocketError> {
    let SocketAddress::Fd(name) = address else {
        // Tools that list sockets show the name that it was bound by.
        return Listener::bind(&from_anywhere(address));
    };
    let number = number_of(name).ok_or_else(|| SocketError::NotAnFd(name.clone()))?;
    // What the daemon has opened itself is not to be had in this way.
    if !sys::is_inherited(number) {
        return Err(SocketError::NotASocket(name.clone()));
    }
    let named = |_| SocketError::NotASocket(name.clone());
    Listener::bind(&SocketAddress::Fd(number.to_string())).map_err(named)
}

/// Where the sockets of exports come from: those too that the daemon was started with.
#[derive(Clone, Copy, Debug, Default)]
pub struct DaemonSockets;

impl Sockets for DaemonSockets {
    fn co_listen(&self, co: &Co<'_>, address: &SocketAddress) -> Result<Listener, SocketError> {
        co_listen(co, address)
    }

    fn taken_over(&self, address: &SocketAddress) {
        taken_over(address);
    }
}

/// A server has begun at an address. If that is an inherited socket, the server's copy becomes the
/// only one of this process: when it is closed, clients are refused and do not wait in its queue.
pub fn taken_over(address: &SocketAddress) {
    let SocketAddress::Fd(name) = address else { return };
    let released = number_of(name).map(sys::release_inherited_listener);
    if let Some(Err(error)) = released {
        tracing::warn!(%error, fd = name, "an inherited socket stays open");
    }
}

/// The same address when the daemon has left its directory, if the name of a socket can be that long.
pub fn from_anywhere(address: &SocketAddress) -> SocketAddress {
    let absolute = address.path().and_then(|path| std::path::absolute(path).ok());
    match absolute.filter(|path| path.as_os_str().len() < MAX_PATH_BYTES) {
        Some(absolute) => SocketAddress::unix(absolute),
        None => address.clone(),
    }
}

fn number_of(name: &str) -> Option<i32> {
    name.parse().ok().or_else(|| socket_activation::number_of(name))
}
