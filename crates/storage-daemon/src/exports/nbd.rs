//! `nbd`: a node under a name of the NBD server.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use coblk::block::{Device, ErrorPolicies, IoStatus, ReportErrors};
use coblk::nbd::{NbdExport, NbdServer, RemoveMode};
use coblk::{BackendOptions, BlockBackend, BlockNode, Co};

use super::ExportType;
use crate::daemon::{DaemonError, ErrorReporter};
use crate::options::{ExportOptions, NbdExportOptions};

/// An export of the NBD server.
pub(crate) struct NbdBlockExport {
    server: Rc<NbdServer>,
    name: String,
    backend: BlockBackend,
    device: Device,
    /// Set when nobody will resume any more.
    reporting: RefCell<Option<ReportErrors>>,
}

impl NbdBlockExport {
    pub(crate) fn new(
        co: &Co<'_>,
        server: &Rc<NbdServer>,
        node: Arc<BlockNode>,
        options: &ExportOptions,
        nbd: &NbdExportOptions,
        reporter: ErrorReporter,
    ) -> Result<NbdBlockExport, DaemonError> {
        // As QEMU's exports it lets others write.
        let backend = BackendOptions::new(&options.id).read_only(!options.writable).share_rw(true);
        let (device, backend) = (backend.device(), backend.co_open(co, node)?);
        backend.set_error_policies(ErrorPolicies {
            read: options.rerror.into(),
            write: options.werror.into(),
        });
        backend.set_error_listener(move |_, _, event| reporter.report(event));
        let name = nbd.name.as_ref().unwrap_or(&options.node_name).clone();
        let mut export = NbdExport::new(name.clone(), backend.clone())
            .read_only(!options.writable)
            .write_through(options.writethrough);
        if let Some(description) = &nbd.description {
            export = export.description(description.clone());
        }
        server.add_export(export)?;
        let (server, reporting) = (Rc::clone(server), RefCell::default());
        Ok(NbdBlockExport { server, name, backend, device, reporting })
    }
}

impl ExportType for NbdBlockExport {
    fn kind(&self) -> &'static str {
        "nbd"
    }

    fn device(&self) -> Device {
        self.device
    }

    fn begin(&self) {}

    fn is_in_use(&self) -> bool {
        self.server.export_users(&self.name) > 0
    }

    fn co_close(&self, co: &Co<'_>) {
        // It is there as long as nobody has closed it.
        let _ = self.server.remove_export(&self.name, RemoveMode::Hard);
        self.report_errors();
        self.backend.co_remove_medium(co);
    }

    fn io_status(&self) -> IoStatus {
        self.backend.io_status()
    }

    fn resume(&self) {
        self.backend.resume();
    }

    fn report_errors(&self) {
        // Not before it has been stored: it lets coroutines run.
        let reporting = self.backend.report_errors();
        self.reporting.replace(Some(reporting));
    }
}
