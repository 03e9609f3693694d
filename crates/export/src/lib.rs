//! Exports: block nodes for others to use. What all of them have in common; what one type does is a crate
//! of its own, above this one.
//!
//! * [`ExportType`]: a type of exports, a value: that of NBD holds its server. It makes [`Export`]s.
//! * [`ExportTypes`]: the types that there are, by name. Each reads its own options.
//! * [`Exports`]: the exports that there are, and their life.
//!
//! ```text
//!   co_add --> the options are read, the node is looked up --> ExportType::co_make
//!                 |                                               |
//!                 '-- a mistake: nothing has changed              '--> it may be gone by now: co_close
//!   listed, not served --> Exports::begin --> Export::begin: clients are let in
//!   remove, safe --> refused while it has clients
//!   remove, hard --> listed as shutting down --> Export::co_close: requests end, the node is free
//!                                                    '--> no longer listed --> on_deleted
//! ```
//!
//! Everything here stays on the thread of one context, but for an [`ErrorReporter`], which any thread may
//! have, and what an export keeps on the contexts of its list: each is a [`Resident`] there.
//!
//! A type in full is `tests/types.rs`; in a daemon, `examples/own_export.rs`.
#![forbid(unsafe_code)]

mod backend;
mod error;
mod export;
mod export_type;
mod exports;
mod options;
mod registry;
mod resident;

pub use backend::ExportBackend;
pub use error::ExportError;
pub use export::{Export, ExportInfo, RemoveMode};
pub use export_type::{
    ErrorReporter, ExportIoError, ExportType, Exporting, FindObjects, SharedObject,
};
pub use exports::{Exports, RunningExport};
pub use options::{ExportOptions, OnError};
pub use registry::ExportTypes;
pub use resident::{Resident, ResidentError};
