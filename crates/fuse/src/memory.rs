//! [`Memory`]: where the data of requests lies, and how much of it there is.
//!
//! A request's data has a small block, and a large one behind it if that is not enough. So a read of the
//! device can be given room for the largest write, and leaves the large block for the next one if the write
//! is small. A read answers from the same blocks. The first request that finds no large block stays in the
//! kernel until one comes back.
//!
//! All data is of one file: what a block held before is shown to no other.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use coblk_aio::{AlignedBuffer, IoVector, IoVectorMut};

use crate::abi::MAX_TRANSFER;

/// Address alignment, enough for O_DIRECT anywhere.
const ALIGNMENT: usize = 4096;
/// Bytes of a small block.
pub const SMALL: usize = 32 << 10;
/// Bytes of a large one.
pub const LARGE: usize = MAX_TRANSFER - SMALL;
/// Large blocks of one context in use.
pub const MAX_LARGE: usize = 32;
/// Blocks that are kept for later: small ones for as many requests as there may be, for a new one is filled
/// with zeroes first, and few of the large ones.
pub const MAX_IDLE_SMALL: usize = 128;
const MAX_IDLE_LARGE: usize = 16;

/// The blocks of one context.
#[derive(Default)]
pub struct Memory {
    small: RefCell<Vec<AlignedBuffer>>,
    large: RefCell<Vec<AlignedBuffer>>,
    large_in_use: Cell<usize>,
}

impl Memory {
    pub fn small(self: &Rc<Self>) -> io::Result<Block> {
        Block::new(self, self.small.borrow_mut().pop(), SMALL)
    }

    pub fn large(self: &Rc<Self>) -> io::Result<Block> {
        let block = Block::new(self, self.large.borrow_mut().pop(), LARGE)?;
        self.large_in_use.set(self.large_in_use.get() + 1);
        Ok(block)
    }

    /// Whether one more large block is within the bound.
    pub fn has_large(&self) -> bool {
        self.large_in_use.get() < MAX_LARGE
    }
}

/// Memory that comes back when it is dropped.
pub struct Block {
    memory: Rc<Memory>,
    /// Unset only while it is dropped.
    storage: Option<AlignedBuffer>,
}

impl Block {
    fn new(memory: &Rc<Memory>, idle: Option<AlignedBuffer>, len: usize) -> io::Result<Block> {
        let storage = match idle {
            Some(storage) => storage,
            None => AlignedBuffer::new(len, ALIGNMENT)?,
        };
        Ok(Block { memory: Rc::clone(memory), storage: Some(storage) })
    }
}

impl Deref for Block {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.storage.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.storage.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Some(storage) = self.storage.take() else { return };
        let memory = &self.memory;
        let (idle, most) = if storage.len() == LARGE {
            memory.large_in_use.set(memory.large_in_use.get() - 1);
            (&memory.large, MAX_IDLE_LARGE)
        } else {
            (&memory.small, MAX_IDLE_SMALL)
        };
        let mut idle = idle.borrow_mut();
        if idle.len() < most {
            idle.push(storage);
        }
    }
}

/// The data of one request.
pub struct Payload {
    pub small: Block,
    /// What follows, if there is more.
    pub large: Option<Block>,
    /// Bytes of both.
    pub len: usize,
}

impl Payload {
    /// Gives it that length, if its blocks have room for so much.
    pub fn set_len(&mut self, len: usize) {
        let room = SMALL + self.large.as_ref().map_or(0, |_| LARGE);
        self.len = len.min(room);
    }

    /// Its first `len` bytes, or all if there are fewer, to be written.
    pub fn source(&self, len: usize) -> IoVector<'_> {
        let [first, rest] = self.parts(len);
        let mut vector = IoVector::from(first);
        vector.push(rest);
        vector
    }

    /// All of it, to be read into.
    pub fn target(&mut self) -> IoVectorMut<'_> {
        let (len, first) = (self.len, self.len.min(SMALL));
        let mut vector = IoVectorMut::from(&mut self.small[..first]);
        if let Some(large) = &mut self.large {
            vector.push(&mut large[..len - first]);
        }
        vector
    }

    /// Behind a header, to be sent.
    pub fn behind<'a>(&'a self, header: &'a [u8]) -> [IoSlice<'a>; 3] {
        let [first, rest] = self.parts(self.len);
        [IoSlice::new(header), IoSlice::new(first), IoSlice::new(rest)]
    }

    fn parts(&self, len: usize) -> [&[u8]; 2] {
        let len = len.min(self.len);
        let first = len.min(SMALL);
        [&self.small[..first], self.large.as_ref().map_or(&[], |large| &large[..len - first])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_are_bounded_and_come_back() {
        let memory = Rc::<Memory>::default();
        let mut held: Vec<_> = (0..MAX_LARGE).map(|_| memory.large().unwrap()).collect();
        assert!(!memory.has_large());
        held.truncate(1);
        assert!(memory.has_large() && memory.large.borrow().len() == MAX_IDLE_LARGE);
        assert_eq!((held[0].len(), memory.small().unwrap().len()), (LARGE, SMALL));
        drop(held);
        assert_eq!(memory.large_in_use.get(), 0);
        let small: Vec<_> = (0..=MAX_IDLE_SMALL).map(|_| memory.small().unwrap()).collect();
        drop(small);
        assert_eq!(memory.small.borrow().len(), MAX_IDLE_SMALL);
    }

    #[test]
    fn data_lies_in_both_blocks() {
        let memory = Rc::<Memory>::default();
        let (small, large) = (memory.small().unwrap(), memory.large().ok());
        let mut payload = Payload { small, large, len: 0 };
        payload.set_len(SMALL + 2);
        let data: Vec<u8> = (0..SMALL + 2).map(|at| at as u8).collect();
        assert_eq!(payload.target().copy_from(0, &data), data.len());
        let mut back = vec![0; data.len()];
        assert_eq!(payload.source(usize::MAX).copy_to(0, &mut back), data.len());
        assert!(back == data);
        assert_eq!((payload.source(5).len(), payload.source(SMALL + 1).len()), (5, SMALL + 1));
        assert_eq!(payload.behind(&[9])[2][..], data[SMALL..]);
        payload.large = None;
        payload.set_len(MAX_TRANSFER);
        assert_eq!((payload.len, payload.target().len()), (SMALL, SMALL));
    }
}
