//! [`ExportBackend`]: the backend of an export that one context serves.

use std::cell::RefCell;
use std::fmt;

use coblk_aio::Co;
use coblk_block::{BlockBackend, Device, IoStatus, ReportErrors};

/// The backend of an export that one context serves, with the answers of an [`Export`](crate::Export) that
/// are those of its backend. Made by [`Exporting::co_open_backend`](crate::Exporting::co_open_backend).
pub struct ExportBackend {
    backend: BlockBackend,
    device: Device,
    /// Set once its errors will not be resumed any more.
    reporting: RefCell<Option<ReportErrors>>,
}

impl ExportBackend {
    pub(crate) fn new(backend: BlockBackend, device: Device) -> ExportBackend {
        ExportBackend { backend, device, reporting: RefCell::default() }
    }

    /// For requests.
    pub fn backend(&self) -> &BlockBackend {
        &self.backend
    }

    /// Its device in the block graph.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether it runs, and if not, which kind of error stopped it.
    pub fn io_status(&self) -> IoStatus {
        self.backend.io_status()
    }

    /// Requests that an error stopped are tried again.
    pub fn resume(&self) {
        self.backend.resume();
    }

    /// Requests that an error stopped fail, and those to come.
    pub fn report_errors(&self) {
        // Not before it has been stored: it lets coroutines run.
        let reporting = self.backend.report_errors();
        self.reporting.replace(Some(reporting));
    }

    /// Returns when the last request is done and the node is free. Requests that an error stopped fail.
    pub fn co_close(&self, co: &Co<'_>) {
        self.report_errors();
        self.backend.co_remove_medium(co);
    }
}

impl fmt::Debug for ExportBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExportBackend").field("device", &self.device).finish_non_exhaustive()
    }
}
