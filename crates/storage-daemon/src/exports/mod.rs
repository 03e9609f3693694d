//! What exports have in common: `Export`. One file a type.

mod nbd;
mod vhost_user_blk;

use std::cell::Cell;

use coblk::Co;
use coblk::block::{Device, IoStatus};

use crate::daemon::DaemonError;
use crate::options::{ExportKind, ExportOptions};

pub(crate) use nbd::NbdBlockExport;
pub(crate) use vhost_user_blk::VhostUserBlkExport;

/// What to do about clients when an export is removed (contract: C86).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemoveMode {
    /// Fail if there are any. The default.
    #[default]
    Safe,
    /// Disconnect them.
    Hard,
}

/// An export, as somebody who asks for a list of them sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its name.
    pub id: String,
    /// Its type, as in options.
    pub kind: &'static str,
    /// The node that it shows, at this moment.
    pub node_name: String,
    /// Its device in the block graph.
    pub(crate) device: Device,
    /// It is on its way out.
    pub shutting_down: bool,
    /// Whether it runs, and if not, which error stopped it.
    pub io_status: IoStatus,
}

/// What a type of export has to know. All of it on the daemon's thread.
pub(crate) trait ExportType {
    /// Its name in options.
    fn kind(&self) -> &'static str;

    /// Its device in the block graph.
    fn device(&self) -> Device;

    /// Lets clients in. Before, they wait.
    fn begin(&self);

    /// Whether it has clients.
    fn is_in_use(&self) -> bool;

    /// Disconnects clients, and returns when the last request is done and the node is free. Called
    /// once.
    fn co_close(&self, co: &Co<'_>);

    /// Whether it runs, and if not, which error stopped it.
    fn io_status(&self) -> IoStatus;

    /// Requests that an error stopped are tried again.
    fn resume(&self);

    /// Requests that an error stopped fail, and those to come: nobody will resume any more.
    fn report_errors(&self);
}

/// An export of the daemon.
pub(crate) struct Export {
    pub(crate) options: ExportOptions,
    pub(crate) what: Box<dyn ExportType>,
    pub(crate) shutting_down: Cell<bool>,
}

impl Export {
    pub(crate) fn new(options: ExportOptions, what: Box<dyn ExportType>) -> Export {
        Export { options, what, shutting_down: Cell::new(false) }
    }

    pub(crate) fn is_nbd(&self) -> bool {
        matches!(self.options.kind, ExportKind::Nbd(_))
    }

    pub(crate) fn info(&self) -> ExportInfo {
        let device = self.what.device();
        let node = device.node();
        ExportInfo {
            device,
            id: self.options.id.clone(),
            kind: self.what.kind(),
            node_name: node.map_or(self.options.node_name.clone(), |node| node.name().to_owned()),
            shutting_down: self.shutting_down.get(),
            io_status: self.what.io_status(),
        }
    }

    /// Whether it may be removed now (contract: C86).
    pub(crate) fn check_removal(&self, mode: RemoveMode) -> Result<(), DaemonError> {
        let id = || self.options.id.clone();
        if self.shutting_down.get() {
            return Err(DaemonError::ExportShuttingDown(id()));
        }
        if mode == RemoveMode::Safe && self.what.is_in_use() {
            return Err(DaemonError::ExportInUse(id()));
        }
        Ok(())
    }
}
