//! `blockdev-backup`.

use std::rc::Rc;

use coblk::Co;
use coblk::jobs::{Backup, BackupError, Job, JobGroup, JobOptions};

use crate::daemon::{Daemon, DaemonError};
use crate::options::OptionError;

impl Daemon {
    /// `blockdev-backup`: copies the bytes that a node has now to another one, in a job. It is running when this
    /// returns, or over already.
    ///
    /// # Errors
    /// If the options are wrong, the id is none or is taken, or other users of the nodes do not agree.
    pub fn blockdev_backup(
        self: &Rc<Self>,
        co: &Co<'_>,
        backup: Backup,
        options: JobOptions,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("blockdev-backup")?;
        backup.co_start(co, &self.jobs, options, &self.blockdevs)?;
        Ok(())
    }

    /// The job of `blockdev-backup` in a transaction: it is started, or cancelled, with the others.
    pub(crate) fn make_backup(
        &self,
        co: &Co<'_>,
        group: &Rc<JobGroup>,
        backup: Backup,
        options: JobOptions,
    ) -> Result<Rc<Job>, DaemonError> {
        Ok(backup.co_make(co, (&self.jobs, group), options, &self.blockdevs)?)
    }
}

impl From<BackupError> for DaemonError {
    fn from(error: BackupError) -> DaemonError {
        let node = |why: String| OptionError::other(format!("Could not create node: {why}")).into();
        match error {
            BackupError::Blockdev(error) => node(DaemonError::from(error).to_string()),
            BackupError::MinCluster(why) => node(format!("Cannot create block-copy-state: {why}")),
            other => DaemonError::Backup(other),
        }
    }
}
