//! How long a loop looks for work.

use std::time::Duration;

/// How long a loop may look for work before it sleeps; see
/// [`AioContext::set_poll_params`](crate::AioContext::set_poll_params). The default is not to look.
///
/// ```
/// use coblk_aio::{AioContext, PollParams};
/// use std::time::Duration;
///
/// let ctx = AioContext::new()?;
/// ctx.set_poll_params(PollParams::new(Duration::from_micros(50)).grow(3).shrink(2));
/// assert_eq!(ctx.poll_max(), Duration::from_micros(50));
/// ctx.set_poll_params(PollParams::default());
/// assert_eq!(ctx.poll_max(), Duration::ZERO);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "they have no effect before they are set"]
pub struct PollParams {
    /// How long it may look at most. Zero turns it off.
    pub max: Duration,
    /// By what factor the time grows while looking pays; 0 is 2.
    pub grow: u32,
    /// What the time is divided by when looking does not pay; 0: it begins again from nothing.
    pub shrink: u32,
}

impl PollParams {
    /// Up to `max`, growing by 2, and from nothing again when looking does not pay.
    pub fn new(max: Duration) -> PollParams {
        PollParams { max, ..PollParams::default() }
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
