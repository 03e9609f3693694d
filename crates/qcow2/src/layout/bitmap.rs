//! The directory of bitmaps, and their tables.

use super::bytes::{TooShort, be16, be32, be64, part};
use super::{FormatError, Geometry, OFFSET_MASK};

bitflags::bitflags! {
    /// Flags of a bitmap.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BitmapFlags: u32 {
        /// It was not stored after its last use: its bits mean nothing.
        const IN_USE = 1;
        /// It tracks writes from the opening of the image on.
        const AUTO = 2;
        /// Extra data may be ignored.
        const EXTRA_DATA_COMPATIBLE = 4;
        const _ = !0;
    }
}

/// The type of bitmaps that there is: dirty tracking.
const DIRTY_TRACKING: u8 = 1;
const FIXED_BYTES: usize = 24;
const MAX_NAME_BYTES: u16 = 1023;
/// Most bytes of all bitmaps of an image together, as bits of their data.
pub const MAX_BITMAP_BYTES: u64 = 512 << 20;

/// An entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Offset of its table.
    pub table_offset: u64,
    /// Entries of that.
    pub table_entries: u32,
    /// Its flags.
    pub flags: BitmapFlags,
    /// Binary logarithm of the bytes of the disk that one bit stands for; 9 to 31.
    pub granularity_bits: u8,
}

/// Reads a directory of `count` bitmaps of a disk of `disk_bytes` bytes.
///
/// # Errors
/// EINVAL if it is not one that can be used, or has another number of bitmaps; EFBIG if the bitmaps are
/// larger than is allowed.
pub fn parse_directory(
    bytes: &[u8],
    count: u32,
    geometry: Geometry,
    disk_bytes: u64,
) -> Result<Vec<Bitmap>, FormatError> {
    let (mut bitmaps, mut at, mut all_bytes) = (Vec::new(), 0, 0_u64);
    while at < bytes.len() {
        let short = |TooShort| FormatError::invalid("bitmap directory ends within an entry");
        let (bitmap, len) = Bitmap::parse(&bytes[at..]).map_err(short)??;
        part(bytes, at, len).map_err(short)?;
        bitmap.check_table(geometry, disk_bytes)?;
        all_bytes = all_bytes.saturating_add(bitmap.data_bytes(geometry));
        if all_bytes > MAX_BITMAP_BYTES {
            return Err(FormatError::too_big("the bitmaps are too large"));
        }
        bitmaps.push(bitmap);
        if bitmaps.len() > count as usize {
            break;
        }
        at += len;
    }
    if bitmaps.len() != count as usize {
        return Err(FormatError::invalid("less or more bitmaps found than specified in header"));
    }
    Ok(bitmaps)
}

impl Bitmap {
    /// Reads the entry at the beginning of `bytes`, and returns its length.
    fn parse(bytes: &[u8]) -> Result<Result<(Bitmap, usize), FormatError>, TooShort> {
        let flags = BitmapFlags::from_bits_retain(be32(bytes, 12)?);
        let (kind, granularity_bits) = (part(bytes, 16, 1)?[0], part(bytes, 17, 1)?[0]);
        let (name_bytes, extra_bytes) = (be16(bytes, 18)?, be32(bytes, 20)?);
        let invalid = |why: &'static str| Ok(Err(FormatError::invalid(why)));
        if kind != DIRTY_TRACKING {
            return invalid("bitmap of an unknown type");
        }
        if !(BitmapFlags::IN_USE | BitmapFlags::AUTO).contains(flags) {
            return invalid("bitmap with unknown flags");
        }
        if !(9..=31).contains(&granularity_bits) {
            return invalid("bitmap with an unsupported granularity");
        }
        if name_bytes == 0 || name_bytes > MAX_NAME_BYTES {
            return invalid("bitmap without a name, or with a too long one");
        }
        if extra_bytes != 0 {
            return invalid("bitmap with extra data");
        }
        let Ok(name) = str::from_utf8(part(bytes, FIXED_BYTES, name_bytes.into())?) else {
            return invalid("bitmap whose name is no text");
        };
        let bitmap = Bitmap {
            name: name.to_owned(),
            table_offset: be64(bytes, 0)?,
            table_entries: be32(bytes, 8)?,
            flags,
            granularity_bits,
        };
        Ok(Ok((bitmap, (FIXED_BYTES + usize::from(name_bytes)).next_multiple_of(8))))
    }

