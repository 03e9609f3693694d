//! The anti-forensic splitter: a key as stripes of random bytes, of which none can be missing.

use zeroize::Zeroizing;

use super::STRIPES;
use crate::error::fill_random;
use crate::{CryptoError, Hash};

/// Splits a key: [`STRIPES`] times its length.
pub(super) fn split(hash: Hash, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let mut stripes = Zeroizing::new(vec![0; key.len() * STRIPES as usize]);
    let last = stripes.len() - key.len();
    fill_random(&mut stripes[..last])?;
    let mut sum = fold(hash, &stripes[..last], key.len());
    xor(&mut sum, key);
    stripes[last..].copy_from_slice(&sum);
    Ok(stripes)
}

/// The key that was split into these stripes.
pub(super) fn merge(hash: Hash, stripes: &[u8], key_bytes: usize) -> Zeroizing<Vec<u8>> {
    let (rest, last) = stripes.split_at(stripes.len().saturating_sub(key_bytes));
    let mut key = fold(hash, rest, key_bytes);
    xor(&mut key, last);
    key
}

/// Adds up stripes, and diffuses the sum after each.
fn fold(hash: Hash, stripes: &[u8], key_bytes: usize) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; key_bytes]);
    for stripe in stripes.chunks_exact(key_bytes.max(1)) {
        xor(&mut sum, stripe);
        // Each digest-sized part, with its number, becomes its digest.
        for (number, part) in (0_u32..).zip(sum.chunks_mut(hash.digest_bytes())) {
            let clear = Zeroizing::new(part.to_vec());
            hash.digest([&number.to_be_bytes(), &clear], part);
        }
    }
    sum
}

fn xor(sum: &mut [u8], other: &[u8]) {
    for (byte, other) in sum.iter_mut().zip(other) {
        *byte ^= other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stripe_can_be_missing() {
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
            for key in [&[5; 16][..], &[6; 24], &[7; 64]] {
                let mut stripes = split(hash, key).unwrap();
                assert_eq!(stripes.len(), key.len() * 4000);
                assert_eq!(**merge(hash, &stripes, key.len()), *key);
                for at in [0, stripes.len() / 2, stripes.len() - 1] {
                    stripes[at] ^= 1;
                    assert_ne!(**merge(hash, &stripes, key.len()), *key);
                    stripes[at] ^= 1;
                }
            }
        }
    }
}
