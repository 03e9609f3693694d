//! [`Encryption`], and data that goes through it.

use std::io;

use coblk_aio::{Co, PoolShare};
use coblk_crypto::{CryptoError, SECTOR_BYTES, SectorCipher, legacy_cipher};
use serde_json::{Value, json};

use super::luks::Luks;
use crate::layout::{Crypt, FormatError, Geometry, Header};
use crate::source::{ImageError, Source};

/// Most clusters that are read and decrypted at once, and most bytes of them: what follows goes through the
/// same buffer.
const MAX_CLUSTERS: u64 = 32;
const MAX_CHUNK_BYTES: u64 = 1 << 20;
/// Most bytes that are encrypted where the request runs. More take longer than a worker takes to wake up.
const MAX_INLINE_BYTES: usize = 32 << 10;

/// The encryption of an image. Any thread; several contexts at once.
pub(crate) struct Encryption {
    method: Method,
    /// None without a key: the image tells of itself, and has no data.
    cipher: Option<SectorCipher>,
    /// It shares workers with nothing else.
    workers: PoolShare,
}

enum Method {
    Aes,
    Luks(Box<Luks>),
}

impl Encryption {
    /// The encryption that the header of an image says, if it says one. The password is that of any slot;
    /// without one there is no key. The work is done by workers.
    ///
    /// # Errors
    /// If the file cannot be read, the header of LUKS is not one that can be used, or the password is wrong.
    /// No password is wrong for the legacy AES.
    pub(crate) fn co_open(
        co: &Co<'_>,
        file: &dyn Source,
        header: &Header,
        password: Option<&str>,
    ) -> Result<Option<Encryption>, ImageError> {
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
        Ok(Some(Encryption { method, cipher, workers: PoolShare::new() }))
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
    #[allow(dead_code, reason = "images are not written yet")]
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
