//! [`BitmapError`]: why a bitmap cannot be used.

use std::io;

use coblk_qapi::shorten;
use thiserror::Error;

/// Why a command on bitmaps is refused. The words are QEMU's, which management programs know.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// The node has no bitmap of this name.
    #[error("Dirty bitmap '{}' not found", shorten(.0))]
    NotFound(String),
    /// The node has a bitmap of this name.
    #[error("Bitmap already exists: {0}")]
    Exists(String),
    /// A name that no bitmap can have.
    #[error("Bitmap name cannot be empty")]
    EmptyName,
    /// A name of more than 1023 bytes.
    #[error("Bitmap name too long: {}", shorten(.0))]
    LongName(String),
    /// A granularity that no bitmap can have.
    #[error("Granularity must be power of 2 and at least 512")]
    Granularity,
    /// A job or an export has it, or it is being removed.
    #[error("Bitmap '{0}' is currently in use by another operation and cannot be used")]
    Busy(String),
    /// It is stored in an image that is not written.
    #[error("Bitmap '{0}' is readonly and cannot be modified")]
    ReadOnly(String),
    /// It was not stored after its last use.
    #[error("Bitmap '{0}' is inconsistent and cannot be used")]
    Inconsistent(String),
    /// Bitmaps of disks of different lengths.
    #[error(
        "Bitmaps are of different sizes (destination size is {target}, source size is {source_bytes}) \
         and can't be merged"
    )]
    Sizes {
        /// Length of the disk of the target, in bytes.
        target: u64,
        /// Length of the disk of the source, in bytes.
        source_bytes: u64,
    },
    /// The node cannot store bitmaps.
    #[error("Can't store persistent bitmaps to {0}: Operation not supported")]
    NoStore(String),
    /// The node cannot store this bitmap.
    #[error("Can't make bitmap '{name}' persistent in '{node}': {source}")]
    Store {
        /// The name of the bitmap.
        name: String,
        /// The name of the node.
        node: String,
        /// Why.
        source: io::Error,
    },
    /// It could not be removed from the image.
    #[error("Failed to remove bitmap '{name}' from node '{node}': {source}")]
    Remove {
        /// The name of the bitmap.
        name: String,
        /// The name of the node.
        node: String,
        /// Why.
        source: io::Error,
    },
    /// Memory for its bits, or a context that does not poll.
    #[error("Cannot make bitmap '{name}': {source}")]
    Make {
        /// The name of the bitmap.
        name: String,
        /// Why.
        source: io::Error,
    },
}
