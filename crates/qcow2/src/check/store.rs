//! [`Store`]: a file that has an image, and that a repair writes to.

use std::io;

use coblk_aio::{Co, IoVector};
use coblk_block::{BlockBackend, Child, Truncate, WriteFlags};

use crate::source::Source;

/// A [`Source`] that is written, too.
pub(crate) trait Store: Source {
    /// Makes the file at least `end` bytes long. What is new reads as zeroes.
    fn co_grow(&self, co: &Co<'_>, end: u64) -> io::Result<()>;

    /// Writes bytes at `offset`, all of them within the file.
    fn co_write_inside(&self, co: &Co<'_>, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes durable what was written before.
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()>;

    /// Gives the space of a range back, if the file can. What is read there is not defined any more.
    fn co_punch(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()>;

    /// What was written is durable, and whole: what is left to do may as well be done by another repair.
    fn rest(&self) {}

    /// [`co_write_inside`](Self::co_write_inside), where the file may end before the bytes do.
    fn co_write_at(&self, co: &Co<'_>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.co_grow(co, offset + bytes.len() as u64)?;
        self.co_write_inside(co, offset, bytes)
    }
}

impl Store for Child {
    fn co_grow(&self, co: &Co<'_>, end: u64) -> io::Result<()> {
        Child::co_grow(self, co, end, Truncate::default())
    }

    fn co_write_inside(&self, co: &Co<'_>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.co_pwritev(co, offset, &IoVector::from(bytes), WriteFlags::empty())
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        Child::co_flush(self, co)
    }

    fn co_punch(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.co_pdiscard(co, offset, bytes)
    }
}

impl Store for BlockBackend {
    fn co_grow(&self, co: &Co<'_>, end: u64) -> io::Result<()> {
        if self.end() < end { self.co_truncate(co, end) } else { Ok(()) }
    }

    fn co_write_inside(&self, co: &Co<'_>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.co_write(co, offset, bytes)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        BlockBackend::co_flush(self, co)
    }

    fn co_punch(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.co_pdiscard(co, offset, bytes)
    }
}
