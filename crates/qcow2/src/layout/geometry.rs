//! [`Geometry`]: sizes of clusters and tables, and where in them an offset of the disk is.

use super::FormatError;

/// Longest L1 table in bytes.
pub const MAX_L1_BYTES: u64 = 32 << 20;

/// The binary logarithm of the number of subclusters of a cluster with extended entries.
const SUBCLUSTER_BITS: u32 = 5;

/// Sizes that follow from a header. All are powers of two; no method divides, for each request asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    is_extended: bool,
}

impl Geometry {
    /// Clusters of `2^cluster_bits` bytes, whose L2 entries have one word, or two if they are `extended`.
    ///
    /// # Errors
    /// ENOTSUP for clusters that are not allowed: 512 bytes to 2 MiB are, from 16 KiB on with extended
    /// entries.
    pub fn new(cluster_bits: u32, is_extended: bool) -> Result<Geometry, FormatError> {
        if !(9..=21).contains(&cluster_bits) {
            let why = format!("unsupported cluster size 2^{cluster_bits}");
            return Err(FormatError::unsupported(why));
        }
        if is_extended && cluster_bits < 14 {
            let why = "extended L2 entries need clusters of 16 KiB or more";
            return Err(FormatError::invalid(why));
        }
        Ok(Geometry { cluster_bits, is_extended })
    }

