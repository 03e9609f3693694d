//! [`SnapshotAccess`]: a node with the bytes of an instant.

use std::io;

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::options::{DriverConfig, DriverOptions, NodeRef};
use coblk_block::{
    BlockDriver, BlockLimits, Child, ChildRole, Driver, EdgeId, EdgeInfo, Extent, OpenError,
    Opening, Permissions, ReadFlags, WriteFlags,
};
use serde::{Deserialize, Serialize};

/// The bytes of the instant that a [`CopyBeforeWrite`](crate::CopyBeforeWrite) keeps. They are read, and given up by
/// discards; writes fail with ENOTSUP. Above any other driver reads fail with ENOTSUP, too.
pub struct SnapshotAccess {
    file: Child,
    length: u64,
}

impl SnapshotAccess {
    /// Of what a child's driver keeps.
    fn on(file: Child) -> SnapshotAccess {
        let length = file.length();
        SnapshotAccess { file, length }
    }
}

/// Options of `snapshot-access`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct SnapshotAccessOptions {
    /// `file`: the node that keeps the bytes of an instant.
    pub file: NodeRef,
}

impl SnapshotAccessOptions {
    /// For what a node keeps.
    pub fn new(file: impl Into<NodeRef>) -> SnapshotAccessOptions {
        SnapshotAccessOptions { file: file.into() }
    }
}

impl DriverOptions for SnapshotAccessOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
    }
}

impl From<SnapshotAccessOptions> for DriverConfig {
    fn from(options: SnapshotAccessOptions) -> DriverConfig {
        DriverConfig::new("snapshot-access", options)
    }
}

impl Driver for SnapshotAccess {
    const NAMES: &'static [&'static str] = &["snapshot-access"];
    type Options = SnapshotAccessOptions;

    fn co_open(
        opening: &Opening<'_, '_>,
        options: &SnapshotAccessOptions,
    ) -> Result<SnapshotAccess, OpenError> {
        let role = ChildRole::DATA | ChildRole::PRIMARY;
        Ok(SnapshotAccess::on(opening.co_child("file", role, &options.file)?))
    }
}

fn not_supported() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOTSUP)
}

impl BlockDriver for SnapshotAccess {
    fn format_name(&self) -> &'static str {
        "snapshot-access"
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits { write_flags: WriteFlags::empty(), ..BlockLimits::passing_on() }
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.file.id()]
    }

    /// Once it is there the node must not be written by others than those above the filter, used or not.
    fn child_permissions(
        &self,
        _edge: &EdgeInfo,
        _held: Permissions,
        _shared: Permissions,
    ) -> (Permissions, Permissions) {
        (Permissions::CONSISTENT_READ, Permissions::all())
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.file.co_snapshot_preadv(co, offset, target, flags)
    }

    fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.file.co_snapshot_block_status(co, offset, bytes)
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.file.co_snapshot_pdiscard(co, offset, bytes)
    }

    fn co_pwritev(
        &self,
        _co: &Co<'_>,
        _offset: u64,
        _source: &IoVector<'_>,
        _flags: WriteFlags,
    ) -> io::Result<()> {
        Err(not_supported())
    }

    fn co_flush(&self, _co: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}
