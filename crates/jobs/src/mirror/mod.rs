//! [`Mirror`]: copies a node to another one, and keeps that equal until it takes the place of the first.
//!
//! ```text
//! options  what is mirrored, and how
//! top      the filter above the source, which marks what is written
//! scan     what is to be copied at first
//! active   write-blocking mode
//! task     the job
//! ```
//!
//! What holds, from the moment in which the filter is in the graph:
//!
//! 1. Bytes that the target does not have, and that a completed write has written, are marked, or are being
//!    copied by a claim that began after the write, or before it and then fails or leaves the mark.
//! 2. A mark is cleared before block status is asked and the source read, and set after the source's write has
//!    returned.
//! 3. Users of the source turn to the target in a drained section of both in which nothing is marked, nothing
//!    under way, and the target flushed.
//! 4. Whatever ends the job takes the filter out, and leaves the source's users where they are.

mod active;
mod options;
mod scan;
mod task;
mod top;

pub use options::{CopyMode, Mirror, MirrorError, SyncMode};
pub(crate) use scan::backing_of;
pub(crate) use task::{MirrorTask, co_set_up};