    /// The binary logarithm of the cluster size.
    pub fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    /// Bytes of a cluster.
    pub fn cluster_bytes(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether L2 entries have two words.
    pub fn is_extended(self) -> bool {
        self.is_extended
    }

    /// Subclusters of a cluster: 32, or 1 without extended entries.
    pub fn subclusters(self) -> u32 {
        1 << self.subclusters_bits()
    }

    /// Bytes of a subcluster.
    pub fn subcluster_bytes(self) -> u64 {
        1 << self.subcluster_bits()
    }

    fn subclusters_bits(self) -> u32 {
        if self.is_extended { SUBCLUSTER_BITS } else { 0 }
    }

    fn subcluster_bits(self) -> u32 {
        self.cluster_bits - self.subclusters_bits()
    }

    /// The binary logarithm of the length of an L2 entry in bytes.
    pub fn l2_entry_bits(self) -> u32 {
        if self.is_extended { 4 } else { 3 }
    }

    /// Bytes of an L2 entry.
    pub fn l2_entry_bytes(self) -> u64 {
        1 << self.l2_entry_bits()
    }

    /// Entries of an L2 table.
    pub fn l2_entries(self) -> u64 {
        1 << self.l2_bits()
    }

    fn l2_bits(self) -> u32 {
        self.cluster_bits - self.l2_entry_bits()
    }

    /// The binary logarithm of what an L1 entry maps, in bytes.
    fn l1_shift(self) -> u32 {
        self.cluster_bits + self.l2_bits()
    }

    /// The L1 entry that an offset of the disk belongs to.
    pub fn l1_index(self, offset: u64) -> u64 {
        offset >> self.l1_shift()
    }

    /// The entry of an L2 table that an offset of the disk belongs to.
    pub fn l2_index(self, offset: u64) -> u64 {
        (offset >> self.cluster_bits) & (self.l2_entries() - 1)
    }

    /// The subcluster of its cluster in which an offset is.
    pub fn subcluster(self, offset: u64) -> u32 {
        ((offset & (self.cluster_bytes() - 1)) >> self.subcluster_bits()) as u32
    }

    /// Where the bytes of an L1 entry begin on the disk; `None` behind 2^64.
    pub fn l1_start(self, index: u64) -> Option<u64> {
        index.checked_mul(1 << self.l1_shift())
    }

    /// L1 entries that a disk of `size` bytes needs.
    ///
    /// # Errors
    /// EFBIG from 2^31 entries on.
    pub fn l1_entries(self, size: u64) -> Result<u64, FormatError> {
        let entries = size.div_ceil(1 << self.l1_shift());
        match entries >> 31 {
            0 => Ok(entries),
            _ => Err(FormatError::too_big("the disk is too large for its clusters")),
        }
    }

    /// The offset rounded down to its cluster.
    pub fn cluster_start(self, offset: u64) -> u64 {
        offset & !(self.cluster_bytes() - 1)
    }

    /// Whether an offset is that of a cluster.
    pub fn is_aligned(self, offset: u64) -> bool {
        offset & (self.cluster_bytes() - 1) == 0
    }

    /// Checks the place of a table.
    ///
    /// # Errors
    /// EFBIG if it has more than `max_bytes`; EINVAL if it is unaligned, or ends behind 2^63.
    pub fn check_table(
        self,
        what: &str,
        offset: u64,
        bytes: u64,
        max_bytes: u64,
    ) -> Result<(), FormatError> {
        if bytes > max_bytes {
            return Err(FormatError::too_big(format!("{what} too large: {bytes} bytes")));
        }
        let end = offset.checked_add(bytes).filter(|end| *end <= i64::MAX as u64);
        if end.is_none() || !self.is_aligned(offset) {
            return Err(FormatError::invalid(format!("{what} offset invalid: {offset:#x}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q7_clusters_have_512_bytes_to_2_mib() {
        for bits in [0, 8, 22, u32::MAX] {
            let error = Geometry::new(bits, false).unwrap_err();
            assert_eq!(error.to_string(), format!("unsupported cluster size 2^{bits}"));
            assert_eq!(error.errno(), libc::ENOTSUP);
        }
        assert_eq!(Geometry::new(9, false).unwrap().cluster_bytes(), 512);
        assert_eq!(Geometry::new(21, true).unwrap().cluster_bytes(), 2 << 20);
        assert_eq!(Geometry::new(13, true).unwrap_err().errno(), libc::EINVAL);
        assert!(Geometry::new(14, true).is_ok());
    }

    #[test]
    fn q8_a_disk_needs_fewer_than_2_to_the_31_l1_entries() {
        let small = Geometry::new(9, false).unwrap();
        // An entry maps 64 clusters of 512 bytes.
        assert_eq!(small.l1_entries(0).unwrap(), 0);
        assert_eq!(small.l1_entries(1).unwrap(), 1);
        assert_eq!(small.l1_entries((1 << 46) - (1 << 15)).unwrap(), (1 << 31) - 1);
        assert_eq!(small.l1_entries((1 << 46) - (1 << 15) + 1).unwrap_err().errno(), libc::EFBIG);
        assert_eq!(small.l1_entries(u64::MAX).unwrap_err().errno(), libc::EFBIG);
        let large = Geometry::new(21, false).unwrap();
        assert_eq!(large.l1_entries(u64::MAX).unwrap(), 1 << 25);
    }

    #[test]
    fn q33_an_offset_has_its_indices() {
        let plain = Geometry::new(16, false).unwrap();
        assert_eq!(plain.l2_entries(), 8192);
        let offset = (3 << 29) + 5 * 65536 + 77;
        assert_eq!(
            (plain.l1_index(offset), plain.l2_index(offset), plain.subcluster(offset)),
            (3, 5, 0)
        );
        let extended = Geometry::new(16, true).unwrap();
        assert_eq!((extended.l2_entries(), extended.subcluster_bytes()), (4096, 2048));
        assert_eq!((extended.l1_index(offset), extended.l2_index(offset)), (6, 5));
        assert_eq!(extended.subcluster(offset + 31 * 2048), 31);
    }

    #[test]
    fn q9_tables_are_aligned_and_bounded() {
        let geometry = Geometry::new(16, false).unwrap();
        let check = |offset, bytes| {
            geometry.check_table("table", offset, bytes, MAX_L1_BYTES).map_err(|it| it.errno())
        };
        assert_eq!(check(65536, MAX_L1_BYTES), Ok(()));
        assert_eq!(check(65536, MAX_L1_BYTES + 8), Err(libc::EFBIG));
        assert_eq!(check(512, 8), Err(libc::EINVAL));
        let last = (1 << 63) - 65536;
        assert_eq!(check(last, 65535), Ok(()));
        assert_eq!(check(last, 65536), Err(libc::EINVAL));
        assert_eq!(check(u64::MAX - 65535, 65536), Err(libc::EINVAL));
    }
}
