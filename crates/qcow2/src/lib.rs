//! The qcow2 image format: a driver of the block layer, and a checker.
//!
//! ```text
//! layout/   the pure core: the format as bytes, without I/O
//! source    the file of an image; headers and tables are read from it (tables)
//! cache/    slices of L2 tables
//! inflated  decompressed clusters; loading has one coroutine load what several want
//! encryption/ the data of encrypted images
//! name      names of files as a header has them
//! refcount/ allocation; epoch: reuse of freed clusters; metadata: clusters that no data is written to
//! bitmap/   dirty bitmaps that are kept in the image
//! origin    which entries may lead behind the end of the file as it was opened
//! options   options, in QEMU's words
//! image     an open image; map/ finds bytes in it, read reads them, info describes it
//! write     writes; link changes entries; state has what that needs, cluster_locks what is being changed
//! compressed  compressed writes
//! clear     zeroes and discards; truncate: other lengths of the disk
//! commit    makes durable what is linked, in order; close leaves nothing to be written; header_io: cluster 0
//! snapshot/ internal snapshots: create, apply, delete
//! live      options that a reopen changes; rules: steps of the order that tests leave out
//! check/    a check of a whole image
//! open/     opens an image, and the files that it names
//! event     what a node tells of a corrupt image
//! driver    Qcow2, the driver
//! create/   makes an image; creates names it to the layer
//! ```
//!
//! It uses the public items of `coblk-block` alone.
#![forbid(unsafe_code)]

mod amend;
mod backing;
mod bitmap;
mod cache;
pub mod check;
mod cleaning;
mod clear;
mod close;
mod cluster_locks;
mod commit;
mod compressed;
mod create;
mod creates;
mod downgrade;
mod driver;
mod empty;
mod encryption;
mod epoch;
mod event;
mod fuzz;
mod giving_way;
mod header_io;
mod holes;
mod image;
mod inflated;
mod info;
pub mod layout;
mod link;
mod live;
mod loading;
mod map;
mod metadata;
mod name;
mod open;
mod options;
mod origin;
mod overlap;
mod read;
mod refcount;
mod rewrites;
mod rules;
mod snapshot;
mod source;
mod space;
mod state;
mod survey;
mod tables;
mod truncate;
mod write;

pub use amend::Qcow2AmendOptions;
pub use create::{
    Compression, EncryptCreateFormat, EncryptCreateOptions, Preallocate, Qcow2CreateOptions,
    Qcow2MeasureOptions, Version,
};
pub use driver::Qcow2;
pub use encryption::{EncryptAmendOptions, EncryptFormat, KeyState};
#[doc(hidden)]
pub use fuzz::fuzz_parsers;
pub use open::probe_format;
pub use options::{EncryptOptions, NamedFiles, Qcow2Options};
pub use overlap::{OverlapCheck, OverlapKinds, OverlapTemplate};
#[cfg(feature = "test-rules")]
pub use rules::Rule;
pub use source::ImageError;
