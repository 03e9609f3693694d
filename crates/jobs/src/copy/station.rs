//! [`Common`] and [`co_serve`]: workers in other contexts than the job's.
//!
//! Each of these contexts has a station: backends of its own on both nodes, and some workers. Its workers copy as
//! those of the job's context do, but leave all that is about the job to that: they begin nothing unless it says
//! that they [may](Common::allow), and hand their errors over to it. A worker counts itself before it looks whether
//! it may begin; so the job that has forbidden it, and then sees none, is at rest.
//!
//! While its speed is limited a job has no use for them.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use coblk_aio::Co;
use coblk_aio::sync::CoQueue;
use coblk_block::{BlockBackend, BlockNode, Entered};

use super::claim::Claim;
use super::granules::Granules;
use super::guests::Guests;
use super::piece::{CopyError, Scratch, Shape};
use super::plan::Manner;
use super::spill::{Spill, Spilled};
use super::sums::Sums;
use super::waiters::Waiters;
use crate::Progress;

/// Workers of a station.
const WORKERS: u64 = 4;

/// What a job and its stations have in common. Any thread.
pub(super) struct Common {
    granules: Arc<Granules>,
    guests: Arc<Guests>,
    progress: Arc<Progress>,
    granularity: u64,
    shape: Shape,
    /// Bytes of a copy, at most.
    chunk: u64,
    spill: Option<Arc<Spill>>,
    sums: Option<Arc<Sums>>,
    may_begin: AtomicBool,
    is_stopped: AtomicBool,
    /// Where the next claim begins.
    cursor: AtomicU64,
    /// Workers that may have a claim.
    active: AtomicU64,
    /// Stations with a backend on the source.
    at_source: AtomicU64,
    /// Workers that rest, and stations that wait for the stop.
    resting: Waiters,
    has_succeeded: AtomicBool,
    failed: Mutex<Vec<Failed>>,
}

/// A copy that has not succeeded. Its claim has failed already.
pub(super) enum Failed {
    Copy(CopyError),
    Panic,
}

impl Common {
    pub(super) fn new(
        (granules, guests): (&Arc<Granules>, &Arc<Guests>),
        progress: &Arc<Progress>,
        (granularity, chunk): (u64, u64),
        (shape, manner): (Shape, &Manner),
    ) -> Arc<Common> {
        Arc::new(Common {
            granules: Arc::clone(granules),
            guests: Arc::clone(guests),
            progress: Arc::clone(progress),
            granularity,
            shape,
            chunk,
            spill: manner.spill.as_ref().map(|(spill, _)| Arc::clone(spill)),
            sums: manner.sums.clone(),
            may_begin: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            cursor: AtomicU64::new(0),
            active: AtomicU64::new(0),
            at_source: AtomicU64::new(0),
            resting: Waiters::default(),
            has_succeeded: AtomicBool::new(false),
            failed: Mutex::default(),
        })
    }

    /// Workers may begin copies from now on, or not.
    pub(super) fn allow(&self, may_begin: bool) {
        self.may_begin.store(may_begin, Ordering::SeqCst);
    }

    /// There is much to do: wakes workers.
    pub(super) fn call(&self) {
        self.resting.wake();
    }

    /// Lets no copy begin any more.
    pub(super) fn stop(&self) {
        self.allow(false);
        self.is_stopped.store(true, Ordering::SeqCst);
        self.resting.wake();
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::SeqCst)
    }

    /// Whether a worker may have a claim, or be about to have one.
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst) > 0
    }

    /// Whether a station may read the source.
    pub(super) fn is_at_source(&self) -> bool {
        self.at_source.load(Ordering::SeqCst) > 0
    }

    /// Whether a copy has succeeded since the last call.
    pub(super) fn take_success(&self) -> bool {
        self.has_succeeded.load(Ordering::Relaxed)
            && self.has_succeeded.swap(false, Ordering::Relaxed)
    }

    /// What has failed since the last call.
    pub(super) fn take_failed(&self) -> Vec<Failed> {
        std::mem::take(&mut *self.failed())
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, Vec<Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the job see to it, and lets nothing begin before.
    fn fail(&self, failed: Failed) {
        self.allow(false);
        self.failed().push(failed);
        self.guests.wake_job();
    }

    fn has_work(&self) -> bool {
        self.may_begin.load(Ordering::SeqCst) && self.granules.todo() > 0
    }

    /// Claims the next granules, `most` at most.
    pub(super) fn claim(&self, most: u64) -> Option<Claim<'_>> {
        let from = self.cursor.load(Ordering::Relaxed);
        let mut claim = Claim::take((&self.granules, &self.guests), from, most)?;
        if let Some(spill) = &self.spill {
            let end = spill.run_end(claim.granules());
            claim.cut(end);
        }
        self.cursor.store(claim.end_granule(), Ordering::Relaxed);
        Some(claim)
    }

    /// Where the bytes of a claim are, if not in the source. To be asked before anything is waited for.
    pub(super) fn spilled(&self, claim: &Claim<'_>) -> Option<Spilled> {
        self.spill.as_ref()?.at(claim.granules())
    }

    /// Reads the bytes of a claim from where they are. The source is free when it returns.
    pub(super) fn co_read(
        &self,
        co: &Co<'_>,
        scratch: &mut Scratch,
        (mut source, spilled): (Entered, &mut Option<Spilled>),
        range: &Range<u64>,
    ) -> Result<(), CopyError> {
        match spilled {
            Some(spilled) => {
                drop(source);
                spilled.co_read(co, scratch, range, self.shape)?;
            }
            None => scratch.co_read(co, &mut source, range, self.shape)?,
        }
        if let Some(sums) = &self.sums {
            sums.note(range, scratch);
        }
        Ok(())
    }

    /// The range of a claim, in bytes.
    pub(super) fn bytes(&self, claim: &Claim<'_>) -> Range<u64> {
        claim.bytes(self.granularity, self.shape.length)
    }

    fn count(&self) -> Active<'_> {
        self.active.fetch_add(1, Ordering::SeqCst);
        Active(self)
    }

    /// A station that is about to be there, counted as one that reads the source.
    pub(super) fn at_source(self: &Arc<Self>) -> AtSource {
        self.at_source.fetch_add(1, Ordering::SeqCst);
        AtSource(Arc::clone(self))
    }
}

