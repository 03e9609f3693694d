//! [`JobOptions`] and [`JobInfo`]: what a job is made of, and what it is at the moment.

use coblk_block::IoStatus;

use super::JobStatus;

/// What all jobs have in common when they are made.
#[derive(Clone, Debug)]
pub struct JobOptions {
    pub(crate) id: String,
    pub(crate) kind: &'static str,
    pub(crate) is_block_job: bool,
    pub(crate) speed: i64,
    pub(crate) auto_finalize: bool,
    pub(crate) auto_dismiss: bool,
}

impl JobOptions {
    /// A job with an id, of a kind, such as `mirror`: a block job, unlimited, that takes effect and goes by
    /// itself when its work is done.
    pub fn new(id: impl Into<String>, kind: &'static str) -> JobOptions {
        let id = id.into();
        JobOptions {
            id,
            kind,
            is_block_job: true,
            speed: 0,
            auto_finalize: true,
            auto_dismiss: true,
        }
    }

    /// Its limit, in bytes a second; 0 is none.
    pub fn speed(self, speed: i64) -> JobOptions {
        JobOptions { speed, ..self }
    }

    /// Whether its result takes effect by itself, instead of by a command.
    pub fn auto_finalize(self, auto_finalize: bool) -> JobOptions {
        JobOptions { auto_finalize, ..self }
    }

    /// Whether it goes by itself when it is over, instead of by a command.
    pub fn auto_dismiss(self, auto_dismiss: bool) -> JobOptions {
        JobOptions { auto_dismiss, ..self }
    }

    /// No block job: the commands and events of those are not for it.
    pub fn plain(self) -> JobOptions {
        JobOptions { is_block_job: false, ..self }
    }
}

/// What a job is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobInfo {
    /// Its id.
    pub id: String,
    /// Its kind, such as `create`.
    pub kind: &'static str,
    /// Whether it is a block job.
    pub is_block_job: bool,
    /// Its state.
    pub status: JobStatus,
    /// How much is done, in a unit of the job's.
    pub current_progress: u64,
    /// How much there is to do, in the same unit.
    pub total_progress: u64,
    /// Why it has failed.
    pub error: Option<String>,
    /// Its limit, in bytes a second; 0 is none.
    pub speed: u64,
    /// Whether its main coroutine works, instead of waiting.
    pub is_busy: bool,
    /// Whether it is paused by the user, or rests because a node of its is drained.
    pub is_paused: bool,
    /// Whether an error has stopped it.
    pub io_status: IoStatus,
    /// Whether its result takes effect by itself.
    pub auto_finalize: bool,
    /// Whether it goes by itself when it is over.
    pub auto_dismiss: bool,
    /// Of a mirror: whether its target has all that was written.
    pub actively_synced: Option<bool>,
}
