//! [`NbdExport`]: what clients find under a name.

use std::fmt;
use std::sync::Arc;

use coblk_block::{BlockBackend, DirtyBitmap};

/// A backend under a name, for clients of an [`NbdServer`](crate::NbdServer).
#[derive(Clone)]
pub struct NbdExport {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) backend: BlockBackend,
    pub(crate) read_only: bool,
    pub(crate) write_through: bool,
    pub(crate) allocation_depth: bool,
    /// Those that clients may look at, by their names when they were given.
    pub(crate) bitmaps: Vec<(String, Arc<DirtyBitmap>)>,
}

impl fmt::Debug for NbdExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdExport")
            .field("name", &self.name)
            .field("read_only", &self.read_only)
            .field("write_through", &self.write_through)
            .finish_non_exhaustive()
    }
}

impl NbdExport {
    /// `backend` under `name`, which may be empty: the default, for clients that name none.
    pub fn new(name: impl Into<String>, backend: BlockBackend) -> NbdExport {
        let read_only = backend.is_read_only();
        NbdExport {
            name: name.into(),
            description: None,
            backend,
            read_only,
            write_through: false,
            allocation_depth: false,
            bitmaps: Vec::new(),
        }
    }

    /// A text for people, up to 4096 bytes.
    #[must_use]
    pub fn description(mut self, description: impl Into<String>) -> NbdExport {
        self.description = Some(description.into());
        self
    }

    /// Refuses writes, whatever the backend allows. A backend that refuses them is always read-only.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> NbdExport {
        self.read_only = read_only || self.backend.is_read_only();
        self
    }

    /// Makes every write durable before it is answered, whether the client asks for that or not.
    #[must_use]
    pub fn write_through(self, write_through: bool) -> NbdExport {
        NbdExport { write_through, ..self }
    }

    /// Tells clients that ask, in the metadata context `qemu:allocation-depth`, which layer of a chain of
    /// images has the data.
    #[must_use]
    pub fn allocation_depth(self, allocation_depth: bool) -> NbdExport {
        NbdExport { allocation_depth, ..self }
    }

    /// Tells clients that ask, in the metadata context `qemu:dirty-bitmap:NAME`, what is dirty in one more
    /// bitmap. The caller keeps [hold of it](coblk_block::DirtyBitmap::acquire) while there is the export.
    #[must_use]
    pub fn bitmap(mut self, bitmap: &Arc<DirtyBitmap>) -> NbdExport {
        self.bitmaps.push((bitmap.name().unwrap_or_default(), Arc::clone(bitmap)));
        self
    }
}

/// Why an export was not added or removed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NbdExportError {
    /// The name is taken.
    #[error("NBD server already has export named '{0}'")]
    NameTaken(String),
    /// The name or the description cannot be sent.
    #[error("the {0} of an NBD export is limited to 4096 bytes")]
    TooLong(&'static str),
    /// There is no medium whose length clients could be told.
    #[error("NBD export '{0}' has no medium")]
    NoMedium(String),
    /// There is no such export.
    #[error("export '{0}' is not found")]
    NotFound(String),
    /// Clients use it, and the mode is [`RemoveMode::Safe`](crate::RemoveMode::Safe).
    #[error("export '{name}' still in use by {connections} connections")]
    InUse {
        /// The export.
        name: String,
        /// How many clients are connected to it.
        connections: usize,
    },
}
