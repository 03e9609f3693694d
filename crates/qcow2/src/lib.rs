//! The qcow2 image format.
//!
//! [`layout`] is the pure core: the format as bytes, without I/O.
#![forbid(unsafe_code)]

mod fuzz;
pub mod layout;

#[doc(hidden)]
pub use fuzz::fuzz_parsers;
