//! What is in a sidecar file.
//!
//! ```text
//! 0     header, of a block
//! 4096  bitmaps: each a head, a name, and words of bits
//!       journal, at the next block: entries of 16 bytes, zeroes where there are none
//! ```
//!
//! Numbers are little-endian. Header and bitmaps have SHA-256 digests, entries the beginning of one, which has the
//! file and the place of the entry in it: so an entry is none of another file.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::driver::MAX_LENGTH;
use crate::driver::stamp::StorageStamp;

const MAGIC: &[u8; 8] = b"coblkbmp";
const VERSION: u32 = 1;
const BLOCK: u64 = 4096;
/// The header without its digest.
const HEADER_BYTES: usize = 120;
/// The part of a bitmap before its name.
const HEAD_BYTES: usize = 24;
pub(super) const ENTRY_BYTES: u64 = 16;

const CLEAN: u32 = 1;
const HAS_STAMP: u32 = 2;

const RECORDING: u8 = 1;
const INCONSISTENT: u8 = 2;

/// Most bytes of all bitmaps, as in a qcow2 image: 512 MiB, and their names.
pub(super) const MAX_BODY_BYTES: u64 = (512 << 20) + (64 << 20);
const MAX_BITMAPS: u32 = 65_535;
const MAX_NAME_BYTES: usize = 1023;
/// Binary logarithms of granularities.
const SHIFTS: std::ops::RangeInclusive<u8> = 9..=31;

/// Binary logarithm of the bytes of a region.
pub(super) const REGION_SHIFT: u32 = 26;
/// Entries for which there is room besides those for each region once.
const SPARE_ENTRIES: u64 = 256;

/// Why a sidecar file cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SidecarError {
    /// It is something else.
    #[error("it is no file of bitmaps")]
    Magic,
    /// It was written by a later version of this program.
    #[error("it has version {0}, which is not known")]
    Version(u32),
    /// A digest does not match, or a number cannot be.
    #[error("it is corrupt: {0}")]
    Corrupt(&'static str),
    /// It is no regular file, or larger than such a file can be.
    #[error("it is no regular file of at most {} bytes", MAX_BODY_BYTES + (1 << 30))]
    NoFile,
    /// Another node, or another process, has it.
    #[error("it is in use")]
    InUse,
}

/// A bitmap as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) is_recording: bool,
    pub(super) is_inconsistent: bool,
    pub(super) granularity: u64,
    /// Length of the disk in bytes.
    pub(super) length: u64,
    pub(super) words: Vec<u64>,
}

/// Whether the disk was written since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It was closed then.
    Clean,
    /// In these regions, by numbers.
    Written(BTreeSet<u64>),
    /// Anywhere.
    Torn,
}

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    /// Length of the disk in bytes.
    pub(super) length: u64,
    /// A number that no other file has.
    pub(super) generation: u64,
    pub(super) bitmaps: Vec<Stored>,
    pub(super) state: State,
    /// The storage of the disk when it was closed, or, if it was written since, when it was opened; as far as that is
    /// known.
    pub(super) stamp: Option<StorageStamp>,
}

/// Where a file has its journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct JournalPlace {
    pub(super) generation: u64,
    /// In bytes.
    pub(super) offset: u64,
    /// How many entries there is room for.
    pub(super) capacity: u64,
}

impl JournalPlace {
    /// The offset of an entry, and its bytes.
    pub(super) fn entry(&self, index: u64, region: u64) -> (u64, [u8; ENTRY_BYTES as usize]) {
        let mut bytes = [0; ENTRY_BYTES as usize];
        bytes[..8].copy_from_slice(&region.to_le_bytes());
        bytes[8..].copy_from_slice(&entry_digest(self.generation, index, region));
        (self.offset + index * ENTRY_BYTES, bytes)
    }
}

fn entry_digest(generation: u64, index: u64, region: u64) -> [u8; 8] {
    let mut hash = Sha256::new();
    [generation, index, region].iter().for_each(|number| hash.update(number.to_le_bytes()));
    let mut digest = [0; 8];
    digest.copy_from_slice(&hash.finalize()[..8]);
    digest
}

/// How many words the bits of a disk take.
fn words_of(length: u64, granularity: u64) -> u64 {
    length.div_ceil(granularity).div_ceil(64).max(1)
}

