//! Transactions.

use std::rc::Rc;
use std::sync::Arc;

use coblk::jobs::{ActionError, Transaction};
use coblk::qapi::shorten;
use coblk::{BlockNode, Co};

use super::{Daemon, DaemonError};

impl Daemon {
    /// `transaction`: carries actions out, all of them or none, at one instant of their nodes.
    ///
    /// # Errors
    /// Why one of them cannot take effect, or requests of a node do not end within 10 s. Nothing has changed then.
    pub fn transaction(&self, co: &Co<'_>, transaction: Transaction) -> Result<(), DaemonError> {
        let _command = self.begin_command("transaction")?;
        let _turn = self.bitmap_commands.lock(co);
        Ok(transaction.co_run(co)?)
    }

    /// Finds a node that a command calls a device, when it is asked.
    pub(crate) fn device_finder(
        self: &Rc<Self>,
        device: &str,
    ) -> impl Fn() -> Result<Arc<BlockNode>, ActionError> + use<> {
        let (daemon, device) = (Rc::clone(self), device.to_owned());
        move || Ok(daemon.device_node(&device)?)
    }

    /// Finds a node that has bitmaps, when it is asked.
    pub(crate) fn bitmap_node_finder(
        self: &Rc<Self>,
        node: &str,
    ) -> impl Fn() -> Result<Arc<BlockNode>, ActionError> + use<> {
        let (daemon, node) = (Rc::clone(self), node.to_owned());
        move || {
            let found = daemon.blockdevs.node(&node);
            Ok(found.ok_or_else(|| DaemonError::NoBitmapNode(shorten(&node)))?)
        }
    }
}
