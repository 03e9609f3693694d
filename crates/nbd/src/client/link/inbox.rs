//! [`Inbox`]: bytes of a server that were read ahead.

use std::io;

use coblk_aio::IoVectorMut;

use crate::transport::Transport;

/// Bytes that are read ahead at most.
pub const CAPACITY: usize = 128 << 10;

pub struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub fn new() -> Inbox {
        Inbox { buffer: vec![0; CAPACITY], start: 0, end: 0 }
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The next `len` bytes, if they are here.
    pub fn peek(&self, len: usize) -> Option<&[u8]> {
        self.buffer[self.start..self.end].get(..len)
    }

    /// Forgets the next `len` bytes, which are here.
    pub fn skip(&mut self, len: usize) {
        self.start += len;
        debug_assert!(self.start <= self.end);
    }

    /// Moves what is here of the next `len` bytes to `target`, from `at` on; how many those were.
    pub fn take(&mut self, target: &mut IoVectorMut<'_>, at: usize, len: usize) -> usize {
        let here = self.len().min(len);
        target.copy_from(at, &self.buffer[self.start..self.start + here]);
        self.start += here;
        here
    }

    /// Reads ahead, at most so much; how many bytes came, and whether that is less than there was room for.
    pub fn receive(&mut self, transport: &Transport, most: usize) -> io::Result<(usize, bool)> {
        self.compact();
        // Never nothing: what is here may be the beginning of a header.
        let room = self.end.saturating_add(most).min(CAPACITY);
        let bytes = transport.read(&mut self.buffer[self.end..room])?;
        self.end += bytes;
        Ok((bytes, self.end < room))
    }

    /// Reads the next `len` bytes to `target`, from `at` on, and ahead behind them, at most so much. The inbox is
    /// empty; how many bytes came for `target`, in all, and whether that is less than there was room for.
    pub fn receive_past(
        &mut self,
        transport: &Transport,
        target: &mut IoVectorMut<'_>,
        (at, len): (usize, usize),
        most: usize,
    ) -> io::Result<(usize, usize, bool)> {
        (self.start, self.end) = (0, 0);
        let most = most.min(CAPACITY);
        let mut vector = target.slice(at, len);
        vector.push(&mut self.buffer[..most]);
        let bytes = transport.read_vectored(&mut vector)?;
        self.end = bytes.saturating_sub(len);
        Ok((bytes.min(len), bytes, bytes < len + most))
    }

    fn compact(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }
}
