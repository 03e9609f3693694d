//! [`JobEvent`]: what jobs tell of by themselves, under QMP's names.

use coblk_block::{ErrorAction, RequestKind};

use super::JobStatus;

/// Something that a job tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobEvent {
    /// `JOB_STATUS_CHANGE`: a job is in another state.
    Status(StatusChange),
    /// `BLOCK_JOB_COMPLETED`: a block job has ended, well or with an error.
    Completed {
        /// The job.
        job: BlockJob,
        /// Why it has failed.
        error: Option<String>,
    },
    /// `BLOCK_JOB_CANCELLED`: a block job was cancelled and has ended.
    Cancelled(BlockJob),
    /// `BLOCK_JOB_READY`: a block job can be completed.
    Ready(BlockJob),
    /// `BLOCK_JOB_PENDING`: a block job waits to be finalized.
    Pending {
        /// The job.
        id: String,
        /// Its kind.
        kind: &'static str,
    },
    /// `BLOCK_JOB_ERROR`: a request of a block job has failed.
    Error {
        /// The job.
        id: String,
        /// [`Read`](RequestKind::Read) is a request to the source; the others are to the target.
        operation: RequestKind,
        /// What the job does about it.
        action: ErrorAction,
    },
}

/// A job has changed its state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatusChange {
    /// The job.
    pub id: String,
    /// Its state from now on.
    pub status: JobStatus,
}

/// A block job, as its events show it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockJob {
    /// Its id.
    pub id: String,
    /// Its kind, such as `mirror`.
    pub kind: &'static str,
    /// What there was to do, in bytes.
    pub len: u64,
    /// What is done, in bytes.
    pub offset: u64,
    /// Its limit, in bytes a second; 0 is none.
    pub speed: u64,
}
