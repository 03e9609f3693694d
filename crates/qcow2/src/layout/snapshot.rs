//! [`Snapshot`]: an entry of the snapshot table.

use super::bytes::{TooShort, be16, be32, be64, part};

/// Longest snapshot table in bytes.
pub const MAX_SNAPSHOT_TABLE_BYTES: u64 = 64 << 20;
/// Longest L1 tables of all snapshots together, in bytes.
pub const MAX_SNAPSHOT_L1_BYTES: u64 = 256 << 20;
/// Longest extra data that is read, in bytes.
const MAX_EXTRA_BYTES: usize = 1024;
/// Extra data that is known, and written.
const KNOWN_EXTRA_BYTES: usize = 24;
/// Extra data that an image of version 3 has at least.
const V3_EXTRA_BYTES: usize = 16;
const FIXED_BYTES: usize = 40;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Offset of its L1 table.
    pub l1_offset: u64,
    /// Entries of that.
    pub l1_entries: u32,
    /// Its id.
    pub id: Vec<u8>,
    /// Its name.
    pub name: Vec<u8>,
    /// When it was made: seconds since 1970.
    pub date_seconds: u32,
    /// And nanoseconds.
    pub date_nanoseconds: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_ns: u64,
    /// Size of the state of the machine, in bytes.
    pub vm_state_bytes: u64,
    /// Length of the disk in bytes; `None` in old images, where it is that of the image.
    pub disk_bytes: Option<u64>,
    /// The count of instructions, if there is one.
    pub icount: Option<u64>,
    /// How many bytes of extra data there were.
    pub extra_bytes: u32,
    /// Extra data that is not known.
    pub unknown_extra: Vec<u8>,
}

impl Snapshot {
    /// Reads the entry at the beginning of `bytes`, and returns its length up to the next entry. Of extra
    /// data that is too long, see [`is_extra_too_long`](Self::is_extra_too_long), the beginning is kept.
    ///
    /// # Errors
    /// If `bytes` ends within the entry.
    pub fn parse(bytes: &[u8]) -> Result<(Snapshot, usize), TooShort> {
        let (id_bytes, name_bytes) = (be16(bytes, 12)?.into(), be16(bytes, 14)?.into());
        let extra_bytes = be32(bytes, 36)?;
        let names_at = FIXED_BYTES + extra_bytes as usize;
        let id = part(bytes, names_at, id_bytes)?.to_vec();
        let name = part(bytes, names_at + id_bytes, name_bytes)?.to_vec();
        let extra = part(bytes, FIXED_BYTES, (extra_bytes as usize).min(MAX_EXTRA_BYTES))?;
        let snapshot = Snapshot {
            l1_offset: be64(bytes, 0)?,
            l1_entries: be32(bytes, 8)?,
            id,
            name,
            date_seconds: be32(bytes, 16)?,
            date_nanoseconds: be32(bytes, 20)?,
            vm_clock_ns: be64(bytes, 24)?,
            vm_state_bytes: be64(extra, 0).unwrap_or(be32(bytes, 32)?.into()),
            disk_bytes: be64(extra, 8).ok(),
            icount: be64(extra, 16).ok().filter(|icount| *icount != u64::MAX),
            extra_bytes,
            unknown_extra: extra.get(KNOWN_EXTRA_BYTES..).unwrap_or_default().to_vec(),
        };
        let end = names_at + id_bytes + name_bytes;
        Ok((snapshot, end.next_multiple_of(8)))
    }

    /// Writes the entry, padded to the next.
    pub fn encode(&self, disk_bytes: u64, to: &mut Vec<u8>) {
        let old_vm_state = u32::try_from(self.vm_state_bytes).unwrap_or(0);
        let extra_bytes = KNOWN_EXTRA_BYTES + self.unknown_extra.len();
        to.extend(self.l1_offset.to_be_bytes());
        to.extend(self.l1_entries.to_be_bytes());
        // They were read with such lengths, or are checked where they are made.
        to.extend((self.id.len() as u16).to_be_bytes());
        to.extend((self.name.len() as u16).to_be_bytes());
        to.extend(self.date_seconds.to_be_bytes());
        to.extend(self.date_nanoseconds.to_be_bytes());
        to.extend(self.vm_clock_ns.to_be_bytes());
        to.extend(old_vm_state.to_be_bytes());
        to.extend((extra_bytes as u32).to_be_bytes());
        to.extend(self.vm_state_bytes.to_be_bytes());
        to.extend(self.disk_bytes.unwrap_or(disk_bytes).to_be_bytes());
        to.extend(self.icount.unwrap_or(u64::MAX).to_be_bytes());
        to.extend(&self.unknown_extra);
        to.extend(&self.id);
        to.extend(&self.name);
        to.resize(to.len().next_multiple_of(8), 0);
    }

