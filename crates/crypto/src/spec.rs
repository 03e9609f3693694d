//! [`CipherSpec`]: how data is encrypted, by name.

use crate::{CryptoError, Hash};

/// A block cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CipherAlgorithm {
    /// `aes-128`.
    Aes128,
    /// `aes-192`.
    Aes192,
    /// `aes-256`.
    Aes256,
}

/// How blocks of a sector are chained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CipherMode {
    /// `xts`.
    Xts,
    /// `cbc`.
    Cbc,
}

/// What the IV of a sector is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IvGenerator {
    /// `plain`: the low 32 bits of its number.
    Plain,
    /// `plain64`: its number.
    Plain64,
    /// `essiv`: its number, encrypted with a hash of the key.
    Essiv(Hash),
}

/// How sectors are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CipherSpec {
    /// The cipher.
    pub algorithm: CipherAlgorithm,
    /// The mode.
    pub mode: CipherMode,
    /// The IV generator.
    pub iv: IvGenerator,
}

/// Ciphers with their names, and the bytes of their keys.
const CIPHERS: [(CipherAlgorithm, &str, usize); 3] = [
    (CipherAlgorithm::Aes128, "aes-128", 16),
    (CipherAlgorithm::Aes192, "aes-192", 24),
    (CipherAlgorithm::Aes256, "aes-256", 32),
];
const MODES: [(CipherMode, &str); 2] = [(CipherMode::Xts, "xts"), (CipherMode::Cbc, "cbc")];

impl CipherAlgorithm {
    /// The cipher of QEMU's name: `aes-256`.
    ///
    /// # Errors
    /// Unsupported if there is none.
    pub fn from_name(name: &str) -> Result<CipherAlgorithm, CryptoError> {
        let found = CIPHERS.iter().find(|it| it.1 == name);
        found.map(|it| it.0).ok_or_else(|| {
            let names = CIPHERS.map(|it| it.1).join(", ");
            CryptoError::unsupported(format!("cipher '{name}' is not supported; there is {names}"))
        })
    }

    fn row(self) -> (CipherAlgorithm, &'static str, usize) {
        CIPHERS.into_iter().find(|it| it.0 == self).unwrap_or(CIPHERS[2])
    }

    /// QEMU's name of it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    fn key_bytes(self) -> usize {
        self.row().2
    }
}

impl CipherMode {
    /// The mode of a name, which is QEMU's and that of LUKS.
    ///
    /// # Errors
    /// Unsupported if there is none.
    pub fn from_name(name: &str) -> Result<CipherMode, CryptoError> {
        let found = MODES.iter().find(|it| it.1 == name);
        found.map(|it| it.0).ok_or_else(|| {
            let why = format!("cipher mode '{name}' is not supported; there is xts, cbc");
            CryptoError::unsupported(why)
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            CipherMode::Xts => "xts",
            CipherMode::Cbc => "cbc",
        }
    }
}

impl IvGenerator {
    /// The generator of QEMU's name, and the hash that goes with it.
    ///
    /// # Errors
    /// Unsupported if there is none; Invalid if it needs a hash, and there is none.
    pub fn from_name(name: &str, hash: Option<Hash>) -> Result<IvGenerator, CryptoError> {
        match (name, hash) {
            ("plain", _) => Ok(IvGenerator::Plain),
            ("plain64", _) => Ok(IvGenerator::Plain64),
            ("essiv", Some(hash)) => Ok(IvGenerator::Essiv(hash)),
            ("essiv", None) => Err(CryptoError::invalid("the IV generator 'essiv' needs a hash")),
            _ => {
                let why = "is not supported; there is plain, plain64, essiv";
                Err(CryptoError::unsupported(format!("IV generator '{name}' {why}")))
            }
        }
    }

    /// QEMU's name of it.
    pub fn name(self) -> &'static str {
        match self {
            IvGenerator::Plain => "plain",
            IvGenerator::Plain64 => "plain64",
            IvGenerator::Essiv(_) => "essiv",
        }
    }

    /// Its hash, if it has one.
    pub fn hash(self) -> Option<Hash> {
        match self {
            IvGenerator::Essiv(hash) => Some(hash),
            IvGenerator::Plain | IvGenerator::Plain64 => None,
        }
    }
}

