//! [`Qcow2Options`]: how an image is opened, in QEMU's words.

use std::path::PathBuf;

use coblk_block::OpenError;
use coblk_block::options::{DriverConfig, DriverOptions, NodeRef, NodeRefOrNull};
use coblk_qapi::Size;
use serde::{Deserialize, Serialize};

use crate::encryption::EncryptFormat;
use crate::layout::Geometry;
use crate::metadata::Metadata;
use crate::overlap::OverlapCheck;

/// Largest cache of L2 tables by default, in bytes.
const DEFAULT_L2_BYTES: u64 = 32 << 20;
/// Length of a slice of a table by default, where the cache does not hold all of them.
const DEFAULT_SLICE_BYTES: u64 = 4096;
/// Decompressed clusters in memory by default, in bytes.
const DEFAULT_INFLATED_BYTES: u64 = 8 << 20;
/// Seconds after which tables that were not used leave memory by default.
const DEFAULT_CLEAN_INTERVAL_S: u64 = 600;
/// Most bytes of addresses that are reserved for a cache of L2 tables, unless it is larger from the beginning.
const MAX_RESERVED_BYTES: u64 = 1 << 30;
/// Clusters of the cache of refcounts.
const REFCOUNT_CLUSTERS: u64 = 4;

/// Whether files are opened that an image names, and no option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedFiles {
    /// They are, as QEMU does.
    #[default]
    Allow,
    /// They are not: every file is one that an option names.
    Refuse,
}

/// `encrypt`: what opens an encrypted image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct EncryptOptions {
    /// `format`: what the image must say.
    pub format: Option<EncryptFormat>,
    /// `key-secret`: the id of a [`Secret`](coblk_block::Secret), the password.
    pub key_secret: Option<String>,
}

impl EncryptOptions {
    /// The password is the secret of this id.
    pub fn new(key_secret: impl Into<String>) -> EncryptOptions {
        EncryptOptions { format: None, key_secret: Some(key_secret.into()) }
    }
}

/// Options of `qcow2`, with QEMU's names.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Qcow2Options {
    /// `file`: the child that has the image.
    pub file: NodeRef,
    /// `backing`: the backing file, or null for none. By default the one that the image names.
    pub backing: Option<NodeRefOrNull>,
    /// `data-file`: the external data file, of images that have one. By default the one that the image
    /// names.
    pub data_file: Option<NodeRef>,
    /// `lazy-refcounts`; without effect on images that are not written.
    pub lazy_refcounts: Option<bool>,
    /// `pass-discard-request`; without effect on images that are not written.
    pub pass_discard_request: Option<bool>,
    /// `pass-discard-snapshot`; without effect on images that are not written.
    pub pass_discard_snapshot: Option<bool>,
    /// `pass-discard-other`; without effect on images that are not written.
    pub pass_discard_other: Option<bool>,
    /// `discard-no-unref`; without effect on images that are not written.
    pub discard_no_unref: Option<bool>,
    /// `overlap-check`; without effect on images that are not written.
    pub overlap_check: Option<OverlapCheck>,
    /// `cache-size`: most bytes of all caches of tables.
    pub cache_size: Option<Size>,
    /// `l2-cache-size`: most bytes of the cache of L2 tables.
    pub l2_cache_size: Option<Size>,
    /// `l2-cache-entry-size`: bytes of a table that are read and cached together.
    pub l2_cache_entry_size: Option<Size>,
    /// `refcount-cache-size`: most bytes of the cache of refcounts. An image that is not written has none.
    pub refcount_cache_size: Option<Size>,
    /// `x-inflated-cache-size`: most bytes of decompressed clusters that are kept; 8 MiB by default, and one
    /// cluster at least.
    #[serde(rename = "x-inflated-cache-size")]
    pub inflated_cache_size: Option<Size>,
    /// `x-named-files`: whether files are opened that only the image names. Backing files that are opened
    /// in this way have the same value.
    #[serde(default, rename = "x-named-files")]
    pub named_files: NamedFiles,
    /// `x-snapshot`: the id or the name of an internal snapshot that is read instead of the disk; for nodes
    /// that are not written.
    #[serde(rename = "x-snapshot")]
    pub snapshot: Option<String>,
    /// `x-omit`: a step of the order of writes that is left out.
    #[cfg(feature = "test-rules")]
    #[serde(rename = "x-omit")]
    pub omitted: Option<crate::rules::Rule>,
    /// `cache-clean-interval`: seconds after which the memory of tables is given back that were not used; 0:
    /// never. 600 by default.
    pub cache_clean_interval: Option<u64>,
    /// `encrypt`: what opens an encrypted image.
    pub encrypt: Option<EncryptOptions>,
    /// Opens an encrypted image without its key: it tells of itself, and its data can be neither read nor
    /// written (EACCES). No option of a user's says so.
    #[serde(skip)]
    pub metadata_only: bool,
    /// The images above, if this is a backing file that one of them names.
    #[serde(skip)]
    pub(crate) ancestors: Vec<PathBuf>,
}