/// A worker that may have a claim.
struct Active<'a>(&'a Common);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        let common = self.0;
        common.active.fetch_sub(1, Ordering::SeqCst);
        if !common.has_work() {
            // It waits for the last one.
            common.guests.wake_job();
        }
    }
}

/// A station that may read the source.
pub(super) struct AtSource(Arc<Common>);

impl Drop for AtSource {
    fn drop(&mut self) {
        self.0.at_source.fetch_sub(1, Ordering::SeqCst);
        self.0.guests.wake_job();
    }
}

/// The station of a context.
struct Station {
    common: Arc<Common>,
    /// Until it is stopped.
    source: RefCell<Option<BlockBackend>>,
    target: BlockBackend,
    workers: Cell<u64>,
    /// A worker has read, or ended.
    progressed: CoQueue,
}

/// A station, until it is stopped and its last copy has ended: the source is free as soon as none reads there.
pub(super) fn co_serve(
    co: &Co<'_>,
    at_source: AtSource,
    (source, target): (Arc<BlockNode>, Arc<BlockNode>),
) {
    let common = Arc::clone(&at_source.0);
    let source = BlockBackend::read_only(co.context(), "source of a job", source);
    let station = Rc::new(Station {
        common: Arc::clone(&common),
        source: RefCell::new(Some(source.clone())),
        target: BlockBackend::new(co.context(), "target of a job", target),
        workers: Cell::new(WORKERS),
        progressed: CoQueue::new(),
    });
    for _ in 0..WORKERS {
        let station = Rc::clone(&station);
        co.context().spawn("copy", move |co| {
            // The hook of panics has reported it.
            if co.catch_unwind(|| station.co_work(co)).is_err() {
                station.common.fail(Failed::Panic);
            }
            station.workers.set(station.workers.get() - 1);
            station.progressed.wake_all();
        });
    }
    while !common.is_stopped() {
        common.resting.co_wait(co, || common.is_stopped());
    }
    while source.in_flight() > 0 {
        station.progressed.wait(co);
    }
    drop(station.source.take());
    drop(source);
    drop(at_source);
    while station.workers.get() > 0 {
        station.progressed.wait(co);
    }
}

impl Station {
    fn co_work(&self, co: &Co<'_>) {
        let common = &self.common;
        let alignment = self.target.node().map_or(1, |node| node.limits().memory_alignment);
        let mut scratch = match Scratch::new(common.chunk, alignment.max(4096)) {
            Ok(scratch) => scratch,
            Err(error) => return common.fail(Failed::Copy(CopyError::write(error))),
        };
        while !common.is_stopped() {
            if !self.co_copy_one(co, &mut scratch) {
                // Not looked for work once more: those of the job's context do what there is, and call.
                common.resting.co_wait(co, || common.is_stopped());
            }
        }
    }

    /// Copies one chunk. False if there is nothing that may be copied now.
    fn co_copy_one(&self, co: &Co<'_>, scratch: &mut Scratch) -> bool {
        let common = &self.common;
        if !common.has_work() {
            return false;
        }
        let Some(source) = self.source.borrow().clone() else { return false };
        let entered = source.co_enter_both(co, &self.target);
        drop(source);
        let (source, mut target) = match entered {
            Ok(both) => both,
            Err(error) => {
                common.fail(Failed::Copy(CopyError::write(error)));
                return false;
            }
        };
        let active = common.count();
        let most = common.chunk / common.granularity;
        let claim = if common.has_work() { common.claim(most) } else { None };
        let Some(claim) = claim else { return false };
        let range = common.bytes(&claim);
        let mut spilled = common.spilled(&claim);
        let copy = || {
            let read = common.co_read(co, scratch, (source, &mut spilled), &range);
            self.progressed.wake_all();
            read?;
            scratch.co_write(co, &mut target, &range)
        };
        match copy() {
            Ok(()) => {
                claim.end();
                spilled.into_iter().for_each(|spilled| spilled.co_let_go(co, &range));
                common.progress.add(range.end - range.start);
                common.has_succeeded.store(true, Ordering::Relaxed);
            }
            Err(error) => {
                // It is to be copied again before the policy acts.
                drop(claim);
                common.fail(Failed::Copy(error));
            }
        }
        drop(active);
        true
    }
}
