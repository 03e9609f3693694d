//! The qcow2 image format: a driver of the block layer, open for reads, and a checker.
//!
//! ```text
//! layout/   the pure core: the format as bytes, without I/O
//! source    the file of an image; headers and tables are read from it (tables)
//! cache/    slices of L2 tables
//! name      names of files as a header has them
//! refcount/ allocation; epoch: reuse of freed clusters; metadata: clusters that no data is written to
//! options   options, in QEMU's words
//! image     an open image; map/ finds bytes in it, read reads them, info describes it
//! check/    a check of a whole image
//! open/     opens an image, and the files that it names
//! event     what a node tells of a corrupt image
//! driver    Qcow2, the driver
//! ```
//!
//! It uses the public items of `coblk-block` alone.
#![forbid(unsafe_code)]

mod cache;
pub mod check;
mod driver;
#[allow(dead_code, reason = "writes are to use it")]
mod epoch;
mod event;
mod fuzz;
mod image;
mod info;
pub mod layout;
mod map;
#[allow(dead_code, reason = "writes are to use it")]
mod metadata;
mod name;
mod open;
mod options;
mod read;
#[allow(dead_code, reason = "writes are to use it")]
mod refcount;
mod source;
mod tables;

pub use driver::Qcow2;
#[doc(hidden)]
pub use fuzz::fuzz_parsers;
pub use options::{NamedFiles, OverlapCheck, Qcow2Options};
pub use source::ImageError;
