//! [`Disk`]: a file in memory that remembers in what order it was written.

use std::cell::RefCell;
use std::io;

use coblk_aio::Co;

use crate::check::store::Store;
use crate::layout::SECTOR_BYTES;
use crate::source::Source;

/// Something that changes the file, or makes changes durable.
#[derive(Clone)]
enum Step {
    Grow(usize),
    Write(usize, Vec<u8>),
    Punch(usize, usize),
    Flush,
}

/// A file in memory.
pub struct Disk {
    bytes: RefCell<Vec<u8>>,
    first: Vec<u8>,
    steps: RefCell<Vec<Step>>,
}

impl Disk {
    pub fn new(bytes: Vec<u8>) -> Disk {
        Disk { first: bytes.clone(), bytes: RefCell::new(bytes), steps: RefCell::default() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }

    /// How many steps there were.
    pub fn steps(&self) -> usize {
        self.steps.borrow().len()
    }

    /// Whether a step changed the file.
    pub fn is_changed(&self) -> bool {
        self.steps.borrow().iter().any(|step| !matches!(step, Step::Flush))
    }

    /// What a crash leaves after `steps` steps: all that was flushed, and of the rest the sectors that `keeps`
    /// says.
    pub fn after_crash(&self, steps: usize, mut keeps: impl FnMut() -> bool) -> Vec<u8> {
        let all = self.steps.borrow();
        let done = &all[..steps];
        let is_flush = |step: &Step| matches!(step, Step::Flush);
        let durable = done.iter().rposition(is_flush).map_or(0, |at| at + 1);
        let mut bytes = self.first.clone();
        done[..durable].iter().for_each(|step| apply(&mut bytes, step, &mut || true));
        done[durable..].iter().for_each(|step| apply(&mut bytes, step, &mut keeps));
        bytes
    }
}

fn apply(bytes: &mut Vec<u8>, step: &Step, keeps: &mut impl FnMut() -> bool) {
    match step {
        Step::Grow(end) => {
            if keeps() && bytes.len() < *end {
                bytes.resize(*end, 0);
            }
        }
        Step::Write(offset, new) => {
            // A sector is written whole, or not at all.
            for (sector, at) in new.chunks(SECTOR_BYTES).zip((*offset..).step_by(SECTOR_BYTES)) {
                if keeps() {
                    let end = at + sector.len();
                    if bytes.len() < end {
                        bytes.resize(end, 0);
                    }
                    bytes[at..end].copy_from_slice(sector);
                }
            }
        }
        Step::Punch(start, end) => {
            if keeps() {
                let end = (*end).min(bytes.len());
                bytes[*start.min(&end)..end].fill(0xdb);
            }
        }
        Step::Flush => {}
    }
}

impl Source for Disk {
    fn end(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn co_read_inside(&self, _: &Co<'_>, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        target.copy_from_slice(&self.bytes.borrow()[offset..offset + target.len()]);
        Ok(())
    }
}

impl Disk {
    fn step(&self, step: Step) -> io::Result<()> {
        apply(&mut self.bytes.borrow_mut(), &step, &mut || true);
        self.steps.borrow_mut().push(step);
        Ok(())
    }
}

impl Store for Disk {
    fn co_grow(&self, _: &Co<'_>, end: u64) -> io::Result<()> {
        if end > self.end() { self.step(Step::Grow(end as usize)) } else { Ok(()) }
    }

    fn co_write_inside(&self, _: &Co<'_>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = offset as usize;
        assert!(offset.is_multiple_of(SECTOR_BYTES), "a write of parts of sectors");
        assert!(offset + bytes.len() <= self.end() as usize, "a write behind the end");
        self.step(Step::Write(offset, bytes.to_vec()))
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        self.step(Step::Flush)
    }

    fn co_punch(&self, _: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.step(Step::Punch(offset as usize, (offset + bytes) as usize))
    }
}
