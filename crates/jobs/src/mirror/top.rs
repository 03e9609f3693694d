//! [`MirrorTop`]: the filter above a node that is mirrored. It marks what is written.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{
    BlockNode, Child, ChildRole, ChildSlot, EdgeId, EdgeInfo, Filter, Permissions, ReadFlags,
    WriteFlags, ZeroFlags,
};

use super::active::{Active, Change};
use crate::copy::granules::Granules;
use crate::copy::guests::Guests;
use crate::copy::pace::Latency;
use crate::rules::{Rule, holds};

/// The slot for the target.
pub(super) const TARGET: &str = "target";

/// What the filter and the job have in common. Any thread.
pub(super) struct Marks {
    pub(super) granules: Arc<Granules>,
    pub(super) guests: Arc<Guests>,
    /// Bytes a granule.
    pub(super) granularity: u64,
    /// Length of the node, in bytes.
    pub(super) length: u64,
    /// Users of the filter turn to the source, and write there.
    pub(super) is_leaving: AtomicBool,
    /// The target is below the source, and written.
    pub(super) is_commit: bool,
}

impl Marks {
    /// The granules that a range of bytes touches.
    pub(super) fn granules_of(&self, range: &Range<u64>) -> Range<u64> {
        let (start, end) = (range.start.min(self.length), range.end.min(self.length));
        match start < end {
            true => start / self.granularity..end.div_ceil(self.granularity),
            false => 0..0,
        }
    }

    /// A range of bytes is to be copied.
    pub(super) fn mark(&self, range: &Range<u64>) {
        self.mark_granules(self.granules_of(range));
    }

    pub(super) fn mark_granules(&self, granules: Range<u64>) {
        if self.granules.mark(granules) {
            self.guests.wake_job();
        }
    }
}

/// Passes requests on, and marks what they change after they have returned, whether they succeed or not, and
/// before their guests are told. In write-blocking mode they change the target as well.
pub(super) struct MirrorTop {
    child: Child,
    /// Full in write-blocking mode: a drain of the target holds guests then, too.
    target: ChildSlot,
    marks: Arc<Marks>,
    active: Arc<Active>,
    /// If it is to be limited.
    latency: Option<Arc<Latency>>,
}

impl MirrorTop {
    pub(super) fn new(
        source: &Arc<BlockNode>,
        marks: &Arc<Marks>,
        active: &Arc<Active>,
        latency: Option<Arc<Latency>>,
    ) -> MirrorTop {
        MirrorTop {
            child: Child::new("backing", ChildRole::FILTER, Arc::clone(source)),
            target: ChildSlot::new(TARGET, ChildRole::DATA, None),
            marks: Arc::clone(marks),
            active: Arc::clone(active),
            latency,
        }
    }

    fn change(
        &self,
        co: &Co<'_>,
        range: (u64, u64),
        change: &Change<'_>,
        at_source: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let latency = self.latency.as_ref();
        Latency::of(latency, co, || self.make_change(co, range, change, at_source))
    }

    fn make_change(
        &self,
        co: &Co<'_>,
        (offset, bytes): (u64, u64),
        change: &Change<'_>,
        at_source: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let range = offset..offset.saturating_add(bytes);
        if self.active.is_on() {
            return self.active.co_change(co, (range, change), at_source);
        }
        if !holds(Rule::MarkAfterWrite) {
            self.marks.mark(&range);
            return at_source();
        }
        let _marked = Marked { marks: &self.marks, range };
        at_source()
    }
}

/// A change under way. It is marked when it returns, and when its coroutine is unwound.
struct Marked<'a> {
    marks: &'a Marks,
    range: Range<u64>,
}

impl Drop for Marked<'_> {
    fn drop(&mut self) {
        self.marks.mark(&self.range);
    }
}

impl Filter for MirrorTop {
    fn name(&self) -> &'static str {
        "mirror_top"
    }

    fn child(&self) -> &Child {
        &self.child
    }

    fn read(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let latency = self.latency.as_ref();
        Latency::of(latency, co, || self.child.co_preadv(co, offset, target, flags))
    }

    fn write(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let (range, change) = ((offset, source.len() as u64), Change::Data(source, flags));
        self.change(co, range, &change, || self.child.co_pwritev(co, offset, source, flags))
    }

    fn zero(&self, co: &Co<'_>, offset: u64, bytes: u64, flags: ZeroFlags) -> io::Result<()> {
        let zero = || self.child.co_pwrite_zeroes(co, offset, bytes, flags);
        self.change(co, (offset, bytes), &Change::Zeroes(flags), zero)
    }

    fn discard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let discard = || self.child.co_pdiscard(co, offset, bytes);
        self.change(co, (offset, bytes), &Change::Discard, discard)
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.child.id(), self.target.id()]
    }

    /// A write that does not come through here would not be marked, and the target has one length.
    fn child_permissions(
        &self,
        edge: &EdgeInfo,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        if edge.name() == TARGET {
            // The job has them.
            return (Permissions::empty(), Permissions::all());
        }
        let (held, shared) = edge.role().default_permissions((held, shared), !self.is_read_only());
        if self.marks.is_commit {
            // The job writes below the source, which shares what the filter does.
            return (held - Permissions::CONSISTENT_READ, shared | Permissions::WRITE);
        }
        let mut kept = Permissions::RESIZE;
        kept.set(Permissions::WRITE, !self.marks.is_leaving.load(Ordering::SeqCst));
        (held, shared - kept)
    }
}
