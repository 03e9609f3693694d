//! The header of LUKS of an image that is to be made.

use std::time::Duration;

use coblk_aio::{Co, PoolShare};
use coblk_crypto::luks::{Cost, LuksHeader, LuksOptions, NewLuks};
use coblk_crypto::{CipherAlgorithm, CipherMode, CipherSpec, CryptoError, Hash, IvGenerator};

use crate::layout::FormatError;

/// How a new image is to be encrypted by LUKS.
#[derive(Clone, Copy)]
pub(crate) struct NewSpec(LuksOptions);

impl NewSpec {
    /// By QEMU's names of cipher, mode, IV generator and the hash of that, the hash of passwords, and how many
    /// milliseconds it takes to try one.
    ///
    /// # Errors
    /// EINVAL or ENOTSUP for what cannot be.
    pub(crate) fn new(
        names: [Option<&str>; 4],
        hash: Option<&str>,
        iter_time_ms: Option<u64>,
    ) -> Result<NewSpec, FormatError> {
        let mut options = LuksOptions::default();
        let read = |options: &mut LuksOptions| {
            let [cipher, mode, iv, iv_hash] = names;
            let usual = options.spec;
            let cipher = cipher.map_or(Ok(usual.algorithm), CipherAlgorithm::from_name)?;
            let mode = mode.map_or(Ok(usual.mode), CipherMode::from_name)?;
            let iv_hash = iv_hash.map_or(Ok(Hash::Sha256), Hash::from_name)?;
            let iv = iv.map_or(Ok(usual.iv), |it| IvGenerator::from_name(it, Some(iv_hash)))?;
            options.spec = CipherSpec::new(cipher, mode, iv)?;
            options.hash = hash.map_or(Ok(options.hash), Hash::from_name)?;
            Ok::<(), CryptoError>(())
        };
        read(&mut options)?;
        options.cost = cost(iter_time_ms);
        Ok(NewSpec(options))
    }

    /// Bytes of the header of LUKS, with all key slots.
    pub(crate) fn header_bytes(&self) -> u64 {
        LuksHeader::bytes_of(self.0.spec)
    }
}

/// How long it takes to try a password.
pub(super) fn cost(iter_time_ms: Option<u64>) -> Cost {
    iter_time_ms.map_or(Cost::default(), |it| Cost::Time(Duration::from_millis(it)))
}

/// A new header of LUKS.
pub(crate) struct NewEncryption(NewLuks);

impl NewEncryption {
    /// Makes it, and a key, on a worker.
    ///
    /// # Errors
    /// If there are no random numbers, or a password would take longer to try than is allowed.
    pub(crate) fn co_new(
        co: &Co<'_>,
        spec: NewSpec,
        password: &str,
    ) -> Result<NewEncryption, FormatError> {
        let made = PoolShare::once(co, || NewLuks::new(&spec.0, password.as_bytes()));
        Ok(NewEncryption(made?))
    }

    /// All bytes of the header.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}
