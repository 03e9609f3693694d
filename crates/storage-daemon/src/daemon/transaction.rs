//! Transactions.

use std::rc::Rc;
use std::sync::Arc;

use coblk::block::{ChangeLock, PreparedSnapshot};
use coblk::jobs::{Action, ActionError, Preparing, Transaction};
use coblk::qapi::shorten;
use coblk::{BlockNode, Co};

use super::chain_snapshots::{NewOverlay, PreparedOverlay};
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

/// An overlay that comes above a node, whose users turn to it: `blockdev-snapshot`.
pub(crate) struct PutOverlay {
    daemon: Rc<Daemon>,
    node: String,
    overlay: String,
    prepared: Option<(PreparedSnapshot, ChangeLock)>,
}

impl PutOverlay {
    pub(crate) fn new(daemon: &Rc<Daemon>, node: &str, overlay: &str) -> PutOverlay {
        let (daemon, prepared) = (Rc::clone(daemon), None);
        PutOverlay { daemon, node: node.to_owned(), overlay: overlay.to_owned(), prepared }
    }
}

impl Action for PutOverlay {
    fn name(&self) -> &'static str {
        "blockdev-snapshot"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        let names = [&self.node, &self.overlay].into_iter();
        names.filter_map(|name| self.daemon.blockdevs.node(name)).collect()
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        let node = self.daemon.device_node(&self.node)?;
        let overlay = self.daemon.device_node(&self.overlay)?;
        // That of the transaction.
        let change = ChangeLock::co_take(co)?;
        let prepared = self.daemon.blockdevs.co_prepare_snapshot(co, &change, &node, &overlay)?;
        self.prepared = Some((prepared, change));
        Ok(())
    }

    fn co_commit(&mut self, co: &Co<'_>) {
        if let Some((prepared, change)) = self.prepared.take() {
            prepared.co_commit(co, &change, &self.daemon.blockdevs);
        }
    }

    fn co_abort(&mut self, co: &Co<'_>) {
        if let Some((prepared, change)) = self.prepared.take() {
            prepared.co_abort(co, &change);
        }
    }
}

/// A new overlay that comes above a node, whose users turn to it: `blockdev-snapshot-sync`. A file that was made stays
/// when the transaction fails, as QEMU's does.
pub(crate) struct MakeOverlay {
    daemon: Rc<Daemon>,
    /// What to make, or what is wrong with it.
    new: Option<Result<NewOverlay, DaemonError>>,
    node_name: Option<String>,
    prepared: Option<(PreparedOverlay, ChangeLock)>,
}

impl MakeOverlay {
    pub(crate) fn new(daemon: &Rc<Daemon>, new: Result<NewOverlay, DaemonError>) -> MakeOverlay {
        let node_name = new.as_ref().ok().map(|new| new.node_name.clone());
        MakeOverlay { daemon: Rc::clone(daemon), new: Some(new), node_name, prepared: None }
    }
}

impl Action for MakeOverlay {
    fn name(&self) -> &'static str {
        "blockdev-snapshot-sync"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        let node = self.node_name.as_ref().and_then(|name| self.daemon.blockdevs.node(name));
        node.into_iter().collect()
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        let Some(new) = self.new.take().transpose()? else { return Ok(()) };
        // That of the transaction.
        let change = ChangeLock::co_take(co)?;
        let prepared = self.daemon.co_prepare_new_overlay(co, &change, &new)?;
        self.prepared = Some((prepared, change));
        Ok(())
    }

    fn co_commit(&mut self, co: &Co<'_>) {
        if let Some((prepared, change)) = self.prepared.take() {
            prepared.co_commit(co, &change, &self.daemon);
        }
    }

    fn co_abort(&mut self, co: &Co<'_>) {
        if let Some((prepared, change)) = self.prepared.take() {
            prepared.co_abort(co, &change, &self.daemon);
        }
    }
}
