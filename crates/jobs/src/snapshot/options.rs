//! Options of a filter that copies before writes, and how it is opened by them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use coblk_block::options::{DriverConfig, DriverOptions, NodeRef};
use coblk_block::{
    BitmapUse, BlockNode, Child, ChildRole, DirtyBits, Driver, NodeBitmap, OpenError, Opening,
    Tracking, WriteFlags,
};
use serde::{Deserialize, Serialize};

use super::filter::{CopyBeforeWrite, cluster_size, leads_to};
use super::keeper::{Keeper, KeeperPlan, OnCbwError};

/// The smallest cluster, in bytes.
const MIN_CLUSTER: u64 = 64 << 10;

/// The smallest granule, in bytes, and how many of less than a cluster there are at most: they take 64 MiB.
const MIN_GRANULE: u64 = 4 << 10;
const MAX_SMALL: u64 = 1 << 28;

/// Options of `copy-before-write`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CopyBeforeWriteOptions {
    /// `file`: the node whose bytes are kept.
    pub file: NodeRef,
    /// `target`: where they are copied to; as long as the node.
    pub target: NodeRef,
    /// `bitmap`: what is dirty there is kept, and nothing else.
    pub bitmap: Option<NodeBitmap>,
    /// `on-cbw-error`: what becomes of a guest's write whose old bytes cannot be copied.
    pub on_cbw_error: Option<OnCbwError>,
    /// `cbw-timeout` in seconds: for how long a guest's write waits for copies; 0, the default, is for ever.
    pub cbw_timeout: Option<u32>,
    /// `min-cluster-size` in bytes, a power of two: how much is copied together at least.
    pub min_cluster_size: Option<u64>,
    /// `x-coblk-hold` in bytes: so many old bytes are held in memory, and their guests do not wait for the target. For
    /// `break-snapshot` alone, as a copy that fails then cannot fail a guest's write any more.
    pub x_coblk_hold: Option<u64>,
}

impl CopyBeforeWriteOptions {
    /// To keep all bytes of a node.
    pub fn new(file: impl Into<NodeRef>, target: impl Into<NodeRef>) -> CopyBeforeWriteOptions {
        let (bitmap, on_cbw_error, cbw_timeout, min_cluster_size) = Default::default();
        let x_coblk_hold = None;
        CopyBeforeWriteOptions {
            file: file.into(),
            target: target.into(),
            bitmap,
            on_cbw_error,
            cbw_timeout,
            min_cluster_size,
            x_coblk_hold,
        }
    }

    /// Holds so many old bytes in memory.
    #[must_use]
    pub fn hold(self, bytes: u64) -> CopyBeforeWriteOptions {
        CopyBeforeWriteOptions { x_coblk_hold: Some(bytes), ..self }
    }

    /// Keeps what is dirty in a bitmap.
    #[must_use]
    pub fn bitmap(self, bitmap: NodeBitmap) -> CopyBeforeWriteOptions {
        CopyBeforeWriteOptions { bitmap: Some(bitmap), ..self }
    }

    /// What becomes of a guest's write whose old bytes cannot be copied.
    #[must_use]
    pub fn on_cbw_error(self, on_cbw_error: OnCbwError) -> CopyBeforeWriteOptions {
        CopyBeforeWriteOptions { on_cbw_error: Some(on_cbw_error), ..self }
    }
}

impl DriverOptions for CopyBeforeWriteOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
        visit("target", &mut self.target);
    }
}

impl From<CopyBeforeWriteOptions> for DriverConfig {
    fn from(options: CopyBeforeWriteOptions) -> DriverConfig {
        DriverConfig::new("copy-before-write", options)
    }
}

/// The cluster of a copy to a target, in bytes: its own, and 64 KiB and `least` at least.
pub(crate) fn copy_cluster(target_cluster: u64, least: u64) -> u64 {
    MIN_CLUSTER.max(target_cluster).max(least)
}

/// What is copied when a guest writes, in bytes: a cluster of copies. Of a target without clusters a part of one, so
/// that a guest waits for little; larger ones on a disk of which so small ones would need much memory.
pub(crate) fn copy_granule(target: &BlockNode, least: u64) -> u64 {
    let cluster = copy_cluster(cluster_size(target).unwrap_or(1), least);
    if cluster_size(target).is_some() || least > 0 {
        return cluster;
    }
    let block = u64::from(target.limits().request_alignment);
    let of_length = (target.length() / MAX_SMALL).next_power_of_two();
    MIN_GRANULE.max(block).max(of_length).min(cluster)
}

