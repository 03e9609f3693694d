//! [`Play`]: random requests of many coroutines to a disk, and what it holds then.

use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, AioHandle, Co, IoVector, IoVectorMut};
use coblk_block::{BackendOptions, BlockBackend, BlockNode, Truncate, WriteFlags, ZeroFlags};
use coblk_tests::model::Model;
use coblk_tests::random::Random;

/// In each context.
const COROUTINES: u64 = 6;
/// Of each coroutine.
const REQUESTS: u64 = 25;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Durable,
    Compressed,
    Zero,
    ZeroUnmap,
    ZeroOnly,
    Discard,
    Flush,
    Status,
    Grow,
    Shrink,
}

const KINDS: usize = 12;

impl Kind {
    /// Kinds that must have been done.
    pub const EXPECTED: [Kind; KINDS] = [
        Kind::Read,
        Kind::Write,
        Kind::Durable,
        Kind::Compressed,
        Kind::Zero,
        Kind::ZeroUnmap,
        Kind::ZeroOnly,
        Kind::Discard,
        Kind::Flush,
        Kind::Status,
        Kind::Grow,
        Kind::Shrink,
    ];

    fn draw(random: &mut Random) -> Kind {
        match random.below(100) {
            0..30 => Kind::Read,
            30..62 => Kind::Write,
            62..64 => Kind::Durable,
            64..70 => Kind::Compressed,
            70..75 => Kind::Zero,
            75..81 => Kind::ZeroUnmap,
            81..84 => Kind::ZeroOnly,
            84..91 => Kind::Discard,
            91..95 => Kind::Status,
            _ => Kind::Flush,
        }
    }
}

/// How many requests of each kind were done, and how many are not supported.
#[derive(Debug, Default)]
pub struct Counts(Arc<[(AtomicU64, AtomicU64); KINDS]>);

impl Counts {
    pub fn done(&self, kind: Kind) -> u64 {
        self.0[kind as usize].0.load(Ordering::Relaxed)
    }

    fn share(&self) -> Counts {
        Counts(Arc::clone(&self.0))
    }

    /// Counts a request. Returns whether it was done.
    #[track_caller]
    fn count(&self, what: &str, kind: Kind, result: io::Result<()>) -> bool {
        let (done, unsupported) = &self.0[kind as usize];
        let may_not = [Kind::Compressed, Kind::ZeroOnly, Kind::Grow, Kind::Shrink];
        match result {
            Ok(()) => done.fetch_add(1, Ordering::Relaxed),
            Err(error)
                if error.raw_os_error() == Some(libc::ENOTSUP) && may_not.contains(&kind) =>
            {
                unsupported.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            Err(error) => panic!("{what}: {kind:?}: {error}"),
        };
        true
    }
}

/// One phase.
pub struct Play {
    what: String,
    seed: u64,
    cluster: usize,
    model: Model,
    bytes: usize,
    counts: Counts,
    done: AtomicU64,
    home: Mutex<Option<AioHandle>>,
}

impl Play {
    pub fn new(
        what: &str,
        seed: u64,
        cluster: usize,
        (content, known): (Vec<u8>, Vec<bool>),
        counts: &Counts,
    ) -> Arc<Play> {
        let bytes = content.len();
        Arc::new(Play {
            what: what.to_owned(),
            seed,
            cluster,
            model: Model::with(content, known),
            bytes,
            counts: counts.share(),
            done: AtomicU64::new(0),
            home: Mutex::new(None),
        })
    }

    /// Runs all of it, in this context and in `others`. Returns what the disk holds then.
    pub fn run(
        self: &Arc<Play>,
        ctx: &AioContext,
        node: &Arc<BlockNode>,
        others: &[&AioHandle],
    ) -> (Vec<u8>, Vec<bool>) {
        let claim = BackendOptions::new("claim").share_rw(true).open(ctx, Arc::clone(node));
        let claim = claim.expect("a node that may be written");
        *self.home.lock().unwrap() = Some(ctx.handle());
        for (number, other) in (1..).zip(others) {
            let (play, node) = (Arc::clone(self), Arc::clone(node));
            other.schedule(move |ctx| play.start(ctx, node, number));
        }
        self.start(ctx, Arc::clone(node), 0);
        let players = COROUTINES * (1 + others.len() as u64);
        ctx.run_until(|| self.done.load(Ordering::Acquire) == players);
        drop(claim);
        self.model.content()
    }

