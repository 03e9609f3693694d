//! [`LuksHeader`]: the header of LUKS1.

use std::ops::Range;

use super::{SECTOR_BYTES, SLOTS, STRIPES};
use crate::{CipherSpec, CryptoError, Hash};

const MAGIC: &[u8] = b"LUKS\xba\xbe";
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;
/// Where fields are, in bytes. Names have 32 bytes, with a zero behind.
const CIPHER_AT: usize = 8;
const MODE_AT: usize = 40;
const HASH_AT: usize = 72;
const PAYLOAD_AT: usize = 104;
const KEY_BYTES_AT: usize = 108;
const DIGEST_AT: usize = 112;
const SALT_AT: usize = 132;
const ITERATIONS_AT: usize = 164;
const UUID_AT: usize = 168;
const SLOTS_AT: usize = 208;
const SLOT_BYTES: usize = 48;
const NAME_BYTES: usize = 32;
const UUID_BYTES: usize = 40;

/// Bytes of a digest of a key, and of a salt.
pub(super) const DIGEST_BYTES: usize = 20;
pub(super) const SALT_BYTES: usize = 32;

/// A header of LUKS1 that has been checked.
#[derive(Clone, Debug)]
pub struct LuksHeader {
    /// As it was read: what is not known stays.
    raw: [u8; LuksHeader::BYTES],
    spec: CipherSpec,
    hash: Hash,
    slots: [KeySlot; SLOTS],
}

/// A slot for a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeySlot {
    /// Whether it has a key.
    pub is_active: bool,
    /// How often its password is hashed.
    pub iterations: u32,
    pub(super) salt: [u8; SALT_BYTES],
    /// Where its material is, in sectors from the beginning of the header.
    pub(super) sector: u32,
}

impl LuksHeader {
    /// Bytes of a header, without the material of its slots.
    pub const BYTES: usize = 592;

    /// Reads a header.
    ///
    /// # Errors
    /// Invalid if it contradicts itself; Unsupported for another version, cipher or hash.
    pub fn parse(bytes: &[u8]) -> Result<LuksHeader, CryptoError> {
        let raw =
            bytes.get(..Self::BYTES).and_then(|bytes| <[u8; Self::BYTES]>::try_from(bytes).ok());
        let raw = raw.ok_or_else(|| CryptoError::invalid("the LUKS header is cut"))?;
        if !raw.starts_with(MAGIC) {
            return Err(CryptoError::invalid("volume is not in LUKS format"));
        }
        let version = u16::from_be_bytes([raw[6], raw[7]]);
        if version != 1 {
            let why = format!("LUKS version {version} is not supported; there is 1");
            return Err(CryptoError::unsupported(why));
        }
        text(&raw, UUID_AT, UUID_BYTES, "UUID")?;
        let hash = Hash::from_name(text(&raw, HASH_AT, NAME_BYTES, "hash")?)?;
        let cipher = text(&raw, CIPHER_AT, NAME_BYTES, "cipher name")?;
        let mode = text(&raw, MODE_AT, NAME_BYTES, "cipher mode")?;
        let spec = CipherSpec::from_luks(cipher, mode, be32(&raw, KEY_BYTES_AT))?;
        let mut header = LuksHeader { raw, spec, hash, slots: Default::default() };
        if header.key_iterations() == 0 {
            return Err(CryptoError::invalid("LUKS key iteration count is zero"));
        }
        header.parse_slots()?;
        Ok(header)
    }

    /// Makes one without any key.
    pub(super) fn empty(spec: CipherSpec, hash: Hash, uuid: &str) -> LuksHeader {
        let mut raw = [0; Self::BYTES];
        raw[..MAGIC.len()].copy_from_slice(MAGIC);
        raw[7] = 1;
        let (cipher, mode) = spec.luks_names();
        for (at, name) in
            [(CIPHER_AT, cipher), (MODE_AT, &mode), (HASH_AT, hash.name()), (UUID_AT, uuid)]
        {
            raw[at..at + name.len()].copy_from_slice(name.as_bytes());
        }
        put32(&mut raw, KEY_BYTES_AT, spec.key_bytes() as u32);
        let end = Self::bytes_of(spec) / SECTOR_BYTES;
        put32(&mut raw, PAYLOAD_AT, end as u32);
        let mut header = LuksHeader { raw, spec, hash, slots: Default::default() };
        let sectors = slot_sectors(spec);
        for slot in 0..SLOTS {
            let sector = ALIGNED_SECTORS + slot as u32 * sectors;
            header.set_slot(slot, KeySlot { sector, ..KeySlot::default() });
        }
        header
    }

    /// Bytes of a new header with the material of all slots.
    pub fn bytes_of(spec: CipherSpec) -> u64 {
        u64::from(ALIGNED_SECTORS + SLOTS as u32 * slot_sectors(spec)) * SECTOR_BYTES
    }