impl Qcow2Options {
    /// Options of the image in `file`, with every option as it is by default.
    pub fn new(file: impl Into<NodeRef>) -> Qcow2Options {
        Qcow2Options {
            file: file.into(),
            backing: None,
            data_file: None,
            lazy_refcounts: None,
            pass_discard_request: None,
            pass_discard_snapshot: None,
            pass_discard_other: None,
            discard_no_unref: None,
            overlap_check: None,
            cache_size: None,
            l2_cache_size: None,
            l2_cache_entry_size: None,
            refcount_cache_size: None,
            inflated_cache_size: None,
            named_files: NamedFiles::Allow,
            snapshot: None,
            #[cfg(feature = "test-rules")]
            omitted: None,
            cache_clean_interval: None,
            encrypt: None,
            metadata_only: false,
            ancestors: Vec::new(),
        }
    }

    /// Seconds between two cleanings of caches; 0: there are none.
    ///
    /// # Errors
    /// If they are too many.
    pub(crate) fn clean_interval_s(&self) -> Result<u64, OpenError> {
        let seconds = self.cache_clean_interval.unwrap_or(DEFAULT_CLEAN_INTERVAL_S);
        match seconds > u64::from(u32::MAX) {
            true => Err(OpenError::option("cache-clean-interval", "it is too big")),
            false => Ok(seconds),
        }
    }

    /// Most bytes of decompressed clusters that are kept.
    pub(crate) fn inflated_bytes(&self) -> u64 {
        self.inflated_cache_size.map_or(DEFAULT_INFLATED_BYTES, |Size(bytes)| bytes)
    }
}

impl Qcow2Options {
    /// The kinds of metadata that writes of data must not meet.
    pub(crate) fn checked_metadata(&self) -> Metadata {
        self.overlap_check.unwrap_or_default().metadata()
    }
}

impl DriverOptions for Qcow2Options {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
        if let Some(data_file) = &mut self.data_file {
            visit("data-file", data_file);
        }
    }

    fn visit_slots(&mut self, visit: &mut dyn FnMut(&str, &mut Option<NodeRefOrNull>)) {
        visit("backing", &mut self.backing);
    }
}

impl From<Qcow2Options> for DriverConfig {
    fn from(options: Qcow2Options) -> DriverConfig {
        DriverConfig::new("qcow2", options)
    }
}

/// Sizes of the caches, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheSizes {
    l2_bytes: u64,
    /// All tables that the disk can have.
    useful_bytes: u64,
    /// The cache has room for all tables of the disk.
    has_all: bool,
    pub(crate) slice_bytes: u64,
    pub(crate) refcount_bytes: u64,
}