    fn start(self: &Arc<Play>, ctx: &AioContext, node: Arc<BlockNode>, context: u64) {
        let backend = Rc::new(BlockBackend::new(ctx, "drive", node));
        for number in context * COROUTINES..(context + 1) * COROUTINES {
            let (play, backend) = (Arc::clone(self), Rc::clone(&backend));
            ctx.spawn("model", move |co| {
                let mut random = Random::new(play.seed.wrapping_mul(1000) + number);
                for _ in 0..REQUESTS {
                    play.request(co, &backend, &mut random);
                }
                drop(backend);
                play.done.fetch_add(1, Ordering::AcqRel);
                play.home.lock().unwrap().as_ref().unwrap().notify();
            });
        }
    }

    /// Any bytes, sectors, or clusters.
    fn range(&self, random: &mut Random, kind: Kind) -> Range<usize> {
        let in_clusters = kind == Kind::Compressed;
        let unit = match random.below(6) {
            _ if in_clusters => self.cluster,
            0 | 1 => 1,
            2 | 3 => 512,
            _ => self.cluster,
        };
        let units = self.bytes.div_ceil(unit) as u64;
        let first = random.below(units);
        let most = if in_clusters { 1 } else { (3 * self.cluster / unit) as u64 };
        let count = 1 + random.below(most.min(units - first));
        (first as usize * unit)..((first + count) as usize * unit).min(self.bytes)
    }

    fn request(&self, co: &Co<'_>, backend: &BlockBackend, random: &mut Random) {
        let kind = Kind::draw(random);
        let range = self.range(random, kind);
        let (offset, bytes) = (range.start as u64, range.len() as u64);
        let changes = !matches!(kind, Kind::Read | Kind::Flush | Kind::Status);
        let locked = kind != Kind::Flush && kind != Kind::Status;
        let lock = locked.then(|| self.model.lock(co, &range, changes));
        let mut data = vec![0; range.len()];
        if matches!(kind, Kind::Write | Kind::Durable) {
            random.fill(&mut data);
        } else if kind == Kind::Compressed {
            let byte = random.number() as u8;
            data.iter_mut().enumerate().for_each(|(at, it)| *it = byte ^ (at / 100) as u8);
        }
        let write = |flags| backend.co_pwritev(co, offset, &IoVector::from(&data[..]), flags);
        let zero = |flags| backend.co_pwrite_zeroes(co, offset, bytes, flags);
        let result = match kind {
            Kind::Read => self.read(co, backend, range.clone()),
            Kind::Write => write(WriteFlags::empty()),
            Kind::Durable => write(WriteFlags::FUA),
            Kind::Compressed => write(WriteFlags::COMPRESSED),
            Kind::Zero => zero(ZeroFlags::empty()),
            Kind::ZeroUnmap => zero(ZeroFlags::MAY_UNMAP),
            Kind::ZeroOnly => zero(ZeroFlags::MAY_UNMAP | ZeroFlags::NO_FALLBACK),
            Kind::Discard => backend.co_pdiscard(co, offset, bytes),
            Kind::Status => backend.co_block_status(co, offset, bytes).map(drop),
            _ => backend.co_flush(co),
        };
        let is_done = self.counts.count(&self.what, kind, result);
        if is_done && changes {
            self.model.set(range, (kind != Kind::Discard).then_some(&data[..]));
        }
        lock.into_iter().for_each(|lock| self.model.unlock(lock));
    }

    fn read(&self, co: &Co<'_>, backend: &BlockBackend, range: Range<usize>) -> io::Result<()> {
        let mut data = vec![0xee; range.len()];
        backend.co_preadv(co, range.start as u64, &mut IoVectorMut::from(&mut data[..]))?;
        self.model.check(&self.what, range, &data);
        Ok(())
    }
}

/// Another length, if the driver can change it.
pub fn resize(
    ctx: &AioContext,
    node: &Arc<BlockNode>,
    random: &mut Random,
    counts: &Counts,
    (content, known): &mut (Vec<u8>, Vec<bool>),
) {
    let backend = BackendOptions::new("resize").open(ctx, Arc::clone(node)).expect("a backend");
    let sectors = content.len() as u64 / 512;
    let sectors = sectors / 2 + random.below(sectors);
    let length = sectors as usize * 512;
    let kind = if length < content.len() { Kind::Shrink } else { Kind::Grow };
    let how = Truncate { exact: true, zero: true, ..Truncate::default() };
    let result = ctx.run(|co| backend.co_truncate_with(co, length as u64, how));
    if counts.count("resize", kind, result) {
        content.resize(length, 0);
        known.resize(length, true);
    }
}
