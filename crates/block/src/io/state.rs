//! [`PathState`]: what the request path keeps of a node.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::after_write::{AfterWrite, Hooks, Listed, WriteKind};
use super::flush::FlushState;
use super::threshold::{Listener, WriteThreshold};
use super::tracked::TrackedRequests;
use crate::bitmap::Bitmaps;
use crate::driver::mode::DetectZeroes;

bitflags::bitflags! {
    /// The features that make a node special. A request loads all of them at once.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Features: u32 {
        const READ_ONLY = 1;
        const DISCARD_DISABLED = 2;
        /// Writes of zeroes are made zeroes.
        const DETECT_ZEROES = 4;
        /// And the range may be deallocated.
        const DETECT_UNMAP = 8;
        /// There are [`Hooks`].
        const AFTER_WRITE = 16;
        /// Each request locks its range.
        const TRACKING = 32;
        /// There is a [`WriteThreshold`].
        const THRESHOLD = 64;
        /// A child has what the driver's own storage does not have.
        const BACKING = 128;
        /// The driver takes not any offset, length and memory.
        const ALIGNED = 256;
        /// There are dirty bitmaps.
        const BITMAPS = 512;

        /// A read with one of these is not plain.
        const OF_READS = Self::TRACKING.bits() | Self::ALIGNED.bits();
        /// A write with one of these is not plain.
        const OF_WRITES = Self::DETECT_ZEROES.bits() | Self::AFTER_WRITE.bits()
            | Self::TRACKING.bits() | Self::THRESHOLD.bits() | Self::ALIGNED.bits();
    }
}

/// The state of a node that the request path keeps. Any thread.
#[derive(Default)]
pub(crate) struct PathState {
    pub(crate) tracked: TrackedRequests,
    pub(super) flush: FlushState,
    /// [`Features`]. Those that a request must not miss change while nothing is in flight.
    features: AtomicU32,
    highest_write: AtomicU64,
    hooks: Hooks,
    pub(crate) bitmaps: Arc<Bitmaps>,
    threshold: WriteThreshold,
    /// How many users want ranges locked.
    trackings: Mutex<usize>,
}

impl PathState {
    /// Of a node whose driver has these bitmaps.
    pub(super) fn new(bitmaps: Option<Arc<Bitmaps>>) -> PathState {
        PathState { bitmaps: bitmaps.unwrap_or_default(), ..PathState::default() }
    }

    /// There may be bitmaps now, or none any more.
    pub(crate) fn look_at_bitmaps(&self) {
        // Those that come at once look each for themselves, in turn.
        let _one = self.trackings.lock().unwrap_or_else(PoisonError::into_inner);
        self.swap(Features::BITMAPS, !self.bitmaps.is_empty());
    }

    #[inline]
    pub(super) fn features(&self) -> Features {
        Features::from_bits_retain(self.features.load(Ordering::Relaxed))
    }

    /// Returns how it was.
    fn swap(&self, feature: Features, on: bool) -> bool {
        let before = match on {
            true => self.features.fetch_or(feature.bits(), Ordering::Relaxed),
            false => self.features.fetch_and(!feature.bits(), Ordering::Relaxed),
        };
        Features::from_bits_retain(before).contains(feature)
    }

    pub(crate) fn is_discard_enabled(&self) -> bool {
        !self.features().contains(Features::DISCARD_DISABLED)
    }

    /// Returns how it was.
    pub(crate) fn swap_discard_enabled(&self, enabled: bool) -> bool {
        !self.swap(Features::DISCARD_DISABLED, !enabled)
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.features().contains(Features::READ_ONLY)
    }

    /// Returns how it was.
    pub(crate) fn swap_read_only(&self, read_only: bool) -> bool {
        self.swap(Features::READ_ONLY, read_only)
    }

    /// While nothing is in flight.
    pub(super) fn set_aligned(&self, aligned: bool) {
        self.swap(Features::ALIGNED, aligned);
    }

    pub(super) fn has_backing(&self) -> bool {
        self.features().contains(Features::BACKING)
    }

    /// Whether a child has what the driver's own storage does not have. While nothing is in flight.
    pub(crate) fn set_backing(&self, there: bool) {
        self.swap(Features::BACKING, there);
    }

