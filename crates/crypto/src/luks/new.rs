//! New headers.

use std::fmt::Write;
use std::time::Duration;

use zeroize::Zeroizing;

use super::header::{DIGEST_BYTES, SALT_BYTES};
use super::{LuksHeader, MAX_WORK, MasterKey};
use crate::error::fill_random;
use crate::{
    CipherAlgorithm, CipherMode, CipherSpec, CryptoError, Hash, IvGenerator, SectorCipher,
};

/// Fewest rounds for a key, whatever time there is.
const MIN_ITERATIONS: u32 = 1000;
/// The digest of the key takes so much less: a password is to be guessed, and not a key.
const DIGEST_SHARE: u64 = 8;

/// How long it takes to try a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// So long, on this machine.
    Time(Duration),
    /// So many rounds.
    Iterations(u32),
}

impl Default for Cost {
    /// Two seconds, as in QEMU.
    fn default() -> Cost {
        Cost::Time(Duration::from_secs(2))
    }
}

impl Cost {
    /// The rounds for a key of so many bytes. With a time it takes a tenth of a second to find out.
    ///
    /// # Errors
    /// Invalid if it would be more than this crate would unlock.
    pub fn iterations(self, hash: Hash, key_bytes: usize) -> Result<u32, CryptoError> {
        self.share(hash, key_bytes, 1)
    }

    fn share(self, hash: Hash, key_bytes: usize, share: u64) -> Result<u32, CryptoError> {
        let iterations = match self {
            Cost::Iterations(iterations) => u64::from(iterations) / share,
            Cost::Time(time) => {
                let all = u128::from(hash.rounds_a_second(key_bytes)) * time.as_millis();
                u64::try_from(all / 1000).unwrap_or(u64::MAX) / share
            }
        };
        let iterations = iterations.max(MIN_ITERATIONS.into());
        match u32::try_from(iterations) {
            // Half for the slot, and more than that is left for the digest.
            Ok(iterations) if hash.work(iterations, key_bytes) <= MAX_WORK / 2 => Ok(iterations),
            _ => Err(CryptoError::Invalid(format!(
                "{iterations} rounds of {} for each look at a key are too many",
                hash.name()
            ))),
        }
    }
}

/// How data is to be encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LuksOptions {
    /// Cipher, mode and IV generator.
    pub spec: CipherSpec,
    /// The hash that passwords are stretched by.
    pub hash: Hash,
    /// How long it takes to try a password.
    pub cost: Cost,
}

impl Default for LuksOptions {
    /// As in QEMU: aes-256, xts, plain64, sha256.
    fn default() -> LuksOptions {
        LuksOptions {
            spec: CipherSpec {
                algorithm: CipherAlgorithm::Aes256,
                mode: CipherMode::Xts,
                iv: IvGenerator::Plain64,
            },
            hash: Hash::Sha256,
            cost: Cost::default(),
        }
    }
}

/// A new header, whose first slot has a key.
#[derive(Debug)]
pub struct NewLuks {
    /// The header.
    pub header: LuksHeader,
    /// All of it as it is to be written: [`payload_offset`](LuksHeader::payload_offset) bytes.
    pub bytes: Vec<u8>,
    /// The cipher of the data.
    pub cipher: SectorCipher,
}

impl NewLuks {
    /// Makes a header with a new key, to be had with this password. Not for the thread of a loop.
    ///
    /// # Errors
    /// If there are no random numbers; Invalid if it would cost more than this crate would unlock.
    pub fn new(options: &LuksOptions, password: &[u8]) -> Result<NewLuks, CryptoError> {
        let LuksOptions { spec, hash, cost } = *options;
        let iterations = cost.iterations(hash, spec.key_bytes())?;
        let digest_iterations = cost.share(hash, DIGEST_BYTES, DIGEST_SHARE)?;
        let mut header = LuksHeader::empty(spec, hash, &uuid()?);
        let mut key = MasterKey(Zeroizing::new(vec![0; spec.key_bytes()]));
        fill_random(&mut key.0)?;
        let mut salt = [0; SALT_BYTES];
        fill_random(&mut salt)?;
        let digest = header.digest_of(&key, &salt, digest_iterations);
        header.set_digest(&digest, &salt, digest_iterations);
        let material = header.set_key(0, &key, password, iterations)?;
        let mut bytes = vec![0; header.payload_offset() as usize];
        bytes[..LuksHeader::BYTES].copy_from_slice(&header.encode());
        let begin = header.material(0).start as usize;
        bytes[begin..begin + material.len()].copy_from_slice(&material);
        Ok(NewLuks { cipher: header.cipher(&key), header, bytes })
    }
}

/// A random UUID (version 4).
fn uuid() -> Result<String, CryptoError> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}
