//! [`NbdExportType`]: nodes as exports of the NBD server, for [`coblk_export`].

use std::cell::RefCell;
use std::rc::Rc;

use coblk_aio::Co;
use coblk_block::{Device, IoStatus};
use coblk_export::{Export, ExportBackend, ExportError, ExportType, Exporting, RemoveMode};
use coblk_qapi::{Only, Unsupported};
use serde::{Deserialize, Serialize};

use crate::server::NbdServer;
use crate::server::export::NbdExport;

/// The type `nbd` of exports: a name that clients of one server find. It holds that server, if there is
/// one.
///
/// ```
/// use std::rc::Rc;
///
/// use coblk_export::ExportTypes;
/// use coblk_nbd::NbdExportType;
///
/// let nbd = Rc::new(NbdExportType::default());
/// let mut types = ExportTypes::new();
/// types.add(Rc::clone(&nbd));
/// assert_eq!(types.names(), ["nbd"]);
/// // Exports can be added once there is a server: `nbd.set_server(Some(server))`.
/// assert!(nbd.server().is_none());
/// ```
#[derive(Debug, Default)]
pub struct NbdExportType {
    server: RefCell<Option<Rc<NbdServer>>>,
}

impl NbdExportType {
    /// The server, if there is one.
    pub fn server(&self) -> Option<Rc<NbdServer>> {
        self.server.borrow().clone()
    }

    /// Sets the server of exports to come, or none; returns the one before. Exports stay with theirs.
    pub fn set_server(&self, server: Option<Rc<NbdServer>>) -> Option<Rc<NbdServer>> {
        self.server.replace(server)
    }

    fn running_server(&self) -> Result<Rc<NbdServer>, ExportError> {
        self.server().ok_or_else(|| ExportError::of_type("NBD server not running"))
    }
}

/// What clients find: QAPI's `BlockExportOptionsNbd`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "Fields")]
#[non_exhaustive]
pub struct NbdExportOptions {
    /// `name`; the node's by default.
    pub name: Option<String>,
    /// `description`: a text for people.
    pub description: Option<String>,
}

/// With what is known and not supported.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Fields {
    name: Option<String>,
    description: Option<String>,
    #[serde(rename = "bitmaps")]
    _bitmaps: Option<Unsupported>,
    /// Nodes have no backing files.
    #[serde(rename = "allocation-depth")]
    _allocation_depth: Option<Only<false>>,
}

impl From<Fields> for NbdExportOptions {
    fn from(Fields { name, description, .. }: Fields) -> NbdExportOptions {
        NbdExportOptions { name, description }
    }
}

impl ExportType for NbdExportType {
    const NAME: &'static str = "nbd";
    type Options = NbdExportOptions;

    fn co_make(
        &self,
        exporting: &Exporting<'_, '_>,
        options: NbdExportOptions,
    ) -> Result<Box<dyn Export>, ExportError> {
        exporting.refuse_iothreads(Self::NAME)?;
        let server = self.running_server()?;
        let backend = exporting.co_open_backend()?;
        let common = exporting.options;
        let name = options.name.unwrap_or_else(|| common.node_name.clone());
        let mut export = NbdExport::new(name.clone(), backend.backend().clone())
            .read_only(!common.writable)
            .write_through(common.writethrough);
        if let Some(description) = options.description {
            export = export.description(description);
        }
        // While locks were asked for, the server may have been stopped.
        let added = self.running_server().and_then(|now| match Rc::ptr_eq(&now, &server) {
            true => server.add_export(export).map_err(ExportError::of_type),
            false => Err(ExportError::of_type("the NBD server has been started anew")),
        });
        if let Err(refused) = added {
            backend.co_close(exporting.co);
            return Err(refused);
        }
        Ok(Box::new(Named { server, name, backend }))
    }
}

/// A name of a server.
struct Named {
    server: Rc<NbdServer>,
    name: String,
    backend: ExportBackend,
}

impl Export for Named {
    fn device(&self) -> Device {
        self.backend.device()
    }

    fn is_in_use(&self) -> bool {
        self.server.export_users(&self.name) > 0
    }

    fn io_status(&self) -> IoStatus {
        self.backend.io_status()
    }

    fn resume(&self) {
        self.backend.resume();
    }

    fn report_errors(&self) {
        self.backend.report_errors();
    }

    fn co_close(&self, co: &Co<'_>) {
        // It is there as long as it has not been closed.
        let _ = self.server.remove_export(&self.name, RemoveMode::Hard);
        self.backend.co_close(co);
    }
}
