//! [`set`]: another length, also of an image that is encrypted.
//!
//! An encrypted image has a header before its first byte, which its length does not count. Whether librbd
//! counts it in the length that it is told to set depends on its version. An image that is told a length
//! without the header, where that counts, loses data at its end: so it is found out by a call that cannot
//! make the image shorter.

use std::io;

use crate::ffi::Image;

/// Sets the length of an image, in bytes. `header` is how many bytes its storage has besides. Blocks.
///
/// # Errors
/// Those of librbd.
pub fn set(image: &Image, bytes: u64, header: u64) -> io::Result<()> {
    if header == 0 {
        return image.resize(bytes);
    }
    let old = image.length()?;
    // All of the storage. If it counts the header nothing changes, else the image becomes longer.
    image.resize(old + header)?;
    let counted = if image.length()? == old { header } else { 0 };
    image.resize(bytes + counted)
}