impl CacheSizes {
    /// Those for a disk of `disk_bytes` bytes.
    ///
    /// # Errors
    /// If the options contradict each other or the image.
    pub(crate) fn new(
        options: &Qcow2Options,
        geometry: Geometry,
        disk_bytes: u64,
    ) -> Result<CacheSizes, OpenError> {
        let cluster = geometry.cluster_bytes();
        // All tables that the disk can have.
        let entries = disk_bytes.div_ceil(cluster);
        let useful = entries.saturating_mul(geometry.l2_entry_bytes());
        let useful = useful.checked_next_multiple_of(cluster).unwrap_or(u64::MAX);
        let l2_bytes = l2_bytes(options, useful, cluster)?;
        let slice_bytes = match options.l2_cache_entry_size {
            Some(Size(bytes)) => bytes,
            None if l2_bytes >= useful => cluster,
            None => cluster.min(DEFAULT_SLICE_BYTES),
        };
        if !slice_bytes.is_power_of_two() || !(512..=cluster).contains(&slice_bytes) {
            let why = "it is a power of two between 512 and the cluster size";
            return Err(OpenError::option("l2-cache-entry-size", why));
        }
        let has_all = l2_bytes >= useful;
        // What no table can use is not taken.
        let l2_bytes = l2_bytes.min(useful).max(2 * slice_bytes);
        let given = |size: Option<Size>| size.map(|Size(bytes)| bytes);
        let rest = given(options.cache_size).map(|all| all.saturating_sub(l2_bytes));
        let refcount_bytes = given(options.refcount_cache_size).or(rest).unwrap_or(0);
        let refcount_bytes = refcount_bytes.max(REFCOUNT_CLUSTERS * cluster);
        Ok(CacheSizes { l2_bytes, useful_bytes: useful, has_all, slice_bytes, refcount_bytes })
    }

    /// The size of the cache of L2 tables, for an image whose tables are `there` bytes, and all that it ever has
    /// unless it is written. Of one that is at most half of the slots have changed slices, so a cache of all
    /// tables has twice as many; no more than all tables take memory.
    pub(crate) fn l2_bytes(self, writes: bool, there: u64) -> u64 {
        match writes {
            true if self.has_all => self.l2_bytes.max(4 * self.slice_bytes) * 2,
            true => self.l2_bytes,
            // An image may claim any length.
            false => self.l2_bytes.min(there),
        }
    }

    /// The size that a reopen may give it at most.
    pub(crate) fn most_l2_bytes(self) -> u64 {
        self.useful_bytes.saturating_mul(2).min(MAX_RESERVED_BYTES)
    }
}