    fn parse_slots(&mut self) -> Result<(), CryptoError> {
        let header_sectors = (Self::BYTES as u64).div_ceil(SECTOR_BYTES);
        let end = u64::from(be32(&self.raw, PAYLOAD_AT));
        if end < header_sectors {
            return Err(CryptoError::invalid("LUKS payload is overlapping with the header"));
        }
        let mut taken: Vec<(Range<u64>, usize)> = Vec::with_capacity(SLOTS);
        for index in 0..SLOTS {
            let at = SLOTS_AT + index * SLOT_BYTES;
            let invalid = |why: &str| Err(CryptoError::Invalid(format!("keyslot {index} {why}")));
            let is_active = match be32(&self.raw, at) {
                ACTIVE => true,
                INACTIVE => false,
                _ => return invalid("is neither active nor inactive"),
            };
            let mut salt = [0; SALT_BYTES];
            salt.copy_from_slice(&self.raw[at + 8..at + 8 + SALT_BYTES]);
            let [iterations, sector, stripes] =
                [at + 4, at + 40, at + 44].map(|at| be32(&self.raw, at));
            self.slots[index] = KeySlot { is_active, iterations, salt, sector };
            if stripes != STRIPES {
                return invalid("is corrupted: it has another number of stripes than 4000");
            }
            if is_active && iterations == 0 {
                return invalid("has an iteration count of zero");
            }
            let bytes = self.material(index);
            let sectors = bytes.start / SECTOR_BYTES..bytes.end.div_ceil(SECTOR_BYTES);
            if sectors.start < header_sectors {
                return invalid("is overlapping with the LUKS header");
            }
            if sectors.end > end {
                return invalid("is overlapping with the encrypted payload");
            }
            let overlaps =
                |it: &&(Range<u64>, usize)| it.0.start < sectors.end && sectors.start < it.0.end;
            if let Some((_, other)) = taken.iter().find(overlaps) {
                return invalid(&format!("is overlapping with keyslot {other}"));
            }
            taken.push((sectors, index));
        }
        Ok(())
    }

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        self.raw
    }

    /// How its data is encrypted.
    pub fn spec(&self) -> CipherSpec {
        self.spec
    }

    /// The hash that passwords are stretched by.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Where the material of all slots ends, in bytes from the beginning of the header.
    pub fn payload_offset(&self) -> u64 {
        u64::from(be32(&self.raw, PAYLOAD_AT)) * SECTOR_BYTES
    }

    /// How often the key is hashed for its digest.
    pub fn key_iterations(&self) -> u32 {
        be32(&self.raw, ITERATIONS_AT)
    }

    /// Its UUID, as text.
    pub fn uuid(&self) -> &str {
        text(&self.raw, UUID_AT, UUID_BYTES, "UUID").unwrap_or_default()
    }

    /// The slots.
    pub fn slots(&self) -> &[KeySlot; SLOTS] {
        &self.slots
    }

    /// Where the material of a slot is, in bytes from the beginning of the header: less than 1 MiB.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn material(&self, slot: usize) -> Range<u64> {
        let begin = u64::from(self.slots[slot].sector) * SECTOR_BYTES;
        begin..begin + self.spec.key_bytes() as u64 * u64::from(STRIPES)
    }

    pub(super) fn digest(&self) -> &[u8] {
        &self.raw[DIGEST_AT..DIGEST_AT + DIGEST_BYTES]
    }

    pub(super) fn salt(&self) -> &[u8] {
        &self.raw[SALT_AT..SALT_AT + SALT_BYTES]
    }

    pub(super) fn set_digest(
        &mut self,
        digest: &[u8; DIGEST_BYTES],
        salt: &[u8; SALT_BYTES],
        iterations: u32,
    ) {
        self.raw[DIGEST_AT..DIGEST_AT + DIGEST_BYTES].copy_from_slice(digest);
        self.raw[SALT_AT..SALT_AT + SALT_BYTES].copy_from_slice(salt);
        put32(&mut self.raw, ITERATIONS_AT, iterations);
    }

    pub(super) fn set_slot(&mut self, index: usize, slot: KeySlot) {
        let at = SLOTS_AT + index * SLOT_BYTES;
        put32(&mut self.raw, at, if slot.is_active { ACTIVE } else { INACTIVE });
        put32(&mut self.raw, at + 4, slot.iterations);
        self.raw[at + 8..at + 8 + SALT_BYTES].copy_from_slice(&slot.salt);
        put32(&mut self.raw, at + 40, slot.sector);
        put32(&mut self.raw, at + 44, STRIPES);
        self.slots[index] = slot;
    }
}

/// Slots of a new header are aligned to 4 KiB, as the header is.
const ALIGNED_SECTORS: u32 = 8;

/// Sectors that a new header has for the material of a slot.
fn slot_sectors(spec: CipherSpec) -> u32 {
    let bytes = spec.key_bytes() as u32 * STRIPES;
    bytes.div_ceil(SECTOR_BYTES as u32).next_multiple_of(ALIGNED_SECTORS)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// A text that ends with a zero.
fn text<'a>(bytes: &'a [u8], at: usize, len: usize, what: &str) -> Result<&'a str, CryptoError> {
    let field = &bytes[at..at + len];
    let end = field.iter().position(|byte| *byte == 0);
    let text = end.and_then(|end| str::from_utf8(&field[..end]).ok());
    text.ok_or_else(|| CryptoError::Invalid(format!("LUKS header {what} is no terminated text")))
}

#[cfg(test)]
mod tests;
