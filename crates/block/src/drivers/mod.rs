//! Block drivers.

mod file;
mod null;

pub use file::{File, FileOpenError, FileOptions};
pub use null::Null;
