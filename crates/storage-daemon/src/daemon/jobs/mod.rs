//! Jobs: operations that commands start and that go on in the background.

mod backup;
mod commit;
mod mirror;
mod stream;

use std::rc::Rc;

use coblk::Co;
use coblk::jobs::{JobError, Jobs};
use serde_json::{Map, Value};

use super::{Daemon, DaemonError};

impl Daemon {
    /// Its jobs, to be asked about, and to be told things.
    pub fn jobs(&self) -> &Rc<Jobs> {
        &self.jobs
    }

    /// `blockdev-create`: makes an image, in a job. What goes wrong then is told by the job.
    ///
    /// # Errors
    /// If the options are wrong, or the id is no id or is taken.
    pub fn blockdev_create(
        self: &Rc<Self>,
        co: &Co<'_>,
        job_id: &str,
        options: Map<String, Value>,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("blockdev-create")?;
        let creation = self.blockdevs.drivers().creation(options);
        let creation = creation.map_err(|error| error.within("options"))?;
        let daemon = Rc::clone(self);
        self.jobs.start(co.context(), (job_id, "create"), move |co| {
            daemon.blockdevs.co_create(co, creation)
        })?;
        Ok(())
    }

    /// Gives all jobs up, and counts that among what the end waits for.
    pub(super) fn end_jobs(self: &Rc<Self>, co: &Co<'_>) {
        let daemon = Rc::clone(self);
        self.ending.set(self.ending.get() + 1);
        co.context().spawn("end jobs", move |co| {
            daemon.jobs.co_end(co);
            daemon.ending.set(daemon.ending.get() - 1);
            daemon.wake_waiters();
        });
    }
}

impl From<JobError> for DaemonError {
    fn from(error: JobError) -> DaemonError {
        DaemonError::Job(error)
    }
}
