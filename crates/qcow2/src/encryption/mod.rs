//! [`Encryption`]: how the data of an image is encrypted.
//!
//! Data is encrypted by sectors of 512 bytes; metadata and compressed clusters are not. With LUKS a sector is
//! known by its place in the file that has it, with the legacy AES by its place on the disk.

#[cfg(feature = "encryption")]
mod data;
#[cfg(feature = "encryption")]
mod luks;
#[cfg(feature = "encryption")]
mod new;
#[cfg(not(feature = "encryption"))]
mod none;

use coblk_block::Secret;

use crate::layout::FormatError;

#[cfg(feature = "encryption")]
pub(crate) use data::Encryption;
#[cfg(feature = "encryption")]
pub(crate) use new::{NewEncryption, NewSpec};
#[cfg(not(feature = "encryption"))]
pub(crate) use none::{Encryption, NewEncryption, NewSpec};

/// The password that a secret is.
///
/// # Errors
/// EINVAL if it is something else.
pub(crate) fn password<'a>(id: &str, secret: &'a Secret) -> Result<&'a str, FormatError> {
    secret.text().ok_or_else(|| {
        FormatError::invalid(format!("secret '{id}' is no text in UTF-8, and so no password"))
    })
}
