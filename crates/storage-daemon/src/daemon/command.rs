//! Commands that are being carried out, so that the end can wait for them, and they for nothing after
//! it.

use super::{Daemon, DaemonError};

/// A command that is carried out as long as this lives.
pub(super) struct RunningCommand<'a> {
    daemon: &'a Daemon,
    number: u64,
}

impl Daemon {
    /// Begins a command that makes or changes something and may suspend.
    ///
    /// # Errors
    /// While the daemon ends nothing is begun.
    pub(super) fn begin_command(
        &self,
        name: &'static str,
    ) -> Result<RunningCommand<'_>, DaemonError> {
        self.check_running()?;
        let number = self.last_command.get() + 1;
        self.last_command.set(number);
        self.commands_running.borrow_mut().push((number, name));
        Ok(RunningCommand { daemon: self, number })
    }

    /// The names of those that are being carried out, the oldest first.
    pub(super) fn running_commands(&self) -> Vec<&'static str> {
        self.commands_running.borrow().iter().map(|(_, name)| *name).collect()
    }

    /// Nothing new is begun while it ends.
    pub(super) fn check_running(&self) -> Result<(), DaemonError> {
        match self.quit.get() {
            None => Ok(()),
            Some(_) => Err(DaemonError::ShuttingDown),
        }
    }
}

impl RunningCommand<'_> {
    /// To be asked after each suspension, before anything is kept: what a command would add to may be
    /// closed by now.
    ///
    /// # Errors
    /// If the daemon ends.
    pub(super) fn check(&self) -> Result<(), DaemonError> {
        self.daemon.check_running()
    }
}

impl Drop for RunningCommand<'_> {
    fn drop(&mut self) {
        self.daemon.commands_running.borrow_mut().retain(|(number, _)| *number != self.number);
        self.daemon.wake_waiters();
    }
}
