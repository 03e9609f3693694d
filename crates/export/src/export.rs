//! [`Export`]: the part of an export that its type makes, and how it is listed.

use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{BlockNode, Device, IoStatus};
use serde::{Deserialize, Serialize};

/// A node in use by others. Its methods are called on the thread of its [`Exports`](crate::Exports); only
/// [`co_close`](Self::co_close) may suspend.
pub trait Export {
    /// Its device in the block graph: the backends that its requests go through.
    fn device(&self) -> Device;

    /// The node that it shows at this moment: a change of the graph may put it on another one. `None`
    /// once it is closed.
    fn node(&self) -> Option<Arc<BlockNode>> {
        self.device().node()
    }

    /// Lets clients in; before, they wait. Called once.
    fn begin(&self) {}

    /// Whether it has clients: a safe removal is refused then (contract: C86).
    fn is_in_use(&self) -> bool;

    /// Whether it runs, and if not, which kind of error stopped it.
    fn io_status(&self) -> IoStatus;

    /// Requests that an error stopped are tried again.
    fn resume(&self);

    /// Requests that an error stopped fail, and those to come, for they will not be resumed any more.
    fn report_errors(&self);

    /// Disconnects clients, and returns when the last request is done and the node is free. Called once,
    /// also for an export that never began.
    fn co_close(&self, co: &Co<'_>);
}

/// What to do about clients when an export is removed (contract: C86).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemoveMode {
    /// Fail if there are any. The default.
    #[default]
    Safe,
    /// Disconnect them. Their requests in flight go on, and are not answered; those that wait for a reconnect
    /// below end.
    Hard,
}

/// An export, as a list has it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportInfo {
    /// Its name.
    pub id: String,
    /// Its type, as in options.
    pub kind: &'static str,
    /// The node that it shows at this moment.
    pub node_name: String,
    /// Its device in the block graph.
    pub device: Device,
    /// It is on its way out.
    pub shutting_down: bool,
    /// Whether it runs, and if not, which kind of error stopped it.
    pub io_status: IoStatus,
}
