//! [`Load`]: random requests to a disk, all of whose effects are known sector by sector.
//!
//! Requests overlap as they like: [`Registers`] say what a sector may read as. Nothing panics: the first
//! fault ends the load and is kept, so that a test can also expect one.

use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk::{
    AioContext, AioHandle, BackendOptions, BlockBackend, BlockNode, Co, IoVector, IoVectorMut,
    WriteFlags, ZeroFlags,
};

use crate::random::Random;
use crate::recorded::{Recorder, SECTOR};
use crate::register::{Print, Registers, print_of, zero_print};
use crate::sectors;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A write with FUA.
    Durable,
    /// Whole clusters, stored compressed.
    Compressed,
    /// Zeroes that keep their space.
    Zero,
    /// Zeroes that may give it back.
    ZeroUnmap,
    /// The same, by no other means.
    ZeroOnly,
    /// A discard.
    Discard,
    /// A flush.
    Flush,
}

/// All kinds, as they are numbered.
pub const KINDS: [Kind; 9] = [
    Kind::Read,
    Kind::Write,
    Kind::Durable,
    Kind::Compressed,
    Kind::Zero,
    Kind::ZeroUnmap,
    Kind::ZeroOnly,
    Kind::Discard,
    Kind::Flush,
];

/// What is asked of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// How often, beside each other, in the order of [`KINDS`].
    pub weights: [u64; 9],
    /// Sectors of a cluster.
    pub cluster: usize,
    /// Longest request in sectors.
    pub longest: usize,
    /// Requests begin in so many clusters from the start of the disk, most of them.
    pub hot: usize,
    /// Coroutines in each context.
    pub coroutines: u64,
    /// Requests of each coroutine.
    pub requests: u64,
    /// Whether requests may fail.
    pub may_fail: bool,
}

impl Mix {
    /// All kinds, on a disk whose clusters have so many sectors.
    pub fn all(cluster: usize) -> Mix {
        let weights = [20, 45, 3, 6, 6, 8, 4, 10, 8];
        Mix {
            weights,
            cluster,
            longest: 3 * cluster,
            hot: usize::MAX,
            coroutines: 4,
            requests: 12,
            may_fail: false,
        }
    }

    /// Many of these requests on few clusters, which are given up and used again all the time.
    pub fn churn(cluster: usize) -> Mix {
        let weights = [60, 40, 2, 4, 2, 8, 8, 25, 16];
        let (hot, coroutines, requests) = (4, 8, 40);
        Mix { weights, longest: cluster, hot, coroutines, requests, ..Mix::all(cluster) }
    }

    /// Long writes to clusters that have no place yet, and few flushes: commits have much to write.
    pub fn fill(cluster: usize) -> Mix {
        let weights = [4, 80, 0, 2, 2, 2, 0, 2, 3];
        let (longest, coroutines, requests) = (24 * cluster, 4, 16);
        Mix { weights, longest, coroutines, requests, ..Mix::all(cluster) }
    }

    /// Without kinds.
    pub fn without(mut self, kinds: &[Kind]) -> Mix {
        for kind in kinds {
            self.weights[*kind as usize] = 0;
        }
        self
    }

    fn draw(&self, random: &mut Random) -> Kind {
        let mut at = random.below(self.weights.iter().sum());
        for (kind, weight) in KINDS.into_iter().zip(self.weights) {
            if at < weight {
                return kind;
            }
            at -= weight;
        }
        Kind::Flush
    }
}

/// How many requests of one kind came to which end.
#[derive(Debug, Default)]
pub struct Count {
    /// With success.
    pub done: AtomicU64,
    /// With ENOTSUP.
    pub unsupported: AtomicU64,
    /// With another error.
    pub failed: AtomicU64,
}

