//! Keys of a header: unlocked by a password, put into a slot, taken out.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::header::{DIGEST_BYTES, SALT_BYTES};
use super::split::{merge, split};
use super::{KeySlot, LuksHeader, SLOTS};
use crate::error::fill_random;
use crate::{CryptoError, SectorCipher};

/// Most rounds of a hash that one look into a slot takes: half a minute, or so. An image may say any number.
pub const MAX_WORK: u64 = 1 << 28;

/// The key that data is encrypted with. It is overwritten when it is dropped.
pub struct MasterKey(pub(super) Zeroizing<Vec<u8>>);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey")
    }
}

impl LuksHeader {
    /// Tries a password on a slot with its [material](Self::material), which is overwritten. `None` if it is
    /// not that of the slot, or the slot has no key. Takes as long as the creator of the image wanted it to:
    /// not for the thread of a loop.
    ///
    /// # Errors
    /// Invalid if the header wants it to take more than [`MAX_WORK`] rounds.
    ///
    /// # Panics
    /// If there is no such slot, or the material has another length.
    pub fn unlock(
        &self,
        slot: usize,
        material: &mut [u8],
        password: &[u8],
    ) -> Result<Option<MasterKey>, CryptoError> {
        let KeySlot { is_active, iterations, salt, .. } = self.slots()[slot];
        if !is_active {
            return Ok(None);
        }
        let (spec, hash) = (self.spec(), self.hash());
        let work = hash.work(iterations, spec.key_bytes())
            + hash.work(self.key_iterations(), DIGEST_BYTES);
        if work > MAX_WORK {
            let why = format!("keyslot {slot} wants {work} rounds of a hash, more than {MAX_WORK}");
            return Err(CryptoError::Invalid(why));
        }
        assert_eq!(material.len(), spec.key_bytes() * super::STRIPES as usize, "the material");
        let mut slot_key = Zeroizing::new(vec![0; spec.key_bytes()]);
        hash.stretch(password, &salt, iterations, &mut slot_key);
        SectorCipher::of_key(spec, &slot_key).decrypt_blocks(material);
        let key = MasterKey(merge(hash, material, spec.key_bytes()));
        let digest = self.digest_of(&key, self.salt(), self.key_iterations());
        let is_right = bool::from(digest.ct_eq(self.digest()));
        Ok(is_right.then_some(key))
    }

    /// The cipher of the data.
    pub fn cipher(&self, key: &MasterKey) -> SectorCipher {
        SectorCipher::of_key(self.spec(), &key.0)
    }

    pub(super) fn digest_of(&self, key: &MasterKey, salt: &[u8], iterations: u32) -> [u8; 20] {
        let mut digest = [0; DIGEST_BYTES];
        self.hash().stretch(&key.0, salt, iterations, &mut digest);
        digest
    }

    /// Puts the key into a slot, and returns the [material](Self::material) to be written before the header.
    /// A slot that is active has another password then. Not for the thread of a loop.
    ///
    /// # Errors
    /// If there are no random numbers.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn set_key(
        &mut self,
        slot: usize,
        key: &MasterKey,
        password: &[u8],
        iterations: u32,
    ) -> Result<Vec<u8>, CryptoError> {
        let (spec, hash) = (self.spec(), self.hash());
        let mut salt = [0; SALT_BYTES];
        fill_random(&mut salt)?;
        let mut slot_key = Zeroizing::new(vec![0; spec.key_bytes()]);
        hash.stretch(password, &salt, iterations, &mut slot_key);
        let mut stripes = split(hash, &key.0)?;
        SectorCipher::of_key(spec, &slot_key).encrypt_blocks(&mut stripes);
        self.set_slot(slot, KeySlot { is_active: true, iterations, salt, ..self.slots()[slot] });
        Ok(std::mem::take(&mut *stripes))
    }

    /// Takes the key out of a slot, and returns what its [material](Self::material) is to be overwritten
    /// with, after the header was written.
    ///
    /// # Errors
    /// If there are no random numbers.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn clear_key(&mut self, slot: usize) -> Result<Vec<u8>, CryptoError> {
        let range = self.material(slot);
        let mut noise = vec![0; (range.end - range.start) as usize];
        fill_random(&mut noise)?;
        self.set_slot(slot, KeySlot { sector: self.slots()[slot].sector, ..KeySlot::default() });
        Ok(noise)
    }

    /// The slots that have a key.
    pub fn active_slots(&self) -> impl Iterator<Item = usize> {
        (0..SLOTS).filter(|slot| self.slots()[*slot].is_active)
    }
}
