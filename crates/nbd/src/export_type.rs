//! [`NbdExportType`]: nodes as exports of the NBD server, for [`coblk_export`].

use std::cell::RefCell;
use std::rc::Rc;

use coblk_aio::Co;
use coblk_block::{AcquiredBitmap, BitmapRef, BitmapUse, Device, IoStatus};
use coblk_export::{Export, ExportBackend, ExportError, ExportType, Exporting, RemoveMode};
use coblk_qapi::shorten;
use serde::{Deserialize, Serialize};

use crate::server::NbdServer;
use crate::server::export::NbdExport;
use crate::server::seats::{NbdContextError, NbdContexts};

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
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct NbdExportOptions {
    /// `name`; the node's by default.
    pub name: Option<String>,
    /// `description`: a text for people.
    pub description: Option<String>,
    /// `bitmaps`: the dirty bitmaps that clients may look at. One without a node is looked for in the node, and
    /// in those below it that filter it or are its backing files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bitmaps: Vec<BitmapRef>,
    /// `allocation-depth`: whether clients may ask which layer has the data; no by default.
    pub allocation_depth: Option<bool>,
}

impl ExportType for NbdExportType {
    const NAME: &'static str = "nbd";
    type Options = NbdExportOptions;

    fn co_make(
        &self,
        exporting: &Exporting<'_, '_>,
        options: NbdExportOptions,
    ) -> Result<Box<dyn Export>, ExportError> {
        let server = self.running_server()?;
        let bitmaps = options.bitmaps.iter().map(|bitmap| acquire(exporting, bitmap));
        let bitmaps = bitmaps.collect::<Result<Vec<_>, _>>()?;
        let backends = Backends::co_open(exporting)?;
        let common = exporting.options;
        let name = options.name.unwrap_or_else(|| common.node_name.clone());
        let mut export = backends
            .export(name.clone())
            .read_only(!common.writable)
            .write_through(common.writethrough)
            .allocation_depth(options.allocation_depth == Some(true));
        export = bitmaps.iter().fold(export, |export, it| export.bitmap(it.bitmap()));
        if let Some(description) = options.description {
            export = export.description(description);
        }
        // While locks were asked for, the server may have been stopped.
        let added = self.running_server().and_then(|now| match Rc::ptr_eq(&now, &server) {
            true => server.add_export(export).map_err(ExportError::of_type),
            false => Err(ExportError::of_type("the NBD server has been started anew")),
        });
        if let Err(refused) = added {
            backends.co_close(exporting.co);
            return Err(refused);
        }
        let bitmaps = RefCell::new(bitmaps);
        Ok(Box::new(Named { server, name, backends, bitmaps }))
    }
}

/// Takes a bitmap for an export.
fn acquire(
    exporting: &Exporting<'_, '_>,
    bitmap: &BitmapRef,
) -> Result<AcquiredBitmap, ExportError> {
    let bitmap = match bitmap {
        BitmapRef::Name(name) => {
            let found = exporting.node.find_bitmap_below(name);
            let (node, bitmap) = found.ok_or_else(|| {
                ExportError::of_type(format!("Bitmap '{}' is not found", shorten(name)))
            })?;
            // What the export shows does not change, and what the bitmap says would.
            if !exporting.options.writable && !node.is_read_only() && bitmap.is_recording() {
                let why = format!("Enabled bitmap '{name}' incompatible with readonly export");
                return Err(ExportError::of_type(why));
            }
            bitmap
        }
        BitmapRef::Of(it) => {
            let node = exporting.find_node(&it.node);
            let node = node.ok_or_else(|| {
                ExportError::of_type(format!("Node '{}' not found", shorten(&it.node)))
            })?;
            node.bitmaps().find(&it.name).map_err(ExportError::of_type)?
        }
    };
    bitmap.acquire(BitmapUse::Read).map_err(ExportError::of_type)
}

/// Where the clients of an export are served.
enum Backends {
    /// In the context of the exports, which is the server's.
    Here(ExportBackend),
    /// In those of its list.
    Contexts(NbdContexts),
}

impl Backends {
    fn co_open(exporting: &Exporting<'_, '_>) -> Result<Backends, ExportError> {
        if exporting.contexts.is_empty() {
            return exporting.co_open_backend().map(Backends::Here);
        }
        let options = exporting.backend_options();
        let (co, node, contexts) = (exporting.co, exporting.node, exporting.contexts);
        let opened = NbdContexts::co_open(co, node, &options, contexts);
        let opened = opened.map_err(|error| match error {
            NbdContextError::Make(refused) => refused.into(),
            gone => ExportError::of_type(gone),
        })?;
        opened.set_error_policies(exporting.options.error_policies());
        let reporter = exporting.reporter.clone();
        opened.set_error_listener(move |event| reporter.report(event));
        Ok(Backends::Contexts(opened))
    }

    fn export(&self, name: String) -> NbdExport {
        match self {
            Backends::Here(backend) => NbdExport::new(name, backend.backend().clone()),
            Backends::Contexts(contexts) => NbdExport::on_contexts(name, contexts),
        }
    }

    fn device(&self) -> Device {
        match self {
            Backends::Here(backend) => backend.device(),
            Backends::Contexts(contexts) => contexts.device(),
        }
    }

    fn io_status(&self) -> IoStatus {
        match self {
            Backends::Here(backend) => backend.io_status(),
            Backends::Contexts(contexts) => contexts.io_status(),
        }
    }

    fn resume(&self) {
        match self {
            Backends::Here(backend) => backend.resume(),
            Backends::Contexts(contexts) => contexts.resume(),
        }
    }

    fn report_errors(&self) {
        match self {
            Backends::Here(backend) => backend.report_errors(),
            Backends::Contexts(contexts) => contexts.report_errors(),
        }
    }

    fn co_close(&self, co: &Co<'_>) {
        match self {
            Backends::Here(backend) => backend.co_close(co),
            Backends::Contexts(contexts) => contexts.co_close(co),
        }
    }
}

/// A name of a server.
struct Named {
    server: Rc<NbdServer>,
    name: String,
    backends: Backends,
    /// Busy until it is closed.
    bitmaps: RefCell<Vec<AcquiredBitmap>>,
}

impl Export for Named {
    fn device(&self) -> Device {
        self.backends.device()
    }

    fn is_in_use(&self) -> bool {
        self.server.export_users(&self.name) > 0
    }

    fn io_status(&self) -> IoStatus {
        self.backends.io_status()
    }

    fn resume(&self) {
        self.backends.resume();
    }

    fn report_errors(&self) {
        self.backends.report_errors();
    }

    fn co_close(&self, co: &Co<'_>) {
        // It is there as long as it has not been closed.
        let _ = self.server.remove_export(&self.name, RemoveMode::Hard);
        self.backends.co_close(co);
        self.bitmaps.take();
    }
}
