//! The pure core: qcow2 as bytes. Functions from bytes to types and back, without I/O.
//!
//! Integers are big-endian, offsets and lengths are in bytes. Whatever the bytes are, no function panics,
//! loops without end, or allocates more than a small multiple of what it is given.
//!
//! ```text
//! cluster 0:  header | extensions | backing name
//! L1 table -> L2 tables -> clusters of data          snapshots have L1 tables of their own
//! refcount table -> refcount blocks                  a count for each cluster of the file
//! ```

mod bitmap;
mod bytes;
mod compression;
mod entry;
mod error;
mod extension;
mod feature;
mod geometry;
mod header;
mod new_image;
mod refcount;
mod snapshot;
mod space;

pub use bitmap::{
    Bitmap, BitmapFlags, BitmapTableEntry, MAX_BITMAP_BYTES, data_bytes, parse_directory,
};
pub use bytes::TooShort;
pub use compression::{CompressionType, deflate, inflate};
pub use entry::{
    COMPRESSED, COPIED, CompressedCluster, Corruption, EntryRules, L1_RESERVED, L2_RESERVED,
    L2Entry, MAX_OFFSET, OFFSET_MASK, SubclusterKind, ZERO, l1_offset,
};
pub use error::FormatError;
pub use extension::{
    BitmapsExtension, Extension, Extensions, LuksExtension, MAX_BITMAPS, MAX_DIRECTORY_BYTES,
};
pub use feature::{Autoclear, Compatible, FeatureName, Incompatible};
pub use geometry::{Geometry, MAX_L1_BYTES};
pub use header::{Crypt, Header, MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOTS, Purpose, SECTOR_BYTES};
pub use new_image::{Finished, Mapped, NewImage, NewTable, NewTables, image_clusters};
pub use refcount::{RefcountWidth, block_offset};
pub use snapshot::{MAX_SNAPSHOT_L1_BYTES, MAX_SNAPSHOT_TABLE_BYTES, Snapshot};