    /// Bytes of the entry that it was read from, up to the next one.
    pub fn file_bytes(&self) -> u64 {
        let names = self.id.len() + self.name.len();
        ((FIXED_BYTES + names) as u64 + u64::from(self.extra_bytes)).next_multiple_of(8)
    }

    /// It is in the file as [`encode`](Self::encode) writes it.
    pub(crate) fn set_written(&mut self) {
        self.extra_bytes = (KNOWN_EXTRA_BYTES + self.unknown_extra.len()) as u32;
    }

    /// Whether it has more extra data than is allowed: EFBIG.
    pub fn is_extra_too_long(&self) -> bool {
        self.extra_bytes as usize > MAX_EXTRA_BYTES
    }

    /// Whether it has less extra data than version 3 asks for.
    pub fn is_extra_too_short(&self) -> bool {
        (self.extra_bytes as usize) < V3_EXTRA_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            l1_offset: 0x50000,
            l1_entries: 3,
            id: b"1".to_vec(),
            name: b"before".to_vec(),
            date_seconds: 1_700_000_000,
            date_nanoseconds: 5,
            vm_clock_ns: 6,
            vm_state_bytes: 7,
            disk_bytes: Some(1 << 30),
            icount: None,
            extra_bytes: 24,
            unknown_extra: Vec::new(),
        }
    }

    fn encoded(snapshot: &Snapshot) -> Vec<u8> {
        let mut bytes = Vec::new();
        snapshot.encode(123, &mut bytes);
        bytes
    }

    #[test]
    fn q47_an_entry_is_read_as_it_was_written() {
        let bytes = encoded(&snapshot());
        assert_eq!(bytes.len(), (40 + 24 + 7_usize).next_multiple_of(8));
        assert_eq!(Snapshot::parse(&bytes), Ok((snapshot(), bytes.len())));
        let followed = [&bytes[..], &bytes].concat();
        assert_eq!(Snapshot::parse(&followed), Ok((snapshot(), bytes.len())));
        for len in 0..40 + 24 + 7 {
            assert_eq!(Snapshot::parse(&bytes[..len]), Err(TooShort), "{len}");
        }
    }

    #[test]
    fn q48_extra_data_wins_and_may_be_missing() {
        let mut bytes = encoded(&Snapshot { icount: Some(9), ..snapshot() });
        bytes[32..36].copy_from_slice(&99_u32.to_be_bytes());
        let read = Snapshot::parse(&bytes).unwrap().0;
        assert_eq!((read.vm_state_bytes, read.icount), (7, Some(9)));
        // Without extra data the fixed field counts.
        bytes[36..40].copy_from_slice(&[0; 4]);
        let read = Snapshot::parse(&bytes).unwrap().0;
        assert_eq!((read.vm_state_bytes, read.disk_bytes, read.icount), (99, None, None));
        assert!(read.is_extra_too_short());
        assert!(!snapshot().is_extra_too_short());
    }

    #[test]
    fn q49_unknown_extra_data_is_kept_up_to_1024_bytes() {
        let unknown_extra = vec![0xee; 1000];
        let long = Snapshot { extra_bytes: 1024, unknown_extra, ..snapshot() };
        let bytes = encoded(&long);
        assert_eq!(Snapshot::parse(&bytes).unwrap().0, long);
        assert!(!long.is_extra_too_long());
        let longer = encoded(&Snapshot { unknown_extra: vec![0xee; 1001], ..long });
        let read = Snapshot::parse(&longer).unwrap().0;
        assert!(read.is_extra_too_long());
        assert_eq!((&*read.name, read.unknown_extra.len()), (&b"before"[..], 1000));
        // A state of 4 GiB does not fit into the old field. A missing length is the image's.
        let huge = Snapshot { vm_state_bytes: 1 << 32, disk_bytes: None, ..snapshot() };
        let bytes = encoded(&huge);
        assert_eq!(bytes[32..36], [0; 4]);
        let read = Snapshot::parse(&bytes).unwrap().0;
        assert_eq!((read.vm_state_bytes, read.disk_bytes), (1 << 32, Some(123)));
    }
}
