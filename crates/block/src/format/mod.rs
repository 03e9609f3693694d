//! Drivers of what bytes mean: a part of another node.

mod raw;

pub(crate) use raw::RawReopen;
pub use raw::{Raw, RawError};
