//! The AES of qcow and qcow2 images before LUKS.

use zeroize::Zeroizing;

use crate::{CipherAlgorithm, CipherMode, CipherSpec, IvGenerator, SectorCipher};

/// The cipher of a password: AES-128 in CBC mode, whose key is the first 16 bytes of it, or all of it and
/// zeroes. Nothing in an image says whether it is the right one.
pub fn legacy_cipher(password: &[u8]) -> SectorCipher {
    let mut key = Zeroizing::new([0; 16]);
    let len = password.len().min(key.len());
    key[..len].copy_from_slice(&password[..len]);
    let spec = CipherSpec {
        algorithm: CipherAlgorithm::Aes128,
        mode: CipherMode::Cbc,
        iv: IvGenerator::Plain64,
    };
    SectorCipher::of_key(spec, &*key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// contract: Q89
    #[test]
    fn q89_a_password_is_cut_or_padded_to_16_bytes() {
        let encrypted = |password: &[u8]| {
            let mut sector = [7; 512];
            legacy_cipher(password).encrypt(3, &mut sector);
            sector
        };
        assert_eq!(encrypted(b"0123456789abcdef"), encrypted(b"0123456789abcdefgh"));
        assert_eq!(encrypted(b"secret"), encrypted(b"secret\0\0"));
        assert_ne!(encrypted(b"secret"), encrypted(b"secreT"));
    }
}