    pub(crate) fn detect_zeroes(&self) -> DetectZeroes {
        let features = self.features();
        match features.contains(Features::DETECT_ZEROES) {
            true if features.contains(Features::DETECT_UNMAP) => DetectZeroes::Unmap,
            true => DetectZeroes::On,
            false => DetectZeroes::Off,
        }
    }

    /// Returns how it was.
    pub(crate) fn swap_detect_zeroes(&self, detect: DetectZeroes) -> DetectZeroes {
        let before = self.detect_zeroes();
        self.swap(Features::DETECT_UNMAP, detect == DetectZeroes::Unmap);
        self.swap(Features::DETECT_ZEROES, detect != DetectZeroes::Off);
        before
    }

    pub(crate) fn highest_write(&self) -> u64 {
        self.highest_write.load(Ordering::Relaxed)
    }

    /// After every change: the driver's call for it has returned, or is unwound. It may have failed and have changed a
    /// part, so in any case it has to be flushed, and users of changes are told.
    pub(super) fn wrote(&self, range: Range<u64>, kind: WriteKind, succeeded: bool) {
        let stores = matches!(kind, WriteKind::Write | WriteKind::Zeroes);
        self.wrote_plainly(range.end, succeeded && stores);
        // Before listeners, which may panic.
        if kind != WriteKind::Truncate {
            self.mark(range.clone());
        }
        if stores {
            self.reaches(range.end);
        }
        if self.features().contains(Features::AFTER_WRITE) {
            self.hooks.wrote(&range, kind, succeeded);
        }
    }

    /// Marks a range in the bitmaps that record.
    #[inline]
    pub(super) fn mark(&self, range: Range<u64>) {
        if self.features().contains(Features::BITMAPS) {
            self.bitmaps.mark(&range);
        }
    }

    /// [`wrote`](Self::wrote), where no user is to be told, of bytes up to `end` if any are `stored`.
    #[inline]
    pub(super) fn wrote_plainly(&self, end: u64, stored: bool) {
        self.flush.wrote();
        // Most do not reach further, and pay a load for that.
        if stored && end > self.highest_write.load(Ordering::Relaxed) {
            self.highest_write.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// A write that ends here has passed the driver, successful or not, or a discard is about to: as in
    /// QEMU both count for the threshold, and discards not for the highest write.
    pub(super) fn reaches(&self, end: u64) {
        if self.features().contains(Features::THRESHOLD) {
            self.threshold.wrote_up_to(end);
        }
    }

    pub(crate) fn write_threshold(&self) -> Option<u64> {
        self.threshold.end()
    }

    /// `None`: there is none. Requests in flight may still go by what was set before.
    pub(crate) fn set_write_threshold(&self, end: u64, listener: Option<Listener>) {
        let is_wanted = listener.is_some();
        if is_wanted {
            self.swap(Features::THRESHOLD, true);
        }
        self.threshold.set(end, listener);
        if !is_wanted {
            self.swap(Features::THRESHOLD, false);
        }
    }

    /// One user more, or less, of range locks. The first comes while nothing is in flight.
    pub(crate) fn want_tracking(&self, wanted: bool) {
        let mut trackings = self.trackings.lock().unwrap_or_else(PoisonError::into_inner);
        *trackings = if wanted { *trackings + 1 } else { *trackings - 1 };
        self.swap(Features::TRACKING, *trackings > 0);
    }

    #[inline]
    pub(crate) fn is_tracking(&self) -> bool {
        self.features().contains(Features::TRACKING)
    }

    /// See `after_write.rs`.
    pub(crate) fn add_after_write(&self, hook: Arc<dyn AfterWrite>) -> Listed {
        self.hooks.add(hook, || self.set_told(true))
    }

    /// Calls under way go on.
    pub(crate) fn remove_after_write(&self, listed: &Listed) {
        self.hooks.remove(listed, || self.set_told(false));
    }

    fn set_told(&self, any: bool) {
        self.swap(Features::AFTER_WRITE, any);
    }

    /// The next flush reaches the driver, whatever was written.
    pub(crate) fn owe_flush(&self) {
        self.flush.wrote();
    }

    /// Another process has had the storage.
    pub(crate) fn taken_over(&self) {
        self.flush.taken_over();
    }

    /// The next flush fails with this: it would speak for writes that are lost.
    pub(crate) fn fail_next_flush(&self, error: &io::Error) {
        self.flush.fail_next(error.raw_os_error().unwrap_or(libc::EIO));
    }
}
