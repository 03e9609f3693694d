//! [`Encryption`], in a build without it: there is none.

use std::io;

use coblk_aio::Co;
use coblk_block::{Child, ObjectFinder};
use serde_json::Value;

use super::EncryptAmendOptions;
use crate::layout::{Crypt, FormatError, Geometry, Header};
use crate::source::{ImageError, Source};

pub(crate) enum Encryption {}

impl Encryption {
    pub(crate) fn co_open(
        _: &Co<'_>,
        _: &dyn Source,
        header: &Header,
        _: Option<(&str, &str)>,
        _: ObjectFinder,
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

    pub(crate) fn co_amend(
        &self,
        _: &Co<'_>,
        _: &Child,
        _: &EncryptAmendOptions,
        _: bool,
    ) -> Result<(), ImageError> {
        match *self {}
    }

    pub(crate) fn info(&self) -> Value {
        match *self {}
    }
}

/// There can be no new image that is encrypted.
pub(crate) enum NewSpec {}

impl NewSpec {
    pub(crate) fn new(
        _: [Option<&str>; 4],
        _: Option<&str>,
        _: Option<u64>,
    ) -> Result<NewSpec, FormatError> {
        Err(FormatError::unsupported("'encrypt' is not supported: this build has no encryption"))
    }

    pub(crate) fn header_bytes(&self) -> u64 {
        match *self {}
    }
}

pub(crate) enum NewEncryption {}

impl NewEncryption {
    pub(crate) fn co_new(_: &Co<'_>, spec: NewSpec, _: &str) -> Result<NewEncryption, FormatError> {
        match spec {}
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match *self {}
    }
}
