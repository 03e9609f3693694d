//! Stream sockets: addresses, listening, accepting, connecting.
//!
//! * [`SocketAddress`] is where a server listens: QEMU's kinds, with QEMU's meaning of their members.
//! * [`Listener`] is one or several sockets that listen at such an address.
//! * [`Acceptor`] lets clients of a listener in, up to a limit, on the loop of one context.
//! * [`Stream`] is one connection. Writing to it never raises SIGPIPE.
//!
//! # A path has one owner
//!
//! A unix socket stays in the file system when its process dies, so a server replaces a socket that
//! is left over. Three rules keep that from taking the path of a server that lives:
//!
//! * Looking, replacing, binding and listening happen under a lock for that path: an empty file
//!   `.NAME.lock` beside the socket, which exists no longer than that. Two servers that start at once
//!   take turns, and the second finds a socket that is listened at.
//! * A listener notes device and inode of the socket that it has bound. At its end it removes the path
//!   only if that socket is still there: not a successor's, and not a file.
//! * It looks and removes under the same lock, before it closes its socket. So the inode number cannot
//!   have been given to another socket, and no server can come between the look and the removal.
//!
//! A process that ends without dropping its listeners has [`remove_bound_paths`] for their paths.
//!
//! Other programs do not know the lock. One that is between binding and listening looks like one that
//! has died.
//!
//! # SIGPIPE
//!
//! Writing to a connection that the peer has closed raises SIGPIPE, which ends a process that has left
//! it at its default. Every write here has MSG_NOSIGNAL, so a host program need not change the
//! signal: it gets the error EPIPE.

mod acceptor;
mod address;
mod error;
mod keep_alive;
mod listener;
#[cfg(feature = "qapi")]
mod options;
mod path;
mod resolve;
mod stream;

pub use acceptor::{AcceptOptions, Acceptor, Slot};
pub use address::{InetAddress, KeepAlive, SocketAddress, UnixAddress, VsockAddress};
pub use error::SocketError;
pub use listener::Listener;
#[cfg(feature = "qapi")]
pub use options::InetMembers;
pub use path::remove_bound_paths;
pub use stream::Stream;