/// How many bytes a bitmap takes in a file.
pub(super) fn stored_bytes(name: &str, length: u64, granularity: u64) -> u64 {
    (HEAD_BYTES + name.len()) as u64 + words_of(length, granularity) * 8
}

impl Contents {
    /// Whether the storage is another one, or was changed by others, as far as that can be told: what a journal has
    /// written itself is a change, too.
    pub(super) fn is_of_another(&self, length: u64, stamp: Option<StorageStamp>) -> bool {
        match (&self.state, self.stamp, stamp) {
            (State::Clean, known, stamp) => known != stamp || self.length != length,
            (_, Some(known), Some(stamp)) => known.inode != stamp.inode,
            _ => false,
        }
    }

    /// The bytes of a file, and where its journal is. A state that is torn is not written: its writer marks all.
    pub(super) fn encode(&self) -> (Vec<u8>, JournalPlace) {
        let mut body = Vec::new();
        self.bitmaps.iter().for_each(|bitmap| bitmap.encode(&mut body));
        let offset = BLOCK + (body.len() as u64).next_multiple_of(BLOCK);
        let capacity = (self.length >> REGION_SHIFT) + SPARE_ENTRIES;
        let place = JournalPlace { generation: self.generation, offset, capacity };
        let mut bytes = vec![0; (offset + capacity * ENTRY_BYTES) as usize];
        self.encode_header(&mut bytes, &body, capacity);
        bytes[BLOCK as usize..BLOCK as usize + body.len()].copy_from_slice(&body);
        if let State::Written(regions) = &self.state {
            for (index, region) in (0..).zip(regions) {
                let (at, entry) = place.entry(index, *region);
                bytes[at as usize..at as usize + entry.len()].copy_from_slice(&entry);
            }
        }
        (bytes, place)
    }

    fn encode_header(&self, bytes: &mut [u8], body: &[u8], capacity: u64) {
        let mut flags = 0;
        if self.state == State::Clean {
            flags |= CLEAN;
        }
        if self.stamp.is_some() {
            flags |= HAS_STAMP;
        }
        let stamp = self.stamp.unwrap_or_default();
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend(flags.to_le_bytes());
        for number in [
            self.length,
            stamp.inode,
            stamp.modified_s.cast_unsigned(),
            stamp.modified_ns.cast_unsigned(),
            self.generation,
            body.len() as u64,
            self.bitmaps.len() as u64,
            capacity,
        ] {
            header.extend(number.to_le_bytes());
        }
        header.extend(Sha256::digest(body));
        header.resize(HEADER_BYTES, 0);
        bytes[..HEADER_BYTES].copy_from_slice(&header);
        bytes[HEADER_BYTES..HEADER_BYTES + 32].copy_from_slice(&Sha256::digest(&header));
    }

    /// What a file says.
    ///
    /// # Errors
    /// If it is none, or is corrupt but for its journal.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Contents, JournalPlace), SidecarError> {
        let header = bytes.get(..HEADER_BYTES).ok_or(SidecarError::Magic)?;
        if !header.starts_with(MAGIC) {
            return Err(SidecarError::Magic);
        }
        let version = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes"));
        if version != VERSION {
            return Err(SidecarError::Version(version));
        }
        let digest = bytes.get(HEADER_BYTES..HEADER_BYTES + 32);
        if digest != Some(&Sha256::digest(header)[..]) {
            return Err(SidecarError::Corrupt("its header"));
        }
        let number = |place: usize| {
            let at = 16 + 8 * place;
            u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"))
        };
        let flags = u32::from_le_bytes(header[12..16].try_into().expect("4 bytes"));
        let [length, inode, modified_s, modified_ns, generation, body_bytes, count, capacity] =
            [0, 1, 2, 3, 4, 5, 6, 7].map(number);
        if length > MAX_LENGTH || body_bytes > MAX_BODY_BYTES || count > u64::from(MAX_BITMAPS) {
            return Err(SidecarError::Corrupt("its numbers"));
        }
        let offset = BLOCK + body_bytes.next_multiple_of(BLOCK);
        let end = capacity.checked_mul(ENTRY_BYTES).and_then(|it| it.checked_add(offset));
        if end != Some(bytes.len() as u64) {
            return Err(SidecarError::Corrupt("its length"));
        }
        let body = &bytes[BLOCK as usize..][..body_bytes as usize];
        if header[80..112] != Sha256::digest(body)[..] {
            return Err(SidecarError::Corrupt("its bitmaps"));
        }
        let place = JournalPlace { generation, offset, capacity };
        let (modified_s, modified_ns) = (modified_s.cast_signed(), modified_ns.cast_signed());
        let stamp = StorageStamp { inode, modified_s, modified_ns };
        let stamp = Some(stamp).filter(|_| flags & HAS_STAMP != 0);
        let state = match read_journal(&bytes[offset as usize..], generation) {
            Some(regions) if regions.is_empty() && flags & CLEAN != 0 => State::Clean,
            Some(regions) => State::Written(regions),
            None => State::Torn,
        };
        let bitmaps = read_bitmaps(body, count)?;
        Ok((Contents { length, generation, bitmaps, state, stamp }, place))
    }
}

