//! [`Plan`]: one run of random operations on a node, from one context or several.

use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk::{
    AioContext, AioHandle, BlockBackend, BlockNode, Co, IoVector, IoVectorMut, WriteFlags,
    ZeroFlags,
};
use coblk_tests::model::Model;
use coblk_tests::random::Random;

use crate::changes::Changes;

/// Bytes of every device.
pub const SIZE: usize = 256 << 10;
/// In each context.
const COROUTINES: u64 = 12;
const LONGEST: u64 = 24 << 10;
/// One in how many is durable.
const SYNCS_ARE_SLOW: u64 = 40;

/// One run.
pub struct Plan {
    /// For messages.
    pub what: String,
    /// What it is drawn from.
    pub seed: u64,
    /// Of each coroutine.
    pub operations: u64,
    /// Whether what is written is there afterwards, or reads give zeroes whatever happens.
    pub stores: bool,
    /// Whether requests fail: then some must, and otherwise none may.
    pub may_fail: bool,
    /// What else happens to the graph meanwhile.
    pub changes: Option<Changes>,
}

/// What the contexts of one run share.
struct Shared {
    plan: Plan,
    model: Model,
    home: AioHandle,
    /// Coroutines that are done.
    done: AtomicU64,
    /// Requests that failed.
    failed: AtomicU64,
}

impl Plan {
    /// On a device that keeps what it is given and does not fail.
    pub fn new(what: String, seed: u64, operations: u64) -> Plan {
        Plan { what, seed, operations, stores: true, may_fail: false, changes: None }
    }

    /// Runs all of it on a new `node`, in this context and in `others`, and compares everything at
    /// the end.
    pub fn play(self, ctx: &AioContext, node: &Arc<BlockNode>, others: &[&AioHandle]) {
        let shared = Arc::new(Shared {
            plan: self,
            model: Model::new(SIZE),
            home: ctx.handle(),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        for (number, other) in (1..).zip(others) {
            let (shared, node) = (Arc::clone(&shared), Arc::clone(node));
            other.schedule(move |ctx| drop(Run::start(ctx, node, shared, number)));
        }
        let run = Run::start(ctx, Arc::clone(node), Arc::clone(&shared), 0);
        let players = COROUTINES * (1 + others.len() as u64);
        let finished = || shared.done.load(Ordering::Acquire) == players;
        if let Some(changes) = &shared.plan.changes {
            // The first begins here, and finds requests on their way.
            let mut random = Random::new(!shared.plan.seed);
            ctx.run(|co| changes.make(co, node, &mut random, finished));
        }
        ctx.run_until(finished);
        drop(run.backend.drain(ctx));
        let (plan, failed) = (&shared.plan, shared.failed.load(Ordering::Acquire));
        assert_eq!(run.backend.in_flight(), 0, "{}", plan.what);
        ctx.run(|co| run.read_back(co));
        let all = players * plan.operations;
        assert_eq!(failed > 0, plan.may_fail, "{}: {failed} of {all} failed", plan.what);
    }
}

/// The part of one context.
struct Run {
    backend: BlockBackend,
    /// Offsets and lengths are multiples of this.
    unit: u64,
    shared: Arc<Shared>,
}

impl Run {
    fn start(ctx: &AioContext, node: Arc<BlockNode>, shared: Arc<Shared>, context: u64) -> Rc<Run> {
        let unit = node.limits().request_alignment.into();
        let backend = BlockBackend::new(ctx, "drive", node);
        let run = Rc::new(Run { backend, unit, shared });
        for number in context * COROUTINES..(context + 1) * COROUTINES {
            let run = Rc::clone(&run);
            ctx.spawn("model", move |co| {
                let Shared { plan, done, home, .. } = &*run.shared;
                let mut random = Random::new(plan.seed.wrapping_mul(1000) + number);
                for _ in 0..plan.operations {
                    run.operate(co, &mut random);
                }
                done.fetch_add(1, Ordering::AcqRel);
                home.notify();
            });
        }
        run
    }

    /// Reads the whole device, until it does not fail.
    fn read_back(&self, co: &Co<'_>) {
        let Shared { plan, model, .. } = &*self.shared;
        let mut content = vec![0; SIZE];
        for part in 0..8 {
            let range = part * SIZE / 8..(part + 1) * SIZE / 8;
            let mut target = IoVectorMut::from(&mut content[range.clone()]);
            while self.backend.co_preadv(co, range.start as u64, &mut target).is_err() {
                assert!(plan.may_fail, "{}: the last read", plan.what);
            }
        }
        model.check(&plan.what, 0..SIZE, &content);
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
        let lock = self.shared.model.lock(co, &range, kind >= 45);
        match kind {
            ..45 => self.read(co, random, range),
            45..80 => self.write(co, random, range),
            80..93 => self.zero(co, random, range),
            _ => self.discard(co, range),
        }
        self.shared.model.unlock(lock);
    }

    /// A result that changes nothing.
    fn settle(&self, result: io::Result<()>) {
        if let Err(error) = result {
            assert!(self.shared.plan.may_fail, "{}: {error}", self.shared.plan.what);
            self.shared.failed.fetch_add(1, Ordering::AcqRel);
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
            self.shared.model.check(&self.shared.plan.what, range, &memory);
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
        if self.shared.plan.stores {
            self.shared.model.set(range, None);
        }
    }

    fn changed(&self, range: Range<usize>, content: &[u8], result: io::Result<()>) {
        let content = result.is_ok().then_some(content);
        self.settle(result);
        if self.shared.plan.stores {
            self.shared.model.set(range, content);
        }
    }
}

/// Where to cut a vector: seldom, and at odd places.
fn cut(random: &mut Random, len: usize) -> usize {
    if random.below(3) == 0 { len } else { 1 + random.below(len as u64) as usize }
}