impl CipherSpec {
    /// A cipher, a mode and an IV generator that go together.
    ///
    /// # Errors
    /// Unsupported if they do not.
    pub fn new(
        algorithm: CipherAlgorithm,
        mode: CipherMode,
        iv: IvGenerator,
    ) -> Result<CipherSpec, CryptoError> {
        match iv.hash() {
            // Its digest is a key of AES.
            Some(hash) if hash != Hash::Sha256 => {
                let why = format!("the IV generator 'essiv' needs sha256, not {}", hash.name());
                Err(CryptoError::unsupported(why))
            }
            _ => Ok(CipherSpec { algorithm, mode, iv }),
        }
    }

    /// Bytes of a key. That of xts is two.
    pub fn key_bytes(self) -> usize {
        let bytes = self.algorithm.key_bytes();
        if self.mode == CipherMode::Xts { 2 * bytes } else { bytes }
    }

    /// By the words of a LUKS header: `aes`, and `xts-plain64` or `cbc-essiv:sha256`.
    ///
    /// # Errors
    /// Unsupported if they are not known; Invalid if they make no sense, or keys have another length.
    pub(crate) fn from_luks(
        cipher: &str,
        mode: &str,
        key_bytes: u32,
    ) -> Result<CipherSpec, CryptoError> {
        let Some((mode, iv)) = mode.split_once('-') else {
            return Err(CryptoError::invalid(format!("unexpected cipher mode string '{mode}'")));
        };
        let (iv, hash) = match iv.split_once(':') {
            Some((iv, hash)) => (iv, Some(Hash::from_name(hash)?)),
            None => (iv, None),
        };
        if cipher != "aes" {
            let why = format!("cipher '{cipher}' is not supported; there is aes");
            return Err(CryptoError::unsupported(why));
        }
        let (mode, iv) = (CipherMode::from_name(mode)?, IvGenerator::from_name(iv, hash)?);
        for (algorithm, ..) in CIPHERS {
            let spec = CipherSpec { algorithm, mode, iv };
            if spec.key_bytes() as u64 == u64::from(key_bytes) {
                return CipherSpec::new(algorithm, mode, iv);
            }
        }
        let why = format!("keys of {key_bytes} bytes do not go with {cipher}-{}", mode.name());
        Err(CryptoError::invalid(why))
    }

    /// The words of a LUKS header for cipher and mode.
    pub(crate) fn luks_names(self) -> (&'static str, String) {
        let (mode, iv) = (self.mode.name(), self.iv.name());
        let hash = self.iv.hash().map(|hash| format!(":{}", hash.name())).unwrap_or_default();
        ("aes", format!("{mode}-{iv}{hash}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_luks_are_read_as_they_are_written() {
        for (algorithm, ..) in CIPHERS {
            for (mode, _) in MODES {
                for iv in
                    [IvGenerator::Plain, IvGenerator::Plain64, IvGenerator::Essiv(Hash::Sha256)]
                {
                    let spec = CipherSpec::new(algorithm, mode, iv).unwrap();
                    let (cipher, mode) = spec.luks_names();
                    let again = CipherSpec::from_luks(cipher, &mode, spec.key_bytes() as u32);
                    // 32 bytes are a key of aes-256-cbc, or two of aes-128-xts.
                    assert_eq!(again, Ok(spec), "{mode}");
                    assert_eq!(CipherAlgorithm::from_name(algorithm.name()), Ok(algorithm));
                }
            }
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_its_name() {
        for (cipher, mode, bytes, why) in [
            ("serpent", "xts-plain64", 64, "cipher 'serpent'"),
            ("aes", "ctr-plain64", 32, "cipher mode 'ctr'"),
            ("aes", "xts", 64, "unexpected cipher mode string 'xts'"),
            ("aes", "xts-benbi", 64, "IV generator 'benbi'"),
            ("aes", "cbc-essiv", 32, "needs a hash"),
            ("aes", "cbc-essiv:sha1", 32, "needs sha256, not sha1"),
            ("aes", "cbc-essiv:ripemd160", 32, "hash 'ripemd160'"),
            ("aes", "xts-plain64", 24, "keys of 24 bytes"),
            ("aes", "xts-plain64", 0, "keys of 0 bytes"),
            ("aes", "cbc-plain64", u32::MAX, "keys of 4294967295 bytes"),
        ] {
            let error = CipherSpec::from_luks(cipher, mode, bytes).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
