//! [`Keeper`]: which bytes of an instant are kept, and where.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use coblk_aio::Co;
use coblk_block::{BlockNode, DirtyBits, WriteFlags};
use serde::{Deserialize, Serialize};

use super::reads::Reads;
use crate::Progress;
use crate::copy::bits::GranuleBits;
use crate::copy::granules::Granules;
use crate::copy::guests::Guests;
use crate::copy::pace::Latency;
use crate::copy::spill::Spill;
use crate::copy::sums::Sums;
use crate::copy::waiters::For;

/// What becomes of a guest's write whose old bytes cannot be copied: QAPI's `OnCbwError`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCbwError {
    /// It fails, and writes nothing. The instant is whole.
    #[default]
    BreakGuestWrite,
    /// It goes on, and the bytes of the instant cannot be read any more; a backup fails.
    BreakSnapshot,
}

/// How the bytes of an instant are kept.
pub(crate) struct KeeperPlan {
    /// Bytes that are copied together when a guest writes.
    pub(crate) granule: u64,
    /// Bytes that are kept together: some granules.
    pub(crate) cluster: u64,
    /// Length of the node, in bytes.
    pub(crate) length: u64,
    /// Bytes a cluster of the target.
    pub(crate) target_cluster: u64,
    /// Of writes to the target.
    pub(crate) flags: WriteFlags,
    pub(crate) on_error: OnCbwError,
    /// For how long a guest's write waits.
    pub(crate) timeout: Option<Duration>,
    /// Old bytes in memory, at most, whose guests do not wait for the target.
    pub(crate) hold: u64,
    /// Nothing writes to the node below the filter, though the filter has no user.
    pub(crate) is_alone: bool,
    /// Where old bytes go at first.
    pub(crate) spill: Option<Arc<BlockNode>>,
    /// Whether what is read is noted.
    pub(crate) sums: bool,
    /// How long guests' requests take, and are to.
    pub(crate) latency: Option<Arc<Latency>>,
    /// How long guests wait for copies.
    pub(crate) waits: Option<Arc<Latency>>,
}

/// The bytes of an instant: which are to be copied before they are written over, and whether they are lost. Any
/// thread.
pub(crate) struct Keeper {
    pub(super) granules: Arc<Granules>,
    pub(super) guests: Arc<Guests>,
    pub(super) plan: KeeperPlan,
    /// Bytes that guests have copied.
    pub(super) progress: Arc<Progress>,
    /// Reads of the instant, unless there are none.
    pub(super) reads: Option<Reads>,
    /// Bytes in the memory of copies that guests drive.
    pub(super) in_flight: AtomicU64,
    /// Bytes that are held.
    pub(super) held: AtomicU64,
    /// Granules whose old bytes are held. Empty if none ever is.
    held_bits: GranuleBits,
    spill: Option<Arc<Spill>>,
    sums: Option<Arc<Sums>>,
    /// Nothing is kept any more, as no user wants it.
    is_given_up: AtomicBool,
    /// Why bytes of the instant are lost, if they are.
    broken: AtomicI32,
}

impl Keeper {
    /// Keeps all bytes for reads of the instant, or those that are dirty in `bits`.
    ///
    /// # Errors
    /// Without memory.
    pub(crate) fn for_reads(plan: KeeperPlan, bits: Option<&DirtyBits>) -> io::Result<Keeper> {
        let keeper = Keeper {
            reads: Some(Reads::new(plan.length, plan.granule)?),
            ..Keeper::for_job(plan, Arc::new(Guests::without_job()), &Arc::default())?
        };
        match bits {
            Some(bits) => keeper.keep_dirty(bits),
            None => keeper.keep_all(),
        }
        Ok(keeper)
    }

    /// Keeps nothing yet, for a job that copies to the target as well. The instant is not read.
    ///
    /// # Errors
    /// Without memory.
    pub(crate) fn for_job(
        plan: KeeperPlan,
        guests: Arc<Guests>,
        progress: &Arc<Progress>,
    ) -> io::Result<Keeper> {
        let (in_flight, held, is_given_up, broken) = Default::default();
        let count = plan.length.div_ceil(plan.granule);
        // Refuses what is too large.
        let granules = Arc::new(Granules::try_new(count)?);
        let held_bits = GranuleBits::try_new(if plan.hold == 0 { 0 } else { count })?;
        let spill = plan.spill.as_ref().map(|node| Spill::try_new(node, count).map(Arc::new));
        let sums = plan.sums.then(|| Sums::try_new(plan.length, plan.granule).map(Arc::new));
        let (spill, sums) = (spill.transpose()?, sums.transpose()?);
        Ok(Keeper {
            granules,
            held,
            held_bits,
            spill,
            sums,
            guests,
            plan,
            progress: Arc::clone(progress),
            reads: None,
            in_flight,
            is_given_up,
            broken,
        })
    }

    /// All bytes are to be kept. Before guests come.
    pub(crate) fn keep_all(&self) {
        self.keep(0..self.plan.length);
    }

