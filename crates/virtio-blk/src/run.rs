//! Runs: neighbouring requests of one kick, merged into one request to the block layer.
//!
//! Each guest request of a run is still answered on its own. Requests join a run in the order in
//! which the guest made them available, at its end; [`OpenRuns`] keeps several runs growing at once,
//! so that interleaved sequential streams merge too, without sorting. That changes the order in
//! which independent requests are submitted, which the standard leaves to the device; a flush is a
//! border that nothing crosses.

use std::rc::Rc;

use coblk_aio::{IoVector, IoVectorMut};
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use crate::chain::Segment;
use crate::kind::{BlkStatus, ByteRange, MAX_SEGMENTS, RunKind};
use crate::memory::GuestMap;
use crate::queue::DeviceQueue;
use crate::request::PendingRequest;

/// Bytes up to which requests are merged.
const MAX_MERGED_BYTES: u64 = 1 << 20;
/// Runs that grow at the same time.
const OPEN_RUNS: usize = 4;

/// One guest request in a run.
pub(crate) struct Member {
    /// `None` once answered.
    pub(crate) request: Option<PendingRequest>,
    pub(crate) len_bytes: u64,
    segments: usize,
}

/// One or more guest requests that are one request to the block layer. Reused: it keeps its
/// allocations.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) kind: RunKind,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u64,
    pub(crate) members: Vec<Member>,
    pub(crate) segments: Vec<Segment>,
    /// For discard and write-zeroes.
    pub(crate) ranges: Vec<ByteRange>,
    pub(crate) lists: Lists,
}

impl Run {
    /// Empties it for the next use.
    pub(crate) fn reset(&mut self, kind: RunKind, offset_bytes: u64) {
        self.kind = kind;
        self.offset_bytes = offset_bytes;
        self.len_bytes = 0;
        self.members.clear();
        self.segments.clear();
        self.ranges.clear();
    }

    /// Appends a request that continues where the run ends.
    #[inline]
    pub(crate) fn push(&mut self, request: PendingRequest, data: &[Segment], len_bytes: u64) {
        for segment in data {
            self.segments.push(*segment);
        }
        self.members.push(Member { request: Some(request), len_bytes, segments: data.len() });
        self.len_bytes += len_bytes;
    }

    #[inline]
    fn has_room(&self, data: &[Segment], len_bytes: u64) -> bool {
        self.len_bytes + len_bytes <= MAX_MERGED_BYTES
            && self.segments.len() + data.len() <= MAX_SEGMENTS
    }

    /// A request for `segments` has come to an end, however: a read has written there.
    #[inline]
    pub(crate) fn ended(mem: &GuestMap, kind: RunKind, segments: &[Segment]) {
        if mem.is_logged() && kind == RunKind::Read {
            segments.iter().for_each(|it| mem.wrote(it.addr, u64::from(it.len_bytes)));
        }
    }

    /// The offset and the data segments of each member.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (u64, &[Segment])> {
        let mut offset_bytes = self.offset_bytes;
        let mut at = 0;
        self.members.iter().map(move |member| {
            let part = (offset_bytes, &self.segments[at..at + member.segments]);
            offset_bytes += member.len_bytes;
            at += member.segments;
            part
        })
    }
}

/// A run and its queue, from its first request to its last answer. Requests that were not answered when
/// it is dropped fail, and the run is kept for reuse.
pub(crate) struct OwnedRun {
    queue: Rc<DeviceQueue>,
    /// `None` while it is dropped.
    run: Option<Box<Run>>,
}

impl OwnedRun {
    #[inline]
    pub(crate) fn new(queue: &Rc<DeviceQueue>, kind: RunKind, offset_bytes: u64) -> OwnedRun {
        let mut run = queue.shared.take_run();
        run.reset(kind, offset_bytes);
        OwnedRun { queue: Rc::clone(queue), run: Some(run) }
    }

    /// The queue, and the run.
    #[inline]
    pub(crate) fn parts(&mut self) -> (&Rc<DeviceQueue>, &mut Run) {
        (&self.queue, self.run.get_or_insert_default())
    }

    #[cold]
    fn fail_requests(&self, run: &mut Run) {
        Run::ended(&self.queue.mem, run.kind, &run.segments);
        let left = run.members.iter_mut().filter_map(|member| member.request.take());
        self.queue.finish(left.map(|request| {
            let completed = request.complete(&self.queue, BlkStatus::IoErr, 0);
            tracing::error!(
                device = self.queue.device_name(),
                queue = self.queue.index(),
                head = completed.head,
                "request dropped without an answer; it fails"
            );
            completed
        }));
    }
}

impl Drop for OwnedRun {
    #[inline]
    fn drop(&mut self) {
        if let Some(mut run) = self.run.take() {
            if run.members.iter().any(|member| member.request.is_some()) {
                self.fail_requests(&mut run);
            }
            self.queue.shared.give_run_back(run);
        }
    }
}

/// Vectors for data in many segments, empty between requests, so that their lists on the heap are
/// allocated once.
#[derive(Default)]
pub(crate) struct Lists {
    source: IoVector<'static>,
    target: IoVectorMut<'static>,
}

impl Lists {
    /// Calls `read` with the guest memory of `segments`.
    #[inline]
    pub(crate) fn with_target<'m, R>(
        &mut self,
        mem: &'m GuestMap,
        segments: &[Segment],
        read: impl FnOnce(&mut IoVectorMut<'m>) -> R,
    ) -> Result<R, BadAddress> {
        if segments.len() <= IoVectorMut::INLINE_RANGES {
            let mut target = IoVectorMut::new();
            fill_target(mem, segments, &mut target)?;
            return Ok(read(&mut target));
        }
        let mut target = std::mem::take(&mut self.target);
        fill_target(mem, segments, &mut target)?;
        let result = read(&mut target);
        self.target = target.recycle();
        Ok(result)
    }

