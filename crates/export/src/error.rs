//! [`ExportError`]: why an export is not added or removed, in QEMU's words.

use coblk_block::{GraphError, PermissionError};

/// Why an export is not added or removed. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The options make no sense.
    #[error(transparent)]
    Options(#[from] coblk_qapi::Error),
    /// A text that cannot be the name of an export.
    #[error("Invalid block export id")]
    Id,
    /// The name is taken.
    #[error("Block export id '{0}' is already in use")]
    Duplicate(String),
    /// There is no such node.
    #[error("Cannot find device='' nor node-name='{0}'")]
    NoSuchNode(String),
    /// The node can only be read.
    #[error("Cannot export read-only node as writable")]
    ReadOnlyNode,
    /// There is no such thread.
    #[error("iothread \"{0}\" not found")]
    NoSuchIothread(String),
    /// There is no such object.
    #[error("object '{0}' not found")]
    NoSuchObject(String),
    /// The object is something else.
    #[error("object '{0}' is of another type")]
    OtherObject(String),
    /// Exports of this type are served by the main thread alone.
    #[error(
        "exports of type {0} are served by the main thread, and cannot be fixed to an iothread"
    )]
    MainThreadOnly(&'static str),
    /// Other users of the node do not agree.
    #[error(transparent)]
    Permission(#[from] PermissionError),
    /// The node is inactive, and cannot be made active.
    #[error(transparent)]
    Activate(#[from] GraphError),
    /// Anything else that keeps a type from making an export.
    #[error(transparent)]
    Type(Box<dyn std::error::Error + Send + Sync>),
    /// There is no such export.
    #[error("Export '{0}' is not found")]
    NotFound(String),
    /// The export has clients, and the mode is [`RemoveMode::Safe`](crate::RemoveMode::Safe)
    /// (contract: C86).
    #[error("export '{0}' still in use")]
    InUse(String),
    /// The export is on its way out.
    #[error("Export '{0}' is already shutting down")]
    ShuttingDown(String),
    /// No exports are added any more.
    #[error("no exports are added any more")]
    Ended,
}

impl ExportError {
    /// An error of a type's own, or a text.
    pub fn of_type(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ExportError {
        ExportError::Type(error.into())
    }
}
