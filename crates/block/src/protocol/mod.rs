//! Drivers of where bytes are: host files and devices, and nowhere.

mod file;
mod null;

pub use file::{File, FileCreateOptions, FileNodeOptions, FileOpenError, FileOptions, Locking};
pub use null::{Null, NullOptions};
