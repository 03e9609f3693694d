//! [`SocketError`]: why a socket cannot be had, in QEMU's words where QEMU has some.

use std::io;

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The socket cannot be bound, or not listened at.
    #[error("Failed to bind socket to {address}: {source}")]
    Bind {
        /// The address.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The connection cannot be made.
    #[error("Failed to connect to '{address}': {source}")]
    Connect {
        /// The address.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A host or a port is unknown.
    #[error("address resolution failed for {host}:{port}: {reason}")]
    Resolve {
        /// The host.
        host: String,
        /// The port.
        port: String,
        /// The resolver's reason.
        reason: String,
    },
    /// Neither protocol is allowed.
    #[error("Cannot disable IPv4 and IPv6 at same time")]
    NoFamily,
    /// A range of ports that has none.
    #[error("Parameter 'to' ({to}) is below the port ({port})")]
    NoPorts {
        /// The first port.
        port: u16,
        /// The last one.
        to: u16,
    },
    /// A number of a vsock address is none.
    #[error("Failed to parse {what} '{text}'")]
    NotANumber {
        /// Which.
        what: &'static str,
        /// What it is instead.
        text: String,
    },
    /// The kernel was built, or started, without them.
    #[error("the kernel has no vsock sockets")]
    NoVsock,
    /// There is no such descriptor.
    #[error("Unable to parse FD number {0}")]
    NotAnFd(String),
    /// The descriptor is no socket that listens for streams, or no connected one to connect by.
    #[error("File descriptor '{0}' is not a socket")]
    NotASocket(String),
    /// The address is of another kind than the server can use.
    #[error("Only socket address types 'unix' and 'fd' are supported")]
    UnixOnly,
}

impl From<SocketError> for io::Error {
    fn from(error: SocketError) -> io::Error {
        let kind = match &error {
            SocketError::Bind { source, .. } | SocketError::Connect { source, .. } => source.kind(),
            SocketError::NoVsock => io::ErrorKind::Unsupported,
            SocketError::Resolve { .. } => io::ErrorKind::NotFound,
            _ => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}
