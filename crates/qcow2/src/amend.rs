//! Changes properties of an image: the keys of an encrypted one.

use std::io;

use coblk_aio::Co;
use coblk_block::Amend;
use serde::Deserialize;

use crate::encryption::{EncryptAmendOptions, EncryptFormat};
use crate::image::Image;
use crate::layout::{Crypt, FormatError};

/// Properties of an image that can be changed, QAPI's `BlockdevAmendOptionsQcow2`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Qcow2AmendOptions {
    /// `encrypt`: the keys of an image of LUKS.
    pub encrypt: Option<EncryptAmendOptions>,
}

impl Image {
    /// Changes what is asked for.
    ///
    /// # Errors
    /// EINVAL, with a text, for options that make no sense, or that there are not. Those of each change.
    pub(crate) fn co_amend_image(&self, co: &Co<'_>, amend: Amend<'_>) -> io::Result<()> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let options: Qcow2AmendOptions = amend.options.take().map_err(invalid)?;
        (amend.progress)(0, 1);
        if let Some(change) = &options.encrypt {
            self.co_amend_keys(co, change, amend.force)?;
        }
        (amend.progress)(1, 1);
        Ok(())
    }

    fn co_amend_keys(
        &self,
        co: &Co<'_>,
        change: &EncryptAmendOptions,
        force: bool,
    ) -> io::Result<()> {
        let format = match self.header().crypt()? {
            Crypt::None => None,
            Crypt::Aes => Some(EncryptFormat::Aes),
            Crypt::Luks => Some(EncryptFormat::Luks),
        };
        let (Some(encryption), Some(format)) = (&self.encryption, format) else {
            return Err(FormatError::invalid("'encrypt': the image is not encrypted").into());
        };
        if change.format.is_some_and(|told| told != format) {
            let why = format!("'encrypt.format': the image is encrypted by '{}'", format.name());
            return Err(FormatError::invalid(why).into());
        }
        Ok(encryption.co_amend(co, &self.file, change, force)?)
    }
}
