//! The driver `rbd`: a node whose storage is an RBD image of a Ceph cluster.
//!
//! Ceph's own libraries do the work, `librbd.so.1` and `librados.so.2`. They are loaded when the first such
//! node is opened, so a program that has this driver needs nothing of Ceph to be built, or to run without
//! RBD.
//!
//! A request is one asynchronous call of librbd, on the buffers of the request itself. A thread of librbd
//! tells of its end, and does nothing but wake the coroutine in the context that it belongs to: so one image
//! serves any number of contexts, without a home and without a lock of this crate. Calls that block, such as
//! opening an image, are jobs of workers.
//!
//! ```text
//! options.rs  what a node is opened with, in QEMU's words
//! name.rs     `rbd:` file names
//! connect.rs  from options to a pool of a cluster, and to an image
//! driver.rs   Rbd: requests
//! length.rs   another length
//! status.rs   what is allocated, by the difference from nothing
//! watch.rs    other clients that change the image
//! create.rs   new images
//! ffi/        the two libraries
//! ```
//!
//! # Unsafe code
//!
//! In the modules of `ffi` alone.
#![deny(unsafe_code)]

mod connect;
mod create;
mod driver;
#[allow(unsafe_code)]
mod ffi;
mod length;
mod name;
pub mod options;
mod status;
mod watch;

pub use create::{CipherAlgorithm, RbdCreateEncryption, RbdCreateOptions};
pub use driver::Rbd;
pub use options::RbdOptions;
