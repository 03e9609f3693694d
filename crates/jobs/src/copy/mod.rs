//! The copy engine: copies what is to be copied from one node to another, by several coroutines.
//!
//! ```text
//! granules  what is to be copied, and what is being copied; pure, with models in models.rs
//! claim     granules that one copy has for itself
//! waiters   guests that wait for the end of claims
//! guests    what guests' copies and the workers have to do with each other
//! engine    Engine: the workers of a job in its context, and what they wait for
//! station   workers in other contexts
//! worker    one copy of a worker
//! pace      how much is done at once beside guests whose requests are to stay fast
//! piece     one copy: block status, reads, writes
//! spill     a node to which guests' copies go at first
//! sums      checksums of what was read
//! bits      a bit a granule
//! target    the node that is written, which requests may keep longer than the job lives
//! ```
//!
//! A worker does things in this order: pause, rate, gates, claim, read, leave the source, write, end of the
//! claim. At a closed gate it has claimed nothing, so what waits for a claim waits for two requests at most, and
//! a drain of the source waits for no write to the target.

mod atomics;
pub(crate) mod bits;
mod claim;
pub(crate) mod engine;
pub(crate) mod granules;
pub(crate) mod guests;
#[cfg(all(test, loom))]
mod models;
pub(crate) mod pace;
pub(crate) mod piece;
pub(crate) mod plan;
pub(crate) mod spill;
mod station;
pub(crate) mod sums;
pub(crate) mod target;
pub(crate) mod waiters;
mod worker;
