//! [`Encryption`], and data that goes through it.

use std::io;

use coblk_aio::{Co, PoolShare};
use coblk_block::{Child, ObjectFinder};
use coblk_crypto::{CryptoError, SECTOR_BYTES, SectorCipher, legacy_cipher};
use serde_json::{Value, json};

use super::EncryptAmendOptions;
use super::amend::Place;
use super::luks::Luks;
use crate::layout::{Crypt, FormatError, Geometry, Header};
use crate::source::{ImageError, Source};

/// Most clusters that are read and decrypted at once, and most bytes of them: what follows goes through the
/// same buffer.
const MAX_CLUSTERS: u64 = 32;
const MAX_CHUNK_BYTES: u64 = 1 << 20;
/// Most bytes that are encrypted where the request runs. More take longer than a worker takes to wake up.
const MAX_INLINE_BYTES: usize = 64 << 10;

/// The encryption of an image. Any thread; several contexts at once.
pub(crate) struct Encryption {
    method: Method,
    /// None without a key: the image tells of itself, and has no data.
    cipher: Option<SectorCipher>,
    /// The id of the secret that it was opened with.
    opened_by: Option<String>,
    /// Where secrets are found.
    objects: ObjectFinder,
    /// It shares workers with nothing else.
    workers: PoolShare,
}

enum Method {
    Aes,
    Luks(Box<Luks>),
}

impl Encryption {
    /// The encryption that the header of an image says, if it says one. `key` is the id of a secret and the
    /// password that it is, of any slot; without one there is no key. The work is done by workers.
    ///
    /// # Errors
    /// If the file cannot be read, the header of LUKS is not one that can be used, or the password is wrong.
    /// No password is wrong for the legacy AES.
    pub(crate) fn co_open(
        co: &Co<'_>,
        file: &dyn Source,
        header: &Header,
        key: Option<(&str, &str)>,
        objects: ObjectFinder,
    ) -> Result<Option<Encryption>, ImageError> {
        let password = key.map(|(_, password)| password);
        let (method, cipher) = match header.crypt()? {
            Crypt::None => return Ok(None),
            Crypt::Aes => (Method::Aes, password.map(|text| legacy_cipher(text.as_bytes()))),
            Crypt::Luks => {
                let luks = Luks::co_open(co, file, header)?;
                let key = password.map(|password| luks.co_unlock(co, file, password.as_bytes()));
                let cipher = key.transpose()?.map(|(_, key)| luks.header().cipher(&key));
                (Method::Luks(Box::new(luks)), cipher)
            }
        };
        let opened_by = key.map(|(id, _)| id.to_owned());
        Ok(Some(Encryption { method, cipher, opened_by, objects, workers: PoolShare::new() }))
    }

    /// Most bytes of a run that are read and decrypted at once.
    pub(crate) fn chunk_bytes(&self, geometry: Geometry) -> usize {
        (geometry.cluster_bytes() * MAX_CLUSTERS).min(MAX_CHUNK_BYTES) as usize
    }

    /// The number of the sector at `guest` bytes of the disk and `host` bytes of the file that has it.
    fn sector(&self, (guest, host): (u64, u64)) -> u64 {
        let offset = if matches!(self.method, Method::Aes) { guest } else { host };
        offset / SECTOR_BYTES as u64
    }

    /// # Errors
    /// EACCES if the image was opened without its key.
    fn cipher(&self) -> io::Result<&SectorCipher> {
        self.cipher.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EACCES))
    }

    /// Decrypts whole sectors that are at `guest` bytes of the disk and `host` bytes of the file.
    ///
    /// # Errors
    /// EACCES if the image was opened without its key.
    pub(crate) fn co_decrypt(
        &self,
        co: &Co<'_>,
        place: (u64, u64),
        data: &mut [u8],
    ) -> io::Result<()> {
        let (cipher, sector) = (self.cipher()?, self.sector(place));
        self.co_run(co, data, |data| cipher.decrypt(sector, data));
        Ok(())
    }

    /// Encrypts whole sectors that go to `guest` bytes of the disk and `host` bytes of the file.
    ///
    /// # Errors
    /// EACCES if the image was opened without its key.
    pub(crate) fn co_encrypt(
        &self,
        co: &Co<'_>,
        place: (u64, u64),
        data: &mut [u8],
    ) -> io::Result<()> {
        let (cipher, sector) = (self.cipher()?, self.sector(place));
        self.co_run(co, data, |data| cipher.encrypt(sector, data));
        Ok(())
    }

    fn co_run(&self, co: &Co<'_>, data: &mut [u8], function: impl FnOnce(&mut [u8]) + Send) {
        match data.len() <= MAX_INLINE_BYTES {
            true => function(data),
            false => self.workers.submit_co(co, || function(data)),
        }
    }

    /// Changes keys.
    ///
    /// # Errors
    /// EINVAL, with a text, if the change makes no sense, or all data would be lost and `force` is not set;
    /// ENOTSUP if the image is not one of LUKS. Nothing has changed then. Those of the file.
    pub(crate) fn co_amend(
        &self,
        co: &Co<'_>,
        file: &Child,
        change: &EncryptAmendOptions,
        force: bool,
    ) -> Result<(), ImageError> {
        let place = Place { file, objects: &self.objects, opened_by: self.opened_by.as_deref() };
        match &self.method {
            Method::Aes => {
                let why = "the keys of an image of the legacy AES cannot be changed";
                Err(FormatError::unsupported(why).into())
            }
            Method::Luks(luks) => luks.co_amend(co, &place, change, force),
        }
    }

    /// QAPI's `ImageInfoSpecificQCow2Encryption`.
    pub(crate) fn info(&self) -> Value {
        match &self.method {
            Method::Aes => json!({ "format": "aes" }),
            Method::Luks(luks) => luks.info(),
        }
    }
}

/// As QEMU has it, whatever is wrong is EINVAL; a kind that is not known is ENOTSUP.
impl From<CryptoError> for FormatError {
    fn from(error: CryptoError) -> FormatError {
        match error {
            CryptoError::Unsupported(why) => FormatError::unsupported(why),
            error => FormatError::invalid(error.to_string()),
        }
    }
}
