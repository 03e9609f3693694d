//! Entries of L1 and L2 tables, and what they mean.

use std::fmt;

use super::Geometry;

/// Offsets in entries.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The refcount of what the entry leads to is exactly 1.
pub const COPIED: u64 = 1 << 63;
/// The entry is that of a compressed cluster.
pub const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes.
pub const ZERO: u64 = 1;
/// Offsets in a file are smaller.
pub const MAX_OFFSET: u64 = 1 << 56;
/// Reserved bits of an L1 entry.
pub const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Reserved bits of an L2 entry that is not compressed.
pub const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;

/// Why an entry cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Corruption {
    what: String,
    /// The offset that is wrong, if it is one, in bytes.
    pub offset: Option<u64>,
}

impl Corruption {
    #[cold]
    pub(crate) fn new(what: impl fmt::Display, offset: Option<u64>) -> Corruption {
        Corruption { what: what.to_string(), offset }
    }
}

/// The offset of the L2 table that an L1 entry leads to; `None` if nothing is mapped there.
///
/// # Errors
/// If it is not that of a cluster.
pub fn l1_offset(entry: u64, geometry: Geometry) -> Result<Option<u64>, Corruption> {
    let offset = entry & OFFSET_MASK;
    if !geometry.is_aligned(offset) {
        let what = format_args!("L2 table offset {offset:#x} unaligned (L1 entry {entry:#018x})");
        return Err(Corruption::new(what, Some(offset)));
    }
    Ok((offset != 0).then_some(offset))
}

/// An entry of an L2 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry {
    /// The first word, or the only one.
    pub word: u64,
    /// The second word of an extended entry, else 0. Bits 0 to 31: a subcluster is allocated; 32 to 63: it
    /// reads as zeroes.
    pub bitmap: u64,
}

impl L2Entry {
    /// Whether the cluster is compressed.
    pub fn is_compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }

    /// Whether the cluster reads as zeroes, in an image without extended entries.
    pub fn says_zeroes(self) -> bool {
        !self.is_compressed() && self.word & ZERO != 0
    }

    /// The host offset of a cluster that is not compressed; 0 as a rule if it has none.
    pub fn offset(self) -> u64 {
        self.word & OFFSET_MASK
    }
}

/// The kind of a subcluster; of a cluster, without extended entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubclusterKind {
    /// As the backing file.
    Unallocated,
    /// As the backing file; the cluster has a place.
    UnallocatedStored,
    /// Zeroes.
    Zero,
    /// Zeroes; the cluster has a place.
    ZeroStored,
    /// Data at the place of the cluster.
    Data,
    /// Compressed data: the whole cluster.
    Compressed,
}

impl SubclusterKind {
    /// Whether the cluster has a place of its own that is not compressed.
    pub fn is_stored(self) -> bool {
        matches!(
            self,
            SubclusterKind::Data | SubclusterKind::ZeroStored | SubclusterKind::UnallocatedStored
        )
    }
}

/// What decides on the meaning of an L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRules {
    /// Sizes.
    pub geometry: Geometry,
    /// Whether the image is of version 2, which has no zero flag.
    pub is_v2: bool,
    /// Whether data is in a file of its own.
    pub has_data_file: bool,
}

impl EntryRules {
    /// Whether the cluster has a place. With a data file 0 is one, where the entry says so.
    fn has_place(&self, entry: L2Entry) -> bool {
        entry.offset() != 0 || self.has_data_file && entry.word & COPIED != 0
    }

