//! The two libraries of Ceph, as far as the driver needs them: all that is unsafe of it.
//!
//! The types of the functions are those of `librbd.h` and `librados.h` of Ceph 16; the interface of a library
//! of this number is never changed, only added to. A library that has been loaded stays: its threads run in
//! it until the process ends.

mod api;
mod cluster;
mod image;
mod request;

use std::ffi::{CString, c_int};
use std::io;

pub use cluster::{Cluster, NoCluster, Pool};
pub use image::{Image, Luks, NewImage, OpenImage};

/// The result of a call: a number that is not negative, or an error of the system.
fn checked(result: c_int) -> io::Result<c_int> {
    match result {
        0.. => Ok(result),
        errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
    }
}

/// A text as the libraries take it.
///
/// # Errors
/// EINVAL if there is a zero in it.
fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
