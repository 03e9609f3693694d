//! [`Header`]: cluster 0 of an image.

use std::ops::Range;

use super::bytes::{TooShort, be32, be64, part};
use super::feature::KNOWN;
use super::{
    Autoclear, Compatible, CompressionType, Extensions, FeatureName, FormatError, Geometry,
    Incompatible, MAX_L1_BYTES, RefcountWidth,
};

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Length of the header of version 2, and the shortest and the usual one of version 3.
const V2_BYTES: usize = 72;
const V3_BYTES: usize = 104;
const FULL_BYTES: usize = 112;
/// Where the fields that are not known begin, with the padding before them.
const TAIL_AT: usize = 105;

/// A sector is written whole, or not at all.
pub const SECTOR_BYTES: usize = 512;
/// Longest refcount table in bytes.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most snapshots of an image.
pub const MAX_SNAPSHOTS: u32 = 65_536;
/// Longest name of a backing file in bytes.
const MAX_BACKING_BYTES: u64 = 1023;
/// Clusters that are not larger have no names of features.
const NAMES_FROM_BYTES: u64 = 4096;

/// How data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crypt {
    /// Not at all.
    None,
    /// By the legacy AES of the format.
    Aes,
    /// By LUKS.
    Luks,
}

/// Why an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// For reads alone.
    Read,
    /// For reads and writes.
    Write,
    /// For a check, which also takes images that are to be repaired.
    Check,
}

/// Cluster 0, with all that it has, known or not: a rewrite keeps what it does not mean to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Binary logarithm of the cluster size; 9 to 21.
    pub cluster_bits: u32,
    /// Length of the disk in bytes, as the header has it. [`disk_bytes`](Self::disk_bytes) is whole sectors.
    pub size: u64,
    /// The method of encryption, as a number.
    pub crypt_method: u32,
    /// Entries of the L1 table.
    pub l1_entries: u32,
    /// Its offset.
    pub l1_offset: u64,
    /// Offset of the refcount table.
    pub refcount_table_offset: u64,
    /// Its length in clusters.
    pub refcount_table_clusters: u32,
    /// How many snapshots there are.
    pub snapshots: u32,
    /// Offset of their table.
    pub snapshots_offset: u64,
    /// Features without which the image must not be opened.
    pub incompatible: Incompatible,
    /// Features that may be ignored.
    pub compatible: Compatible,
    /// Features that a writer clears if it does not know them.
    pub autoclear: Autoclear,
    /// Binary logarithm of the width of refcounts in bits.
    pub refcount_order: u32,
    /// The method of compression, as a number.
    pub compression_type: u8,
    /// The extensions.
    pub extensions: Extensions,
    /// The name of the backing file, as a path has it.
    pub backing: Option<Vec<u8>>,
    /// Length of the header.
    header_bytes: u32,
    /// Padding and fields that are not known, up to that length.
    tail: Vec<u8>,
}

impl Header {
    /// The header of a new image of `version` 2 or 3, with clusters of `2^cluster_bits` bytes and a disk of
    /// `size` bytes. It has no features, refcounts of 16 bits, and no place for any table yet.
    pub fn new(version: u32, cluster_bits: u32, size: u64) -> Header {
        let is_v2 = version == 2;
        Header {
            version,
            cluster_bits,
            size,
            crypt_method: 0,
            l1_entries: 0,
            l1_offset: 0,
            refcount_table_offset: 0,
            refcount_table_clusters: 0,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: Incompatible::empty(),
            compatible: Compatible::empty(),
            autoclear: Autoclear::empty(),
            refcount_order: 4,
            compression_type: 0,
            extensions: Extensions::default(),
            backing: None,
            header_bytes: if is_v2 { V2_BYTES } else { FULL_BYTES } as u32,
            tail: if is_v2 { Vec::new() } else { vec![0; FULL_BYTES - TAIL_AT] },
        }
    }

    /// Bytes from the beginning of an image that [`cluster_bytes`](Self::cluster_bytes) needs.
    pub const PREFIX_BYTES: usize = 24;

    /// Whether these are the first bytes of an image of version 2 or later.
    pub fn probe(prefix: &[u8]) -> bool {
        prefix.starts_with(&MAGIC) && be32(prefix, 4).is_ok_and(|version| version >= 2)
    }

    /// The length of cluster 0, by the first bytes of it.
    ///
    /// # Errors
    /// EINVAL if this is no such image, ENOTSUP if it is of another version or has other clusters.
    pub fn cluster_bytes(prefix: &[u8]) -> Result<u64, FormatError> {
        if !prefix.starts_with(&MAGIC) {
            return Err(FormatError::invalid("image is not in qcow2 format"));
        }
        let short = |TooShort| FormatError::invalid("image is too short for a qcow2 header");
        let version = be32(prefix, 4).map_err(short)?;
        if version != 2 && version != 3 {
            return Err(FormatError::unsupported(format!("unsupported qcow2 version {version}")));
        }
        Ok(Geometry::new(be32(prefix, 20).map_err(short)?, false)?.cluster_bytes())
    }

