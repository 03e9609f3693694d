//! [`Encryption`]: how the data of an image is encrypted.
//!
//! Data is encrypted by sectors of 512 bytes; metadata and compressed clusters are not. With LUKS a sector is
//! known by its place in the file that has it, with the legacy AES by its place on the disk.

#[cfg(feature = "encryption")]
mod amend;
#[cfg(feature = "encryption")]
mod data;
#[cfg(feature = "encryption")]
mod luks;
#[cfg(feature = "encryption")]
mod new;
#[cfg(not(feature = "encryption"))]
mod none;

use coblk_block::Secret;
use serde::{Deserialize, Serialize};

use crate::layout::FormatError;

#[cfg(feature = "encryption")]
pub(crate) use data::Encryption;
#[cfg(feature = "encryption")]
pub(crate) use new::{NewEncryption, NewSpec};
#[cfg(not(feature = "encryption"))]
pub(crate) use none::{Encryption, NewEncryption, NewSpec};

/// How the data of an image is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EncryptFormat {
    /// By the legacy AES of the format, which protects little.
    Aes,
    /// By LUKS.
    Luks,
}

impl EncryptFormat {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            EncryptFormat::Aes => "aes",
            EncryptFormat::Luks => "luks",
        }
    }
}

/// The slots of a header of LUKS.
const SLOTS: u64 = 8;

/// What becomes of a key slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// It has a key.
    Active,
    /// It has none.
    Inactive,
}

/// A change of keys of an image of LUKS, QAPI's `QCryptoBlockAmendOptions`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct EncryptAmendOptions {
    /// `format`: what the image must say.
    pub format: Option<EncryptFormat>,
    /// `state`: whether a key is added or erased.
    pub state: KeyState,
    /// `new-secret`: the id of the secret whose password is added.
    pub new_secret: Option<String>,
    /// `old-secret`: the id of a secret whose password opens the image, by default the one that it was opened
    /// with; or whose password is erased from all slots.
    pub old_secret: Option<String>,
    /// `keyslot`: the slot, 0 to 7; by default the first one without a key.
    pub keyslot: Option<i64>,
    /// `iter-time`: how long it takes to try the new password, in milliseconds; 2000 by default.
    pub iter_time: Option<u64>,
}

impl EncryptAmendOptions {
    /// A slot that becomes this, with every other option as it is by default.
    pub fn new(state: KeyState) -> EncryptAmendOptions {
        EncryptAmendOptions {
            format: None,
            state,
            new_secret: None,
            old_secret: None,
            keyslot: None,
            iter_time: None,
        }
    }

    #[cfg_attr(not(feature = "encryption"), allow(dead_code))]
    fn slot(&self) -> Result<Option<usize>, FormatError> {
        match self.keyslot.map(u64::try_from) {
            None => Ok(None),
            Some(Ok(slot)) if slot < SLOTS => Ok(Some(slot as usize)),
            Some(_) => Err(FormatError::invalid("'keyslot' must be between 0 and 7")),
        }
    }
}

/// The password that a secret is.
///
/// # Errors
/// EINVAL if it is something else.
pub(crate) fn password<'a>(id: &str, secret: &'a Secret) -> Result<&'a str, FormatError> {
    secret.text().ok_or_else(|| {
        FormatError::invalid(format!("secret '{id}' is no text in UTF-8, and so no password"))
    })
}
