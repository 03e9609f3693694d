//! [`Channel`]: what a session talks over.

use std::io::{self, IoSlice};

use coblk_aio::net::Stream;
use coblk_aio::{AioContext, FdInterest};

/// A connection, which never blocks.
pub enum Channel {
    Socket(Stream),
}

impl Channel {
    pub fn read(&self, target: &mut [u8]) -> io::Result<usize> {
        match self {
            Channel::Socket(stream) => stream.read(target),
        }
    }

    pub fn write(&self, source: &[u8]) -> io::Result<usize> {
        match self {
            Channel::Socket(stream) => stream.write(&[IoSlice::new(source)]),
        }
    }

    /// Has `ready` called when there is something to read, or room to write.
    pub fn watch(&self, ctx: &AioContext, ready: impl Fn() + 'static) -> io::Result<()> {
        match self {
            Channel::Socket(stream) => {
                ctx.set_fd_handler(stream, FdInterest::ReadWrite, move |_, _| ready())
            }
        }
    }

    /// Ends that.
    pub fn unwatch(&self, ctx: &AioContext) {
        match self {
            Channel::Socket(stream) => ctx.unset_fd_handler(stream),
        }
    }
}
