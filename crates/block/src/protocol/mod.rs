//! Drivers of where bytes are: host files and devices, and nowhere.

mod file;
mod null;

pub(crate) use file::FileReopen;
pub use file::{Engine, File, FileOpenError, FileOptions, Locking};
pub use null::Null;
