//! What time it is, for timers.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

/// The clock of one context, in nanoseconds since it was made.
pub(crate) enum Clock {
    /// The system's monotonic clock, from that instant on.
    Real(Instant),
    /// Moved by a simulation.
    Manual(Rc<Cell<i64>>),
}

impl Clock {
    #[inline]
    pub(crate) fn now_ns(&self) -> i64 {
        match self {
            Clock::Real(start) => i64::try_from(start.elapsed().as_nanos()).unwrap_or(i64::MAX),
            Clock::Manual(now_ns) => now_ns.get(),
        }
    }
}
