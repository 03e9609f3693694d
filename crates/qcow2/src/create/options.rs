//! [`Qcow2CreateOptions`]: what a new image is to be, in QEMU's words.

use coblk_block::options::NodeRef;
use coblk_qapi::Size;
use serde::Deserialize;

use super::encrypt::EncryptCreateOptions;
use crate::layout::{
    Autoclear, Compatible, CompressionType, FormatError, Geometry, Header, Incompatible, Mapped,
    SECTOR_BYTES,
};

/// Clusters by default, in bytes.
const DEFAULT_CLUSTER_BYTES: u64 = 65536;
/// Width of refcounts by default, in bits.
const DEFAULT_REFCOUNT_BITS: u64 = 16;

/// The version of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// 2, `compat=0.10`.
    V2,
    /// 3, `compat=1.1`.
    #[default]
    V3,
}

/// How much of an image is allocated when it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preallocate {
    /// Nothing.
    #[default]
    Off,
    /// Tables that map all of the disk.
    Metadata,
    /// That, and space in the file system.
    Falloc,
    /// That, and space that has been written.
    Full,
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// By deflate.
    #[default]
    Zlib,
    /// By zstd.
    Zstd,
}

impl From<Compression> for CompressionType {
    fn from(compression: Compression) -> CompressionType {
        match compression {
            Compression::Zlib => CompressionType::Deflate,
            Compression::Zstd => CompressionType::Zstd,
        }
    }
}

/// Options of a new image, those of QEMU's `BlockdevCreateOptionsQcow2`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Qcow2CreateOptions {
    /// `file`: the node that is to have the image.
    pub file: NodeRef,
    /// `data-file`: the node that is to have the data, if that is not `file`. The header names its file.
    pub data_file: Option<NodeRef>,
    /// `data-file-raw`: the data file is a raw image of the disk at any time.
    #[serde(default)]
    pub data_file_raw: bool,
    /// `extended-l2`: clusters have subclusters.
    #[serde(default)]
    pub extended_l2: bool,
    /// `size`: length of the disk in bytes, whole sectors.
    pub size: Size,
    /// `version`.
    #[serde(default)]
    pub version: Version,
    /// `backing-file`: the name of the backing file, as the header is to have it. It is not opened.
    pub backing_file: Option<String>,
    /// `backing-fmt`: the name of its format.
    pub backing_fmt: Option<String>,
    /// `encrypt`: how data is encrypted.
    pub encrypt: Option<EncryptCreateOptions>,
    /// `cluster-size` in bytes; 65536 by default.
    pub cluster_size: Option<Size>,
    /// `preallocation`.
    #[serde(default)]
    pub preallocation: Preallocate,
    /// `lazy-refcounts`: refcounts are written late.
    #[serde(default)]
    pub lazy_refcounts: bool,
    /// `refcount-bits`: the width of refcounts; 16 by default.
    pub refcount_bits: Option<u64>,
    /// `compression-type`.
    #[serde(default)]
    pub compression_type: Compression,
}

impl Qcow2CreateOptions {
    /// An image of `size` bytes in `file`, with every other option as it is by default.
    pub fn new(file: impl Into<NodeRef>, size: u64) -> Qcow2CreateOptions {
        Qcow2CreateOptions {
            file: file.into(),
            data_file: None,
            data_file_raw: false,
            extended_l2: false,
            size: Size(size),
            version: Version::V3,
            backing_file: None,
            backing_fmt: None,
            encrypt: None,
            cluster_size: None,
            preallocation: Preallocate::Off,
            lazy_refcounts: false,
            refcount_bits: None,
            compression_type: Compression::Zlib,
        }
    }

    fn is_v2(&self) -> bool {
        self.version == Version::V2
    }

    /// What is allocated: a raw data file has a place for every cluster.
    pub(crate) fn preallocation(&self) -> Preallocate {
        match self.preallocation {
            Preallocate::Off if self.data_file_raw => Preallocate::Metadata,
            other => other,
        }
    }

    /// What the tables map.
    pub(crate) fn mapped(&self) -> Mapped {
        match (self.preallocation(), &self.data_file) {
            (Preallocate::Off, _) => Mapped::Nothing,
            (_, Some(_)) => Mapped::DataFile,
            (Preallocate::Metadata, None) => Mapped::Scattered,
            (Preallocate::Falloc | Preallocate::Full, None) => Mapped::OnePiece,
        }
    }

