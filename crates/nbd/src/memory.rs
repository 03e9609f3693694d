//! [`Memory`]: where payloads lie, and how much of it clients may hold.
//!
//! A small buffer is always to be had: each client has few requests in flight, so that is bounded.
//! Larger ones come out of amounts that all clients share, in the order in which they asked. There is
//! one amount for medium lengths and one for large ones, so that neither waits for the other.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use coblk_aio::{AlignedBuffer, Co};

use crate::connection::Connection;

/// Address alignment, enough for O_DIRECT anywhere.
const ALIGNMENT: usize = 4096;
/// Buffers up to this length are not counted.
const SMALL: usize = 32 << 10;
/// Longest buffer that comes out of the first amount; longer ones come out of the second.
const MEDIUM: usize = 1 << 20;
/// All that larger buffers may take together.
const SHARED: [usize; 2] = [48 << 20, 80 << 20];
/// How much of both one client may hold.
const PER_CLIENT: usize = 64 << 20;
/// How much is kept for later when nobody uses it.
const IDLE: usize = 32 << 20;
/// Sizes are powers of two from 4 KiB to 32 MiB.
const CLASSES: usize = 14;

pub struct Memory {
    shared: [Amount; 2],
    idle: RefCell<[Vec<AlignedBuffer>; CLASSES]>,
    idle_bytes: Cell<usize>,
}

/// Memory that all clients share.
struct Amount {
    /// In bytes.
    left: Cell<usize>,
    waiting: RefCell<VecDeque<(Rc<Connection>, usize)>>,
}

impl Memory {
    pub fn new() -> Rc<Memory> {
        Rc::new(Memory {
            shared: SHARED
                .map(|bytes| Amount { left: Cell::new(bytes), waiting: RefCell::default() }),
            idle: RefCell::default(),
            idle_bytes: Cell::new(0),
        })
    }

    /// A buffer of `len` bytes, at most 32 MiB, with anything in it. Waits until there is room.
    ///
    /// # Errors
    /// If the connection ends meanwhile, or the system has no memory.
    pub fn take(
        self: &Rc<Self>,
        co: &Co<'_>,
        client: &Rc<Connection>,
        len: usize,
    ) -> io::Result<Buffer> {
        let class = class_of(len);
        let size = ALIGNMENT << class;
        let counted = if size > SMALL { size } else { 0 };
        if counted > 0 {
            client.wait_until(co, || client.held.get() + counted <= PER_CLIENT)?;
            self.amount(counted).take(co, client, counted)?;
        }
        // From here on it is the buffer's drop that gives the share back.
        client.held.set(client.held.get() + counted);
        let mut buffer = Buffer {
            memory: Rc::clone(self),
            client: Rc::clone(client),
            counted,
            len,
            storage: None,
        };
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

    /// Whether somebody waits.
    pub fn is_short(&self) -> bool {
        self.shared.iter().any(|amount| !amount.waiting.borrow().is_empty())
    }

    fn amount(&self, bytes: usize) -> &Amount {
        &self.shared[usize::from(bytes > MEDIUM)]
    }
}

impl Amount {
    fn take(&self, co: &Co<'_>, client: &Rc<Connection>, bytes: usize) -> io::Result<()> {
        if self.waiting.borrow().is_empty() && self.left.get() >= bytes {
            self.left.set(self.left.get() - bytes);
            return Ok(());
        }
        client.granted.set(false);
        self.waiting.borrow_mut().push_back((Rc::clone(client), bytes));
        client.server.memory_is_short();
        let waited = client.wait_until(co, || client.granted.get());
        if waited.is_err() {
            let mut waiting = self.waiting.borrow_mut();
            waiting.retain(|(waiter, _)| !Rc::ptr_eq(waiter, client));
            drop(waiting);
            if client.granted.get() {
                self.give_back(bytes);
            }
            // Those behind it may fit now.
            self.serve();
        }
        waited
    }

    fn give_back(&self, bytes: usize) {
        self.left.set(self.left.get() + bytes);
        self.serve();
    }

    fn serve(&self) {
        loop {
            let mut waiting = self.waiting.borrow_mut();
            let Some((_, bytes)) = waiting.front() else { return };
            let Some(left) = self.left.get().checked_sub(*bytes) else { return };
            self.left.set(left);
            let client = waiting.pop_front().map(|(client, _)| client);
            drop(waiting);
            if let Some(client) = client {
                client.granted.set(true);
                client.poke();
            }
        }
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
            self.memory.amount(self.counted).give_back(self.counted);
            self.client.poke();
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
