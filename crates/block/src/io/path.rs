//! [`RequestPath`]: what a request needs to know of its node.

use std::ops::Range;

use super::known::Known;
use super::live_limits::LiveLimits;
use super::state::{Features, PathState};
use crate::driver::debug_event::DebugEvent;
use crate::driver::{BlockDriver, BlockLimits, MAX_LENGTH};

/// A driver with what its requests need: a name for messages, limits, and what is kept from one request
/// to the next. Any thread.
pub(crate) struct RequestPath {
    name: String,
    driver: Box<dyn BlockDriver>,
    wants_debug_events: bool,
    pub(crate) limits: LiveLimits,
    length: Known,
    read_only: Known,
    pub(crate) state: PathState,
}

impl RequestPath {
    /// `limits` are the driver's.
    pub(crate) fn new(
        name: String,
        driver: Box<dyn BlockDriver>,
        limits: BlockLimits,
    ) -> RequestPath {
        let state = PathState::new(driver.bitmaps());
        state.set_aligned(limits.is_aligned());
        RequestPath {
            name,
            wants_debug_events: driver.wants_debug_events(),
            driver,
            limits: LiveLimits::new(limits),
            length: Known::default(),
            read_only: Known::default(),
            state,
        }
    }

    /// Returns how they were. In a drained section.
    pub(crate) fn swap_limits(&self, new: BlockLimits) -> BlockLimits {
        self.state.set_aligned(new.is_aligned());
        self.limits.swap(new)
    }

    /// The name of the node.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub(crate) fn driver(&self) -> &dyn BlockDriver {
        &*self.driver
    }

    /// Marks in bitmaps the blocks around a range that was changed, as far as the node goes.
    pub(super) fn mark_around(&self, range: &Range<u64>, blocks: Range<u64>) {
        if *range != blocks {
            self.state.mark(blocks.start..blocks.end.min(self.length()).max(range.end));
        }
    }

    /// Length in bytes, [`MAX_LENGTH`] at most: what a request adds up stays a number, whatever the driver
    /// says later.
    #[inline]
    pub(crate) fn length(&self) -> u64 {
        self.length.get(|| self.driver.length().min(MAX_LENGTH))
    }

    /// Whether writes are refused.
    #[inline]
    pub(crate) fn is_read_only(&self) -> bool {
        self.state.is_read_only() || self.read_only.get(|| self.driver.is_read_only().into()) != 0
    }

    /// Whether a read is nothing but what the driver does: it takes any offset, length and memory, nothing
    /// locks ranges, and nothing is told of steps.
    pub(crate) fn reads_are_plain(&self) -> bool {
        !self.state.features().intersects(Features::OF_READS) && !self.wants_debug_events
    }

    /// Whether the driver is told of steps of requests.
    pub(crate) fn wants_debug_events(&self) -> bool {
        self.wants_debug_events
    }

    /// A step of a request has been reached.
    #[inline]
    pub(crate) fn debug_event(&self, event: DebugEvent) {
        if self.wants_debug_events {
            self.driver.debug_event(event);
        }
    }
}
