//! [`NbdExport`]: what clients find under a name.

use std::fmt;
use std::sync::Arc;

use coblk_block::{BlockBackend, BlockNode, DirtyBitmap};

use crate::server::seats::{NbdContexts, Seat};

/// A backend under a name, for clients of an [`NbdServer`](crate::NbdServer).
#[derive(Clone)]
pub struct NbdExport {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    place: Place,
    pub(crate) read_only: bool,
    pub(crate) write_through: bool,
    pub(crate) allocation_depth: bool,
    /// Those that clients may look at, by their names when they were given.
    pub(crate) bitmaps: Vec<(String, Arc<DirtyBitmap>)>,
}

/// Where its clients are served.
#[derive(Clone)]
pub(crate) enum Place {
    /// In the context of the server.
    Here(BlockBackend),
    /// In others.
    Contexts(NbdContexts),
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
        Self::at(name.into(), Place::Here(backend), read_only)
    }

    /// An export whose clients are served by several contexts.
    pub fn on_contexts(name: impl Into<String>, contexts: &NbdContexts) -> NbdExport {
        let read_only = contexts.is_read_only();
        Self::at(name.into(), Place::Contexts(contexts.clone()), read_only)
    }

    fn at(name: String, place: Place, read_only: bool) -> NbdExport {
        NbdExport {
            name,
            description: None,
            place,
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
        let refuses_writes = match &self.place {
            Place::Here(backend) => backend.is_read_only(),
            Place::Contexts(contexts) => contexts.is_read_only(),
        };
        self.read_only = read_only || refuses_writes;
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

impl NbdExport {
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Its contexts, if it has some of its own.
    pub(crate) fn seats(&self) -> Option<&[Seat]> {
        match &self.place {
            Place::Here(_) => None,
            Place::Contexts(contexts) => Some(contexts.seats()),
        }
    }

    /// The node that it shows at this moment.
    pub(crate) fn node(&self) -> Option<Arc<BlockNode>> {
        match &self.place {
            Place::Here(backend) => backend.node(),
            Place::Contexts(contexts) => contexts.device().node(),
        }
    }

    /// Length in bytes, if there is a medium.
    pub(crate) fn length(&self) -> Option<u64> {
        self.node().map(|node| node.length())
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