    /// The kind of one subcluster.
    ///
    /// # Errors
    /// If it is both allocated and zeroes, or allocated nowhere.
    #[inline]
    pub fn kind(&self, entry: L2Entry, subcluster: u32) -> Result<SubclusterKind, Corruption> {
        use SubclusterKind::*;
        if entry.is_compressed() {
            return Ok(Compressed);
        }
        let has_place = self.has_place(entry);
        let (is_allocated, is_zero) = if self.geometry.is_extended() {
            let bit = |first: u32| entry.bitmap >> (first + subcluster % 32) & 1 != 0;
            (bit(0), bit(32))
        } else {
            (has_place, entry.word & ZERO != 0)
        };
        match (is_allocated, is_zero, has_place) {
            (true, true, _) if self.geometry.is_extended() => {
                let what = "a subcluster is both allocated and zero";
                Err(Corruption::new(what, Some(entry.offset())))
            }
            (_, true, true) => Ok(ZeroStored),
            (_, true, false) => Ok(Zero),
            (true, false, true) => Ok(Data),
            (true, false, false) => {
                Err(Corruption::new("a subcluster is allocated, and its cluster is not", None))
            }
            (false, false, true) => Ok(UnallocatedStored),
            (false, false, false) => Ok(Unallocated),
        }
    }

    /// The place of the cluster of the disk at `guest` bytes, if the word of its entry, which is not extended, says
    /// data and nothing else: the entry is [right](Self::check) then, and of the [kind](Self::kind) data. `None` says
    /// nothing about the entry.
    #[inline]
    pub fn place_of_data(&self, word: u64, guest: u64) -> Option<u64> {
        let place = word & OFFSET_MASK;
        let is_there = match self.has_data_file {
            false => place != 0,
            true => place == guest && word & COPIED != 0,
        };
        let is_plain = word & (COMPRESSED | ZERO) == 0 && self.geometry.is_aligned(place);
        (is_there && is_plain).then_some(place)
    }

    /// Checks the words of an entry that maps the cluster of the disk at `guest` bytes. Reserved bits are
    /// ignored.
    ///
    /// # Errors
    /// If it has what its image cannot have, or an offset that is none.
    #[inline]
    pub fn check(&self, entry: L2Entry, guest: u64) -> Result<(), Corruption> {
        if entry.is_compressed() {
            let what = match self.has_data_file {
                false if entry.bitmap == 0 => return Ok(()),
                false => "compressed cluster with a subcluster bitmap",
                true => "compressed cluster in an image with a data file",
            };
            return Err(Corruption::new(what, None));
        }
        if self.is_v2 && entry.word & ZERO != 0 {
            return Err(Corruption::new("zero flag in an image of version 2", None));
        }
        if !self.has_place(entry) {
            return Ok(());
        }
        let offset = entry.offset();
        if !self.geometry.is_aligned(offset) {
            let what =
                format_args!("cluster offset {offset:#x} unaligned (guest offset {guest:#x})");
            return Err(Corruption::new(what, Some(offset)));
        }
        if self.has_data_file && offset != guest {
            let what =
                format_args!("data file offset {offset:#x} differs from guest offset {guest:#x}");
            return Err(Corruption::new(what, Some(offset)));
        }
        Ok(())
    }
}

/// The place of a compressed cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedCluster {
    /// Its first byte in the file.
    pub offset: u64,
    /// Its length in bytes, up to the end of its last sector; 1 to twice a cluster.
    pub bytes: u64,
}

impl CompressedCluster {
    /// Bits of the offset in an entry.
    fn offset_bits(geometry: Geometry) -> u32 {
        70 - geometry.cluster_bits()
    }

    /// Reads an entry whose flag says that it is one.
    pub fn parse(word: u64, geometry: Geometry) -> CompressedCluster {
        let bits = Self::offset_bits(geometry);
        let offset = word & ((1 << bits) - 1);
        let further = (word >> bits) & ((1 << (geometry.cluster_bits() - 8)) - 1);
        CompressedCluster { offset, bytes: (further + 1) * 512 - offset % 512 }
    }

    /// The entry; `None` if the place does not fit into one.
    pub fn encode(self, geometry: Geometry) -> Option<u64> {
        let bits = Self::offset_bits(geometry);
        let end = self.offset.checked_add(self.bytes).filter(|_| self.bytes > 0)?;
        let further = (end - 1) / 512 - self.offset / 512;
        let fits =
            self.offset >> bits.min(56) == 0 && further >> (geometry.cluster_bits() - 8) == 0;
        fits.then_some(COMPRESSED | further << bits | self.offset)
    }
}

