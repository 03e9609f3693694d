//! [`Memory`]: where payloads lie, and how much of it clients may hold.
//!
//! A small buffer is always to be had: each client has few requests in flight, so that is bounded.
//! Larger ones come out of an amount that all clients share. Nobody waits for a part of it: a client
//! may hold half of what the others leave, and a payload that does not fit goes in pieces
//! (`pieces.rs`). So however many clients never take their replies, there is something left for the
//! next one, and a client that gets nothing more is slower but goes on.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use coblk_aio::AlignedBuffer;

use crate::connection::Connection;

/// Address alignment, enough for O_DIRECT anywhere.
const ALIGNMENT: usize = 4096;
/// Buffers up to this length are not counted.
pub const SMALL: usize = 32 << 10;
/// All that larger buffers may take together.
const SHARED: usize = 128 << 20;
/// A client may hold as much as is left, divided by this.
const SHARE: usize = 2;
/// Length of the pieces of a payload for which there is no room.
pub const PIECE: usize = 256 << 10;
/// How much is kept for later when nobody uses it.
const IDLE: usize = 32 << 20;
/// Sizes are powers of two from 4 KiB to 32 MiB.
const CLASSES: usize = 14;

pub struct Memory {
    /// Bytes that larger buffers may still take.
    left: Cell<usize>,
    idle: RefCell<[Vec<AlignedBuffer>; CLASSES]>,
    idle_bytes: Cell<usize>,
}

impl Memory {
    pub fn new() -> Rc<Memory> {
        Rc::new(Memory {
            left: Cell::new(SHARED),
            idle: RefCell::default(),
            idle_bytes: Cell::new(0),
        })
    }

    /// A buffer of `len` bytes, at most 32 MiB, with anything in it. `None` if that is more than the
    /// client's share.
    ///
    /// # Errors
    /// If the system has no memory.
    pub fn take(
        self: &Rc<Self>,
        client: &Rc<Connection>,
        len: usize,
    ) -> io::Result<Option<Buffer>> {
        let size = ALIGNMENT << class_of(len);
        let counted = if size > SMALL { size } else { 0 };
        if counted > 0 && SHARE * (client.held.get() + counted) > self.left.get() {
            client.server.memory_is_short();
            return Ok(None);
        }
        self.make(client, len, counted).map(Some)
    }

    /// A buffer that is always to be had: up to [`SMALL`] for a request, and one of [`PIECE`] for a
    /// client.
    ///
    /// # Errors
    /// If the system has no memory.
    pub fn uncounted(self: &Rc<Self>, client: &Rc<Connection>, len: usize) -> io::Result<Buffer> {
        self.make(client, len, 0)
    }

    fn make(
        self: &Rc<Self>,
        client: &Rc<Connection>,
        len: usize,
        counted: usize,
    ) -> io::Result<Buffer> {
        // From here on it is the buffer's drop that gives the share back.
        self.left.set(self.left.get() - counted);
        client.held.set(client.held.get() + counted);
        let mut buffer = Buffer {
            memory: Rc::clone(self),
            client: Rc::clone(client),
            counted,
            len,
            storage: None,
        };
        let class = class_of(len);
        let size = ALIGNMENT << class;
        let idle = self.idle.borrow_mut()[class].pop();
        buffer.storage = Some(match idle {
            Some(idle) => {
                self.idle_bytes.set(self.idle_bytes.get() - size);
                idle
            }
            None => AlignedBuffer::new(size, ALIGNMENT)?,
        });
        Ok(buffer)
    }
}

fn class_of(len: usize) -> usize {
    let pages = len.div_ceil(ALIGNMENT).max(1).next_power_of_two();
    pages.trailing_zeros() as usize
}

/// Memory for one payload. Dropping it gives it back.
pub struct Buffer {
    memory: Rc<Memory>,
    client: Rc<Connection>,
    counted: usize,
    len: usize,
    /// Unset only while it is made and dropped.
    storage: Option<AlignedBuffer>,
}

impl Buffer {
    /// Keeps the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.storage.as_ref().map_or(&[], |memory| &memory[..self.len])
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.storage.as_mut().map_or(&mut [], |memory| &mut memory[..self.len])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(buffer) = self.storage.take() {
            let idle_bytes = self.memory.idle_bytes.get() + buffer.len();
            if idle_bytes <= IDLE {
                self.memory.idle_bytes.set(idle_bytes);
                self.memory.idle.borrow_mut()[class_of(buffer.len())].push(buffer);
            }
        }
        if self.counted > 0 {
            self.client.held.set(self.client.held.get() - self.counted);
            self.memory.left.set(self.memory.left.get() + self.counted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_has_a_class() {
        assert_eq!([0, 1, 4096, 4097, 32 << 20].map(class_of), [0, 0, 0, 1, CLASSES - 1]);
    }
}
