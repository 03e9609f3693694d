//! Random operations, many at a time, against a model: what the device should hold, in a vector.
//!
//! Operations that overlap are ordered by a lock of the model's own, so every read has one right
//! answer. A seed replays a run; on a simulated context also its timing and its faults.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use coblk::aio::SimulationOptions;
use coblk::aio::sys::faults::Faults;
use coblk::drivers::{Engine, File, FileOptions, Null};
use coblk::{
    AioContext, BlockBackend, BlockNode, Co, CoWaker, IoVector, IoVectorMut, WriteFlags, ZeroFlags,
};
use coblk_tests::guest::every_way;
use coblk_tests::image_dir;
use coblk_tests::images::sparse_image;
use coblk_tests::probe::Probe;
use coblk_tests::random::{Random, seeds};

const SIZE: usize = 256 << 10;
const COROUTINES: u64 = 12;
const LONGEST: u64 = 24 << 10;
/// One in how many is durable.
const SYNCS_ARE_SLOW: u64 = 40;

/// What the device should hold, and which operations are under way.
struct Model {
    content: Vec<u8>,
    /// After a discard, or a write that failed, a byte may be anything until it is written again.
    known: Vec<bool>,
    /// Ranges in use, and whether to change them.
    locks: Vec<(u64, Range<usize>, bool)>,
    next_lock: u64,
    /// Coroutines whose ranges were taken.
    waiting: Vec<CoWaker>,
}

impl Model {
    fn try_lock(&mut self, range: &Range<usize>, change: bool) -> Option<u64> {
        let overlaps = |other: &Range<usize>| other.start < range.end && range.start < other.end;
        let taken = |(_, other, exclusive): &(u64, Range<usize>, bool)| {
            overlaps(other) && (change || *exclusive)
        };
        if self.locks.iter().any(taken) {
            return None;
        }
        self.next_lock += 1;
        self.locks.push((self.next_lock, range.clone(), change));
        Some(self.next_lock)
    }

    /// Gives back whom to wake.
    fn unlock(&mut self, lock: u64) -> Vec<CoWaker> {
        self.locks.retain(|(number, _, _)| *number != lock);
        std::mem::take(&mut self.waiting)
    }

    fn set(&mut self, range: Range<usize>, content: Option<&[u8]>) {
        self.known[range.clone()].fill(content.is_some());
        if let Some(content) = content {
            self.content[range].copy_from_slice(content);
        }
    }

    #[track_caller]
    fn check(&self, what: &str, range: Range<usize>, read: &[u8]) {
        for (at, byte) in range.zip(read) {
            let right = !self.known[at] || self.content[at] == *byte;
            assert!(right, "{what}: byte {at} is {byte:#x}, not {:#x}", self.content[at]);
        }
    }
}

/// One run.
struct Run {
    what: String,
    backend: BlockBackend,
    model: RefCell<Model>,
    /// Offsets and lengths are multiples of this.
    unit: u64,
    /// Whether what is written is there afterwards, or reads give zeroes whatever happens.
    stores: bool,
    /// Whether requests may fail.
    may_fail: bool,
    operations: u64,
    done: Cell<u64>,
    failed: Cell<u64>,
}

impl Run {
    fn new(what: String, backend: BlockBackend, operations: u64) -> Run {
        let unit = backend.node().expect("a medium").limits().request_alignment.into();
        let model = Model {
            content: vec![0; SIZE],
            known: vec![true; SIZE],
            locks: vec![],
            next_lock: 0,
            waiting: vec![],
        };
        Run {
            what,
            backend,
            model: RefCell::new(model),
            unit,
            stores: true,
            may_fail: false,
            operations,
            done: Cell::new(0),
            failed: Cell::new(0),
        }
    }

    /// Runs all of it, and compares everything at the end.
    fn play(self, ctx: &AioContext, seed: u64) {
        let run = Rc::new(self);
        for number in 0..COROUTINES {
            let run = Rc::clone(&run);
            ctx.spawn("model", move |co| {
                let mut random = Random::new(seed.wrapping_mul(1000) + number);
                for _ in 0..run.operations {
                    run.operate(co, &mut random);
                }
                run.done.set(run.done.get() + 1);
            });
        }
        ctx.run_until(|| run.done.get() == COROUTINES);
        drop(run.backend.drain(ctx));
        assert_eq!(run.backend.in_flight(), 0, "{}", run.what);
        ctx.run(|co| run.read_back(co));
        let (failed, all) = (run.failed.get(), COROUTINES * run.operations);
        assert_eq!(failed > 0, run.may_fail, "{}: {failed} of {all} failed", run.what);
    }

