//! [`Channel`]: what a session talks over.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use coblk_aio::net::Stream;
use coblk_aio::{AioContext, FdHandler, FdInterest, sys};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A connection, which never blocks.
pub enum Channel {
    Socket(Stream),
    Pair(Pair),
}

/// A descriptor to read from and one to write to, as the standard input and output.
pub struct Pair {
    input: File,
    output: File,
}

impl Pair {
    /// # Errors
    /// If the descriptors cannot be used without blocking.
    pub fn new(input: OwnedFd, output: OwnedFd) -> io::Result<Pair> {
        let (mut reading, mut writing) = (File::options(), File::options());
        reading.read(true);
        writing.write(true);
        let input = unblocked(input.into(), &mut reading)?;
        Ok(Pair { input, output: unblocked(output.into(), &mut writing)? })
    }
}

/// The same pipe or terminal, opened once more: other processes that have it are not to find it
/// nonblocking. A file does not block.
fn unblocked(file: File, options: &mut std::fs::OpenOptions) -> io::Result<File> {
    let kind = file.metadata()?.file_type();
    if kind.is_socket() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "a pipe or a terminal is needed"));
    }
    if !kind.is_fifo() && !kind.is_char_device() {
        return Ok(file);
    }
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(own)
}

impl Channel {
    pub fn read(&self, target: &mut [u8]) -> io::Result<usize> {
        match self {
            Channel::Socket(stream) => stream.read(target),
            Channel::Pair(pair) => (&pair.input).read(target),
        }
    }

    /// Whether there is a client to tell events when there is no more to be read: one at the other end of another pipe,
    /// which says itself when it goes.
    pub fn outlives_its_input(&self) -> bool {
        matches!(self, Channel::Pair(_))
    }

    /// Never raises SIGPIPE.
    pub fn write(&self, source: &[u8]) -> io::Result<usize> {
        match self {
            Channel::Socket(stream) => stream.write(&[IoSlice::new(source)]),
            Channel::Pair(pair) => sys::write_without_sigpipe(pair.output.as_fd(), source),
        }
    }

    /// Whether answers can reach the client no more. One that has only sent all it had still waits for
    /// them, and a pipe that commands come from may end before. TCP does not tell before something is
    /// sent.
    pub fn has_hung_up(&self) -> bool {
        let written_to = match self {
            Channel::Socket(stream) => stream.as_fd(),
            Channel::Pair(pair) => pair.output.as_fd(),
        };
        let mut polled = [PollFd::new(&written_to, PollFlags::empty())];
        let asked = poll(&mut polled, Some(&Timespec::default()));
        asked.is_ok() && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Has `ready` called when there is something to read, or room to write, as long as what this
    /// returns lives.
    pub fn watch(
        &self,
        ctx: &AioContext,
        ready: impl Fn() + Clone + 'static,
    ) -> io::Result<Vec<FdHandler<BorrowedFd<'_>>>> {
        let ends: &[_] = match self {
            Channel::Socket(stream) => &[(stream.as_fd(), FdInterest::ReadWrite)],
            Channel::Pair(Pair { input, output }) => {
                &[(input.as_fd(), FdInterest::Read), (output.as_fd(), FdInterest::Write)]
            }
        };
        let mut handlers = Vec::new();
        for (end, interest) in ends {
            let ready = ready.clone();
            match ctx.fd_handler(*end, *interest, move |_, _| ready()) {
                Ok(handler) => handlers.push(handler),
                // Files, and devices such as /dev/null, are always ready.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error),
            }
        }
        Ok(handlers)
    }
}
