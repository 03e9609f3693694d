//! [`NbdExport`]: what clients find under a name.

use std::fmt;

use coblk_block::BlockBackend;

/// A backend under a name, for clients of an [`NbdServer`](crate::NbdServer).
#[derive(Clone)]
pub struct NbdExport {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) backend: BlockBackend,
    pub(crate) read_only: bool,
    pub(crate) write_through: bool,
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
        NbdExport { name: name.into(), description: None, backend, read_only, write_through: false }
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
