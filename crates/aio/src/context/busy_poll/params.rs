//! How long a loop looks for work.

use std::time::Duration;

use super::WaitStats;
use crate::context::AioContext;

/// How long a loop may look for work before it sleeps; see
/// [`AioContext::set_poll_params`].
///
/// By default a loop looks for little longer than a wake-up costs, which it measures, as long as its waits
/// of late were not longer; and not while other threads of the process need the CPU. With a maximum
/// that is set, the time grows and shrinks in steps as QEMU's does, whatever a wake-up costs.
///
/// ```
/// use coblk_aio::{AioContext, PollParams};
/// use std::time::Duration;
///
/// let ctx = AioContext::new()?;
/// assert!(ctx.poll_max() > Duration::ZERO);
/// ctx.set_poll_params(PollParams::new(Duration::from_micros(50)).grow(3).shrink(2));
/// assert_eq!(ctx.poll_max(), Duration::from_micros(50));
/// ctx.set_poll_params(PollParams::never());
/// assert_eq!(ctx.poll_max(), Duration::ZERO);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "they have no effect before they are set"]
pub struct PollParams {
    /// How long it may look at most. Zero turns it off; `None`: as long as pays.
    pub max: Option<Duration>,
    /// By what factor the time grows while looking pays; 0 is 2. Without effect if `max` is `None`.
    pub grow: u32,
    /// What the time is divided by when looking does not pay; 0: it begins again from nothing. Without
    /// effect if `max` is `None`.
    pub shrink: u32,
}

impl PollParams {
    /// Up to `max`, growing by 2, and from nothing again when looking does not pay.
    pub fn new(max: Duration) -> PollParams {
        PollParams { max: Some(max), ..PollParams::default() }
    }

    /// Not at all: the loop sleeps at once.
    pub fn never() -> PollParams {
        PollParams::new(Duration::ZERO)
    }

    /// By what factor the time grows; 0 is 2.
    pub fn grow(self, grow: u32) -> PollParams {
        PollParams { grow, ..self }
    }

    /// What the time is divided by; 0: it begins again from nothing.
    pub fn shrink(self, shrink: u32) -> PollParams {
        PollParams { shrink, ..self }
    }
}

impl AioContext {
    /// How long the loop may look for work before it sleeps (contract: C46, C48). Home thread.
    pub fn set_poll_params(&self, params: PollParams) {
        self.inner().polling.set(params);
    }

    /// How long it may look for work at most: what was set, or what pays with the present cost of a wake-up.
    pub fn poll_max(&self) -> Duration {
        Duration::from_nanos(self.inner().polling.max_ns())
    }

    /// How long the loop would look for work before its next sleep, if no job and no request were out.
    pub fn poll_time(&self) -> Duration {
        Duration::from_nanos(self.inner().polling.current_ns())
    }

    /// How often the loop has waited, how, and what a wake-up costs here.
    pub fn wait_stats(&self) -> WaitStats {
        self.inner().polling.stats()
    }
}
