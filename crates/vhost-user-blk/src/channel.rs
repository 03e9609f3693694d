//! The channel on which a front end is told of changes: [`Channel`].
//!
//! A front end sends a socket for it, in a message that the vhost crate understands. But that crate
//! keeps the socket to itself, and knows no call for the one message that a disk has to say: that
//! its configuration space has changed. So this message is taken from the connection here, before
//! the crate sees it.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketType,
    recv, recvmsg, send, sockopt,
};

/// The front end sends the channel.
const SET_BACKEND_REQ_FD: u32 = 21;
/// The back end says that the configuration space has changed.
const CONFIG_CHANGE: u32 = 2;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// Of a message: request, flags, bytes of the body.
const HEADER_BYTES: usize = 12;

/// The socket of the front end that is connected, if it has sent one. Any thread.
#[derive(Default)]
pub(crate) struct Channel(Mutex<Option<UnixStream>>);

impl Channel {
    pub(crate) fn replace(&self, socket: Option<UnixStream>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }

    /// Says that the configuration space has changed. Never waits: a front end that does not read
    /// has been told already.
    pub(crate) fn config_changed(&self) {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(socket) = &*guard else { return };
        // No answer is asked for, so none has to be read.
        let message = header(CONFIG_CHANGE, VERSION, 0);
        match send(socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(HEADER_BYTES) => {}
            Err(error) => tracing::debug!(%error, "the front end is not told of a change"),
            Ok(_) => {
                // What would follow could not be understood.
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
        }
    }
}

/// If the next message on `connection` brings the channel, takes it: the channel, and whether an
/// answer is wanted. Waits for the next message.
pub(crate) fn take_channel(connection: &UnixStream) -> io::Result<Option<(UnixStream, bool)>> {
    let mut bytes = [0; HEADER_BYTES];
    let peek = RecvFlags::PEEK | RecvFlags::WAITALL;
    loop {
        match recv(connection, &mut bytes, peek) {
            // In pieces, or no more: left to those who read the other messages.
            Ok((_, len)) if len < HEADER_BYTES => return Ok(None),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let [request, flags, body_bytes] = words(&bytes);
    if request != SET_BACKEND_REQ_FD || body_bytes != 0 {
        return Ok(None);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    // It is all there, and so does not wait. Descriptors too many are closed by the kernel.
    recvmsg(connection, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = fds.flatten().next();
    let socket = fd.map(stream).transpose()?;
    let socket = socket.ok_or_else(|| invalid("a channel without a descriptor"))?;
    Ok(Some((socket, flags & NEED_REPLY != 0)))
}

/// Says that a channel was taken.
pub(crate) fn acknowledge(mut connection: &UnixStream) -> io::Result<()> {
    let body = 0u64.to_ne_bytes();
    let header = header(SET_BACKEND_REQ_FD, VERSION | REPLY, body.len() as u32);
    connection.write_all(&[&header[..], &body].concat())
}

/// A descriptor that must be a stream over a unix socket.
fn stream(fd: OwnedFd) -> io::Result<UnixStream> {
    let is_stream = sockopt::socket_type(&fd) == Ok(SocketType::STREAM)
        && sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX);
    if is_stream { Ok(fd.into()) } else { Err(invalid("a channel that is not a unix socket")) }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn header(request: u32, flags: u32, body_bytes: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    for (place, word) in bytes.chunks_exact_mut(4).zip([request, flags, body_bytes]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn words(bytes: &[u8; HEADER_BYTES]) -> [u32; 3] {
    std::array::from_fn(|at| {
        let at = at * 4;
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    })
}
