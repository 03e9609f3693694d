//! Stream: what the backing files of a node have is copied to the node, which then does without them.
//!
//! ```text
//! options  Stream: which node and which backing files
//! sweep    what is to be copied, and the copies under way
//! task     the job: the filter, copies, and the end
//! ```

mod options;
mod sweep;
mod task;

pub use options::{Stream, StreamError};
