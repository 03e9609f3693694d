//! Encryption of disk images, without I/O: functions from bytes to bytes.
//!
//! ```text
//! sectors   SectorCipher: encrypts and decrypts sectors; xts and cbc, and how an IV is made of a number
//! spec      CipherSpec: cipher, mode and IV generator, by QEMU's names and by those of LUKS
//! hash      Hash, and PBKDF2
//! luks/     headers of LUKS1, their key slots, and new ones
//! legacy    the AES of qcow and qcow2 images before LUKS
//! sealed    data that is encrypted with a master secret, as an object `secret` may have it
//! ```
//!
//! Whatever bytes a header has, nothing panics, and work and memory are bounded: a header that asks for more
//! is refused. Keys are overwritten when they are dropped. What was typed by a user goes in as bytes.
#![forbid(unsafe_code)]

mod error;
mod hash;
mod legacy;
pub mod luks;
mod sealed;
mod sectors;
mod spec;

pub use error::CryptoError;
pub use hash::Hash;
pub use legacy::legacy_cipher;
pub use sealed::unseal;
pub use sectors::{SECTOR_BYTES, SectorCipher};
pub use spec::{CipherAlgorithm, CipherMode, CipherSpec, IvGenerator};