    /// Reads cluster 0. Whether the image can be used is another question: [`check`](Self::check).
    ///
    /// # Errors
    /// As of [`cluster_bytes`](Self::cluster_bytes); EINVAL if a length contradicts another.
    pub fn parse(cluster: &[u8]) -> Result<Header, FormatError> {
        let cluster_bytes = Self::cluster_bytes(cluster)?;
        let short = |TooShort| FormatError::invalid("image is too short for a qcow2 header");
        let cluster = part(cluster, 0, cluster_bytes as usize).map_err(short)?;
        let header_bytes = header_bytes(cluster).map_err(short)??;
        // A field behind the end of the header is 0, whatever is there.
        let mut fields = cluster[..header_bytes.min(FULL_BYTES)].to_vec();
        fields.resize(FULL_BYTES, 0);
        let mut header = Header::fields(&fields).map_err(short)?;
        header.header_bytes = header_bytes as u32;
        if header.version == 2 {
            header.refcount_order = 4;
        }
        header.tail = cluster.get(TAIL_AT..header_bytes).unwrap_or_default().to_vec();
        let area_end = header.parse_backing(cluster)?;
        let area = cluster.get(header_bytes..area_end).unwrap_or_default();
        header.extensions = Extensions::parse(area)?;
        Ok(header)
    }

    fn fields(bytes: &[u8]) -> Result<Header, TooShort> {
        Ok(Header {
            version: be32(bytes, 4)?,
            cluster_bits: be32(bytes, 20)?,
            size: be64(bytes, 24)?,
            crypt_method: be32(bytes, 32)?,
            l1_entries: be32(bytes, 36)?,
            l1_offset: be64(bytes, 40)?,
            refcount_table_offset: be64(bytes, 48)?,
            refcount_table_clusters: be32(bytes, 56)?,
            snapshots: be32(bytes, 60)?,
            snapshots_offset: be64(bytes, 64)?,
            incompatible: Incompatible::from_bits_retain(be64(bytes, 72)?),
            compatible: Compatible::from_bits_retain(be64(bytes, 80)?),
            autoclear: Autoclear::from_bits_retain(be64(bytes, 88)?),
            refcount_order: be32(bytes, 96)?,
            compression_type: bytes.get(104).copied().unwrap_or(0),
            extensions: Extensions::default(),
            backing: None,
            header_bytes: 0,
            tail: Vec::new(),
        })
    }

    /// Reads the backing name, and returns where extensions end.
    fn parse_backing(&mut self, cluster: &[u8]) -> Result<usize, FormatError> {
        let short = |TooShort| FormatError::invalid("image is too short for a qcow2 header");
        let (offset, bytes) = (be64(cluster, 8).map_err(short)?, be32(cluster, 16).map_err(short)?);
        if offset == 0 {
            return Ok(cluster.len());
        }
        let room = (cluster.len() as u64).checked_sub(offset);
        let room = room.ok_or_else(|| FormatError::invalid("invalid backing file offset"))?;
        if u64::from(bytes) > room.min(MAX_BACKING_BYTES) {
            return Err(FormatError::invalid("backing file name too long"));
        }
        let offset = offset as usize;
        let name = part(cluster, offset, bytes as usize).map_err(short)?;
        self.backing = Some(name.to_vec()).filter(|name| !name.is_empty());
        Ok(offset)
    }

    /// Checks whether the image can be opened.
    ///
    /// # Errors
    /// ENOTSUP for what is not known, EINVAL for contradictions, EFBIG for too large tables, EACCES if the
    /// image is corrupt and to be written.
    pub fn check(&self, purpose: Purpose) -> Result<(), FormatError> {
        let geometry = self.check_features(purpose)?;
        RefcountWidth::new(self.refcount_order)?;
        let has_luks = self.extensions.has_luks();
        if (self.crypt()? == Crypt::Luks) != has_luks {
            let why = "the encryption header and the encryption method contradict each other";
            return Err(FormatError::invalid(why));
        }
        self.extensions.luks(geometry)?;
        self.extensions.bitmaps(geometry)?;
        self.extensions.backing_format()?;
        self.check_tables(geometry, purpose)
    }

