//! [`Hash`]: hashes by name, and keys that are stretched by them.

use std::time::Duration;

use pbkdf2::pbkdf2_hmac;
use rustix::time::{ClockId, clock_gettime};
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use crate::CryptoError;

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hash {
    /// `sha1`.
    Sha1,
    /// `sha224`.
    Sha224,
    /// `sha256`.
    Sha256,
    /// `sha384`.
    Sha384,
    /// `sha512`.
    Sha512,
}

const ALL: [Hash; 5] = [Hash::Sha1, Hash::Sha224, Hash::Sha256, Hash::Sha384, Hash::Sha512];

impl Hash {
    /// The hash of a name, as QEMU and LUKS have it.
    ///
    /// # Errors
    /// Unsupported if there is none.
    pub fn from_name(name: &str) -> Result<Hash, CryptoError> {
        let found = ALL.into_iter().find(|hash| hash.name() == name);
        found.ok_or_else(|| {
            let names = ALL.map(Hash::name).join(", ");
            CryptoError::unsupported(format!("hash '{name}' is not supported; there is {names}"))
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Hash::Sha1 => "sha1",
            Hash::Sha224 => "sha224",
            Hash::Sha256 => "sha256",
            Hash::Sha384 => "sha384",
            Hash::Sha512 => "sha512",
        }
    }

    /// Bytes of a digest.
    pub fn digest_bytes(self) -> usize {
        match self {
            Hash::Sha1 => 20,
            Hash::Sha224 => 28,
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
            Hash::Sha512 => 64,
        }
    }

    /// Hashes parts, one behind the other. `target` takes the first bytes of the digest.
    pub(crate) fn digest(self, parts: [&[u8]; 2], target: &mut [u8]) {
        match self {
            Hash::Sha1 => digest::<Sha1>(parts, target),
            Hash::Sha224 => digest::<Sha224>(parts, target),
            Hash::Sha256 => digest::<Sha256>(parts, target),
            Hash::Sha384 => digest::<Sha384>(parts, target),
            Hash::Sha512 => digest::<Sha512>(parts, target),
        }
    }

    /// Fills `target` with a key made of a password by PBKDF2.
    pub(crate) fn stretch(self, password: &[u8], salt: &[u8], rounds: u32, target: &mut [u8]) {
        match self {
            Hash::Sha1 => pbkdf2_hmac::<Sha1>(password, salt, rounds, target),
            Hash::Sha224 => pbkdf2_hmac::<Sha224>(password, salt, rounds, target),
            Hash::Sha256 => pbkdf2_hmac::<Sha256>(password, salt, rounds, target),
            Hash::Sha384 => pbkdf2_hmac::<Sha384>(password, salt, rounds, target),
            Hash::Sha512 => pbkdf2_hmac::<Sha512>(password, salt, rounds, target),
        }
    }

    /// How often `rounds` rounds run to fill a key of so many bytes: once for each digest in it.
    pub(crate) fn work(self, rounds: u32, key_bytes: usize) -> u64 {
        u64::from(rounds) * key_bytes.div_ceil(self.digest_bytes()) as u64
    }

    /// How many rounds take a second of this thread, for a key of so many bytes. Takes a tenth of one to
    /// find out.
    pub(crate) fn rounds_a_second(self, key_bytes: usize) -> u64 {
        let mut key = vec![0; key_bytes];
        let mut rounds = 1 << 13;
        loop {
            let begin = thread_time();
            self.stretch(b"password", &[0x5a; 32], rounds, &mut key);
            let took = thread_time().saturating_sub(begin);
            if took >= Duration::from_millis(50) || rounds >= 1 << 30 {
                let nanoseconds = took.as_nanos().max(1);
                return u64::try_from(u128::from(rounds) * 1_000_000_000 / nanoseconds)
                    .unwrap_or(u64::MAX);
            }
            rounds *= 2;
        }
    }
}

fn digest<D: Digest>(parts: [&[u8]; 2], target: &mut [u8]) {
    let digest = parts.into_iter().fold(D::new(), |hash, part| hash.chain_update(part)).finalize();
    let len = target.len().min(digest.len());
    target[..len].copy_from_slice(&digest[..len]);
}

/// How long this thread has run: what else the machine does is not counted.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for hash in ALL {
            assert_eq!(Hash::from_name(hash.name()), Ok(hash));
            let mut digest = [0; 64];
            hash.digest([b"a", b"b"], &mut digest);
            assert!(digest[hash.digest_bytes()..].iter().all(|byte| *byte == 0));
            assert_ne!(digest[hash.digest_bytes() - 1], 0, "{hash:?}");
        }
        let error = Hash::from_name("whirlpool").unwrap_err();
        assert!(error.to_string().contains("sha256"), "{error}");
    }

    /// Test vectors of RFC 6070 and of RFC 7914.
    #[test]
    fn keys_are_stretched_as_the_standard_says() {
        let mut key = [0; 20];
        Hash::Sha1.stretch(b"password", b"salt", 4096, &mut key);
        assert_eq!(key[..4], [0x4b, 0x00, 0x79, 0x01]);
        let mut key = [0; 64];
        Hash::Sha256.stretch(b"passwd", b"salt", 1, &mut key);
        assert_eq!(key[..4], [0x55, 0xac, 0x04, 0x6e]);
        assert_eq!(key[60..], [0xd3, 0xa1, 0x97, 0x83]);
    }

    #[test]
    fn work_counts_digests() {
        assert_eq!(Hash::Sha256.work(1000, 64), 2000);
        assert_eq!(Hash::Sha1.work(1000, 64), 4000);
        assert!(Hash::Sha1.rounds_a_second(20) > 1000);
    }
}
