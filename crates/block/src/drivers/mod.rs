//! Block drivers.

mod file;
mod null;

pub use file::{Engine, File, FileOpenError, FileOptions};
pub use null::Null;