/// That a cluster may be of so many bytes at least.
pub(crate) fn check_least(least: u64) -> Result<(), String> {
    if least != 0 && !least.is_power_of_two() {
        return Err("min-cluster-size needs to be a power of 2".to_owned());
    }
    match least > MAX_CLUSTER {
        true => Err(format!("min-cluster-size too large: {least} > {MAX_CLUSTER}")),
        false => Ok(()),
    }
}

/// That old bytes may be held.
pub(crate) fn check_hold(bytes: u64, on_error: OnCbwError) -> Result<(), String> {
    match bytes > 0 && on_error == OnCbwError::BreakGuestWrite {
        true => Err("goes with 'break-snapshot' alone".to_owned()),
        false => Ok(()),
    }
}

/// The largest cluster, in bytes: a granule of bitmaps, and a buffer, are no larger.
const MAX_CLUSTER: u64 = 1 << 30;

impl Driver for CopyBeforeWrite {
    const NAMES: &'static [&'static str] = &["copy-before-write"];
    type Options = CopyBeforeWriteOptions;

    fn co_open(
        opening: &Opening<'_, '_>,
        options: &CopyBeforeWriteOptions,
    ) -> Result<CopyBeforeWrite, OpenError> {
        let least = options.min_cluster_size.unwrap_or(0);
        check_least(least).map_err(|why| OpenError::option("min-cluster-size", why))?;
        let hold = options.x_coblk_hold.unwrap_or(0);
        check_hold(hold, options.on_cbw_error.unwrap_or_default())
            .map_err(|why| OpenError::option("x-coblk-hold", why))?;
        let file = opening.co_child("file", ChildRole::FILTER, &options.file)?;
        let target = opening.co_child("target", ChildRole::DATA, &options.target)?;
        if Arc::ptr_eq(&file.node(), &target.node()) {
            return Err(OpenError::option("target", "is the node whose bytes are to be kept"));
        }
        if file.length() != target.length() {
            return Err(OpenError::option("target", "has another length than the node"));
        }
        let bits = match &options.bitmap {
            Some(bitmap) => Some(bits_of(opening, bitmap)?),
            None => None,
        };
        let (tracking, flags) = co_track(opening, &file, &target);
        let target_cluster = cluster_size(&target.node()).unwrap_or(1);
        let timeout = options.cbw_timeout.filter(|seconds| *seconds > 0);
        let plan = KeeperPlan {
            granule: copy_granule(&target.node(), least),
            cluster: copy_cluster(target_cluster, least),
            length: file.length(),
            target_cluster,
            flags,
            on_error: options.on_cbw_error.unwrap_or_default(),
            timeout: timeout.map(|seconds| Duration::from_secs(seconds.into())),
            hold,
            is_alone: false,
            spill: None,
            sums: false,
            latency: None,
            waits: None,
        };
        let keeper = Keeper::for_reads(plan, bits.as_ref())?;
        Ok(CopyBeforeWrite::on((file, target), &Arc::new(keeper), tracking))
    }
}

/// The bits of a bitmap, as they are now.
fn bits_of(opening: &Opening<'_, '_>, bitmap: &NodeBitmap) -> Result<DirtyBits, OpenError> {
    let refused = |error: &dyn std::fmt::Display| OpenError::option("bitmap", error.to_string());
    let bitmap = opening.bitmap(bitmap)?;
    bitmap.check(BitmapUse::Read).map_err(|error| refused(&error))?;
    bitmap.bits().copy().map_err(|error: io::Error| refused(&error))
}

/// What keeps readers of a target out that look at the node where the target has nothing.
fn co_track(
    opening: &Opening<'_, '_>,
    file: &Child,
    target: &Child,
) -> (Option<Tracking>, WriteFlags) {
    if !leads_to(&target.node(), &file.node()) {
        return (None, WriteFlags::empty());
    }
    let target = target.node();
    let drained = target.co_drain(opening.co());
    (Some(target.track(&drained)), WriteFlags::SERIALISING)
}
