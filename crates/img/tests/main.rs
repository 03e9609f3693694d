//! The command beside qemu-img.
//!
//! One program, as each takes a second to link.

mod backup_example;
mod bitmaps;
mod chains;
mod changes;
mod compressed;
mod convert;
mod nbd;
mod overlay_example;
mod parts;
mod questions;
mod rbd;
mod repair;
mod targets;
mod usage;
mod util;