    /// Reads the whole device, until it does not fail.
    fn read_back(&self, co: &Co<'_>) {
        let mut content = vec![0; SIZE];
        for part in 0..8 {
            let range = part * SIZE / 8..(part + 1) * SIZE / 8;
            let mut target = IoVectorMut::from(&mut content[range.clone()]);
            while self.backend.co_preadv(co, range.start as u64, &mut target).is_err() {
                assert!(self.may_fail, "{}: the last read", self.what);
            }
        }
        self.model.borrow().check(&self.what, 0..SIZE, &content);
    }

    fn operate(&self, co: &Co<'_>, random: &mut Random) {
        let units = SIZE as u64 / self.unit;
        let from = random.below(units);
        let most = (LONGEST / self.unit).min(units - from);
        let len = if random.below(20) == 0 { 0 } else { 1 + random.below(most) };
        let range = (from * self.unit) as usize..((from + len) * self.unit) as usize;
        let kind = random.below(100);
        if kind < 2 {
            return self.settle(self.backend.co_flush(co));
        }
        let change = kind >= 45;
        let lock = loop {
            let lock = self.model.borrow_mut().try_lock(&range, change);
            match lock {
                Some(lock) => break lock,
                None => co.suspend_with(|waker| self.model.borrow_mut().waiting.push(waker)),
            }
        };
        match kind {
            ..45 => self.read(co, random, range),
            45..80 => self.write(co, random, range),
            80..93 => self.zero(co, random, range),
            _ => self.discard(co, range),
        }
        let waiting = self.model.borrow_mut().unlock(lock);
        waiting.into_iter().for_each(CoWaker::wake);
    }

    /// A result that changes nothing.
    fn settle(&self, result: io::Result<()>) {
        if let Err(error) = result {
            assert!(self.may_fail, "{}: {error}", self.what);
            self.failed.set(self.failed.get() + 1);
        }
    }

    fn read(&self, co: &Co<'_>, random: &mut Random, range: Range<usize>) {
        let mut memory = vec![0xee; range.len()];
        let mut target = IoVectorMut::new();
        let mut rest = &mut memory[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at_mut(cut(random, rest.len()));
            target.push(part);
            rest = after;
        }
        let result = self.backend.co_preadv(co, range.start as u64, &mut target);
        if result.is_ok() {
            self.model.borrow().check(&self.what, range, &memory);
        }
        self.settle(result);
    }

    fn write(&self, co: &Co<'_>, random: &mut Random, range: Range<usize>) {
        let mut memory = vec![0; range.len()];
        random.fill(&mut memory);
        let mut source = IoVector::new();
        let mut rest = &memory[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(cut(random, rest.len()));
            source.push(part);
            rest = after;
        }
        let durable = random.below(SYNCS_ARE_SLOW) == 0;
        let flags = if durable { WriteFlags::FUA } else { WriteFlags::empty() };
        let result = self.backend.co_pwritev(co, range.start as u64, &source, flags);
        self.changed(range, &memory, result);
    }

    fn zero(&self, co: &Co<'_>, random: &mut Random, range: Range<usize>) {
        let mut flags = ZeroFlags::empty();
        flags.set(ZeroFlags::MAY_UNMAP, random.below(2) == 0);
        flags.set(ZeroFlags::FUA, random.below(SYNCS_ARE_SLOW) == 0);
        let (offset, bytes) = (range.start as u64, range.len() as u64);
        let result = self.backend.co_pwrite_zeroes(co, offset, bytes, flags);
        self.changed(range.clone(), &vec![0; range.len()], result);
    }

    fn discard(&self, co: &Co<'_>, range: Range<usize>) {
        let (offset, bytes) = (range.start as u64, range.len() as u64);
        let result = self.backend.co_pdiscard(co, offset, bytes);
        self.settle(result);
        if self.stores {
            self.model.borrow_mut().set(range, None);
        }
    }

