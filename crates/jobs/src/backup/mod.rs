//! [`Backup`]: copies the bytes that a node has at one instant to another node, while guests go on.
//!
//! ```text
//! options  what is backed up, and how
//! check    why a backup does not begin
//! bitmap   what becomes of a bitmap
//! verify   the target is read again, and compared
//! manifest checksums in a file
//! top      which parts only the top layer has
//! task     the job
//! ```
//!
//! A filter above the source keeps the bytes of the instant ([`snapshot`](crate::snapshot)): what a guest is about to
//! write over is copied first. The workers of the job copy the rest, from the source, as it has what was not
//! written over. Both claim what they copy in the same words, so nothing is copied twice, and nothing forgotten.

mod bitmap;
mod check;
mod manifest;
mod options;
mod task;
mod top;
mod verify;

pub use check::BackupError;
pub use options::{Backup, BackupSync, BitmapMode};