    /// The clusters with dirty bytes are to be kept. Before guests come.
    pub(crate) fn keep_dirty(&self, bits: &DirtyBits) {
        bits.dirty_ranges(0..self.plan.length.min(bits.length()))
            .for_each(|range| self.keep(range));
    }

    fn keep(&self, range: Range<u64>) {
        let cluster = self.plan.cluster;
        let range = range.start / cluster * cluster..range.end.next_multiple_of(cluster);
        let granules = self.granules_of(&range);
        if let Some(reads) = &self.reads {
            reads.allow(self.bytes_of(&granules));
        }
        self.granules.mark(granules);
    }

    /// Length of the node, in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.plan.length
    }

    /// The granules in a range of bytes are not copied after all, unless a guest has. Returns where the bytes begin
    /// behind the last of them.
    pub(crate) fn skip(&self, range: &Range<u64>) -> u64 {
        let granules = self.granules_within(range);
        let end = self.bytes_of(&granules).end;
        if granules.is_empty() {
            return range.start;
        }
        self.granules.clear(granules);
        end
    }

    /// Whether copies that guests drive are under way.
    pub(crate) fn is_copying(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) > 0
    }

    /// Waits for the end of copies that guests drive.
    pub(crate) fn co_wait_for_copies(&self, co: &Co<'_>) {
        while self.is_copying() {
            self.guests.waiters.co_wait_for(co, For::Memory, || !self.is_copying());
        }
    }

    pub(crate) fn granules(&self) -> &Arc<Granules> {
        &self.granules
    }

    /// The bytes that are to be copied still, for a bitmap.
    pub(crate) fn mark_todo(&self, bits: &DirtyBits) {
        let mut at = 0;
        let end = self.granules.count();
        while let Some(first) = self.granules.first_pending(at..end) {
            bits.mark(self.bytes_of(&(first..first + 1)));
            at = first + 1;
        }
    }

    /// Granules that a range of bytes touches. What is behind the end of the instant is in none.
    #[inline]
    pub(crate) fn granules_of(&self, range: &Range<u64>) -> Range<u64> {
        let (start, end) = (range.start.min(self.plan.length), range.end.min(self.plan.length));
        start / self.plan.granule..end.div_ceil(self.plan.granule)
    }

    /// Granules that lie in a range of bytes, or in it up to the end of the instant.
    pub(super) fn granules_within(&self, range: &Range<u64>) -> Range<u64> {
        let (granule, length) = (self.plan.granule, self.plan.length);
        let end = if range.end >= length { length.div_ceil(granule) } else { range.end / granule };
        let start = range.start.div_ceil(granule);
        start..end.max(start)
    }

    /// The bytes of granules.
    pub(super) fn bytes_of(&self, granules: &Range<u64>) -> Range<u64> {
        let (granule, length) = (self.plan.granule, self.plan.length);
        (granules.start * granule).min(length)..(granules.end * granule).min(length)
    }

    /// The old bytes of granules are in memory, or not any more.
    pub(super) fn set_held(&self, granules: &Range<u64>, is_held: bool) {
        self.held_bits.set(granules, is_held);
    }

    /// Whether the old bytes of a granule are in memory, or in the spill, so that it may be written.
    pub(super) fn is_held(&self, granule: u64) -> bool {
        self.held_bits.has(granule) || self.spill.as_ref().is_some_and(|it| it.has(granule))
    }

    /// Where old bytes go at first, unless that is the target.
    pub(crate) fn spill(&self) -> Option<&Arc<Spill>> {
        self.spill.as_ref()
    }

    /// Whether nothing may write to the node below the filter, which has no user.
    pub(super) fn is_alone(&self) -> bool {
        self.plan.is_alone && !self.is_given_up.load(Ordering::SeqCst)
    }

    /// Of writes to the target.
    pub(crate) fn flags(&self) -> WriteFlags {
        self.plan.flags
    }

    /// How long guests' requests take, if that is limited, or else their waits for copies.
    pub(crate) fn latency(&self) -> Option<&Arc<Latency>> {
        self.plan.latency.as_ref().or(self.plan.waits.as_ref())
    }

    /// Checksums of what was read, if they are noted.
    pub(crate) fn sums(&self) -> Option<&Arc<Sums>> {
        self.sums.as_ref()
    }

    /// From here on nothing is kept, and guests that wait go on.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::SeqCst);
        self.guests.waiters.wake();
    }

    /// A guest's write goes on without a copy.
    pub(super) fn break_instant(&self, error: &io::Error) {
        let errno = error.raw_os_error().filter(|errno| *errno != 0).unwrap_or(libc::EIO);
        let first = self.broken.compare_exchange(0, errno, Ordering::SeqCst, Ordering::SeqCst);
        if first.is_ok() {
            tracing::warn!(%error, "bytes before a guest's write were not copied: the snapshot is broken");
            self.guests.fail_job(io::Error::from_raw_os_error(errno));
        }
        self.guests.waiters.wake();
    }

    /// Whether bytes of the instant are lost.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst) != 0
    }

    /// Whether guests go on without copies.
    pub(super) fn lets_go(&self) -> bool {
        self.is_given_up.load(Ordering::SeqCst) || self.is_broken()
    }
}
