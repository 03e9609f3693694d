//! Exports: made, listed, resumed and removed.

use std::rc::Rc;

use coblk::Co;
use coblk::block::WAIT_LIMIT;
use coblk::export::{ExportInfo, ExportOptions, RemoveMode, RunningExport};

use super::{Daemon, DaemonError};

impl Daemon {
    /// `block-export-add`: shows a node to others.
    ///
    /// # Errors
    /// If the options are wrong, the name is taken, there is no such type, node or thread, or the node
    /// cannot be exported so.
    pub fn export_add(&self, co: &Co<'_>, options: ExportOptions) -> Result<(), DaemonError> {
        let _command = self.begin_command("block-export-add")?;
        let export = self.exports.co_add(co, &self.blockdevs, self, options)?;
        self.measure(export.device());
        Ok(())
    }

    /// `query-block-exports`: all of them, by name; those on their way out too.
    pub fn exports(&self) -> Vec<ExportInfo> {
        self.exports.all().iter().map(RunningExport::info).collect()
    }

    /// Requests that an error stopped are tried again.
    ///
    /// # Errors
    /// If there is no such export.
    pub fn export_resume(&self, id: &str) -> Result<(), DaemonError> {
        self.exports.get(id)?.resume();
        Ok(())
    }

    /// `block-export-del`: begins to remove an export (contract: C86). It is listed until its last
    /// request is done; then there is [`Event::BlockExportDeleted`](super::Event::BlockExportDeleted).
    ///
    /// # Errors
    /// If there is none, if it has clients and the mode is [`RemoveMode::Safe`], or if it is on its
    /// way out.
    pub fn export_del(&self, co: &Co<'_>, id: &str, mode: RemoveMode) -> Result<(), DaemonError> {
        Ok(self.exports.remove(co.context(), id, mode)?)
    }

    /// Waits until no export is left that `matters`.
    ///
    /// # Errors
    /// If that takes longer than a command waits. They go on closing.
    pub(super) fn co_wait_for_exports(
        self: &Rc<Self>,
        co: &Co<'_>,
        matters: impl Fn(&RunningExport) -> bool,
    ) -> Result<(), DaemonError> {
        let waiting = self.wait_within(co.context(), WAIT_LIMIT);
        while let Some(left) = self.exports.all().into_iter().find(&matters) {
            if waiting.is_over(co) {
                let (id, node_name) = (left.id().to_owned(), left.options().node_name.clone());
                return Err(DaemonError::ExportWaits { id, node_name });
            }
            drop(left);
            self.co_wait(co, "the end of exports");
        }
        Ok(())
    }
}