    /// How many bytes the entry of a bitmap takes.
    pub fn entry_bytes(name: &str) -> usize {
        (FIXED_BYTES + name.len()).next_multiple_of(8)
    }

    /// Appends the entry. The name is one that bitmaps can have.
    pub fn encode(&self, to: &mut Vec<u8>) {
        let end = to.len() + Self::entry_bytes(&self.name);
        to.extend(self.table_offset.to_be_bytes());
        to.extend(self.table_entries.to_be_bytes());
        to.extend(self.flags.bits().to_be_bytes());
        to.extend([DIRTY_TRACKING, self.granularity_bits]);
        to.extend((self.name.len() as u16).to_be_bytes());
        to.extend([0; 4]);
        to.extend(self.name.as_bytes());
        to.resize(end, 0);
    }

    fn check_table(&self, geometry: Geometry, disk_bytes: u64) -> Result<(), FormatError> {
        if self.table_entries == 0 || self.table_offset == 0 {
            return Err(FormatError::invalid("bitmap without a table"));
        }
        let bytes = u64::from(self.table_entries) * 8;
        geometry.check_table("bitmap table", self.table_offset, bytes, u64::MAX)?;
        if self.data_bytes(geometry) > MAX_BITMAP_BYTES {
            return Err(FormatError::too_big("bitmap too large"));
        }
        let bits = disk_bytes.div_ceil(1 << self.granularity_bits);
        let is_too_short = self.data_bytes(geometry) < bits.div_ceil(8);
        if is_too_short && !self.flags.contains(BitmapFlags::IN_USE) {
            return Err(FormatError::invalid("bitmap whose table is too short"));
        }
        Ok(())
    }

    fn data_bytes(&self, geometry: Geometry) -> u64 {
        u64::from(self.table_entries) << geometry.cluster_bits()
    }
}

/// How many bytes of clusters the bits of a bitmap have: of a disk of `disk_bytes` bytes, in granules of so
/// many.
pub fn data_bytes(disk_bytes: u64, granularity: u64, geometry: Geometry) -> u64 {
    let bytes = disk_bytes.div_ceil(granularity).div_ceil(8);
    bytes.div_ceil(geometry.cluster_bytes()).max(1) << geometry.cluster_bits()
}

/// An entry of the table of a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapTableEntry {
    /// All bits are 0, or 1.
    All(bool),
    /// The bits are in the cluster at this offset.
    Stored(u64),
}

