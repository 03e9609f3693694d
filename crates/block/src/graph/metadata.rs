//! What drivers read and write for themselves: plain slices, as metadata is.

use std::io;

use coblk_aio::{Co, IoVector, IoVectorMut};

use super::Child;
use crate::driver::flags::{ReadFlags, WriteFlags};

/// Metadata of a driver, on the node below. Errors are those of requests. As part of a request that is
/// counted above, or of [own I/O](crate::OwnIo); a driver's lock that is held meanwhile is one that
/// coroutines wait for ([`CoMutex`](coblk_aio::sync::CoMutex)).
impl Child {
    /// Fills `target` from `offset` bytes on.
    pub fn co_read(&self, co: &Co<'_>, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.co_preadv(co, offset, &mut IoVectorMut::from(target), ReadFlags::empty())
    }

    /// Writes `source` at `offset` bytes.
    pub fn co_write(&self, co: &Co<'_>, offset: u64, source: &[u8]) -> io::Result<()> {
        self.co_pwritev(co, offset, &IoVector::from(source), WriteFlags::empty())
    }

    /// [`co_write`](Self::co_write), durable when it returns, with all that was written before: later
    /// writes may build on it.
    pub fn co_write_barrier(&self, co: &Co<'_>, offset: u64, source: &[u8]) -> io::Result<()> {
        self.co_write(co, offset, source)?;
        self.co_flush(co)
    }
}
