//! What a [`BlockBackend`](crate::BlockBackend) counts: requests, bytes, failures, time, by kind; how many
//! are on their way; averages over the last while; histograms and percentiles.
//!
//! The home thread is the only writer of the numbers, so that a request pays with plain loads and stores;
//! [`Statistics`] can be read from any thread, each number by itself: two of them may be a request
//! apart.
//!
//! Time is [`AioContext::turn_ns`](coblk_aio::AioContext::turn_ns), unless told otherwise
//! ([`Accounting`]).

mod histogram;
pub(crate) mod kind;
mod percentiles;
pub(crate) mod recorder;
mod settings;
mod snapshot;
mod statistics;
mod timed_average;

pub use histogram::{BinsError, LatencyHistogram};
pub use kind::RequestKind;
pub use percentiles::LatencyPercentiles;
pub(crate) use recorder::Recorder;
pub use settings::LatencyBoundaries;
pub use snapshot::{BlockStats, TimedStats};
pub use statistics::{KindStatistics, Statistics};
pub use timed_average::Average;

/// How much a backend counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accounting {
    /// Nothing.
    Off,
    /// Requests and bytes; no time, because on a device that answers at once a look at the clock
    /// would be a quarter of the request. [`Exact`](Self::Exact) while latencies are asked for.
    #[default]
    Counts,
    /// Time as well, by the turn of the loop: the clock is asked once a turn, not once a request.
    /// A request that ends in the turn it began in took no time.
    Turns,
    /// Time as well; the clock is asked twice a request.
    Exact,
}

impl Accounting {
    /// Whether requests are timed.
    #[inline]
    fn has_time(self) -> bool {
        matches!(self, Accounting::Turns | Accounting::Exact)
    }
}