/// What all contexts and coroutines of a load share.
pub struct Shared {
    seed: u64,
    mix: Mix,
    recorder: Recorder,
    registers: Mutex<Registers>,
    counts: [Count; 9],
    done: AtomicU64,
    over: AtomicBool,
    fault: Mutex<Option<String>>,
    home: AioHandle,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// For a disk that has these sectors, in files of `recorder`.
    pub fn new(
        ctx: &AioContext,
        recorder: &Recorder,
        registers: Registers,
        seed: u64,
        mix: Mix,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            seed,
            mix,
            recorder: recorder.clone(),
            registers: Mutex::new(registers),
            counts: Default::default(),
            done: AtomicU64::new(0),
            over: AtomicBool::new(false),
            fault: Mutex::default(),
            home: ctx.handle(),
        })
    }

    /// What the sectors may read as.
    pub fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    /// How requests of a kind have ended.
    pub fn count(&self, kind: Kind) -> &Count {
        &self.counts[kind as usize]
    }

    /// The counts of all kinds, in words.
    pub fn counts(&self) -> String {
        let words = KINDS.map(|kind| {
            let Count { done, unsupported, failed } = self.count(kind);
            let of = |it: &AtomicU64| it.load(Ordering::Relaxed);
            format!("{kind:?} {}/{}/{}", of(done), of(unsupported), of(failed))
        });
        words.join(", ")
    }

    /// Ends the load before it has made all its requests.
    pub fn stop(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// The first thing that went wrong.
    pub fn fault(&self) -> Option<String> {
        lock(&self.fault).clone()
    }

    /// Something went wrong.
    pub fn set_fault(&self, fault: String) {
        lock(&self.fault).get_or_insert(fault);
    }

    /// Runs the load on `node`, in this context and in `others`.
    pub fn play(self: &Arc<Self>, ctx: &AioContext, node: &Arc<BlockNode>, others: &[&AioHandle]) {
        // Permissions for all of them.
        let claim = BackendOptions::new("claim").share_rw(true).open(ctx, Arc::clone(node));
        let _claim = claim.expect("a node that may be written");
        self.begin(ctx, node, others);
        self.wait(ctx, others);
    }

    /// Begins the load. The caller has the permissions for it, until it has [waited](Self::wait) for the end.
    pub fn begin(self: &Arc<Self>, ctx: &AioContext, node: &Arc<BlockNode>, others: &[&AioHandle]) {
        for (number, other) in (1..).zip(others) {
            let (shared, node) = (Arc::clone(self), Arc::clone(node));
            other.schedule(move |ctx| Load::start(ctx, node, shared, number));
        }
        Load::start(ctx, Arc::clone(node), Arc::clone(self), 0);
    }

    /// Waits until the load has made all its requests, or was [stopped](Self::stop).
    pub fn wait(&self, ctx: &AioContext, others: &[&AioHandle]) {
        let players = self.mix.coroutines * (1 + others.len() as u64);
        ctx.run_until(|| self.done.load(Ordering::Acquire) == players);
    }
}

/// The part of one context.
pub struct Load {
    backend: BlockBackend,
    shared: Arc<Shared>,
}

impl Load {
    /// Requests that a test makes by itself, beside those at random.
    pub fn new(ctx: &AioContext, node: &Arc<BlockNode>, shared: &Arc<Shared>) -> Load {
        let backend = BlockBackend::new(ctx, "load", Arc::clone(node));
        Load { backend, shared: Arc::clone(shared) }
    }

    fn start(ctx: &AioContext, node: Arc<BlockNode>, shared: Arc<Shared>, context: u64) {
        let load = Rc::new(Load::new(ctx, &node, &shared));
        let Mix { coroutines, requests, .. } = shared.mix;
        for number in context * coroutines..(context + 1) * coroutines {
            let load = Rc::clone(&load);
            ctx.spawn("load", move |co| {
                let shared = Arc::clone(&load.shared);
                let mut random = Random::new(shared.seed.wrapping_mul(1000) + number);
                for _ in 0..requests {
                    if shared.over.load(Ordering::Acquire) || shared.fault().is_some() {
                        break;
                    }
                    load.draw(co, &mut random);
                }
                // Before the last one ends: a backend ends with its context still there.
                drop(load);
                shared.done.fetch_add(1, Ordering::AcqRel);
                shared.home.notify();
            });
        }
    }

    fn draw(&self, co: &Co<'_>, random: &mut Random) {
        let Mix { cluster, longest, hot, .. } = self.shared.mix;
        let kind = self.shared.mix.draw(random);
        let total = self.shared.registers().len();
        // One in eight is anywhere.
        let from = match random.below(8) {
            0 => total / cluster,
            _ => hot.min(total / cluster),
        };
        let in_clusters = kind == Kind::Compressed || random.below(3) == 0;
        let range = if in_clusters {
            let first = random.below(from as u64) as usize * cluster;
            let clusters = if kind == Kind::Compressed { 1 } else { 1 + random.below(3) as usize };
            first..(first + clusters * cluster).min(total)
        } else {
            let first = random.below((from * cluster) as u64) as usize;
            first..(first + 1 + random.below(longest as u64) as usize).min(total)
        };
        self.request(co, kind, range);
    }

