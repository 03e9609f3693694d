//! Block drivers.

mod file;
mod null;
mod raw;

pub use file::{Engine, File, FileOpenError, FileOptions};
pub use null::Null;
pub use raw::{Raw, RawError};