    fn check_features(&self, purpose: Purpose) -> Result<Geometry, FormatError> {
        let unknown = self.incompatible.difference(KNOWN);
        if !unknown.is_empty() {
            let names = FeatureName::describe(unknown, &self.extensions.feature_names());
            return Err(FormatError::unsupported(format!("unsupported qcow2 feature(s): {names}")));
        }
        if self.incompatible.contains(Incompatible::CORRUPT) && purpose == Purpose::Write {
            let why = "image is corrupt; cannot be opened read/write";
            return Err(FormatError::no_access(why));
        }
        let is_other = self.incompatible.contains(Incompatible::COMPRESSION);
        if is_other != (self.compression_type != 0) {
            let why = "the compression type and its feature bit contradict each other";
            return Err(FormatError::invalid(why));
        }
        self.compression()?;
        let has_data_file = self.incompatible.contains(Incompatible::DATA_FILE);
        if self.autoclear.contains(Autoclear::RAW_DATA_FILE) && !has_data_file {
            return Err(FormatError::invalid("raw data file without a data file"));
        }
        self.geometry()
    }

    fn check_tables(&self, geometry: Geometry, purpose: Purpose) -> Result<(), FormatError> {
        let is_check = purpose == Purpose::Check;
        let clusters = u64::from(self.refcount_table_clusters);
        if clusters == 0 && !is_check {
            return Err(FormatError::invalid("image does not contain a reference count table"));
        }
        let bytes = clusters << self.cluster_bits;
        let offset = self.refcount_table_offset;
        geometry.check_table("reference count table", offset, bytes, MAX_REFCOUNT_TABLE_BYTES)?;
        if !is_check {
            let [bytes, max] = [self.snapshots, MAX_SNAPSHOTS].map(|it| u64::from(it) * 40);
            geometry.check_table("snapshot table", self.snapshots_offset, bytes, max)?;
        }
        let (entries, offset) = (u64::from(self.l1_entries), self.l1_offset);
        geometry.check_table("active L1 table", offset, entries * 8, MAX_L1_BYTES)?;
        if geometry.l1_entries(self.size)? > entries {
            return Err(FormatError::invalid("L1 table is too small"));
        }
        Ok(())
    }

    /// Length of the disk in bytes: whole sectors.
    pub fn disk_bytes(&self) -> u64 {
        self.size - self.size % SECTOR_BYTES as u64
    }

    /// Sizes of clusters and tables.
    ///
    /// # Errors
    /// EINVAL if the clusters are too small for extended entries.
    pub fn geometry(&self) -> Result<Geometry, FormatError> {
        Geometry::new(self.cluster_bits, self.incompatible.contains(Incompatible::EXTENDED_L2))
    }

    /// Length of the header in bytes: extensions begin there.
    pub fn header_bytes(&self) -> usize {
        self.header_bytes as usize
    }

    /// How data is encrypted.
    ///
    /// # Errors
    /// EINVAL if it is not known.
    pub fn crypt(&self) -> Result<Crypt, FormatError> {
        match self.crypt_method {
            0 => Ok(Crypt::None),
            1 => Ok(Crypt::Aes),
            2 => Ok(Crypt::Luks),
            other => Err(FormatError::invalid(format!("unsupported encryption method {other}"))),
        }
    }

    /// Sets how data is encrypted.
    pub fn set_crypt(&mut self, crypt: Crypt) {
        self.crypt_method = match crypt {
            Crypt::None => 0,
            Crypt::Aes => 1,
            Crypt::Luks => 2,
        };
    }

    /// How clusters are compressed.
    ///
    /// # Errors
    /// ENOTSUP if it is not known.
    pub fn compression(&self) -> Result<CompressionType, FormatError> {
        match self.compression_type {
            0 => Ok(CompressionType::Deflate),
            1 => Ok(CompressionType::Zstd),
            other => Err(FormatError::unsupported(format!("unknown compression type {other}"))),
        }
    }

    /// Sets how clusters are compressed, and the feature that says so.
    pub fn set_compression(&mut self, compression: CompressionType) {
        self.compression_type = compression as u8;
        self.incompatible.set(Incompatible::COMPRESSION, self.compression_type != 0);
    }

    /// Has version 3, with no features.
    pub fn upgrade(&mut self) {
        if self.version == 2 {
            (self.version, self.header_bytes) = (3, FULL_BYTES as u32);
            self.tail = vec![0; FULL_BYTES - TAIL_AT];
            self.name_features();
        }
    }

    /// Has version 2, which has no features, and refcounts of 16 bits.
    pub fn downgrade(&mut self) {
        if self.version > 2 {
            (self.version, self.header_bytes) = (2, V2_BYTES as u32);
            self.tail = Vec::new();
            self.incompatible = Incompatible::empty();
            self.compatible = Compatible::empty();
            self.autoclear = Autoclear::empty();
            (self.refcount_order, self.compression_type) = (4, 0);
            self.extensions.remove_feature_names();
        }
    }

    /// Names the features, if the clusters have room for that.
    pub fn name_features(&mut self) {
        if 1 << self.cluster_bits > NAMES_FROM_BYTES {
            self.extensions.set_feature_names(FeatureName::default_table());
        }
    }

