//! [`EncryptCreateOptions`]: how a new image is to be encrypted.

use coblk_block::{CreateError, Creating, Secret};
use serde::Deserialize;

use crate::encryption::{NewEncryption, NewSpec, password};
use crate::layout::{Crypt, FormatError, Header, LuksExtension};

/// How a new image is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncryptCreateFormat {
    /// By the legacy AES of the format, which protects little. QAPI calls it `qcow`, and qemu-img `aes`.
    #[serde(alias = "aes")]
    Qcow,
    /// By LUKS.
    Luks,
}

/// `encrypt` of a new image, QAPI's `QCryptoBlockCreateOptions`. All but the first two are for LUKS.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct EncryptCreateOptions {
    /// `format`.
    pub format: EncryptCreateFormat,
    /// `key-secret`: the id of a [`Secret`], the password.
    pub key_secret: Option<String>,
    /// `cipher-alg`: `aes-128`, `aes-192` or `aes-256`, the default.
    pub cipher_alg: Option<String>,
    /// `cipher-mode`: `xts`, the default, or `cbc`.
    pub cipher_mode: Option<String>,
    /// `ivgen-alg`: `plain`, `plain64`, the default, or `essiv`.
    pub ivgen_alg: Option<String>,
    /// `ivgen-hash-alg`: the hash of `essiv`, `sha256`.
    pub ivgen_hash_alg: Option<String>,
    /// `hash-alg`: the hash of passwords: `sha1`, `sha224`, `sha256`, the default, `sha384` or `sha512`.
    pub hash_alg: Option<String>,
    /// `iter-time`: how long it takes to try a password, in milliseconds; 2000 by default.
    pub iter_time: Option<u64>,
}

impl EncryptCreateOptions {
    /// An encryption whose password is the secret of this id, with everything else as it is by default.
    pub fn new(format: EncryptCreateFormat, key_secret: impl Into<String>) -> EncryptCreateOptions {
        EncryptCreateOptions {
            format,
            key_secret: Some(key_secret.into()),
            cipher_alg: None,
            cipher_mode: None,
            ivgen_alg: None,
            ivgen_hash_alg: None,
            hash_alg: None,
            iter_time: None,
        }
    }

    fn spec(&self) -> Result<NewSpec, FormatError> {
        NewSpec::new(
            [&self.cipher_alg, &self.cipher_mode, &self.ivgen_alg, &self.ivgen_hash_alg]
                .map(Option::as_deref),
            self.hash_alg.as_deref(),
            self.iter_time,
        )
    }

    /// Says in a header how the image is encrypted, and how long the header of LUKS is; not where it is.
    ///
    /// # Errors
    /// EINVAL or ENOTSUP for what cannot be.
    pub(super) fn enter(&self, header: &mut Header) -> Result<(), FormatError> {
        if self.key_secret.is_none() {
            return Err(FormatError::invalid("'encrypt' needs 'key-secret'"));
        }
        let bytes = self.header_bytes()?;
        match self.format {
            EncryptCreateFormat::Qcow => header.set_crypt(Crypt::Aes),
            EncryptCreateFormat::Luks => {
                header.set_crypt(Crypt::Luks);
                let place = LuksExtension { offset: 0, bytes };
                header.extensions.set_luks(Some(place));
            }
        }
        Ok(())
    }

    /// Bytes of the header of LUKS, with all key slots; 0 without LUKS.
    ///
    /// # Errors
    /// EINVAL or ENOTSUP for what cannot be.
    pub(super) fn header_bytes(&self) -> Result<u64, FormatError> {
        let spec = self.spec()?;
        Ok(match self.format {
            EncryptCreateFormat::Qcow => 0,
            EncryptCreateFormat::Luks => spec.header_bytes(),
        })
    }

    /// Makes the keys. The work is done by a worker.
    pub(super) fn co_make(
        &self,
        creating: &Creating<'_, '_>,
    ) -> Result<Option<NewEncryption>, CreateError> {
        let failed = |error: FormatError| CreateError::of_driver(std::io::Error::from(error));
        // It was asked for before.
        let id = self.key_secret.as_deref().unwrap_or_default();
        let secret = creating.object::<Secret>(id)?;
        let password = password(id, &secret).map_err(failed)?;
        match self.format {
            EncryptCreateFormat::Qcow => Ok(None),
            EncryptCreateFormat::Luks => {
                let spec = self.spec().map_err(failed)?;
                NewEncryption::co_new(creating.co(), spec, password).map(Some).map_err(failed)
            }
        }
    }
}