fn l2_bytes(options: &Qcow2Options, useful: u64, cluster: u64) -> Result<u64, OpenError> {
    let [all, l2, refcounts] =
        [options.cache_size, options.l2_cache_size, options.refcount_cache_size]
            .map(|size| size.map(|Size(bytes)| bytes));
    let Some(all) = all else {
        return Ok(l2.unwrap_or(useful.min(DEFAULT_L2_BYTES)));
    };
    if l2.is_some() && refcounts.is_some() {
        let why = "'cache-size', 'l2-cache-size' and 'refcount-cache-size' may not be set at the \
                   same time";
        return Err(OpenError::option("cache-size", why));
    }
    for (option, size) in [("l2-cache-size", l2), ("refcount-cache-size", refcounts)] {
        if size.is_some_and(|size| size > all) {
            return Err(OpenError::option(option, "it may not exceed 'cache-size'"));
        }
    }
    let least = REFCOUNT_CLUSTERS * cluster;
    Ok(match (l2, refcounts) {
        (Some(l2), _) => l2,
        (None, Some(refcounts)) => all - refcounts,
        (None, None) if all.saturating_sub(useful) >= least => useful,
        (None, None) => all.saturating_sub(least),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlap::OverlapTemplate;

    const K64: u64 = 65536;

    fn sizes(change: impl FnOnce(&mut Qcow2Options), disk: u64) -> Result<(u64, u64), String> {
        let mut options = Qcow2Options::new("file");
        change(&mut options);
        let geometry = Geometry::new(16, false).unwrap();
        let sizes = CacheSizes::new(&options, geometry, disk).map_err(|error| error.to_string())?;
        Ok((sizes.l2_bytes(false, u64::MAX), sizes.slice_bytes))
    }

    #[test]
    fn q58_a_cache_has_all_tables_up_to_32_mib() {
        assert_eq!(sizes(|_| (), 1 << 30).unwrap(), (2 * K64, K64));
        assert_eq!(sizes(|_| (), 0).unwrap(), (2 * K64, K64));
        assert_eq!(sizes(|_| (), 256 << 30).unwrap(), (32 << 20, K64));
        assert_eq!(sizes(|_| (), 512 << 30).unwrap(), (32 << 20, 4096));
        assert_eq!(sizes(|it| it.l2_cache_size = Some(Size(1)), 512 << 30).unwrap(), (8192, 4096));
        assert_eq!(
            sizes(|it| it.l2_cache_size = Some(Size(u64::MAX)), 1 << 30).unwrap(),
            (2 * K64, K64)
        );
    }

    #[test]
    fn q59_a_size_of_all_caches_is_shared_out() {
        let disk = 1 << 40; // 128 MiB of tables
        assert_eq!(sizes(|it| it.cache_size = Some(Size(200 << 20)), disk).unwrap().0, 128 << 20);
        let all = (128 << 20) + 4 * K64;
        assert_eq!(sizes(|it| it.cache_size = Some(Size(all)), disk).unwrap().0, 128 << 20);
        assert_eq!(
            sizes(|it| it.cache_size = Some(Size(all - 1)), disk).unwrap().0,
            (128 << 20) - 1
        );
        let with = |l2: Option<u64>, refcounts: Option<u64>| {
            sizes(
                |it| {
                    it.cache_size = Some(Size(1 << 20));
                    (it.l2_cache_size, it.refcount_cache_size) =
                        (l2.map(Size), refcounts.map(Size));
                },
                disk,
            )
        };
        assert_eq!(with(Some(512 << 10), None).unwrap().0, 512 << 10);
        assert_eq!(with(None, Some(256 << 10)).unwrap().0, 768 << 10);
        assert!(with(Some(1), Some(1)).unwrap_err().contains("at the same time"));
        assert!(with(Some(2 << 20), None).unwrap_err().contains("'l2-cache-size'"));
        assert!(with(None, Some(2 << 20)).unwrap_err().contains("'refcount-cache-size'"));
    }

    #[test]
    fn q60_a_slice_is_a_power_of_two_within_a_cluster() {
        let slice = |bytes| sizes(|it| it.l2_cache_entry_size = Some(Size(bytes)), 1 << 30);
        assert_eq!([slice(512).unwrap().1, slice(K64).unwrap().1], [512, K64]);
        for bytes in [0, 256, 768, 2 * K64] {
            assert!(slice(bytes).unwrap_err().contains("power of two"), "{bytes}");
        }
    }

    #[test]
    fn q54_options_are_read_by_qemus_names() {
        let text = "driver=qcow2,file=f,backing=,lazy-refcounts=on,overlap-check=cached,\
                    pass-discard-other=on,discard-no-unref=off,cache-size=1M,x-named-files=refuse";
        let options = coblk_block::options::NodeOptions::from_keyval(text).unwrap();
        let mut drivers = coblk_block::drivers();
        drivers.add::<crate::Qcow2>();
        let options = drivers.resolve(options).unwrap();
        let own = options.driver.options::<Qcow2Options>().unwrap();
        assert_eq!(own.backing, Some(NodeRefOrNull(None)));
        assert_eq!(
            (own.lazy_refcounts, own.overlap_check),
            (Some(true), Some(OverlapTemplate::Cached.into()))
        );
        assert_eq!((own.cache_size, own.named_files), (Some(Size(1 << 20)), NamedFiles::Refuse));
    }
}
