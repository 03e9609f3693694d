//! [`Transport`]: the socket of a connection, in the clear or with TLS on it.

#[cfg(feature = "tls")]
mod client_credentials;
#[cfg(feature = "tls")]
mod credentials;
#[cfg(feature = "tls")]
mod identity;
#[cfg(not(feature = "tls"))]
mod no_tls;
#[cfg(feature = "tls")]
mod tls;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::net::{SocketAddress, Stream};
use coblk_aio::{IoVector, IoVectorMut};
use rustix::net::sockopt::{set_socket_linger, set_socket_send_buffer_size, socket_peercred};

#[cfg(feature = "tls")]
pub use client_credentials::TlsClientCredentials;
#[cfg(feature = "tls")]
pub use credentials::{RefusedFile, TlsCredentials, TlsError, TlsFiles};
#[cfg(not(feature = "tls"))]
pub use no_tls::{TlsClientCredentials, TlsCredentials};
#[cfg(feature = "tls")]
pub(crate) use tls::Session;

/// Where a payload begins a call of its own, in bytes, if it is that long: one more call costs less then.
const LONG: usize = 128 << 10;

pub struct Transport {
    /// Shared with the one that it was [taken over](Self::take_over) from.
    socket: Arc<Stream>,
    #[cfg(feature = "tls")]
    session: std::cell::RefCell<Option<crate::transport::tls::Session>>,
}

impl Transport {
    pub fn new(socket: Stream) -> Transport {
        Transport {
            socket: Arc::new(socket),
            #[cfg(feature = "tls")]
            session: std::cell::RefCell::default(),
        }
    }

    /// Asks for so much room for what is sent, if it is a unix socket: these have 208 KiB, and do not grow as those of
    /// TCP do, so that a long message goes by pieces, each of which waits for the peer. The kernel may give less.
    pub fn ask_for_room(&self, bytes: usize) {
        if matches!(self.socket.peer_address(), Ok(SocketAddress::Unix(_))) {
            // It works without, too.
            let _ = set_socket_send_buffer_size(&*self.socket, bytes);
        }
    }

    /// The connection, for another thread. Nothing may be done with this value any more.
    pub fn take_over(&self) -> Transport {
        Transport {
            socket: Arc::clone(&self.socket),
            #[cfg(feature = "tls")]
            session: std::cell::RefCell::new(self.session.take()),
        }
    }

    /// # Errors
    /// Also `WouldBlock`, and then the socket is empty.
    pub fn read(&self, target: &mut [u8]) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(session) = &mut *self.session.borrow_mut() {
            return session.read(&self.socket, target);
        }
        self.socket.read(target)
    }

    /// Returns how much of `source` need not be kept any more.
    pub fn write(&self, source: &[IoSlice<'_>]) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(session) = &mut *self.session.borrow_mut() {
            return session.write(&self.socket, source);
        }
        self.socket.write(source)
    }

    /// From how many bytes on a payload is to be the first that a [`write`](Self::write) is given. A unix socket
    /// copies each write to pages of its own. Behind a header all bytes of a payload would lie a few places beside
    /// where they lie here, in words and in lines of the cache, and copying it takes a third longer: the peer's copy
    /// of it, too.
    pub fn long(&self) -> usize {
        if self.socket.is_unix() && !self.is_secure() { LONG } else { usize::MAX }
    }

    /// [`read`](Self::read) into a vector, in the clear.
    pub fn read_vectored(&self, target: &mut IoVectorMut<'_>) -> io::Result<usize> {
        debug_assert!(!self.is_secure());
        self.socket.read_vectored(target)
    }

    /// [`write`](Self::write) from a vector, in the clear.
    pub fn write_vectored(&self, source: &IoVector<'_>) -> io::Result<usize> {
        debug_assert!(!self.is_secure());
        self.socket.write_vectored(source)
    }

    /// Whether something written is not in the socket yet.
    pub fn has_unsent(&self) -> bool {
        #[cfg(feature = "tls")]
        if let Some(session) = &*self.session.borrow() {
            return session.has_unsent();
        }
        false
    }

    /// Sends that. `WouldBlock` if some is left.
    pub fn push(&self) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let Some(session) = &mut *self.session.borrow_mut() {
            return session.push(&self.socket);
        }
        Ok(())
    }

    pub fn is_secure(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.session.borrow().is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// The name of the client in messages: its address, or the process at a unix socket.
    pub fn peer(&self) -> String {
        let peer = match self.socket.peer_address() {
            Ok(SocketAddress::Unix(_)) => socket_peercred(&*self.socket)
                .map(|process| format!("process {}", process.pid))
                .map_err(io::Error::from),
            other => other.map(|address| address.to_string()),
        };
        peer.unwrap_or_else(|error| format!("unknown ({error})"))
    }

    /// Whether the socket has something to read, or to tell.
    pub fn has_input(&self) -> bool {
        self.socket.has_input()
    }

    /// Says that nothing more will be written.
    pub fn shutdown_write(&self) {
        // Fails if the peer was faster.
        let _ = self.socket.shutdown_write();
    }

    /// Has the kernel forget what it has not sent yet when the socket is closed.
    pub fn unsend_at_close(&self) {
        // Without effect where nothing waits to be sent, as in a unix socket.
        let _ = set_socket_linger(&*self.socket, Some(Duration::ZERO));
    }

    /// Ends both directions: the peer, and a waiting handler, are told.
    pub fn shutdown(&self) {
        self.socket.shutdown();
    }
}

#[cfg(feature = "tls")]
impl Transport {
    /// What comes from now on is TLS.
    pub fn begin(&self, session: crate::transport::tls::Session) {
        *self.session.borrow_mut() = Some(session);
    }

    /// The distinguished name of the peer's certificate, if it has shown one that can be read.
    pub fn peer_identity(&self) -> Option<String> {
        self.session.borrow().as_ref().and_then(tls::Session::peer_identity)
    }

    /// Takes a step of the TLS handshake; whether it is done.
    ///
    /// # Errors
    /// `WouldBlock` if more must come, or what is wrong with what came.
    pub fn shake_hands(&self) -> io::Result<bool> {
        match &mut *self.session.borrow_mut() {
            Some(session) => session.shake_hands(&self.socket),
            None => Ok(true),
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
