//! Block drivers.

mod file;
mod null;
mod raw;

pub(crate) use file::FileReopen;
pub use file::{Engine, File, FileOpenError, FileOptions, Locking};
pub use null::Null;
pub(crate) use raw::RawReopen;
pub use raw::{Raw, RawError};
