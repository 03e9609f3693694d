//! [`Stage`]: one driver in one world, and what a check asks it.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use coblk::{AioContext, BlockBackend, BlockNode, IoVector, IoVectorMut, WriteFlags};
use coblk_tests::random::Random;

use crate::subjects::LENGTH;

/// A fresh device, all zeroes, and what it should hold. When a check fails, it says where.
pub struct Stage<'a> {
    pub ctx: &'a AioContext,
    pub backend: BlockBackend,
    pub stores: bool,
    pub resizes: bool,
    pub seed: u64,
    model: RefCell<Vec<u8>>,
    what: String,
    step: RefCell<String>,
}

impl<'a> Stage<'a> {
    pub fn new(
        ctx: &'a AioContext,
        node: Arc<BlockNode>,
        (stores, resizes): (bool, bool),
        seed: u64,
        what: String,
    ) -> Stage<'a> {
        Stage {
            ctx,
            backend: BlockBackend::new(ctx, "drive", node),
            stores,
            resizes,
            seed,
            model: RefCell::new(vec![0; LENGTH as usize]),
            what,
            step: RefCell::new("opening".to_owned()),
        }
    }

    /// What is done next, for messages.
    pub fn step(&self, step: impl Into<String>) {
        *self.step.borrow_mut() = step.into();
    }

    pub fn try_write(&self, offset: u64, data: &[u8], flags: WriteFlags) -> io::Result<()> {
        self.backend.pwritev(self.ctx, offset, &IoVector::from(data), flags)
    }

    /// Writes random data, in ranges of odd lengths.
    pub fn write(&self, offset: u64, len: usize, flags: WriteFlags) {
        let mut data = vec![0; len];
        Random::new(self.seed ^ offset ^ (len as u64) << 32).fill(&mut data);
        let (first, second) = data.split_at(len / 3);
        let mut source = IoVector::from(first);
        source.push(second);
        self.backend.pwritev(self.ctx, offset, &source, flags).expect("a write");
        self.set(offset, &data);
    }

    /// The device should hold this from now on.
    pub fn set(&self, offset: u64, data: &[u8]) {
        if self.stores {
            self.model.borrow_mut()[offset as usize..][..data.len()].copy_from_slice(data);
        }
    }

    pub fn try_read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        // Not zero, so that what was not read shows.
        let mut data = vec![0xee; len];
        let (first, second) = data.split_at_mut(len / 5);
        let mut target = IoVectorMut::from(first);
        target.push(second);
        self.backend.preadv(self.ctx, offset, &mut target).map(|()| data)
    }

    /// Reads a range, which must be what it should be.
    #[track_caller]
    pub fn check(&self, offset: u64, len: usize) {
        let read = self.try_read(offset, len).expect("a read");
        let model = self.model.borrow();
        let model = &model[offset as usize..][..len];
        // Compared as wholes first: byte by byte takes long in a debug build.
        let differs = (read != model)
            .then(|| read.iter().zip(model).position(|(is, should)| is != should))
            .flatten();
        assert_eq!(differs.map(|at| at as u64 + offset), None, "the first byte that differs");
    }

    /// All of the device must be what it should be.
    #[track_caller]
    pub fn check_all(&self) {
        self.check(0, LENGTH as usize);
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("does not conform: {}; step: {}", self.what, self.step.borrow());
        }
    }
}
