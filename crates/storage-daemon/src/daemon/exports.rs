//! Exports: made, listed, resumed and removed.

use std::rc::Rc;
use std::sync::Arc;

use coblk::block::WAIT_LIMIT;
use coblk::{AioContext, BlockNode, Co};

use super::command::RunningCommand;
use super::{Daemon, DaemonError, ErrorReporter, Event};
use crate::exports::{
    Export, ExportInfo, ExportType, NbdBlockExport, RemoveMode, VhostUserBlkExport,
};
use crate::options::{ExportKind, ExportOptions, is_identifier};
use crate::sockets;

impl Daemon {
    /// `block-export-add`: shows a node to others.
    ///
    /// # Errors
    /// If the name is taken, if there is no such node or thread, or if it cannot be exported so.
    pub fn export_add(&self, co: &Co<'_>, options: ExportOptions) -> Result<(), DaemonError> {
        let command = self.begin_command("block-export-add")?;
        if !is_identifier(&options.id) {
            return Err(DaemonError::ExportId);
        }
        if self.exports.borrow().contains_key(&options.id) {
            return Err(DaemonError::DuplicateExport(options.id));
        }
        let node = self.blockdevs.node(&options.node_name);
        let node = node.ok_or_else(|| DaemonError::NothingToExport(options.node_name.clone()))?;
        if options.writable && node.is_read_only() {
            return Err(DaemonError::ReadOnlyNode);
        }
        let what = self.make_export(co, &command, Arc::clone(&node), &options)?;
        // While locks were asked for, another command may have been faster, or the daemon may end.
        let still_fits = command.check().and_then(|()| self.check_still_fits(&node, &options));
        if let Err(refused) = still_fits {
            what.co_close(co);
            return Err(refused);
        }
        self.measure(what.device());
        if self.serving.get() {
            what.begin();
        }
        let id = options.id.clone();
        self.exports.borrow_mut().insert(id, Rc::new(Export::new(options, what)));
        Ok(())
    }

    /// That what an export was made for is still there, and its name still free.
    fn check_still_fits(
        &self,
        node: &Arc<BlockNode>,
        options: &ExportOptions,
    ) -> Result<(), DaemonError> {
        if self.exports.borrow().contains_key(&options.id) {
            return Err(DaemonError::DuplicateExport(options.id.clone()));
        }
        if matches!(options.kind, ExportKind::Nbd(_)) {
            self.running_nbd_server()?;
        }
        match self.blockdevs.node(&options.node_name) {
            Some(now) if Arc::ptr_eq(&now, node) => Ok(()),
            _ => Err(DaemonError::NothingToExport(options.node_name.clone())),
        }
    }

    fn make_export(
        &self,
        co: &Co<'_>,
        command: &RunningCommand<'_>,
        node: Arc<BlockNode>,
        options: &ExportOptions,
    ) -> Result<Box<dyn ExportType>, DaemonError> {
        let ctx = co.context();
        let contexts = self.iothreads(&options.iothreads)?;
        let reporter = self.reporter(options);
        match &options.kind {
            ExportKind::Nbd(nbd) => {
                if options.fixed_iothread && !contexts.is_empty() {
                    return Err(DaemonError::NbdIothread);
                }
                let server = self.running_nbd_server()?;
                let export = NbdBlockExport::new(co, &server, node, options, nbd, reporter)?;
                if !contexts.is_empty() {
                    tracing::warn!(export = options.id, "is served by the main thread");
                }
                Ok(Box::new(export))
            }
            ExportKind::VhostUserBlk(vhost) => {
                let listener = sockets::co_listen_unix(co, &vhost.addr)?;
                command.check()?;
                Ok(Box::new(VhostUserBlkExport::new(
                    ctx, listener, &node, options, vhost, contexts, reporter,
                )?))
            }
        }
    }

    fn reporter(&self, options: &ExportOptions) -> ErrorReporter {
        let (events, _) = self.remote.get().expect("set when the daemon is made");
        ErrorReporter {
            events: events.clone(),
            id: options.id.clone(),
            node_name: options.node_name.clone(),
        }
    }

    /// `query-block-exports`: all of them, by name; those on their way out too.
    pub fn exports(&self) -> Vec<ExportInfo> {
        self.exports.borrow().values().map(|export| export.info()).collect()
    }

    /// Requests that an error stopped are tried again.
    ///
    /// # Errors
    /// If there is no such export.
    pub fn export_resume(&self, id: &str) -> Result<(), DaemonError> {
        self.export(id)?.what.resume();
        Ok(())
    }

    /// `block-export-del`: begins to remove an export (contract: C86). It is listed until its last
    /// request is done; then there is [`Event::BlockExportDeleted`].
    ///
    /// # Errors
    /// If there is none, if it has clients and the mode is [`RemoveMode::Safe`], or if it is on its
    /// way out.
    pub fn export_del(
        self: &Rc<Self>,
        co: &Co<'_>,
        id: &str,
        mode: RemoveMode,
    ) -> Result<(), DaemonError> {
        let export = self.export(id)?;
        export.check_removal(mode)?;
        self.close_export(co.context(), export);
        Ok(())
    }

    /// Begins to remove an export, unless somebody has.
    pub(super) fn close_export(self: &Rc<Self>, ctx: &AioContext, export: Rc<Export>) {
        if export.shutting_down.replace(true) {
            return;
        }
        let daemon = Rc::clone(self);
        ctx.spawn("close export", move |co| {
            export.what.co_close(co);
            let id = export.options.id.clone();
            daemon.exports.borrow_mut().remove(&id);
            drop(export);
            daemon.emit(co.context(), &Event::BlockExportDeleted { id });
            daemon.wake_waiters();
        });
    }

    /// Waits until no export is left that `matters`.
    ///
    /// # Errors
    /// If that takes longer than a command waits. They go on closing.
    pub(super) fn co_wait_for_exports(
        self: &Rc<Self>,
        co: &Co<'_>,
        matters: impl Fn(&Export) -> bool,
    ) -> Result<(), DaemonError> {
        let left = || {
            let exports = self.exports.borrow();
            let left = exports.values().find(|export| matters(export));
            left.map(|export| (export.options.id.clone(), export.options.node_name.clone()))
        };
        let waiting = self.wait_within(co.context(), WAIT_LIMIT);
        while let Some((id, node_name)) = left() {
            if waiting.is_over(co) {
                return Err(DaemonError::ExportWaits { id, node_name });
            }
            self.co_wait(co, "the end of exports");
        }
        Ok(())
    }

    fn export(&self, id: &str) -> Result<Rc<Export>, DaemonError> {
        let export = self.exports.borrow().get(id).cloned();
        export.ok_or_else(|| DaemonError::NoSuchExport(id.to_owned()))
    }
}
