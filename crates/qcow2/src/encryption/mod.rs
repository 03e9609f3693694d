//! [`Encryption`]: how the data of an image is encrypted.
//!
//! Data is encrypted by sectors of 512 bytes; metadata and compressed clusters are not. With LUKS a sector is
//! known by its place in the file that has it, with the legacy AES by its place on the disk.

#[cfg(feature = "encryption")]
mod data;
#[cfg(feature = "encryption")]
mod luks;
#[cfg(not(feature = "encryption"))]
mod none;

#[cfg(feature = "encryption")]
pub(crate) use data::Encryption;
#[cfg(not(feature = "encryption"))]
pub(crate) use none::Encryption;
