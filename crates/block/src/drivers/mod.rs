//! Block drivers.

mod file;
mod null;
mod raw;

pub use file::{Engine, File, FileOpenError, FileOptions, Locking};
pub use null::Null;
pub use raw::{Raw, RawError};
