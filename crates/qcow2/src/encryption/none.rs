//! [`Encryption`], in a build without it: there is none.

use std::io;

use coblk_aio::Co;
use serde_json::Value;

use crate::layout::{Crypt, FormatError, Geometry, Header};
use crate::source::{ImageError, Source};

pub(crate) enum Encryption {}

impl Encryption {
    pub(crate) fn co_open(
        _: &Co<'_>,
        _: &dyn Source,
        header: &Header,
        _: Option<&str>,
    ) -> Result<Option<Encryption>, ImageError> {
        match header.crypt()? {
            Crypt::None => Ok(None),
            Crypt::Aes | Crypt::Luks => {
                let why = "the image is encrypted, and this build has no encryption";
                Err(FormatError::unsupported(why).into())
            }
        }
    }

    pub(crate) fn chunk_bytes(&self, _: Geometry) -> usize {
        match *self {}
    }

    pub(crate) fn co_decrypt(&self, _: &Co<'_>, _: (u64, u64), _: &mut [u8]) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn co_encrypt(&self, _: &Co<'_>, _: (u64, u64), _: &mut [u8]) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn info(&self) -> Value {
        match *self {}
    }
}
