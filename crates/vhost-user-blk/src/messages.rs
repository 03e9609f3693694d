//! Messages that are taken from a connection before the vhost crate sees them: [`take_early`]. What
//! that crate makes of them is not what a disk needs:
//!
//! * the channel of SET_BACKEND_REQ_FD it keeps to itself, and knows no call for the one message that
//!   a disk has to say on it: that its configuration space has changed;
//! * a GET_CONFIG of no bytes, or past the space as it sees it, costs the connection;
//! * it does not know SET_LOG_FD, nor GET_VRING_BASE_SKIP_DRAIN;
//! * of the ways to acknowledge memory whose pages may be missing it knows one.

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketType, recv, recvmsg,
    sockopt,
};

use crate::config::ConfigRequest;

/// The front end shows all of its memory.
const SET_MEM_TABLE: u32 = 5;
/// The front end wants to be told of dirty pages.
pub(crate) const SET_LOG_FD: u32 = 7;
/// The front end sends the channel.
pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
/// The front end reads the configuration space.
pub(crate) const GET_CONFIG: u32 = 24;
/// Pages may be missing; from here on; no more.
const POSTCOPY_ADVISE: u32 = 28;
pub(crate) const POSTCOPY_END: u32 = 30;
/// The front end shows, or removes, one region of memory.
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;
/// No message: QEMU acknowledges so memory in which nothing was to be changed.
const NONE: u32 = 0;
/// Of such an acknowledgement: 0, for success.
const U64_BYTES: usize = 8;
/// The front end stops a queue, and leaves its requests in flight in the log.
pub(crate) const GET_VRING_BASE_SKIP_DRAIN: u32 = 45;
/// Of such a message, and of its answer: index of the queue, number.
const VRING_STATE_BYTES: usize = 8;
/// Bits of the flags: the version, which is always 1, and what an answer is marked with.
pub(crate) const VERSION: u32 = 1;
pub(crate) const REPLY: u32 = 1 << 2;
const VERSION_MASK: u32 = 3;
const NEED_REPLY: u32 = 1 << 3;
/// Of a message: request, flags, bytes of the body.
pub(crate) const HEADER_BYTES: usize = 12;

/// Of a message.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) request: u32,
    flags: u32,
    body_bytes: usize,
}

impl Header {
    pub(crate) fn wants_answer(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// Whether it is one of those that have no body, and has one. The vhost crate takes no notice.
    pub(crate) fn has_strange_body(&self) -> bool {
        (POSTCOPY_ADVISE..=POSTCOPY_END).contains(&self.request) && self.body_bytes != 0
    }

    /// Whether it is about the front end's memory, and nothing else.
    pub(crate) fn shows_memory(&self) -> bool {
        matches!(self.request, SET_MEM_TABLE | ADD_MEM_REG | REM_MEM_REG)
            || (self.request, self.body_bytes) == (NONE, U64_BYTES)
    }
}

/// A message that was taken.
pub(crate) enum Early {
    /// The front end has taken note of where its memory lies here, as it says with this number.
    Acknowledged(u64),
    /// The socket on which the front end is told of changes; whether it wants an answer.
    Channel(UnixStream, bool),
    /// What is written when dirty pages are marked; whether the front end wants an answer.
    LogNotifier(OwnedFd, bool),
    Config(ConfigRequest),
    /// The queue that is to stop at once.
    SkipDrain(u32),
}

/// Takes the next message on `connection`, of which this is the header, if it is one of these. Waits for it.
pub(crate) fn take_early(connection: &UnixStream, header: &Header) -> io::Result<Option<Early>> {
    let Header { request, flags, body_bytes } = *header;
    if flags & (VERSION_MASK | REPLY) != VERSION {
        return Ok(None);
    }
    match (request, body_bytes) {
        // As the specification has it; a number, as front ends have it, is the vhost crate's.
        (SET_MEM_TABLE, 0) => {
            (&mut &*connection).read_exact(&mut [0; HEADER_BYTES])?;
            Ok(Some(Early::Acknowledged(0)))
        }
        (NONE, U64_BYTES) => {
            let mut message = [0; HEADER_BYTES + U64_BYTES];
            (&mut &*connection).read_exact(&mut message)?;
            let number = message.last_chunk().ok_or_else(|| invalid("no number"))?;
            Ok(Some(Early::Acknowledged(u64::from_ne_bytes(*number))))
        }
        (SET_BACKEND_REQ_FD, 0) => {
            let channel = stream(take_descriptor(connection)?)?;
            Ok(Some(Early::Channel(channel, flags & NEED_REPLY != 0)))
        }
        (SET_LOG_FD, 0) => {
            let notifier = take_descriptor(connection)?;
            Ok(Some(Early::LogNotifier(notifier, flags & NEED_REPLY != 0)))
        }
        (GET_VRING_BASE_SKIP_DRAIN, VRING_STATE_BYTES) => {
            let mut message = [0; HEADER_BYTES + VRING_STATE_BYTES];
            (&mut &*connection).read_exact(&mut message)?;
            let [_, index, _] = words(message.last_chunk().ok_or_else(|| invalid("no index"))?);
            Ok(Some(Early::SkipDrain(index)))
        }
        (GET_CONFIG, body_bytes) if ConfigRequest::may_have(body_bytes) => {
            let mut message = vec![0; HEADER_BYTES + body_bytes];
            // Waits for the rest of it, as for that of any message.
            (&mut &*connection).read_exact(&mut message)?;
            ConfigRequest::parse(&message[HEADER_BYTES..]).map(|asked| Some(Early::Config(asked)))
        }
        _ => Ok(None),
    }
}

/// The header of the next message, which stays where it is.
pub(crate) fn peek_header(connection: &UnixStream) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    let peek = RecvFlags::PEEK | RecvFlags::WAITALL;
    loop {
        match recv(connection, &mut bytes, peek) {
            // In pieces, or no more: left to the code that reads the other messages.
            Ok((_, len)) => {
                let [request, flags, body_bytes] = words(&bytes);
                let header = Header { request, flags, body_bytes: body_bytes as usize };
                return Ok((len == HEADER_BYTES).then_some(header));
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes a message that is a descriptor and nothing more.
fn take_descriptor(connection: &UnixStream) -> io::Result<OwnedFd> {
    let mut bytes = [0; HEADER_BYTES];
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
    fd.ok_or_else(|| invalid("a descriptor is missing"))
}

/// A descriptor that must be a stream over a unix socket.
fn stream(fd: OwnedFd) -> io::Result<UnixStream> {
    let is_stream = sockopt::socket_type(&fd) == Ok(SocketType::STREAM)
        && sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX);
    if is_stream { Ok(fd.into()) } else { Err(invalid("a channel that is not a unix socket")) }
}

pub(crate) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A header, or any other words of a message.
pub(crate) fn bytes_of<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// The three words at the beginning of a header or of a body.
pub(crate) fn words(bytes: &[u8; HEADER_BYTES]) -> [u32; 3] {
    std::array::from_fn(|at| {
        let at = at * 4;
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    })
}
