//! Accounting as a backend offers it.

use std::io;
use std::time::Duration;

use coblk_aio::{AioContext, Co};

use crate::accounting::recorder::Outcome;
use crate::accounting::{Accounting, BinsError, RequestKind, Statistics};
use crate::backend::BlockBackend;
use crate::backend::error_policy::GivenBack;
use crate::backend::merged::Merged;

/// Accounting. All of it on the backend's home thread; what [`statistics`](Self::statistics)
/// returns can go to others, and be told there what to count.
///
/// ```
/// # use coblk_aio::{AioContext, IoVector};
/// # use coblk_block::{BlockBackend, BlockNode, RequestKind, WriteFlags, drivers::Null};
/// # let ctx = AioContext::new()?;
/// # let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk0", Null::new(1 << 30)));
/// let statistics = backend.statistics();
/// backend.pwritev(&ctx, 0, &IoVector::from(&[0u8; 512][..]), WriteFlags::empty())?;
/// let writes = statistics.of(RequestKind::Write);
/// assert_eq!((writes.operations, writes.bytes, writes.failed), (1, 512, 0));
/// # Ok::<(), std::io::Error>(())
/// ```
impl BlockBackend {
    /// The counters, for any thread.
    pub fn statistics(&self) -> Statistics {
        self.recorder().statistics()
    }

    /// The setting of how much the backend counts.
    pub fn accounting(&self) -> Accounting {
        self.statistics().accounting()
    }

    /// Changes how much the backend counts; see [`Statistics::set_accounting`].
    pub fn set_accounting(&self, accounting: Accounting) {
        self.statistics().set_accounting(accounting);
    }

    /// Adds averages over the last `length`; see [`Statistics::averages`].
    pub fn add_interval(&self, ctx: &AioContext, length: Duration) {
        self.statistics().add_interval_from(length, ctx.now_ns());
    }

    /// Counts how many requests of a kind took how long; see [`Statistics::set_latency_bins`].
    ///
    /// # Errors
    /// If the boundaries do not ascend, or the first is 0.
    pub fn set_latency_bins(
        &self,
        kind: RequestKind,
        boundaries_ns: Option<&[u64]>,
    ) -> Result<(), BinsError> {
        self.statistics().set_latency_bins(kind, boundaries_ns)
    }

    /// Keeps percentiles of how long requests of a kind took; see [`Statistics::set_percentiles`].
    pub fn set_percentiles(&self, kind: RequestKind, enabled: bool) {
        self.statistics().set_percentiles(kind, enabled);
    }

    /// Resets [`Statistics::max_queue_depth`] to the depth of now.
    pub fn reset_max_queue_depth(&self) {
        self.recorder().reset_max_in_flight();
    }

    /// Counts requests that a device has merged into others before it sent these here. Those that
    /// were [split](Merged::Split) again do not count.
    pub fn count_merged(&self, kind: RequestKind, requests: u64) {
        if self.recorder().mode() != Accounting::Off {
            self.recorder().counters(kind).merged.add(requests);
        }
    }

    /// Counts a request that a device refused as invalid, and did not send here.
    pub fn count_invalid(&self, kind: RequestKind) {
        if self.recorder().mode() != Accounting::Off {
            self.recorder().counters(kind).invalid.add(1);
        }
    }

    /// Runs a request and counts it (contract: C87).
    #[inline]
    pub(crate) fn account(
        &self,
        co: &Co<'_>,
        kind: RequestKind,
        range: (u64, u64),
        request: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let recorded = self.recorder().begin(co, kind, range.1);
        let result = request();
        match &result {
            Ok(()) => recorded.succeed(co),
            Err(error) if GivenBack::is_in(error) => recorded.fail(co, Outcome::Uncounted),
            Err(_) if self.is_invalid(kind, range) => recorded.fail(co, Outcome::Invalid),
            Err(_) => recorded.fail(co, Outcome::Failure),
        }
        result
    }

    /// Runs a merged request and counts it, unless it is split.
    #[inline]
    pub(crate) fn account_merged(
        &self,
        co: &Co<'_>,
        kind: RequestKind,
        bytes: u64,
        request: impl FnOnce() -> io::Result<Merged>,
    ) -> io::Result<Merged> {
        let recorded = self.recorder().begin(co, kind, bytes);
        let result = request();
        match &result {
            Ok(Merged::Done) => recorded.succeed(co),
            Ok(Merged::Split) => recorded.fail(co, Outcome::Uncounted),
            Err(error) if GivenBack::is_in(error) => recorded.fail(co, Outcome::Uncounted),
            Err(_) => recorded.fail(co, Outcome::Failure),
        }
        result
    }

    /// Whether a request that failed could not be in the first place (contract: C74).
    #[cold]
    pub(crate) fn is_invalid(&self, kind: RequestKind, (offset, bytes): (u64, u64)) -> bool {
        let writes = !matches!(kind, RequestKind::Read | RequestKind::Flush);
        let fits = |length| offset.checked_add(bytes).is_some_and(|end| end <= length);
        writes && self.is_read_only() || !self.length().is_ok_and(fits)
    }
}
