//! Data that is encrypted with a master secret.

use aes::Aes256;
use cbc::Decryptor;
use cipher::block_padding::Pkcs7;
use cipher::{BlockModeDecrypt, KeyIvInit};
use zeroize::Zeroizing;

use crate::CryptoError;

/// Decrypts data with a master secret of 32 bytes: AES-256 in CBC mode, padded by as many bytes as the last
/// one says.
///
/// # Errors
/// Invalid if the key or the IV has another length, or the padding is wrong, as it is with another key.
pub fn unseal(key: &[u8], iv: &[u8], data: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let invalid = |why: String| CryptoError::Invalid(why);
    if key.len() != 32 {
        return Err(invalid(format!("the key has {} bytes, and needs 32", key.len())));
    }
    if iv.len() != 16 {
        return Err(invalid(format!("the IV has {} bytes, and needs 16", iv.len())));
    }
    let cipher = Decryptor::<Aes256>::new_from_slices(key, iv)
        .map_err(|error| invalid(error.to_string()))?;
    let mut clear = Zeroizing::new(data.to_vec());
    let wrong = "the data is cut, or was encrypted with another key";
    let decrypted = cipher.decrypt_padded::<Pkcs7>(&mut clear);
    let len = decrypted.map_err(|_| invalid(wrong.to_owned()))?.len();
    clear.truncate(len);
    Ok(clear)
}

#[cfg(test)]
mod tests {
    use cbc::Encryptor;
    use cipher::BlockModeEncrypt;

    use super::*;

    fn seal(key: &[u8], iv: &[u8], clear: &[u8]) -> Vec<u8> {
        let mut data = clear.to_vec();
        data.resize(clear.len() + 16, 0);
        let cipher = Encryptor::<Aes256>::new_from_slices(key, iv).unwrap();
        cipher.encrypt_padded::<Pkcs7>(&mut data, clear.len()).unwrap().to_vec()
    }

    #[test]
    fn sealed_data_needs_its_key() {
        let (key, iv) = ([1; 32], [2; 16]);
        for clear in [&b""[..], b"secret", &[7; 16], &[7; 100]] {
            let sealed = seal(&key, &iv, clear);
            assert_eq!(**unseal(&key, &iv, &sealed).unwrap(), *clear);
            assert!(unseal(&[3; 32], &iv, &sealed).is_err());
            assert!(unseal(&key, &iv, &sealed[..sealed.len() - 1]).is_err());
        }
        assert!(unseal(&key, &iv, b"").is_err());
        assert!(unseal(&[1; 31], &iv, &[0; 16]).unwrap_err().to_string().contains("31 bytes"));
        assert!(unseal(&key, &[2; 15], &[0; 16]).unwrap_err().to_string().contains("15 bytes"));
    }
}