impl BitmapTableEntry {
    /// Reads one; `None` if it has reserved bits, or an offset that is none.
    pub fn parse(entry: u64, geometry: Geometry) -> Option<BitmapTableEntry> {
        let offset = entry & OFFSET_MASK;
        match entry & !OFFSET_MASK {
            bit @ (0 | 1) if offset == 0 => Some(BitmapTableEntry::All(bit == 1)),
            0 if geometry.is_aligned(offset) => Some(BitmapTableEntry::Stored(offset)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 1 << 30;

    fn geometry() -> Geometry {
        Geometry::new(16, false).unwrap()
    }

    /// An entry, and the place of a change in it.
    fn entry(name: &[u8], change: Option<(usize, &[u8])>) -> Vec<u8> {
        let mut bytes =
            [&0x50000_u64.to_be_bytes()[..], &1_u32.to_be_bytes(), &[0, 0, 0, 2]].concat();
        bytes.extend([1, 16]);
        bytes.extend((name.len() as u16).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        if let Some((at, changed)) = change {
            bytes[at..at + changed.len()].copy_from_slice(changed);
        }
        bytes
    }

    fn parse(bytes: &[u8], count: u32) -> Result<Vec<Bitmap>, i32> {
        parse_directory(bytes, count, geometry(), DISK).map_err(|error| error.errno())
    }

    #[test]
    fn q51_entries_follow_each_other() {
        let bytes = [entry(b"a", None), entry(b"second bitmap", None)].concat();
        let bitmaps = parse(&bytes, 2).unwrap();
        assert_eq!([&*bitmaps[0].name, &*bitmaps[1].name], ["a", "second bitmap"]);
        assert_eq!((bitmaps[0].table_offset, bitmaps[0].table_entries), (0x50000, 1));
        assert_eq!((bitmaps[0].flags, bitmaps[0].granularity_bits), (BitmapFlags::AUTO, 16));
        let mut again = Vec::new();
        bitmaps.iter().for_each(|bitmap| bitmap.encode(&mut again));
        assert_eq!(again, bytes);
    }

    #[test]
    fn q52_bitmaps_that_cannot_be_used_are_refused() {
        let refused: [(usize, &[u8]); 9] = [
            (16, &[2]),
            (15, &[4]),
            (12, &[128]),
            (17, &[8]),
            (17, &[32]),
            (18, &[0, 0]),
            (20, &[0, 0, 0, 1]),
            (0, &[0; 8]),
            (7, &[1]),
        ];
        for change in refused {
            assert_eq!(parse(&entry(b"a", Some(change)), 1), Err(libc::EINVAL), "{change:?}");
        }
        let no_entries = entry(b"a", Some((8, &[0; 4])));
        assert_eq!(parse(&no_entries, 1), Err(libc::EINVAL));
        // A bit a sector of 1 GiB needs 4 clusters. One in use may have any table.
        let short = entry(b"a", Some((17, &[9])));
        assert_eq!(parse(&short, 1), Err(libc::EINVAL));
        let in_use = entry(b"a", Some((15, &[1, 1, 9])));
        assert!(parse(&in_use, 1).is_ok());
        let large = entry(b"a", Some((8, &8193_u32.to_be_bytes())));
        assert_eq!(parse(&large, 1), Err(libc::EFBIG));
        assert_eq!(parse(&entry(b"\xff", None), 1), Err(libc::EINVAL));
        assert_eq!(parse(&entry(&[b'x'; 1024], None), 1), Err(libc::EINVAL));
        assert!(parse(&entry(&[b'x'; 1023], None), 1).is_ok());
        // Another count, and a part of an entry.
        let one = entry(b"a", None);
        assert_eq!([parse(&one, 0), parse(&one, 2)], [Err(libc::EINVAL), Err(libc::EINVAL)]);
        assert_eq!(parse(&one[..31], 1), Err(libc::EINVAL));
        assert_eq!(parse(&one[..24], 1), Err(libc::EINVAL));
        // All of them together are bounded.
        let half = entry(b"a", Some((8, &4097_u32.to_be_bytes())));
        assert!(parse(&half, 1).is_ok());
        assert_eq!(parse(&[&half[..], &half].concat(), 2), Err(libc::EFBIG));
    }

    #[test]
    fn q53_an_entry_of_a_table_is_a_cluster_or_all_bits() {
        let parse = |entry| BitmapTableEntry::parse(entry, geometry());
        assert_eq!(parse(0), Some(BitmapTableEntry::All(false)));
        assert_eq!(parse(1), Some(BitmapTableEntry::All(true)));
        assert_eq!(parse(0x10000), Some(BitmapTableEntry::Stored(0x10000)));
        assert_eq!([parse(0x10001), parse(2), parse(0x10200), parse(1 << 63)], [None; 4]);
    }
}
