//! The key of an encrypted image.

use std::sync::Arc;

use coblk_block::{Child, OpenError, Opening, Secret};

use super::refused;
use crate::encryption::{EncryptFormat, Encryption, password};
use crate::layout::{Crypt, FormatError, Header};
use crate::options::Qcow2Options;

/// The encryption of the image, by what its header and the options say.
#[inline(never)]
pub(super) fn co_encryption(
    opening: &Opening<'_, '_>,
    options: &Qcow2Options,
    header: &Header,
    file: &Child,
) -> Result<Option<Encryption>, OpenError> {
    let told = options.encrypt.as_ref();
    let format = match header.crypt().map_err(refused)? {
        Crypt::None if told.is_some() => {
            return Err(OpenError::option("encrypt", "the image is not encrypted"));
        }
        Crypt::None => return Ok(None),
        Crypt::Aes => EncryptFormat::Aes,
        Crypt::Luks => EncryptFormat::Luks,
    };
    if let Some(other) = told.and_then(|told| told.format).filter(|told| *told != format) {
        let (format, other) = (format.name(), other.name());
        let why = format!("the image is encrypted by '{format}', and the options say '{other}'");
        return Err(OpenError::option("encrypt.format", why));
    }
    let secret = match told.and_then(|told| told.key_secret.as_deref()) {
        Some(id) => Some(secret(opening, id)?),
        None if options.metadata_only => None,
        None => {
            let why = "the image is encrypted: the id of the secret that opens it is needed";
            return Err(OpenError::option("encrypt.key-secret", why));
        }
    };
    let key = secret.as_ref().map(|(id, secret)| Ok((&**id, password(id, secret)?))).transpose();
    let key = key.map_err(|why: FormatError| OpenError::option("encrypt.key-secret", why))?;
    let encryption = Encryption::co_open(opening.co(), file, header, key, opening.objects());
    encryption.map_err(refused)
}

fn secret(opening: &Opening<'_, '_>, id: &str) -> Result<(String, Arc<Secret>), OpenError> {
    Ok((id.to_owned(), opening.object(id)?))
}
