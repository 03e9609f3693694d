//! The driver beside QEMU's programs, and in simulations.
//!
//! One program, as each takes a second to link.

mod amend;
mod around;
mod backing;
mod behind_end;
mod beside_repair;
mod bitmap_crash;
mod bitmaps;
mod change_crash;
mod check;
mod concurrent;
mod create;
mod creating;
#[cfg(feature = "encryption")]
mod encrypted_create;
#[cfg(feature = "encryption")]
mod encrypted_write;
#[cfg(feature = "encryption")]
mod encryption;
mod files;
mod giving_way;
mod giving_way_changes;
mod header_faults;
mod holding;
mod hostile;
mod life;
mod live_repair;
mod measure;
mod order;
mod punching;
mod read;
mod reopened;
mod repair;
mod resize;
mod restored_flags;
mod snapshot_crash;
mod snapshots;
mod space;
mod status;
mod util;
mod writable;
mod write_model;
