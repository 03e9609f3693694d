//! LUKS1: a header with eight slots, each of which may have the key of the data, encrypted with a password.
//!
//! ```text
//! 0       592    4096
//! header  -      material of slot 0 | material of slot 1 | ... | end of the header ("payload offset")
//! ```
//!
//! The material of a slot is the key, split into 4000 stripes of which none can be missing, and encrypted
//! with a key made of the password. Only with the right one do the stripes make a key whose digest is that
//! in the header.

mod header;
mod keys;
mod new;
mod split;

pub use header::{KeySlot, LuksHeader};
pub use keys::{MAX_WORK, MasterKey};
pub use new::{Cost, LuksOptions, NewLuks};

/// Slots of a header.
pub const SLOTS: usize = 8;
/// Stripes of a key. QEMU and cryptsetup know no other number.
pub const STRIPES: u32 = 4000;
const SECTOR_BYTES: u64 = 512;