    /// Writes cluster 0, all of it.
    ///
    /// # Errors
    /// ENOSPC if it does not fit into a cluster; EINVAL if the backing name is too long.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let mut bytes = self.encode_head();
        if let Some(backing) = &self.backing {
            let at = bytes.len();
            put_backing(&mut bytes, at, backing)?;
            bytes.extend(backing);
        }
        let cluster_bytes = self.geometry()?.cluster_bytes() as usize;
        if bytes.len() > cluster_bytes {
            return Err(FormatError::no_space("the header does not fit into a cluster"));
        }
        bytes.resize(cluster_bytes, 0);
        Ok(bytes)
    }

    /// Writes the fields and the extensions, without a backing name.
    fn encode_head(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FULL_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.version.to_be_bytes());
        // The place of the backing name comes later.
        bytes.extend([0; 12]);
        bytes.extend(self.cluster_bits.to_be_bytes());
        bytes.extend(self.size.to_be_bytes());
        bytes.extend(self.crypt_method.to_be_bytes());
        bytes.extend(self.l1_entries.to_be_bytes());
        bytes.extend(self.l1_offset.to_be_bytes());
        bytes.extend(self.refcount_table_offset.to_be_bytes());
        bytes.extend(self.refcount_table_clusters.to_be_bytes());
        bytes.extend(self.snapshots.to_be_bytes());
        bytes.extend(self.snapshots_offset.to_be_bytes());
        if self.version >= 3 {
            self.encode_v3(&mut bytes);
        }
        self.extensions.encode(&mut bytes);
        bytes
    }

    fn encode_v3(&self, bytes: &mut Vec<u8>) {
        let mut length = (self.header_bytes as usize).max(V3_BYTES);
        if self.compression_type != 0 {
            length = length.max(FULL_BYTES);
        }
        bytes.extend(self.incompatible.bits().to_be_bytes());
        bytes.extend(self.compatible.bits().to_be_bytes());
        bytes.extend(self.autoclear.bits().to_be_bytes());
        bytes.extend(self.refcount_order.to_be_bytes());
        bytes.extend((length as u32).to_be_bytes());
        if length > V3_BYTES {
            bytes.push(self.compression_type);
            bytes.extend(&self.tail);
            bytes.resize(length, 0);
        }
    }

    /// Writes the fields that can change into cluster 0, and leaves all else of it: the extensions, the
    /// backing name, what is not known. They lie in one sector.
    pub(crate) fn write_fields(&self, cluster: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(target) = cluster.get_mut(at..at + bytes.len()) {
                target.copy_from_slice(bytes);
            }
        };
        put(24, &self.size.to_be_bytes());
        put(36, &self.l1_entries.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.refcount_table_offset.to_be_bytes());
        put(56, &self.refcount_table_clusters.to_be_bytes());
        put(60, &self.snapshots.to_be_bytes());
        put(64, &self.snapshots_offset.to_be_bytes());
        if self.version >= 3 {
            put(72, &self.incompatible.bits().to_be_bytes());
            put(80, &self.compatible.bits().to_be_bytes());
            put(88, &self.autoclear.bits().to_be_bytes());
        }
    }

    /// The sectors of cluster 0 that differ, as ranges of bytes.
    pub fn changed_sectors(old: &[u8], new: &[u8]) -> Vec<Range<usize>> {
        let old = old.chunks(SECTOR_BYTES).map(Some).chain(std::iter::repeat(None));
        let sectors = new.chunks(SECTOR_BYTES).zip(old).enumerate();
        let changed = sectors.filter(|(_, (new, old))| Some(*new) != *old);
        changed
            .map(|(index, (new, _))| index * SECTOR_BYTES..index * SECTOR_BYTES + new.len())
            .collect()
    }
}

/// Says in a header where its backing name is.
fn put_backing(header: &mut [u8], at: usize, name: &[u8]) -> Result<(), FormatError> {
    if name.len() as u64 > MAX_BACKING_BYTES {
        return Err(FormatError::invalid("backing file name too long"));
    }
    header[8..16].copy_from_slice(&(at as u64).to_be_bytes());
    header[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
    Ok(())
}

/// The length of a header, by its own word.
fn header_bytes(cluster: &[u8]) -> Result<Result<usize, FormatError>, TooShort> {
    if be32(cluster, 4)? == 2 {
        return Ok(Ok(V2_BYTES));
    }
    let length = be32(cluster, 100)? as usize;
    Ok(match length {
        _ if length < V3_BYTES => Err(FormatError::invalid("qcow2 header too short")),
        _ if length > cluster.len() => {
            Err(FormatError::invalid("qcow2 header exceeds cluster size"))
        }
        _ => Ok(length),
    })
}

mod place;

#[cfg(test)]
mod tests;
