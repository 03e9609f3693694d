//! [`Model`]: bytes in memory beside an image.

use std::path::{Path, PathBuf};

use coblk_block::{Truncate, ZeroFlags};
use fastrand::Rng;
use serde_json::Value;

use super::{Opened, Stand, assert_same};

/// Random data: pieces of some bytes, so that a wrong place is seen.
fn data(random: &mut Rng, bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(|| random.u8(1..)).take(bytes).collect()
}

/// What becomes of bytes that are discarded.
#[derive(Clone, Copy)]
pub enum Discards {
    /// Whole clusters of this size read as zeroes.
    Clusters(usize),
    /// All stays.
    Nothing,
}

/// An image beside its model.
pub struct Model<'a> {
    stand: &'a Stand,
    pub image: PathBuf,
    options: Value,
    pub content: Vec<u8>,
    pub random: Rng,
    opened: Option<Opened<'a>>,
}

impl<'a> Model<'a> {
    pub fn new(stand: &'a Stand, image: &Path, options: Value) -> Model<'a> {
        let content = stand.content(image);
        let (image, opened) = (image.to_owned(), None);
        Model { stand, image, options, content, random: Rng::with_seed(7), opened }
    }

    pub fn opened(&mut self) -> &Opened<'a> {
        let (stand, image, options) = (self.stand, &self.image, &self.options);
        self.opened.get_or_insert_with(|| stand.open_writable(image, options.clone()))
    }

    pub fn write(&mut self, offset: usize, bytes: usize) {
        let data = data(&mut self.random, bytes);
        self.opened().write(offset as u64, &data).unwrap();
        self.content[offset..offset + bytes].copy_from_slice(&data);
    }

    /// Writes of all lengths, near to each other and far apart.
    pub fn writes(&mut self, count: usize, max_bytes: usize) {
        let length = self.content.len();
        let mut at = 0;
        for _ in 0..count {
            let bytes = match self.random.u32(..4) {
                0 => 512,
                1 => self.random.usize(1..=4096),
                _ => self.random.usize(1..=max_bytes),
            };
            at = if self.random.bool() { self.random.usize(..length) } else { at % length };
            let bytes = bytes.min(length - at);
            self.write(at, bytes);
            at += bytes;
            match self.random.u32(..12) {
                0 => self.opened().flush().unwrap(),
                1 => {
                    let (bytes, random) = (self.random.usize(1..=length), &mut self.random);
                    let from = random.usize(..length);
                    let bytes = bytes.min(length - from);
                    let read = self.opened().read(from as u64, bytes).unwrap();
                    assert_same(&read, &self.content[from..from + bytes], "a part");
                }
                _ => {}
            }
        }
    }

    /// Zeroes and discards, between writes.
    pub fn clears(&mut self, count: usize, max_bytes: usize, discards: Discards) {
        let length = self.content.len();
        for _ in 0..count {
            self.writes(1, max_bytes);
            let from = self.random.usize(..length);
            let bytes = self.random.usize(1..=max_bytes).min(length - from);
            let (from, bytes) = match self.random.bool() {
                true => (from, bytes),
                false => (from & !0xffff, bytes.next_multiple_of(65536)),
            };
            let bytes = bytes.min(length - from);
            let flags = match self.random.u32(..3) {
                0 => Some(ZeroFlags::empty()),
                1 => Some(ZeroFlags::MAY_UNMAP),
                _ => None,
            };
            let (ctx, offset) = (&self.stand.ctx, from as u64);
            let backend = self.opened().backend();
            let mut cleared = from..from + bytes;
            match flags {
                Some(flags) => backend.pwrite_zeroes(ctx, offset, bytes as u64, flags).unwrap(),
                None => {
                    backend.pdiscard(ctx, offset, bytes as u64).unwrap();
                    let Discards::Clusters(cluster) = discards else { continue };
                    cleared = from.next_multiple_of(cluster)..(from + bytes) & !(cluster - 1);
                }
            }
            if !cleared.is_empty() {
                self.content[cleared].fill(0);
            }
        }
    }

    /// The image is as the model, open and closed, for both programs.
    #[track_caller]
    pub fn check(&mut self) {
        let mut random = Rng::with_seed(3);
        let read = self.opened().read_all(&mut random);
        assert_same(&read, &self.content, "the open image");
        self.opened = None;
        self.stand.check(&self.image);
        assert_same(&self.stand.content(&self.image), &self.content, "the closed image");
    }

    /// Another length; what is new are zeroes.
    pub fn truncate(&mut self, length: usize, how: Truncate) {
        let ctx = &self.stand.ctx;
        let backend = self.opened().backend();
        ctx.run(|co| backend.co_truncate_with(co, length as u64, how)).unwrap();
        assert_eq!(self.opened().node.length(), length as u64);
        self.content.resize(length, 0);
    }
}