#[cfg(test)]
mod tests {
    use SubclusterKind::*;

    use super::*;

    fn rules(is_extended: bool) -> EntryRules {
        let geometry = Geometry::new(16, is_extended).unwrap();
        EntryRules { geometry, is_v2: false, has_data_file: false }
    }

    fn plain(word: u64) -> L2Entry {
        L2Entry { word, bitmap: 0 }
    }

    #[test]
    fn q32_an_l1_entry_has_an_aligned_offset_or_none() {
        let geometry = rules(false).geometry;
        assert_eq!(l1_offset(COPIED, geometry).unwrap(), None);
        assert_eq!(l1_offset(COPIED | 0x50000, geometry).unwrap(), Some(0x50000));
        let error = l1_offset(0x50200, geometry).unwrap_err();
        assert_eq!(error.offset, Some(0x50200));
        assert_eq!(L1_RESERVED | COPIED | OFFSET_MASK, u64::MAX);
        assert_eq!(L1_RESERVED & OFFSET_MASK, 0);
    }

    #[test]
    fn q34_an_l2_entry_has_its_bits() {
        assert_eq!(L2_RESERVED | COPIED | COMPRESSED | OFFSET_MASK | ZERO, u64::MAX);
        assert_eq!(L2_RESERVED & (COPIED | COMPRESSED | OFFSET_MASK | ZERO), 0);
        assert_eq!(plain(u64::MAX).offset(), MAX_OFFSET - 512);
    }

    #[test]
    fn q34_q35_an_entry_that_is_taken_for_data_at_once_is_right_and_data() {
        let mut random = fastrand::Rng::with_seed(34);
        let mut found = [0, 0];
        for _ in 0..100_000 {
            let flags = [COPIED, COMPRESSED, ZERO, 1 << 9, 1 << 60];
            let flags = flags.map(|flag| if random.u32(..4) == 0 { flag } else { 0 });
            let guest = random.u64(..4) << 16;
            let word = flags.iter().sum::<u64>() + (random.u64(..4) << 16);
            let has_data_file = random.bool();
            let rules = EntryRules { has_data_file, ..rules(false) };
            let entry = plain(word);
            let is_data = rules.check(entry, guest).is_ok() && rules.kind(entry, 0) == Ok(Data);
            match rules.place_of_data(word, guest) {
                Some(place) => {
                    assert!(is_data && place == entry.offset(), "{word:#x} {guest:#x}");
                    found[usize::from(has_data_file)] += 1;
                }
                None => assert!(!is_data || has_data_file && word & COPIED == 0, "{word:#x}"),
            }
        }
        assert!(found[0] > 1000 && found[1] > 100, "{found:?}");
    }

    #[test]
    fn q35_offset_and_zero_flag_make_four_kinds() {
        let kind = |word| rules(false).kind(plain(word), 0).unwrap();
        assert_eq!(kind(0), Unallocated);
        assert_eq!(kind(ZERO), Zero);
        assert_eq!(kind(COPIED | 0x10000 | ZERO), ZeroStored);
        assert_eq!(kind(COPIED | 0x10000), Data);
        assert_eq!(kind(COMPRESSED | 0x10000), Compressed);
        // 0 is an offset in a data file.
        let data_file = EntryRules { has_data_file: true, ..rules(false) };
        assert_eq!(data_file.kind(plain(COPIED), 0).unwrap(), Data);
        assert_eq!(data_file.kind(plain(0), 0).unwrap(), Unallocated);
        assert_eq!(rules(false).kind(plain(COPIED), 0).unwrap(), Unallocated);
    }

