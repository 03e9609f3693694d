//! Drivers of what bytes mean: a part of another node.

mod raw;

pub use raw::{Raw, RawError, RawMeasureOptions, RawOptions};
