//! [`QmpError`]: why a command failed, as its client is told.

use std::fmt::Display;
use std::io;

use serde::Serialize;

/// What kind of error it is. Most are [`GenericError`](Self::GenericError); the others are those that
/// clients of QEMU tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Anything else.
    GenericError,
    /// There is no such command, or not at this stage of the session.
    CommandNotFound,
    /// A device that the command needs is not in use.
    DeviceNotActive,
    /// A device that the command names does not exist.
    DeviceNotFound,
    /// Hardware support that the command needs is missing.
    #[serde(rename = "KVMMissingCap")]
    KvmMissingCap,
}

/// An error, as it goes to the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{desc}")]
pub struct QmpError {
    /// For programs.
    pub class: ErrorClass,
    /// For people.
    pub desc: String,
}

impl QmpError {
    /// An error of a class.
    pub fn new(class: ErrorClass, desc: impl Display) -> QmpError {
        QmpError { class, desc: desc.to_string() }
    }

    /// An error of class [`GenericError`](ErrorClass::GenericError); made for
    /// `map_err(QmpError::generic)`.
    pub fn generic(desc: impl Display) -> QmpError {
        QmpError::new(ErrorClass::GenericError, desc)
    }
}

impl From<io::Error> for QmpError {
    fn from(error: io::Error) -> QmpError {
        QmpError::generic(error)
    }
}
