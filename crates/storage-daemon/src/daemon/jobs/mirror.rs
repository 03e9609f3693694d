//! `blockdev-mirror`.

use std::rc::Rc;
use std::sync::Arc;

use coblk::jobs::{JobOptions, Mirror, MirrorError};
use coblk::{BlockNode, Co};

use crate::daemon::{Daemon, DaemonError};

impl Daemon {
    /// The root of a graph, or the node, that a command calls a device.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn device_node(&self, device: &str) -> Result<Arc<BlockNode>, DaemonError> {
        self.blockdevs.node(device).ok_or_else(|| DaemonError::NoSuchDevice {
            device: device.to_owned(),
            node_name: device.to_owned(),
        })
    }

    /// `blockdev-mirror`: copies a node to another one, in a job, and keeps that equal until it takes the place
    /// of the first. It is running when this returns.
    ///
    /// # Errors
    /// If the options are wrong, the id is none or is taken, or other users of the nodes do not agree.
    pub fn blockdev_mirror(
        self: &Rc<Self>,
        co: &Co<'_>,
        mirror: Mirror,
        options: JobOptions,
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("blockdev-mirror")?;
        mirror.co_start(co, &self.jobs, options, &self.blockdevs)?;
        Ok(())
    }
}

impl From<MirrorError> for DaemonError {
    fn from(error: MirrorError) -> DaemonError {
        match error {
            MirrorError::Blockdev(error) => error.into(),
            other => DaemonError::Mirror(other),
        }
    }
}
