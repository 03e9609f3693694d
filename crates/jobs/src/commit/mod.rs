//! Commit: what the images above a backing file have is copied to that, and they are left out of the chain.
//!
//! ```text
//! options       Commit: which images go to which backing file
//! top           the filter above the images that are left out
//! intermediate  the job, if something is above them: it ends by itself
//! active        the job, if they are what guests write to: a mirror to the backing file, which is completed
//! ```

mod active;
mod intermediate;
mod options;
mod top;

pub use options::{Commit, CommitError};
