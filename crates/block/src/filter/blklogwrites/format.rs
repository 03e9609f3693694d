//! The format of dm-log-writes, all of it little-endian.
//!
//! ```text
//! sector 0      magic u64, version u64, number of entries u64, sector size in bytes u32
//! then, for each entry,
//! one sector    sector u64, sectors u64, flags u64, length of the mark in bytes u64, mark
//! its data      as many sectors as it says; none for a discard
//! ```

use std::io;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;

/// Bytes of an entry before its mark.
pub(super) const ENTRY_BYTES: usize = 32;
/// Bytes of the superblock.
pub(super) const SUPERBLOCK_BYTES: usize = 28;

bitflags::bitflags! {
    /// The kind of an entry.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct EntryFlags: u64 {
        /// Writes that were acknowledged before are durable.
        const FLUSH = 1;
        /// The data of this entry is durable.
        const FUA = 2;
        /// The range was discarded; there is no data.
        const DISCARD = 4;
        /// A mark, to find a place in the log again.
        const MARK = 8;
    }
}

/// The first sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) entries: u64,
    pub(super) sector_size: u32,
}

impl Superblock {
    pub(super) fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, VERSION);
        put(&mut bytes, 16, self.entries);
        bytes[24..28].copy_from_slice(&self.sector_size.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; SUPERBLOCK_BYTES]) -> io::Result<Superblock> {
        let sector_size = take(bytes, 24) as u32;
        if take(bytes, 0) != MAGIC || take(bytes, 8) != VERSION {
            return Err(invalid("not a log of writes, or of another version"));
        }
        if !sector_size.is_power_of_two() || !(512..=65536).contains(&sector_size) {
            return Err(invalid("a log of writes with an impossible sector size"));
        }
        Ok(Superblock { entries: take(bytes, 16), sector_size })
    }
}

/// The beginning of an entry; sectors are of the log's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RawEntry {
    pub(super) sector: u64,
    pub(super) sectors: u64,
    pub(super) flags: EntryFlags,
    pub(super) mark_bytes: u64,
}

impl RawEntry {
    pub(super) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        put(&mut bytes, 0, self.sector);
        put(&mut bytes, 8, self.sectors);
        put(&mut bytes, 16, self.flags.bits());
        put(&mut bytes, 24, self.mark_bytes);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> RawEntry {
        RawEntry {
            sector: take(bytes, 0),
            sectors: take(bytes, 8),
            flags: EntryFlags::from_bits_truncate(take(bytes, 16)),
            mark_bytes: take(bytes, 24),
        }
    }

    /// Sectors of data that follow it.
    pub(super) fn data_sectors(&self) -> u64 {
        if self.flags.contains(EntryFlags::DISCARD) { 0 } else { self.sectors }
    }
}

pub(super) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Up to eight bytes.
fn take(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    let len = (bytes.len() - at).min(8);
    value[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_is_what_other_tools_expect() {
        let superblock = Superblock { entries: 0x0102, sector_size: 512 };
        let bytes = superblock.encode();
        assert_eq!(&bytes[..8], b"rhswfsj\0");
        assert_eq!(bytes[8..16], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..], [0, 2, 0, 0]);
        assert_eq!(Superblock::decode(&bytes).expect("our own"), superblock);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        assert!(Superblock::decode(&[0; SUPERBLOCK_BYTES]).is_err());
        for sector_size in [0, 1, 511, 513, 1 << 31] {
            let bytes = Superblock { entries: 0, sector_size }.encode();
            assert!(Superblock::decode(&bytes).is_err(), "{sector_size}");
        }
    }

    #[test]
    fn an_entry_is_what_other_tools_expect() {
        let flags = EntryFlags::FLUSH | EntryFlags::FUA;
        let entry = RawEntry { sector: 3, sectors: 0x0201, flags, mark_bytes: 9 };
        let bytes = entry.encode();
        let words: Vec<u64> = bytes.chunks(8).map(|word| take(word, 0)).collect();
        assert_eq!(words, [3, 0x0201, 3, 9]);
        assert_eq!(RawEntry::decode(&bytes), entry);
        assert_eq!(entry.data_sectors(), 0x0201);
        assert_eq!(RawEntry { flags: EntryFlags::DISCARD, ..entry }.data_sectors(), 0);
    }
}
