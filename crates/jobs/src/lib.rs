//! Jobs: operations that a command starts, and that go on in the background, with the states, verbs and
//! messages of QEMU's.
//!
//! ```text
//! status   JobStatus, Verb: the states of a job, and what can be asked of it in each
//! jobs     Jobs: those that there are, by their ids
//! ```
//!
//! There are jobs of one kind so far: they cannot be paused on their way, share no group, and stay until
//! they are dismissed.
#![forbid(unsafe_code)]

mod jobs;
mod status;

pub use jobs::{JobError, JobInfo, Jobs, StatusChange};
pub use status::{JobStatus, Verb};
