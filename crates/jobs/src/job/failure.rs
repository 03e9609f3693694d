//! Why a job fails, and why something cannot be asked of it.

use std::io;

use super::{JobStatus, Verb};

/// The end of a job that has not done its work.
#[derive(Debug)]
#[non_exhaustive]
pub enum JobFailure {
    /// It was cancelled.
    Cancelled,
    /// A request failed, or something else that has an errno.
    Io(io::Error),
    /// What it says itself.
    Text(String),
}

impl JobFailure {
    /// Its coroutine has panicked.
    pub(crate) fn panicked() -> JobFailure {
        JobFailure::Text("the job has panicked".to_owned())
    }

    /// What users are told.
    pub(crate) fn text(&self) -> String {
        match self {
            JobFailure::Cancelled => errno_text(&io::Error::from_raw_os_error(libc::ECANCELED)),
            JobFailure::Io(error) => errno_text(error),
            JobFailure::Text(text) => text.clone(),
        }
    }
}

impl From<io::Error> for JobFailure {
    fn from(error: io::Error) -> JobFailure {
        JobFailure::Io(error)
    }
}

/// The text of an error as C's `strerror` has it.
fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(errno) => text.trim_end_matches(&format!(" (os error {errno})")).to_owned(),
        None => text,
    }
}

/// Why something cannot be asked of a job, in QEMU's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The id has other characters than ids have.
    #[error("Invalid job ID '{0}'")]
    Id(String),
    /// A job has this id, running or concluded.
    #[error("Job ID '{0}' already in use")]
    InUse(String),
    /// No job has this id.
    #[error("Job not found")]
    NotFound,
    /// No block job has this id.
    #[error("Block job '{0}' not found")]
    NotActive(String),
    /// Its state does not allow that.
    #[error("Job '{id}' in state '{}' cannot accept command verb '{}'", status.name(), verb.name())]
    State {
        /// The job.
        id: String,
        /// Its state.
        status: JobStatus,
        /// What it was asked for.
        verb: Verb,
    },
    /// It is paused.
    #[error("Job is already paused")]
    Paused,
    /// It is not paused.
    #[error("Can't resume a job that was not paused")]
    NotPaused,
    /// It is paused, and cannot end well before it is resumed.
    #[error("The block job for device '{0}' is currently paused")]
    CancelPaused(String),
    /// It is not one that is completed, or was told to end already.
    #[error("The active block job '{0}' cannot be completed")]
    NotCompletable(String),
    /// A speed below zero.
    #[error("Parameter 'speed' expects a non-negative value")]
    Speed,
    /// It works in one mode only.
    #[error("Job type does not support change")]
    NoChange,
    /// Anything else that a kind of jobs refuses.
    #[error("{0}")]
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j17_errors_are_told_without_their_numbers() {
        let io = |errno| JobFailure::Io(io::Error::from_raw_os_error(errno)).text();
        assert_eq!(io(libc::ENOSPC), "No space left on device");
        assert_eq!(JobFailure::Cancelled.text(), "Operation canceled");
        assert_eq!(JobFailure::Text("a reason".to_owned()).text(), "a reason");
    }
}