    /// The header, without places of tables. `data_file` is the name of the data file, if it has one.
    ///
    /// # Errors
    /// EINVAL for what cannot be, with the name of the option.
    pub(crate) fn header(&self, data_file: Option<&str>) -> Result<Header, FormatError> {
        self.check()?;
        let geometry = geometry(self.cluster_size, self.extended_l2)?;
        let version = if self.is_v2() { 2 } else { 3 };
        let mut header = Header::new(version, geometry.cluster_bits(), self.size.0);
        header.refcount_order = refcount_order(self.refcount_bits, self.version)?;
        let compression = CompressionType::from(self.compression_type);
        header.set_compression(compression);
        header.incompatible.set(Incompatible::DATA_FILE, self.data_file.is_some());
        header.incompatible.set(Incompatible::EXTENDED_L2, self.extended_l2);
        header.compatible.set(Compatible::LAZY_REFCOUNTS, self.lazy_refcounts);
        header.autoclear.set(Autoclear::RAW_DATA_FILE, self.data_file_raw);
        let extensions = &mut header.extensions;
        extensions.set_backing_format(self.backing_fmt.as_deref());
        extensions.set_data_file(data_file.map(str::as_bytes));
        if !self.is_v2() {
            header.name_features();
        }
        if let Some(encrypt) = &self.encrypt {
            encrypt.enter(&mut header)?;
        }
        header.backing = self.backing_file.clone().map(String::into_bytes);
        header.backing = header.backing.filter(|name| !name.is_empty());
        header.extensions.backing_format()?;
        header.encode()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), FormatError> {
        let invalid = |why: &'static str| Err(FormatError::invalid(why));
        let has_backing = self.backing_file.is_some();
        let is_allocated = self.preallocation != Preallocate::Off;
        if !self.size.0.is_multiple_of(SECTOR_BYTES as u64) {
            return invalid("'size' must be a multiple of 512 bytes");
        }
        if has_backing && is_allocated && !self.extended_l2 {
            return invalid("'preallocation' with a backing file needs 'extended-l2'");
        }
        if self.backing_fmt.is_some() && !has_backing {
            return invalid("'backing-fmt' needs 'backing-file'");
        }
        for (option, is_on) in [
            ("extended-l2", self.extended_l2),
            ("lazy-refcounts", self.lazy_refcounts),
            ("data-file", self.data_file.is_some()),
            ("compression-type", self.compression_type != Compression::Zlib),
        ] {
            if is_on && self.is_v2() {
                let why = format!("'{option}' needs version 3 (compat=1.1)");
                return Err(FormatError::invalid(why));
            }
        }
        if self.data_file_raw && self.data_file.is_none() {
            return invalid("'data-file-raw' needs 'data-file'");
        }
        if self.data_file_raw && has_backing {
            return invalid("'data-file-raw' excludes 'backing-file'");
        }
        if self.encrypt.is_some() {
            self.check_encrypted()?;
        }
        if !CompressionType::from(self.compression_type).is_supported() {
            return Err(FormatError::unsupported("this build has no zstd"));
        }
        Ok(())
    }

    /// Checks what an encrypted image cannot be. What is allocated, and was not written, would be decrypted
    /// to noise.
    fn check_encrypted(&self) -> Result<(), FormatError> {
        if self.data_file_raw {
            let why = "'data-file-raw' excludes 'encrypt': the data file would be encrypted";
            return Err(FormatError::invalid(why));
        }
        if self.is_v2() && self.preallocation != Preallocate::Off {
            let why = "'preallocation' with 'encrypt' needs version 3 (compat=1.1)";
            return Err(FormatError::invalid(why));
        }
        Ok(())
    }
}

/// Sizes of clusters and tables, by options.
pub(crate) fn geometry(
    cluster_size: Option<Size>,
    extended_l2: bool,
) -> Result<Geometry, FormatError> {
    let bytes = cluster_size.map_or(DEFAULT_CLUSTER_BYTES, |Size(bytes)| bytes);
    if !bytes.is_power_of_two() || !(512..=2 << 20).contains(&bytes) {
        let why = "'cluster-size' must be a power of two between 512 and 2097152";
        return Err(FormatError::invalid(why));
    }
    Geometry::new(bytes.ilog2(), extended_l2)
}

/// The binary logarithm of the width of refcounts, by options.
pub(crate) fn refcount_order(bits: Option<u64>, version: Version) -> Result<u32, FormatError> {
    let bits = bits.unwrap_or(DEFAULT_REFCOUNT_BITS);
    if !bits.is_power_of_two() || bits > 64 {
        let why = "'refcount-bits' must be a power of two up to 64";
        return Err(FormatError::invalid(why));
    }
    if version == Version::V2 && bits != DEFAULT_REFCOUNT_BITS {
        return Err(FormatError::invalid(
            "'refcount-bits' other than 16 needs version 3 (compat=1.1)",
        ));
    }
    Ok(bits.ilog2())
}
