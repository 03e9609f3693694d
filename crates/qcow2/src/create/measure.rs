//! How many bytes an image would have: no image is made.

use std::io;

use coblk_aio::Co;
use coblk_block::options::{NodeRef, OptionsError};
use coblk_block::{BlockBackend, CreateError, Measure};
use coblk_qapi::Size;
use serde::Deserialize;
use serde_json::Value;

use super::encrypt::EncryptCreateOptions;
use super::failed;
use super::options::{Compression, Preallocate, Version, geometry, refcount_order};
use crate::layout::{FormatError, Geometry, MAX_L1_BYTES, RefcountWidth, image_clusters};

/// Options of an image that is measured: those of
/// [`Qcow2CreateOptions`](super::Qcow2CreateOptions) without `file`. Some change nothing, and are taken all
/// the same.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Qcow2MeasureOptions {
    /// `size`: length of the disk in bytes, if there is no source.
    pub size: Option<Size>,
    /// `version`. Images of version 2 have no bitmaps.
    #[serde(default)]
    pub version: Version,
    /// `cluster-size` in bytes.
    pub cluster_size: Option<Size>,
    /// `extended-l2`.
    #[serde(default)]
    pub extended_l2: bool,
    /// `refcount-bits`.
    pub refcount_bits: Option<u64>,
    /// `preallocation`: with `falloc` and `full` all clusters are there from the start.
    #[serde(default)]
    pub preallocation: Preallocate,
    /// `backing-file`: with one, clusters of zeroes may be written, too.
    pub backing_file: Option<String>,
    /// `backing-fmt`; without effect.
    pub backing_fmt: Option<String>,
    /// `encrypt`: how data is encrypted. The key is not asked for.
    pub encrypt: Option<EncryptCreateOptions>,
    /// `data-file`; without effect: its bytes count.
    pub data_file: Option<NodeRef>,
    /// `data-file-raw`; without effect.
    #[serde(default)]
    pub data_file_raw: bool,
    /// `lazy-refcounts`; without effect.
    #[serde(default)]
    pub lazy_refcounts: bool,
    /// `compression-type`; without effect.
    #[serde(default)]
    pub compression_type: Compression,
}

/// Measures an image.
pub(crate) fn co_measure(
    co: &Co<'_>,
    options: &Qcow2MeasureOptions,
    source: Option<&BlockBackend>,
) -> Result<Measure, CreateError> {
    let geometry = geometry(options.cluster_size, options.extended_l2).map_err(failed)?;
    let order = refcount_order(options.refcount_bits, options.version).map_err(failed)?;
    let width = RefcountWidth::new(order).map_err(failed)?;
    let length = match (source, options.size) {
        (Some(source), _) => source.length().map_err(CreateError::of_driver)?,
        (None, Some(Size(bytes))) => bytes,
        (None, None) => return Err(OptionsError::missing("size").into()),
    };
    let disk_bytes = whole_clusters(geometry, length).map_err(failed)?;
    let metadata = image_clusters(geometry, width, disk_bytes >> geometry.cluster_bits());
    let luks = options.encrypt.as_ref().map_or(Ok(0), EncryptCreateOptions::header_bytes);
    let luks = luks.map_err(failed)?.next_multiple_of(geometry.cluster_bytes());
    let metadata = (metadata << geometry.cluster_bits()) + luks;
    let all = matches!(options.preallocation, Preallocate::Falloc | Preallocate::Full)
        || options.backing_file.is_some() && source.is_some();
    let data = match source {
        _ if all => disk_bytes,
        Some(source) => co_data_bytes(co, source, geometry).map_err(CreateError::of_driver)?,
        None => 0,
    };
    let mut measure = Measure::new(metadata + data, metadata + disk_bytes);
    if options.version == Version::V3 {
        measure.bitmaps = source.and_then(|source| bitmap_bytes(source, geometry));
    }
    Ok(measure)
}

/// The length of a disk in whole clusters, in bytes.
fn whole_clusters(geometry: Geometry, length: u64) -> Result<u64, FormatError> {
    let too_big = || FormatError::too_big("the disk is too large for its clusters");
    let bytes = length.checked_next_multiple_of(geometry.cluster_bytes()).ok_or_else(too_big)?;
    match geometry.l1_entries(bytes)? * 8 > MAX_L1_BYTES {
        true => Err(too_big()),
        false => Ok(bytes),
    }
}

/// How many bytes the clusters have in which the source has data.
fn co_data_bytes(co: &Co<'_>, source: &BlockBackend, geometry: Geometry) -> io::Result<u64> {
    let (length, cluster_bytes) = (source.length()?, geometry.cluster_bytes());
    let (mut at, mut bytes) = (0, 0);
    while at < length {
        if !co.is_wanted() {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        let extent = source.co_block_status(co, at, length - at)?;
        let mut end = at + extent.bytes.max(1);
        if extent.data && extent.allocated && !extent.zero {
            // What follows in the last of these clusters does not count again.
            end = end.next_multiple_of(cluster_bytes);
            bytes += end - geometry.cluster_start(at);
        }
        at = end;
    }
    Ok(bytes)
}

/// How many bytes the source's bitmaps take, if it is an image that can have bitmaps.
fn bitmap_bytes(source: &BlockBackend, geometry: Geometry) -> Option<u64> {
    let (length, cluster_bytes) = (source.length().ok()?, geometry.cluster_bytes());
    let node = source.node()?;
    let specific = node.driver().image()?.info().ok()?.specific?;
    if specific.kind != "qcow2" || specific.data["compat"] != "1.1" {
        return None;
    }
    let bitmaps = specific.data["bitmaps"].as_array().map_or(&[][..], Vec::as_slice);
    let is_sound = |bitmap: &&Value| {
        let flags = bitmap["flags"].as_array();
        !flags.is_some_and(|flags| flags.iter().any(|flag| flag == "in-use"))
    };
    let (mut bytes, mut directory_bytes) = (0, 0);
    for bitmap in bitmaps.iter().filter(is_sound) {
        let granularity = bitmap["granularity"].as_u64().filter(|bytes| *bytes > 0)?;
        let clusters = length.div_ceil(granularity).div_ceil(8).div_ceil(cluster_bytes);
        bytes += (clusters + (clusters * 8).div_ceil(cluster_bytes)) * cluster_bytes;
        let name = bitmap["name"].as_str().map_or(0, str::len) as u64;
        directory_bytes += (24 + name).next_multiple_of(8);
    }
    Some(bytes + directory_bytes.next_multiple_of(cluster_bytes))
}