    fn changed(&self, range: Range<usize>, content: &[u8], result: io::Result<()>) {
        let content = result.is_ok().then_some(content);
        self.settle(result);
        if self.stores {
            self.model.borrow_mut().set(range, content);
        }
    }
}

/// Where to cut a vector: seldom, and at odd places.
fn cut(random: &mut Random, len: usize) -> usize {
    if random.below(3) == 0 { len } else { 1 + random.below(len as u64) as usize }
}

fn file_run(ctx: &AioContext, dir: &Path, what: String, options: FileOptions, n: u64) -> Run {
    let file = options.open(sparse_image(dir, "disk.img", SIZE as u64)).expect("an image");
    Run::new(what, BlockBackend::new(ctx, "drive", BlockNode::new("disk", file)), n)
}

#[test]
fn files_hold_what_the_model_holds() {
    let dir = image_dir!();
    for (way, options) in every_way() {
        for seed in seeds(6) {
            let ctx = AioContext::new().expect("a context");
            let what = format!("{way}, seed {seed}");
            file_run(&ctx, dir.path(), what, options, 80).play(&ctx, seed);
        }
    }
}

#[test]
fn a_driver_in_memory_holds_what_the_model_holds() {
    for seed in seeds(6) {
        let ctx = AioContext::new().expect("a context");
        let probe = Probe::new(SIZE);
        let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("probe", probe));
        Run::new(format!("probe, seed {seed}"), backend, 80).play(&ctx, seed);
    }
}

#[test]
fn the_null_driver_reads_zeroes_whatever_was_written() {
    for deferred in [false, true] {
        let ctx = AioContext::new().expect("a context");
        let null = Null::new(SIZE as u64).read_zeroes(true).deferred(deferred);
        let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("null", null));
        let run = Run::new(format!("null, deferred: {deferred}"), backend, 300);
        Run { stores: false, ..run }.play(&ctx, 1);
    }
}

/// A simulated context whose system calls go wrong like this.
fn simulated(seed: u64, faults: Faults) -> AioContext {
    let options = SimulationOptions {
        max_delay: Duration::from_micros(50),
        ..SimulationOptions::new(seed).faults(faults)
    };
    AioContext::builder().simulated(options).build().expect("a context")
}

#[test]
fn simulated_files_hold_what_the_model_holds() {
    let dir = image_dir!();
    let faults = Faults { short_per_mille: 300, interrupted_per_mille: 200, ..Faults::default() };
    for engine in [Engine::Threads, Engine::IoUring] {
        for seed in seeds(12) {
            let ctx = simulated(seed, faults);
            let what = format!("simulated, {engine:?}, seed {seed}");
            let options = File::options().engine(engine);
            file_run(&ctx, dir.path(), what, options, 40).play(&ctx, seed);
        }
    }
}

#[test]
fn simulated_files_lose_nothing_but_what_failed() {
    let dir = image_dir!();
    let faults = Faults {
        short_per_mille: 100,
        interrupted_per_mille: 100,
        error_per_mille: 30,
        no_space_per_mille: 30,
        ..Faults::default()
    };
    for engine in [Engine::Threads, Engine::IoUring] {
        for seed in seeds(12) {
            let ctx = simulated(seed, faults);
            let what = format!("simulated with errors, {engine:?}, seed {seed}");
            let options = File::options().engine(engine);
            let run = file_run(&ctx, dir.path(), what, options, 40);
            Run { may_fail: true, ..run }.play(&ctx, seed);
        }
    }
}

#[test]
fn one_seed_is_one_run() {
    let dir = image_dir!();
    let faults = Faults { short_per_mille: 300, error_per_mille: 30, ..Faults::default() };
    let digest = |seed| {
        let ctx = simulated(seed, faults);
        let run = file_run(&ctx, dir.path(), format!("seed {seed}"), File::options(), 20);
        Run { may_fail: true, ..run }.play(&ctx, seed);
        ctx.simulation().expect("a simulated context").digest()
    };
    assert_eq!(digest(5), digest(5));
    assert_ne!(digest(5), digest(6));
}
