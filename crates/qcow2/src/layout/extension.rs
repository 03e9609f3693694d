//! Header extensions: what lies between the header and the backing name.

use super::bytes::{be32, be64, part};
use super::{FeatureName, FormatError, Geometry};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const DATA_FILE: u32 = 0x4441_5441;
const FEATURE_NAMES: u32 = 0x6803_F857;
const BITMAPS: u32 = 0x2385_2875;
const LUKS: u32 = 0x0537_BE77;

/// The order in which known extensions are written; others follow.
const ORDER: [u32; 5] = [BACKING_FORMAT, DATA_FILE, LUKS, FEATURE_NAMES, BITMAPS];

/// Longest name of a format in bytes.
const MAX_FORMAT_BYTES: usize = 15;
/// Most bitmaps of an image.
pub const MAX_BITMAPS: u32 = 65_535;
/// Longest directory of bitmaps, in bytes.
pub const MAX_DIRECTORY_BYTES: u64 = 1024 * MAX_BITMAPS as u64;

/// One extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its type.
    pub kind: u32,
    /// Its data, without padding.
    pub data: Vec<u8>,
}

/// The extensions of a header, in the order in which they are there. Those that are not known are kept. Of a
/// type that comes twice the last counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions(Vec<Extension>);

/// Where bitmaps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// How many there are: 1 to 65,535.
    pub count: u32,
    /// Length of the directory, in bytes.
    pub directory_bytes: u64,
    /// Its offset.
    pub directory_offset: u64,
}

