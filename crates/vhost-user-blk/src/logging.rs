//! Messages of a front end that wants dirty pages logged: more of [`Session`].

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use vhost::vhost_user::message::VhostUserLog;
use vhost::vhost_user::{Error, Result};

use crate::dirty::DirtyMemory;
use crate::notifier::from_front_end;
use crate::session::Session;

impl Session {
    /// The front end gives a log, which replaces the one before it.
    pub(crate) fn open_log(&mut self, layout: &VhostUserLog, file: File) -> Result<()> {
        let dirty = DirtyMemory::open(layout, file, self.socket.as_raw_fd())?;
        dirty.log.covers(0, 1).then_some(()).ok_or(Error::InvalidOperation("an empty log"))?;
        self.shown.memory.check_log(&dirty.log)?;
        let dirty = dirty.notifying(self.log_notifier.as_ref())?;
        // It was wanted before there was one: what was written meanwhile is not known.
        let missed = self.shown.log_all && self.shown.dirty.is_none();
        let before = self.shown.dirty.replace(dirty.clone());
        self.mark_there()?;
        // Until here queues may have marked in it.
        drop(before);
        if missed {
            dirty.log.mark_all(self.shown.memory.guest());
        }
        Ok(())
    }

    /// The front end wants to be told when something was marked.
    pub(crate) fn set_log_notifier(&mut self, notifier: OwnedFd) -> Result<()> {
        self.log_notifier = Some(from_front_end(File::from(notifier))?);
        if let Some(dirty) = self.shown.dirty.take() {
            self.shown.dirty = Some(dirty.notifying(self.log_notifier.as_ref())?);
        }
        self.mark_there()
    }

    /// Has each queue that runs mark where it is to by now.
    pub(crate) fn mark_there(&mut self) -> Result<()> {
        self.shown.check_log()?;
        self.vrings.iter().try_for_each(|vring| vring.mark_there(&self.shown))
    }
}
