//! Why a backup does not begin.

use std::io;
use std::sync::Arc;

use coblk_block::{
    BitmapError, BitmapUse, BlockdevError, GraphError, Operation, PermissionError, WriteFlags,
};

use super::options::{Backup, BackupSync, BitmapMode};
use crate::JobError;
use crate::snapshot::{check_hold, check_least, cluster_size, copy_cluster, copy_granule};

/// Why a backup does not begin. Nothing has changed then. The words are QEMU's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Source and target are one node.
    #[error("Source and target cannot be the same")]
    Itself,
    /// The target has another length.
    #[error("Source and target image have different sizes")]
    Lengths,
    /// The target refuses writes.
    #[error("node '{0}' is read-only")]
    ReadOnly(String),
    /// A job writes one of the nodes, or keeps others away from it.
    #[error("Node '{node}' is busy: {reason}")]
    Busy {
        /// The node.
        node: String,
        /// The reason of the job.
        reason: String,
    },
    /// The target does not take compressed writes.
    #[error("Compression is not supported for this drive {0}")]
    Compression(String),
    /// A bitmap is to say what is copied, and there is none.
    #[error("must provide a valid bitmap name for 'bitmap' sync mode")]
    NoBitmap,
    /// There is no such bitmap at the source.
    #[error("Bitmap '{0}' could not be found")]
    BitmapNotFound(String),
    /// The mode of the bitmap would change nothing.
    #[error("Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '{0}'")]
    NoEffect(&'static str),
    /// Nothing is copied by itself.
    #[error("sync mode 'none' does not produce meaningful bitmap outputs")]
    NoOutput,
    /// So many bytes cannot be copied together.
    #[error("{0}")]
    MinCluster(String),
    /// An option has a value that it cannot have.
    #[error("{0}")]
    Option(String),
    /// The bitmap cannot be used.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// The job cannot be made.
    #[error(transparent)]
    Job(#[from] JobError),
    /// Other users of a node do not agree.
    #[error(transparent)]
    Permission(#[from] PermissionError),
    /// The name of the filter cannot be given.
    #[error(transparent)]
    Blockdev(#[from] BlockdevError),
    /// The filter cannot be inserted.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// There is no memory.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Backup {
    pub(super) fn check(&self) -> Result<(), BackupError> {
        check_hold(self.hold, self.on_cbw_error)
            .map_err(|why| BackupError::Option(format!("Parameter 'x-coblk-hold' {why}")))?;
        self.check_bitmap()?;
        self.check_own()?;
        if Arc::ptr_eq(&self.source, &self.target) {
            return Err(BackupError::Itself);
        }
        let name = || self.target.name().to_owned();
        if self.target.is_read_only() {
            return Err(BackupError::ReadOnly(name()));
        }
        if self.compress && !self.target.limits().write_flags.contains(WriteFlags::COMPRESSED) {
            return Err(BackupError::Compression(name()));
        }
        for node in [&self.source, &self.target] {
            if let Some(reason) = node.blocked_reason(Operation::Job) {
                return Err(BackupError::Busy { node: node.name().to_owned(), reason });
            }
        }
        if self.source.length() != self.target.length() {
            return Err(BackupError::Lengths);
        }
        if self.max_workers == 0 {
            let text = "max-workers must be between 1 and 2147483647";
            return Err(BackupError::Option(text.to_owned()));
        }
        check_least(self.min_cluster).map_err(BackupError::MinCluster)?;
        let cluster = self.cluster();
        match self.max_chunk.filter(|chunk| *chunk < cluster) {
            Some(chunk) => Err(BackupError::Option(format!(
                "Required max-chunk ({chunk}) is less than backup cluster size ({cluster})"
            ))),
            None => Ok(()),
        }
    }

    /// The options that are this program's own.
    fn check_own(&self) -> Result<(), BackupError> {
        let option = |text: &str| Err(BackupError::Option(text.to_owned()));
        let is_noted = self.verify || self.manifest.is_some();
        if self.sync == BackupSync::None && (self.spill.is_some() || is_noted) {
            let text = "x-coblk-spill, x-coblk-verify and x-coblk-manifest do not go with sync mode 'none'";
            return option(text);
        }
        let Some(spill) = &self.spill else { return Ok(()) };
        if Arc::ptr_eq(spill, &self.source) || Arc::ptr_eq(spill, &self.target) {
            return option("Parameter 'x-coblk-spill' is the source or the target");
        }
        if self.hold > 0 {
            return option("Parameter 'x-coblk-hold' does not go with 'x-coblk-spill'");
        }
        if spill.length() < self.source.length() {
            return option("Parameter 'x-coblk-spill' is shorter than the source");
        }
        if spill.is_read_only() {
            return Err(BackupError::ReadOnly(spill.name().to_owned()));
        }
        match spill.blocked_reason(Operation::Job) {
            Some(reason) => Err(BackupError::Busy { node: spill.name().to_owned(), reason }),
            None => Ok(()),
        }
    }

    fn check_bitmap(&self) -> Result<(), BackupError> {
        let Some((name, mode)) = &self.bitmap else {
            let is_wanted = self.sync == BackupSync::Bitmap;
            return if is_wanted { Err(BackupError::NoBitmap) } else { Ok(()) };
        };
        let found = self.source.bitmaps().find(name);
        let bitmap = found.map_err(|_| BackupError::BitmapNotFound(coblk_qapi::shorten(name)))?;
        match (self.sync, mode) {
            (BackupSync::None, _) => return Err(BackupError::NoOutput),
            (BackupSync::Full, BitmapMode::Never) => return Err(BackupError::NoEffect("full")),
            (BackupSync::Top, BitmapMode::Never) => return Err(BackupError::NoEffect("top")),
            _ => {}
        }
        // With `never` it is as it was in the end.
        let wanted = if *mode == BitmapMode::Never { BitmapUse::Read } else { BitmapUse::Change };
        Ok(bitmap.check(wanted)?)
    }

    /// How much is copied together, in bytes.
    pub(super) fn cluster(&self) -> u64 {
        copy_cluster(self.target_cluster(), self.min_cluster)
    }

    /// How much is copied when a guest writes, in bytes.
    pub(super) fn granule(&self) -> u64 {
        // There is a sum for each.
        let is_noted = self.verify || self.manifest.is_some();
        if is_noted { self.cluster() } else { copy_granule(&self.target, self.min_cluster) }
    }

    /// Bytes a cluster of the target; 1 where there are none.
    pub(super) fn target_cluster(&self) -> u64 {
        cluster_size(&self.target).unwrap_or(1)
    }
}
