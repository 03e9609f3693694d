//! `block-commit`.

use std::rc::Rc;

use coblk::Co;
use coblk::jobs::{Commit, CommitError, JobOptions};

use crate::daemon::{Daemon, DaemonError};

impl Daemon {
    /// `block-commit`: copies what images of a chain have to one below them, in a job. It is running, or over, when
    /// this returns.
    ///
    /// # Errors
    /// If the options are wrong, the id is none or is taken, or other users of the nodes do not agree.
    pub fn block_commit(
        self: &Rc<Self>,
        co: &Co<'_>,
        commit: Commit,
        options: JobOptions,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("block-commit")?;
        commit.co_start(co, &self.jobs, options, &self.blockdevs)?;
        Ok(())
    }
}

impl From<CommitError> for DaemonError {
    fn from(error: CommitError) -> DaemonError {
        match error {
            CommitError::Blockdev(error) => error.into(),
            CommitError::Mirror(error) => error.into(),
            CommitError::Job(error) => error.into(),
            other => DaemonError::Commit(other),
        }
    }
}
