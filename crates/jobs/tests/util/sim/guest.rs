//! [`Guest`]: writes at random to its part of a disk, and knows what it must read there.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::{AioContext, Co, IoVector};
use coblk_block::{BlockBackend, WriteFlags, ZeroFlags};
use fastrand::Rng;

use super::super::disk::DISCARDED;
use super::BLOCK;

/// A guest and the part of the disk that it alone changes.
pub struct Guest {
    pub backend: BlockBackend,
    pub part: Range<u64>,
    /// What it reads there.
    pub expected: RefCell<Vec<u8>>,
    /// What is being changed, and may have any contents.
    pub changing: RefCell<Range<usize>>,
    /// What a loss of power must leave, where anything must be left.
    pub durable: RefCell<Vec<Option<u8>>>,
    /// When it has changed something last.
    pub changed_ns: Cell<i64>,
    pub discards: bool,
    pub stop: Rc<Cell<bool>>,
    pub has_stopped: Cell<bool>,
    /// It is not to begin anything.
    pub hold: Rc<Cell<bool>>,
    pub rests: Cell<bool>,
}

enum Change {
    Write(Vec<u8>),
    Zero,
    Discard,
}

impl Guest {
    pub fn start(self: &Rc<Self>, ctx: &AioContext, mut rng: Rng) {
        let guest = Rc::clone(self);
        ctx.spawn("guest", move |co| {
            while !guest.stop.get() {
                guest.rests.set(guest.hold.get());
                if !guest.hold.get() {
                    guest.change(co, &mut rng);
                    match rng.u8(..10) {
                        0 => guest.check(co),
                        1 | 2 => guest.flush(co),
                        _ => {}
                    }
                }
                // The copy is to come up with them at times.
                co.sleep(Duration::from_micros(rng.u64(..4_000)));
            }
            guest.rests.set(true);
            guest.check(co);
            guest.has_stopped.set(true);
        });
    }

    /// Changes something. If that fails it may have been done in part, and is done again, or left as it is.
    fn change(&self, co: &Co<'_>, rng: &mut Rng) {
        let length = self.part.end - self.part.start;
        let (offset, bytes) = (rng.u64(..length), rng.u64(1..=3 * BLOCK));
        let (change, byte) = match rng.u8(..10) {
            0 if self.discards => (Change::Discard, DISCARDED),
            0..=2 => (Change::Zero, 0),
            _ => {
                let byte = rng.u8(..);
                (Change::Write(vec![byte; bytes.min(length - offset) as usize]), byte)
            }
        };
        let place = match &change {
            // Of blocks that are discarded in part some bytes stay.
            Change::Discard => offset / BLOCK * BLOCK..(offset / BLOCK + 1) * BLOCK,
            _ => offset..offset + bytes.min(length - offset),
        };
        let place = place.start as usize..place.end as usize;
        self.changing.replace(place.clone());
        self.durable.borrow_mut()[place.clone()].fill(None);
        let tried = co.catch_unwind(|| self.try_change(co, &place, &change));
        if !matches!(tried, Ok(Ok(()))) && rng.bool() {
            // What is there now stays.
            let found = self.read(co);
            self.expected.borrow_mut()[place.clone()].copy_from_slice(&found[place]);
        } else {
            if !matches!(tried, Ok(Ok(()))) {
                self.repeat(co, || self.try_change(co, &place, &change));
            }
            self.expected.borrow_mut()[place].fill(byte);
        }
        self.changing.replace(0..0);
        self.changed_ns.set(co.context().now_ns());
    }

    fn flush(&self, co: &Co<'_>) {
        self.repeat(co, || self.backend.co_flush(co));
        let expected = self.expected.borrow();
        self.durable.replace(expected.iter().map(|byte| Some(*byte)).collect());
    }

    /// That these bytes, which a loss of power leaves, have all that was flushed.
    pub fn compare_durable(&self, data: &[u8]) {
        let durable = self.durable.borrow();
        let is_lost = |at: &usize| durable[*at].is_some_and(|byte| byte != data[*at]);
        if let Some(at) = (0..data.len()).find(is_lost) {
            let (start, found, wanted) = (self.part.start, data[at], durable[at]);
            panic!("guest at {start}: byte {at} is {found} after a loss of power, not {wanted:?}");
        }
    }

    fn try_change(&self, co: &Co<'_>, place: &Range<usize>, change: &Change) -> io::Result<()> {
        let (at, bytes) = (self.part.start + place.start as u64, place.len() as u64);
        match change {
            Change::Write(data) => {
                self.backend.co_pwritev(co, at, &IoVector::from(&data[..]), WriteFlags::empty())
            }
            Change::Zero => self.backend.co_pwrite_zeroes(co, at, bytes, ZeroFlags::MAY_UNMAP),
            Change::Discard => self.backend.co_pdiscard(co, at, bytes),
        }
    }

    /// Does something until it succeeds.
    fn repeat(&self, co: &Co<'_>, what: impl Fn() -> io::Result<()>) {
        for _ in 0..10 {
            if matches!(co.catch_unwind(&what), Ok(Ok(()))) {
                return;
            }
            co.sleep(Duration::from_micros(100));
        }
        panic!("requests of the guest at {} do nothing but fail", self.part.start);
    }

    /// That it reads what it has written.
    pub fn check(&self, co: &Co<'_>) {
        self.compare("it reads", &self.read(co));
    }

    fn read(&self, co: &Co<'_>) -> Vec<u8> {
        let data = RefCell::new(vec![0; (self.part.end - self.part.start) as usize]);
        self.repeat(co, || self.backend.co_read(co, self.part.start, &mut data.borrow_mut()));
        data.into_inner()
    }

    /// That these bytes are what it has written.
    pub fn compare(&self, what: &str, data: &[u8]) {
        let (expected, changing) = (self.expected.borrow(), self.changing.borrow());
        let differs = |at: &usize| !changing.contains(at) && data[*at] != expected[*at];
        if let Some(at) = (0..data.len()).find(differs) {
            let (found, wanted, start) = (data[at], expected[at], self.part.start);
            panic!("guest at {start}, {what}: byte {at} is {found}, not {wanted}");
        }
    }
}
