//! Dirty bitmaps: which parts of a disk were written since an instant.
//!
//! ```text
//! words         bits in words, with a summary: set, cleared and scanned by any thread at once
//! bits          DirtyBits: a bit for each granule of a disk
//! slots         the bits of all bitmaps of a node, as writes see them
//! dirty_bitmap  DirtyBitmap: bits with a name and a state
//! set           Bitmaps: those of one node
//! reference     which bitmap an option means
//! digest        their SHA-256, for tests
//! ```
//!
//! A write to a node without bitmaps pays the load of features that it makes anyway. A bitmap that records costs
//! loads where its bits are set, and a `fetch_or` where they are not.

pub(crate) mod atomics;
mod bits;
mod digest;
mod dirty_bitmap;
mod error;
mod reference;
mod set;
mod slots;
mod words;

pub use bits::DirtyBits;
pub use dirty_bitmap::{AcquiredBitmap, BitmapInfo, BitmapUse, DirtyBitmap};
pub use error::BitmapError;
pub use reference::{BitmapRef, NodeBitmap};
pub use set::{Bitmaps, NewBitmap, SplitBitmap};

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