/// Where the header of LUKS is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LuksExtension {
    /// Its offset.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Extensions {
    /// Reads the extensions in `area`, from its beginning to its end or to an end mark.
    ///
    /// # Errors
    /// EINVAL if one does not fit.
    pub(super) fn parse(area: &[u8]) -> Result<Extensions, FormatError> {
        let (mut list, mut at) = (Vec::new(), 0);
        while let (Ok(kind), Ok(len)) = (be32(area, at), be32(area, at + 4)) {
            if kind == END {
                break;
            }
            at += 8;
            let data = part(area, at, len as usize).map_err(|_| {
                FormatError::invalid(format!(
                    "header extension {kind:#010x} too large: {len} bytes"
                ))
            })?;
            list.push(Extension { kind, data: data.to_vec() });
            at += (len as usize).next_multiple_of(8);
        }
        Ok(Extensions(list))
    }

    /// How many bytes of `area` the list there takes, with its end mark.
    pub(super) fn length_in(area: &[u8]) -> usize {
        let mut at = 0;
        while let (Ok(kind), Ok(len)) = (be32(area, at), be32(area, at + 4)) {
            at += 8;
            if kind == END {
                break;
            }
            at += (len as usize).next_multiple_of(8);
        }
        at.min(area.len())
    }

    /// Writes the extensions and the end mark: the known ones in QEMU's order, and the others in theirs.
    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        let known = ORDER.iter().filter_map(|kind| self.last(*kind));
        let unknown = self.0.iter().filter(|it| !ORDER.contains(&it.kind));
        for Extension { kind, data } in known.chain(unknown) {
            // Longer than 2 MiB is none: it was read from a cluster.
            to.extend(kind.to_be_bytes());
            to.extend((data.len() as u32).to_be_bytes());
            to.extend(data);
            to.extend(std::iter::repeat_n(0, data.len().next_multiple_of(8) - data.len()));
        }
        to.extend([0; 8]);
    }

    fn last(&self, kind: u32) -> Option<&Extension> {
        self.0.iter().rfind(|it| it.kind == kind)
    }

    fn data(&self, kind: u32) -> Option<&[u8]> {
        self.last(kind).map(|it| &*it.data)
    }

    fn set(&mut self, kind: u32, data: Option<Vec<u8>>) {
        self.0.retain(|it| it.kind != kind);
        self.0.extend(data.map(|data| Extension { kind, data }));
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Extension> {
        self.0.iter()
    }

    /// The extensions that are not known here.
    pub fn unknown(&self) -> impl Iterator<Item = &Extension> {
        self.0.iter().filter(|it| !ORDER.contains(&it.kind))
    }

    /// The format of the backing file.
    ///
    /// # Errors
    /// EINVAL if it is too long, or no text.
    pub fn backing_format(&self) -> Result<Option<&str>, FormatError> {
        let Some(name) = self.data(BACKING_FORMAT) else { return Ok(None) };
        if name.len() > MAX_FORMAT_BYTES {
            let why = format!("the name of the backing format is too long: {} bytes", name.len());
            return Err(FormatError::invalid(why));
        }
        let text = str::from_utf8(name);
        text.map(Some)
            .map_err(|_| FormatError::invalid("the name of the backing format is no text"))
    }

    /// Sets the format of the backing file.
    pub fn set_backing_format(&mut self, format: Option<&str>) {
        self.set(BACKING_FORMAT, format.map(|format| format.as_bytes().to_vec()));
    }

    /// The name of the data file; bytes, as a path has them.
    pub fn data_file(&self) -> Option<&[u8]> {
        self.data(DATA_FILE)
    }

    /// Sets the name of the data file.
    pub fn set_data_file(&mut self, name: Option<&[u8]>) {
        self.set(DATA_FILE, name.map(<[u8]>::to_vec));
    }

    /// Sets the names of features, as [`FeatureName::default_table`] has them.
    pub fn set_feature_names(&mut self, table: Vec<u8>) {
        self.set(FEATURE_NAMES, Some(table));
    }

    /// Drops the names of features.
    pub fn remove_feature_names(&mut self) {
        self.set(FEATURE_NAMES, None);
    }

    /// The names of features.
    pub fn feature_names(&self) -> Vec<FeatureName> {
        self.data(FEATURE_NAMES).map(FeatureName::parse_table).unwrap_or_default()
    }

    /// Where bitmaps are.
    ///
    /// # Errors
    /// EINVAL if it is of another length, has no or too many bitmaps, or an impossible directory.
    pub fn bitmaps(&self, geometry: Geometry) -> Result<Option<BitmapsExtension>, FormatError> {
        let Some(data) = self.data(BITMAPS) else { return Ok(None) };
        let fields = || {
            let (count, reserved) = (be32(data, 0)?, be32(data, 4)?);
            Ok((count, reserved, be64(data, 8)?, be64(data, 16)?))
        };
        let invalid = |why: &'static str| Err(FormatError::invalid(why));
        let (count, reserved, directory_bytes, directory_offset) = match fields() {
            Ok(fields) if data.len() == 24 => fields,
            Ok(_) | Err(super::TooShort) => return invalid("invalid bitmaps extension length"),
        };
        if reserved != 0 {
            return invalid("bitmaps extension: the reserved field is not zero");
        }
        if count == 0 || count > MAX_BITMAPS {
            return invalid("bitmaps extension: no bitmaps, or too many");
        }
        if directory_bytes == 0 || directory_bytes > MAX_DIRECTORY_BYTES {
            return invalid("bitmaps extension: no bitmap directory, or a too large one");
        }
        if directory_offset == 0 || !geometry.is_aligned(directory_offset) {
            return invalid("bitmaps extension: invalid bitmap directory offset");
        }
        geometry.check_table("bitmap directory", directory_offset, directory_bytes, u64::MAX)?;
        Ok(Some(BitmapsExtension { count, directory_bytes, directory_offset }))
    }

    /// Whether there is an extension of bitmaps, valid or not.
    pub fn has_bitmaps(&self) -> bool {
        self.last(BITMAPS).is_some()
    }

    /// Sets where bitmaps are.
    pub fn set_bitmaps(&mut self, place: Option<BitmapsExtension>) {
        let data = place.map(|it| {
            let mut data = it.count.to_be_bytes().to_vec();
            data.extend([0; 4]);
            data.extend(it.directory_bytes.to_be_bytes());
            data.extend(it.directory_offset.to_be_bytes());
            data
        });
        self.set(BITMAPS, data);
    }

    /// Drops the extension of bitmaps.
    pub fn remove_bitmaps(&mut self) {
        self.set(BITMAPS, None);
    }

    /// Where the header of LUKS is.
    ///
    /// # Errors
    /// EINVAL if it is of another length, or unaligned.
    pub fn luks(&self, geometry: Geometry) -> Result<Option<LuksExtension>, FormatError> {
        let Some(data) = self.data(LUKS) else { return Ok(None) };
        let (Ok(offset), Ok(bytes), 16) = (be64(data, 0), be64(data, 8), data.len()) else {
            return Err(FormatError::invalid("encryption header extension of a wrong length"));
        };
        geometry.check_table("encryption header", offset, bytes, u64::MAX)?;
        Ok(Some(LuksExtension { offset, bytes }))
    }

    /// Sets where the header of LUKS is.
    pub fn set_luks(&mut self, place: Option<LuksExtension>) {
        let data = place.map(|it| [it.offset.to_be_bytes(), it.bytes.to_be_bytes()].concat());
        self.set(LUKS, data);
    }

    /// Whether there is an extension of LUKS, valid or not.
    pub fn has_luks(&self) -> bool {
        self.last(LUKS).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        Extensions(vec![Extension { kind, data: data.to_vec() }]).encode(&mut bytes);
        bytes.truncate(bytes.len() - 8);
        bytes
    }

    fn geometry() -> Geometry {
        Geometry::new(16, false).unwrap()
    }

    #[test]
    fn q23_a_list_ends_at_its_mark_or_with_its_area() {
        let bytes = [one(7, b"seven"), one(8, b""), vec![0; 8], one(9, b"behind the end")].concat();
        let list = Extensions::parse(&bytes).unwrap();
        let seen: Vec<_> = list.iter().map(|it| (it.kind, &*it.data)).collect();
        assert_eq!(seen, [(7, &b"seven"[..]), (8, b"")]);
        // Without a mark, and with a rest too short for another.
        let rest = [one(7, b"seven"), vec![1; 7]].concat();
        assert_eq!(Extensions::parse(&rest).unwrap().iter().count(), 1);
        let mut long = one(7, b"sevenths");
        long[7] = 9;
        let error = Extensions::parse(&long).unwrap_err();
        assert_eq!(error.to_string(), "header extension 0x00000007 too large: 9 bytes");
        assert_eq!(error.errno(), libc::EINVAL);
        long[4..8].copy_from_slice(&[255; 4]);
        assert!(Extensions::parse(&long).is_err());
    }

    #[test]
    fn q24_strings_have_no_zero_and_a_format_at_most_15_bytes() {
        let list = Extensions::parse(&one(DATA_FILE, b"a\xff.raw")).unwrap();
        assert_eq!(list.data_file(), Some(&b"a\xff.raw"[..]));
        let list = |name: &[u8]| Extensions::parse(&one(BACKING_FORMAT, name)).unwrap();
        assert_eq!(list(b"qcow2").backing_format().unwrap(), Some("qcow2"));
        assert_eq!(list(&[b'x'; 15]).backing_format().unwrap(), Some("x".repeat(15).as_str()));
        assert_eq!(list(&[b'x'; 16]).backing_format().unwrap_err().errno(), libc::EINVAL);
        assert_eq!(list(b"\xff").backing_format().unwrap_err().errno(), libc::EINVAL);
    }

    #[test]
    fn q25_unknown_extensions_keep_their_order_and_the_last_of_a_type_counts() {
        let bytes = [one(9, b"9"), one(BACKING_FORMAT, b"raw"), one(7, b"7"), one(9, b"again")];
        let again = one(BACKING_FORMAT, b"qcow2");
        let list = Extensions::parse(&[bytes.concat(), again.clone()].concat()).unwrap();
        assert_eq!(list.backing_format().unwrap(), Some("qcow2"));
        let mut written = Vec::new();
        list.encode(&mut written);
        let expected = [again, one(9, b"9"), one(7, b"7"), one(9, b"again"), vec![0; 8]].concat();
        assert_eq!(written, expected);
    }

    #[test]
    fn q28_luks_names_aligned_clusters() {
        let luks = |offset: u64, bytes: u64| {
            let data = [offset.to_be_bytes(), bytes.to_be_bytes()].concat();
            Extensions::parse(&one(LUKS, &data)).unwrap().luks(geometry())
        };
        let there = LuksExtension { offset: 65536, bytes: 100 };
        assert_eq!(luks(65536, 100).unwrap(), Some(there));
        assert_eq!(luks(65537, 100).unwrap_err().errno(), libc::EINVAL);
        assert_eq!(luks(1 << 63, 1).unwrap_err().errno(), libc::EINVAL);
        let short = Extensions::parse(&one(LUKS, &[0; 15])).unwrap();
        assert_eq!(short.luks(geometry()).unwrap_err().errno(), libc::EINVAL);
    }

    #[test]
    fn q29_bitmaps_have_24_bytes_within_limits() {
        let bitmaps = |count: u32, reserved: u32, bytes: u64, offset: u64| {
            let mut data = [count.to_be_bytes(), reserved.to_be_bytes()].concat();
            data.extend([bytes.to_be_bytes(), offset.to_be_bytes()].concat());
            Extensions::parse(&one(BITMAPS, &data)).unwrap().bitmaps(geometry())
        };
        let there = bitmaps(65_535, 0, MAX_DIRECTORY_BYTES, 65536).unwrap().unwrap();
        assert_eq!((there.count, there.directory_offset), (65_535, 65536));
        for (count, reserved, bytes, offset) in [
            (0, 0, 24, 65536),
            (65_536, 0, 24, 65536),
            (1, 1, 24, 65536),
            (1, 0, 0, 65536),
            (1, 0, MAX_DIRECTORY_BYTES + 1, 65536),
            (1, 0, 24, 0),
            (1, 0, 24, 512),
            (1, 0, 24, !0xffff),
        ] {
            let error = bitmaps(count, reserved, bytes, offset).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL, "{count} {reserved} {bytes} {offset}");
        }
        for len in [0, 23, 25] {
            let list = Extensions::parse(&one(BITMAPS, &vec![0; len])).unwrap();
            assert_eq!(list.bitmaps(geometry()).unwrap_err().errno(), libc::EINVAL);
        }
    }
}
