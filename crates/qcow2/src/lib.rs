//! The qcow2 image format: a driver of the block layer, open for reads, and a checker.
//!
//! ```text
//! layout/   the pure core: the format as bytes, without I/O
//! source    the file of an image; headers and tables are read from it (tables)
//! cache/    slices of L2 tables
//! inflated  decompressed clusters; loading has one coroutine load what several want
//! encryption/ the data of encrypted images
//! name      names of files as a header has them
//! options   options, in QEMU's words
//! image     an open image; map/ finds bytes in it, read reads them, info describes it
//! check/    a check of a whole image
//! open/     opens an image, and the files that it names
//! event     what a node tells of a corrupt image
//! driver    Qcow2, the driver
//! create/   makes an image; creates names it to the layer
//! ```
//!
//! It uses the public items of `coblk-block` alone.
#![forbid(unsafe_code)]

mod cache;
pub mod check;
mod create;
mod creates;
mod driver;
mod encryption;
mod event;
mod fuzz;
mod image;
mod inflated;
mod info;
pub mod layout;
mod loading;
mod map;
mod name;
mod open;
mod options;
mod read;
mod source;
mod tables;

pub use create::{Compression, Preallocate, Qcow2CreateOptions, Qcow2MeasureOptions, Version};
pub use driver::Qcow2;
#[doc(hidden)]
pub use fuzz::fuzz_parsers;
pub use open::probe_format;
pub use options::{EncryptFormat, EncryptOptions, NamedFiles, OverlapCheck, Qcow2Options};
pub use source::ImageError;
