//! [`Receiver`]: bytes of a client that were read ahead.

use std::io;

use coblk_aio::Co;

use crate::protocol::broken;
use crate::server::link::Link;

/// Bytes that are read ahead at most: many headers, or small payloads with theirs.
pub const CAPACITY: usize = 32 << 10;

pub struct Receiver {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Receiver {
    pub fn new() -> Receiver {
        Receiver { buffer: vec![0; CAPACITY], start: 0, end: 0 }
    }

    /// The next `len` bytes, at most [`CAPACITY`].
    pub fn exact(&mut self, co: &Co<'_>, link: &Link, len: usize) -> io::Result<&[u8]> {
        if self.start + len > CAPACITY || self.start == self.end {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < len {
            self.end += link.read(co, &mut self.buffer[self.end..])?;
        }
        let from = self.start;
        self.start += len;
        Ok(&self.buffer[from..self.start])
    }

    /// Nothing is here that was not looked at.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Fills `target` with what comes next; the rest is read straight to its place.
    pub fn fill(&mut self, co: &Co<'_>, link: &Link, target: &mut [u8]) -> io::Result<()> {
        let mut done = target.len().min(self.end - self.start);
        target[..done].copy_from_slice(&self.buffer[self.start..self.start + done]);
        self.start += done;
        while done < target.len() {
            let bytes = link.read(co, &mut target[done..])?;
            done += bytes;
            link.turn.charge(bytes);
            link.give_way_if_over(co);
        }
        Ok(())
    }

    /// Passes over `len` bytes.
    ///
    /// # Errors
    /// Also if they are more than any request can have.
    pub fn skip(&mut self, co: &Co<'_>, link: &Link, len: u64) -> io::Result<()> {
        if len > u64::from(u32::MAX) {
            return Err(broken("a payload of more than 4 GiB"));
        }
        let mut left = len;
        while left > 0 {
            link.give_way(co);
            let piece = left.min(4096);
            self.exact(co, link, piece as usize)?;
            left -= piece;
        }
        Ok(())
    }
}