    /// Calls `write` with the guest memory of `segments`.
    #[inline]
    pub(crate) fn with_source<'m, R>(
        &mut self,
        mem: &'m GuestMap,
        segments: &[Segment],
        write: impl FnOnce(&IoVector<'m>) -> R,
    ) -> Result<R, BadAddress> {
        if segments.len() <= IoVector::INLINE_RANGES {
            let mut source = IoVector::new();
            fill_source(mem, segments, &mut source)?;
            return Ok(write(&source));
        }
        let mut source = std::mem::take(&mut self.source);
        fill_source(mem, segments, &mut source)?;
        let result = write(&source);
        self.source = source.recycle();
        Ok(result)
    }
}

/// Runs that may still grow, oldest first out. Fixed in number: a kick of any size needs no memory.
pub(crate) struct OpenRuns {
    runs: [Option<OwnedRun>; OPEN_RUNS],
    /// For each run the offset at its end, with the kind in the lowest bit, which is free as all
    /// offsets are multiples of 512.
    ends: [u64; OPEN_RUNS],
    /// The slot to use next, which holds the oldest run, if any.
    next: usize,
}

/// No run ends here.
const NO_END: u64 = u64::MAX;

impl OpenRuns {
    pub(crate) fn new() -> OpenRuns {
        OpenRuns { runs: Default::default(), ends: [NO_END; OPEN_RUNS], next: 0 }
    }

    #[inline]
    fn key(kind: RunKind, offset_bytes: u64) -> u64 {
        offset_bytes | u64::from(kind == RunKind::Write)
    }

    /// The run that a request can join.
    #[inline]
    pub(crate) fn joinable(
        &mut self,
        kind: RunKind,
        offset_bytes: u64,
        data: &[Segment],
        len_bytes: u64,
    ) -> Option<usize> {
        let key = Self::key(kind, offset_bytes);
        let slot = self.ends.iter().position(|end| *end == key)?;
        let has_room = |run: &mut OwnedRun| run.parts().1.has_room(data, len_bytes);
        self.runs[slot].as_mut().is_some_and(has_room).then_some(slot)
    }

    /// Adds a request to the run that [`joinable`](Self::joinable) has found.
    #[inline]
    pub(crate) fn join(
        &mut self,
        slot: usize,
        request: PendingRequest,
        data: &[Segment],
        len_bytes: u64,
    ) {
        if let Some(owned) = &mut self.runs[slot] {
            let (_, run) = owned.parts();
            run.push(request, data, len_bytes);
            self.ends[slot] = Self::key(run.kind, run.offset_bytes + run.len_bytes);
        }
    }

    /// Opens a run; returns the oldest one if it must make room.
    #[inline]
    #[must_use = "the run that made room must be submitted"]
    pub(crate) fn open(&mut self, mut owned: OwnedRun) -> Option<OwnedRun> {
        let slot = self.next;
        self.next = (slot + 1) % OPEN_RUNS;
        let (_, run) = owned.parts();
        self.ends[slot] = Self::key(run.kind, run.offset_bytes + run.len_bytes);
        self.runs[slot].replace(owned)
    }

    /// Takes the oldest run.
    #[inline]
    pub(crate) fn take_oldest(&mut self) -> Option<OwnedRun> {
        for step in 0..OPEN_RUNS {
            let slot = (self.next + step) % OPEN_RUNS;
            if let Some(run) = self.runs[slot].take() {
                self.ends[slot] = NO_END;
                return Some(run);
            }
        }
        None
    }
}

/// A segment is not in guest memory.
#[derive(Debug)]
pub(crate) struct BadAddress;

/// Appends the guest memory of `segments`.
#[inline]
fn fill_target<'m>(
    mem: &'m GuestMap,
    segments: &[Segment],
    target: &mut IoVectorMut<'m>,
) -> Result<(), BadAddress> {
    segments.iter().try_for_each(|segment| {
        for_each_piece(mem, segment, |piece| target.push_volatile(piece)) //
    })
}

/// Appends the guest memory of `segments`.
#[inline]
fn fill_source<'m>(
    mem: &'m GuestMap,
    segments: &[Segment],
    source: &mut IoVector<'m>,
) -> Result<(), BadAddress> {
    segments.iter().try_for_each(|segment| {
        for_each_piece(mem, segment, |piece| source.push_volatile(piece)) //
    })
}

#[inline]
fn for_each_piece<'m>(
    mem: &'m GuestMap,
    segment: &Segment,
    mut visit: impl FnMut(&VolatileSlice<'m>),
) -> Result<(), BadAddress> {
    let len = segment.len_bytes as usize;
    if let Ok(whole) = mem.slice(segment.addr, len) {
        visit(&whole);
        return Ok(());
    }
    for_each_scattered_piece(mem, segment, visit)
}

/// It spans regions, or is not all there. Guests with many regions are rare, and so is this.
#[cold]
fn for_each_scattered_piece<'m>(
    mem: &'m GuestMap,
    segment: &Segment,
    mut visit: impl FnMut(&VolatileSlice<'m>),
) -> Result<(), BadAddress> {
    for piece in mem.memory().get_slices(segment.addr, segment.len_bytes as usize) {
        visit(&piece.map_err(|_| BadAddress)?);
    }
    Ok(())
}