/// The regions of a journal; `None` if it has something that is no entry, or that follows none: what was written
/// is not known then.
fn read_journal(bytes: &[u8], generation: u64) -> Option<BTreeSet<u64>> {
    let entries = bytes.chunks_exact(ENTRY_BYTES as usize);
    let mut regions = BTreeSet::new();
    let mut has_ended = false;
    for (index, entry) in (0..).zip(entries) {
        if entry.iter().all(|byte| *byte == 0) {
            has_ended = true;
            continue;
        }
        let region = u64::from_le_bytes(entry[..8].try_into().expect("8 bytes"));
        if has_ended || entry[8..] != entry_digest(generation, index, region) {
            return None;
        }
        regions.insert(region);
    }
    Some(regions)
}

fn read_bitmaps(mut body: &[u8], count: u64) -> Result<Vec<Stored>, SidecarError> {
    let mut bitmaps: Vec<Stored> = Vec::new();
    for _ in 0..count {
        let bitmap = Stored::decode(&mut body)?;
        if bitmaps.iter().any(|it| it.name == bitmap.name) {
            return Err(SidecarError::Corrupt("a name that two bitmaps have"));
        }
        bitmaps.push(bitmap);
    }
    match body {
        [] => Ok(bitmaps),
        _ => Err(SidecarError::Corrupt("its bitmaps")),
    }
}

impl Stored {
    fn encode(&self, body: &mut Vec<u8>) {
        let mut flags = 0;
        if self.is_recording {
            flags |= RECORDING;
        }
        if self.is_inconsistent {
            flags |= INCONSISTENT;
        }
        body.extend((self.name.len() as u16).to_le_bytes());
        body.extend([flags, self.granularity.trailing_zeros() as u8, 0, 0, 0, 0]);
        body.extend(self.length.to_le_bytes());
        body.extend((self.words.len() as u64).to_le_bytes());
        body.extend(self.name.as_bytes());
        self.words.iter().for_each(|word| body.extend(word.to_le_bytes()));
    }

    /// Takes one off the beginning.
    fn decode(body: &mut &[u8]) -> Result<Stored, SidecarError> {
        let head = take(body, HEAD_BYTES)?;
        let name_bytes = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let (flags, shift) = (head[2], head[3]);
        let length = u64::from_le_bytes(head[8..16].try_into().expect("8 bytes"));
        let words = u64::from_le_bytes(head[16..24].try_into().expect("8 bytes"));
        let is_possible = SHIFTS.contains(&shift)
            && length <= MAX_LENGTH
            && (1..=MAX_NAME_BYTES).contains(&name_bytes)
            && words == words_of(length, 1 << shift);
        if !is_possible {
            return Err(SidecarError::Corrupt("the head of a bitmap"));
        }
        let name = String::from_utf8(take(body, name_bytes)?.to_vec());
        let name = name.map_err(|_| SidecarError::Corrupt("the name of a bitmap"))?;
        // There are as many bytes, so no more memory is taken than the file is long.
        let bits = take(body, usize::try_from(words * 8).unwrap_or(usize::MAX))?;
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        Ok(Stored {
            name,
            is_recording: flags & RECORDING != 0,
            is_inconsistent: flags & INCONSISTENT != 0,
            granularity: 1 << shift,
            length,
            words: bits.chunks_exact(8).map(word).collect(),
        })
    }
}

fn take<'a>(body: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], SidecarError> {
    let (taken, rest) = body.split_at_checked(bytes).ok_or(SidecarError::Corrupt("its bitmaps"))?;
    *body = rest;
    Ok(taken)
}