    #[test]
    fn q36_entries_that_cannot_be_are_corruptions() {
        let (good, v2) = (rules(false), EntryRules { is_v2: true, ..rules(false) });
        let data_file = EntryRules { has_data_file: true, ..good };
        assert!(v2.check(plain(ZERO), 0).is_err());
        assert!(good.check(plain(ZERO), 0).is_ok());
        assert_eq!(good.check(plain(0x10200), 0).unwrap_err().offset, Some(0x10200));
        assert!(data_file.check(plain(COPIED | 0x10000), 0x10000).is_ok());
        assert!(data_file.check(plain(COPIED | 0x10000), 0x20000).is_err());
        assert!(data_file.check(plain(COPIED), 0x20000).is_err());
        assert!(data_file.check(plain(COMPRESSED), 0).is_err());
        assert!(data_file.check(plain(0), 0x20000).is_ok());
    }

    #[test]
    fn q37_reserved_bits_are_ignored_by_requests() {
        let entry = plain(L2_RESERVED | 0x10000);
        assert!(rules(false).check(entry, 0).is_ok());
        assert_eq!(rules(false).kind(entry, 0).unwrap(), Data);
    }

    #[test]
    fn q39_each_subcluster_has_its_bits() {
        let entry = |bitmap| L2Entry { word: COPIED | 0x10000 | ZERO, bitmap };
        let kind = |bitmap, sc| rules(true).kind(entry(bitmap), sc);
        // Bit 0 of the first word means nothing.
        assert_eq!(kind(0, 0), Ok(UnallocatedStored));
        assert_eq!(kind(1 << 5, 5), Ok(Data));
        assert_eq!(kind(1 << 37, 5), Ok(ZeroStored));
        assert_eq!(kind(1 << 5 | 1 << 36, 4), Ok(ZeroStored));
        assert!(kind(1 << 5 | 1 << 37, 5).is_err());
        assert_eq!(kind(1 << 63, 31), Ok(ZeroStored));
        let nowhere = L2Entry { word: ZERO, bitmap: 1 | 1 << 34 };
        assert!(rules(true).kind(nowhere, 0).is_err());
        assert_eq!(rules(true).kind(nowhere, 1), Ok(Unallocated));
        assert_eq!(rules(true).kind(nowhere, 2), Ok(Zero));
        let compressed = L2Entry { word: COMPRESSED, bitmap: 1 };
        assert!(rules(true).check(compressed, 0).is_err());
    }

    #[test]
    fn q40_a_compressed_cluster_has_an_offset_and_whole_sectors() {
        for bits in 9..=21 {
            let geometry = Geometry::new(bits, false).unwrap();
            for (offset, bytes) in [(0x12345, 512 - 0x145), (0x200, 512), (0x12345, 1024 - 0x145)] {
                if bits == 9 && bytes > 512 {
                    continue;
                }
                let place = CompressedCluster { offset, bytes };
                let word = place.encode(geometry).unwrap();
                assert_eq!(CompressedCluster::parse(word, geometry), place, "{bits}");
            }
            // Whatever the word is.
            let most = CompressedCluster::parse(u64::MAX, geometry);
            assert_eq!(most.offset, (1 << (70 - bits)) - 1);
            assert!((1..=2 * geometry.cluster_bytes()).contains(&most.bytes));
        }
    }

    #[test]
    fn q43_offsets_of_compressed_clusters_are_bounded_by_their_bits() {
        let large = Geometry::new(21, false).unwrap();
        let place = |offset| CompressedCluster { offset, bytes: 512 };
        assert!(place((1 << 49) - 512).encode(large).is_some());
        assert_eq!(place(1 << 49).encode(large), None);
        // 2^61 bytes of small clusters would fit, but no offset reaches 2^56.
        let small = Geometry::new(9, false).unwrap();
        assert!(place(MAX_OFFSET - 512).encode(small).is_some());
        assert_eq!(place(MAX_OFFSET).encode(small), None);
        assert_eq!(CompressedCluster { offset: u64::MAX, bytes: 512 }.encode(small), None);
    }
}
