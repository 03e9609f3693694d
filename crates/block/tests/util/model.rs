//! The model test: random requests, many at a time, against what each of their authors knows.
//!
//! The device is cut into stripes of odd lengths, and each stripe has one author, a coroutine that
//! writes and reads nothing but its own stripes, one request after the other. So each author knows
//! what each of its bytes is, however the requests of all authors mix. But stripes share blocks:
//! what an author finds changed was changed by a neighbour's padding.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::{BlockBackend, WriteFlags, ZeroFlags};

use super::disk::Disk;

/// What to run.
#[derive(Clone)]
pub struct Model {
    pub seed: u64,
    pub length: u64,
    pub longest_stripe: u64,
    pub authors: usize,
    pub requests_each: usize,
    /// Requests may fail; what a failed one wrote is unknown.
    pub may_fail: bool,
    /// The disk below, to see whether a flush has told the truth (design decision D16).
    pub disk: Option<Arc<Disk>>,
}

/// The stripes, each with its author, for everyone who knows the seed.
fn stripes(model: &Model) -> Vec<(usize, Range<u64>)> {
    let mut random = fastrand::Rng::with_seed(model.seed);
    let mut stripes = Vec::new();
    let mut at = 0;
    while at < model.length {
        let end = (at + random.u64(1..=model.longest_stripe)).min(model.length);
        stripes.push((random.usize(..model.authors), at..end));
        at = end;
    }
    stripes
}

/// Runs the requests of `authors` on one context, all authors at once, and verifies every byte of
/// theirs at the end. The device is all zeroes at first.
pub fn run(ctx: &AioContext, backend: &BlockBackend, model: &Model, authors: Range<usize>) {
    let left = Rc::new(Cell::new(authors.len()));
    for author in authors {
        let stripes: Vec<Range<u64>> = stripes(model)
            .into_iter()
            .filter(|(owner, _)| *owner == author)
            .map(|(_, stripe)| stripe)
            .collect();
        let (backend, model, left) = (backend.clone(), model.clone(), Rc::clone(&left));
        ctx.spawn("author", move |co| {
            let seed = model.seed.wrapping_mul(1000) + author as u64;
            Author {
                random: fastrand::Rng::with_seed(seed),
                known: vec![Some(0); model.length as usize],
                backend,
                model,
                stripes,
            }
            .work(co);
            left.set(left.get() - 1);
        });
    }
    ctx.run_until(|| left.get() == 0);
}

struct Author {
    random: fastrand::Rng,
    backend: BlockBackend,
    model: Model,
    stripes: Vec<Range<u64>>,
    /// By offset; only bytes in the author's stripes count.
    known: Vec<Option<u8>>,
}

impl Author {
    fn work(mut self, co: &Co<'_>) {
        if self.stripes.is_empty() {
            return;
        }
        for _ in 0..self.model.requests_each {
            let range = self.draw_range();
            match self.random.u32(..100) {
                0..45 => self.write(co, range),
                45..75 => self.read(co, range),
                75..85 => self.zero(co, range),
                85..95 => self.discard(co, range),
                _ => self.flush(co),
            }
        }
        for stripe in self.stripes.clone() {
            self.read(co, stripe);
        }
    }

    fn draw_range(&mut self) -> Range<u64> {
        let stripe = self.stripes[self.random.usize(..self.stripes.len())].clone();
        let start = self.random.u64(stripe.clone());
        start..self.random.u64(start + 1..=stripe.end)
    }

    /// What is known of a range after a request.
    fn settle(&mut self, range: &Range<u64>, result: std::io::Result<()>, byte: Option<u8>) {
        if let Err(error) = &result {
            assert!(self.model.may_fail, "{range:?}: {error}");
        }
        let byte = result.ok().and(byte);
        self.known[range.start as usize..range.end as usize].fill(byte);
    }

    fn flush(&mut self, co: &Co<'_>) {
        match self.backend.co_flush(co) {
            Ok(()) => {
                let stripes = self.stripes.clone();
                stripes.iter().for_each(|stripe| self.check_durable(stripe));
            }
            Err(error) => assert!(self.model.may_fail, "flush: {error}"),
        }
    }

    fn check_durable(&self, range: &Range<u64>) {
        if let Some(disk) = &self.model.disk {
            self.check(range, &disk.durable()[range.start as usize..range.end as usize]);
        }
    }

    fn write(&mut self, co: &Co<'_>, range: Range<u64>) {
        let byte = self.random.u8(..);
        let data = vec![byte; (range.end - range.start) as usize];
        // Two ranges of memory, at addresses that suit no driver.
        let (first, second) = data.split_at(self.random.usize(..=data.len()));
        let mut source = IoVector::from(first);
        source.push(second);
        let durable = self.random.u8(..10) == 0;
        let flags = if durable { WriteFlags::FUA } else { WriteFlags::empty() };
        let result = self.backend.co_pwritev(co, range.start, &source, flags);
        self.settle(&range, result, Some(byte));
        if durable {
            self.check_durable(&range);
        }
    }

    fn zero(&mut self, co: &Co<'_>, range: Range<u64>) {
        let flags = ZeroFlags::from_bits_truncate(self.random.u32(..8)) - ZeroFlags::NO_FALLBACK;
        let bytes = range.end - range.start;
        let result = self.backend.co_pwrite_zeroes(co, range.start, bytes, flags);
        self.settle(&range, result, Some(0));
    }

    fn discard(&mut self, co: &Co<'_>, range: Range<u64>) {
        let result = self.backend.co_pdiscard(co, range.start, range.end - range.start);
        self.settle(&range, result, None);
    }

    fn read(&mut self, co: &Co<'_>, range: Range<u64>) {
        let mut data = vec![0xEE; (range.end - range.start) as usize];
        let mut target = IoVectorMut::from(&mut data[..]);
        if let Err(error) = self.backend.co_preadv(co, range.start, &mut target) {
            assert!(self.model.may_fail, "{range:?}: {error}");
            return;
        }
        self.check(&range, &data);
    }

    fn check(&self, range: &Range<u64>, data: &[u8]) {
        for (offset, byte) in range.clone().zip(data) {
            let known = self.known[offset as usize];
            assert!(
                known.is_none_or(|known| known == *byte),
                "byte {offset} is {byte:#x}, was {known:x?}"
            );
        }
    }
}