    /// One request. What is wrong with its answer is the fault of the load.
    pub fn request(&self, co: &Co<'_>, kind: Kind, range: Range<usize>) {
        let result = match kind {
            Kind::Read => self.read(co, range),
            Kind::Flush => self.flush(co),
            _ => self.change(co, kind, range),
        };
        let Count { done, unsupported, failed } = self.shared.count(kind);
        let (count, is_fault) = match &result {
            Ok(()) => (done, false),
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {
                (unsupported, !matches!(kind, Kind::Compressed | Kind::ZeroOnly))
            }
            Err(_) => (failed, !self.shared.mix.may_fail),
        };
        count.fetch_add(1, Ordering::Relaxed);
        if is_fault {
            self.shared.set_fault(format!("{kind:?}: {}", result.expect_err("an error")));
        }
    }

    fn read(&self, co: &Co<'_>, range: Range<usize>) -> io::Result<()> {
        let mut data = vec![0xee; range.len() * SECTOR];
        let begun = self.shared.recorder.tick();
        let offset = (range.start * SECTOR) as u64;
        self.backend.co_preadv(co, offset, &mut IoVectorMut::from(&mut data[..]))?;
        let ended = self.shared.recorder.tick();
        let registers = self.shared.registers();
        for (at, sector) in range.zip(data.chunks(SECTOR)) {
            if let Err(fault) = registers.check_read(at, print_of(sector), begun, ended) {
                self.shared.set_fault(format!("a read at {begun}..{ended}: {fault}"));
            }
        }
        Ok(())
    }

    fn flush(&self, co: &Co<'_>) -> io::Result<()> {
        let begun = self.shared.recorder.tick();
        self.backend.co_flush(co)?;
        let ended = self.shared.recorder.tick();
        self.shared.registers().flushed(begun, ended);
        Ok(())
    }

    fn change(&self, co: &Co<'_>, kind: Kind, range: Range<usize>) -> io::Result<()> {
        let writes = matches!(kind, Kind::Write | Kind::Durable | Kind::Compressed);
        let mut data = vec![0; if writes { range.len() * SECTOR } else { 0 }];
        let mut registers = self.shared.registers();
        // Under the lock: no two changes begin at the same moment.
        let begun = self.shared.recorder.tick();
        if kind == Kind::Compressed {
            compressible(&mut data, range.start as u64, begun);
        } else if writes {
            sectors::fill(&mut data, self.shared.seed, range.start as u64, begun);
        }
        let prints: Vec<Print> = match writes {
            true => data.chunks(SECTOR).map(print_of).collect(),
            false => vec![zero_print(); range.len()],
        };
        let change = registers.begin(range.start, &prints, begun, kind == Kind::Discard);
        drop(registers);
        let (offset, bytes) = ((range.start * SECTOR) as u64, (range.len() * SECTOR) as u64);
        let result = match kind {
            Kind::Discard => self.backend.co_pdiscard(co, offset, bytes),
            Kind::Zero | Kind::ZeroUnmap | Kind::ZeroOnly => {
                let flags = match kind {
                    Kind::Zero => ZeroFlags::empty(),
                    Kind::ZeroUnmap => ZeroFlags::MAY_UNMAP,
                    _ => ZeroFlags::MAY_UNMAP | ZeroFlags::NO_FALLBACK,
                };
                self.backend.co_pwrite_zeroes(co, offset, bytes, flags)
            }
            _ => {
                let flags = match kind {
                    Kind::Durable => WriteFlags::FUA,
                    Kind::Compressed => WriteFlags::COMPRESSED,
                    _ => WriteFlags::empty(),
                };
                self.backend.co_pwritev(co, offset, &IoVector::from(&data[..]), flags)
            }
        };
        let ended = self.shared.recorder.tick();
        let durable = kind == Kind::Durable;
        self.shared.registers().end(&change, ended, durable, result.is_err());
        result
    }
}

/// Sectors that a compression makes much of, each like no other.
fn compressible(data: &mut [u8], first: u64, version: u64) {
    for (number, sector) in (first..).zip(data.chunks_mut(SECTOR)) {
        sector[..8].copy_from_slice(&number.to_le_bytes());
        sector[8..16].copy_from_slice(&version.to_le_bytes());
        sector[16..].fill((version % 251) as u8);
    }
}
