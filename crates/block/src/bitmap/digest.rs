//! The SHA-256 of a bitmap, by which tests compare it with others.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::bits::DirtyBits;
use super::words::WORD_BITS;

impl DirtyBits {
    /// The SHA-256 of the bits in words of 64, in hexadecimal digits: the first bit is the lowest of the first
    /// word, whose lowest byte is the first.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for word in 0..self.granules().div_ceil(WORD_BITS).max(1) {
            hash.update(self.word(word).to_le_bytes());
        }
        hash.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}
