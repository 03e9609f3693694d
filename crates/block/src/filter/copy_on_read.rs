//! `copy-on-read`: what is read from backing files is written to the node itself.
//!
//! A cluster is copied by one read at a time, and beside no change of it that comes through the filter: it is locked,
//! and then looked at once more. Nothing else may write to the node below the filter while that is in use, as the
//! filter would not see it, and might put old bytes over new ones.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use coblk_aio::{Co, IoVector, IoVectorMut};
use serde::{Deserialize, Serialize};

use super::bounce::Bounces;
use crate::driver::edge::EdgeInfo;
use crate::driver::flags::{ReadFlags, WriteFlags, ZeroFlags};
use crate::driver::permissions::Permissions;
use crate::driver::role::ChildRole;
use crate::graph::chain::{Base, ChainExtent, co_status_above};
use crate::graph::filter::Filter;
use crate::graph::node::BlockNode;
use crate::graph::{Child, FrozenChain};
use crate::io::tracked::{Access, TrackedRequests};
use crate::options::{DriverConfig, DriverOptions, NodeRef};
use crate::registry::{Driver, OpenError, Opening};

/// Bytes that are copied at once, at most, unless a cluster is longer.
const MAX_COPY: u64 = 1 << 20;

/// Copies what is read, and not in the node below, to that node: from all of its backing files, or from those down
/// to a bottom.
pub struct CopyOnRead {
    file: Child,
    /// The last backing file that is copied from.
    bottom: Option<Arc<BlockNode>>,
    requests: TrackedRequests,
    bounces: Bounces,
    /// The way to the bottom, which stays as it is.
    frozen: Mutex<Option<FrozenChain>>,
}

impl CopyOnRead {
    /// A filter above `file`, which copies from the backing files down to `bottom`, or from all of them.
    pub fn new(file: Arc<BlockNode>, bottom: Option<Arc<BlockNode>>) -> CopyOnRead {
        CopyOnRead::on(Child::new("file", ChildRole::FILTER, file), bottom)
    }

    fn on(file: Child, bottom: Option<Arc<BlockNode>>) -> CopyOnRead {
        let (requests, bounces, frozen) = Default::default();
        CopyOnRead { file, bottom, requests, bounces, frozen }
    }

    /// The state of the first bytes of a range, down to the bottom.
    fn co_status(&self, co: &Co<'_>, range: &Range<u64>) -> io::Result<ChainExtent> {
        let base = self.bottom.as_deref().map_or(Base::NONE, |bottom| Base::new(bottom, true));
        let node = self.file.node();
        co_status_above(&node, co, base, range.start, range.end - range.start)
    }

    /// The parts of a range that have to be copied, each with whether it reads as zeroes.
    fn co_missing(&self, co: &Co<'_>, range: Range<u64>) -> io::Result<Vec<(Range<u64>, bool)>> {
        let (mut at, mut missing) = (range.start, Vec::new());
        while at < range.end {
            let found = self.co_status(co, &(at..range.end))?;
            let end = (at + found.extent.bytes.max(1)).min(range.end);
            if found.extent.allocated && found.depth > 1 {
                missing.push((at..end, found.extent.zero));
            }
            at = end;
        }
        Ok(missing)
    }

    /// Copies what is missing of a range to the node below.
    fn co_copy(&self, co: &Co<'_>, range: Range<u64>) -> io::Result<()> {
        let (cluster, length) = (self.file.node().cluster_size(), self.file.length());
        let range =
            range.start / cluster * cluster..range.end.next_multiple_of(cluster).min(length);
        let step = MAX_COPY.next_multiple_of(cluster);
        let mut at = range.start;
        while at < range.end {
            let end = (at + step).min(range.end);
            let missing = self.co_missing(co, at..end)?;
            if !missing.is_empty() {
                self.co_copy_clusters(co, at..end)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Copies what is missing of some clusters, with them locked.
    fn co_copy_clusters(&self, co: &Co<'_>, range: Range<u64>) -> io::Result<()> {
        let _locked = self.requests.begin(co, range.clone(), Access::ExcludeWrites);
        // Others may have copied or written meanwhile.
        for (part, is_zero) in self.co_missing(co, range)? {
            let bytes = part.end - part.start;
            if is_zero {
                self.file.co_pwrite_zeroes(co, part.start, bytes, ZeroFlags::MAY_UNMAP)?;
                continue;
            }
            let alignment = self.file.node().limits().memory_alignment.max(4096);
            let mut data = self.bounces.take(bytes as usize, alignment as usize)?;
            let copied = self.co_copy_part(co, part.start, &mut data[..bytes as usize]);
            self.bounces.give_back(data);
            copied?;
        }
        Ok(())
    }

    fn co_copy_part(&self, co: &Co<'_>, at: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.co_read(co, at, data)?;
        self.file.co_pwritev(co, at, &IoVector::from(&*data), WriteFlags::UNCHANGED)
    }

    /// Copies to a node that can be written; one that cannot is read as it is.
    fn copies(&self) -> bool {
        !self.file.is_read_only()
    }

    /// Has the way from the filter down to its bottom stay as it is, as long as the filter is there.
    pub(crate) fn freeze(&self, frozen: FrozenChain) {
        *self.frozen.lock().unwrap_or_else(PoisonError::into_inner) = Some(frozen);
    }
}

impl Filter for CopyOnRead {
    fn name(&self) -> &'static str {
        "copy-on-read"
    }

    fn child(&self) -> &Child {
        &self.file
    }

    /// A prefetch copies, and reads nothing.
    fn read(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        if self.copies() {
            self.co_copy(co, offset..offset + target.len() as u64)?;
        }
        if flags.contains(ReadFlags::PREFETCH) {
            return Ok(());
        }
        self.file.co_preadv(co, offset, target, flags - ReadFlags::COPY_ON_READ)
    }

    fn write(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let range = offset..offset + source.len() as u64;
        let _tracked = self.requests.begin(co, range, Access::Write);
        self.file.co_pwritev(co, offset, source, flags)
    }

    fn zero(&self, co: &Co<'_>, offset: u64, bytes: u64, flags: ZeroFlags) -> io::Result<()> {
        let _tracked = self.requests.begin(co, offset..offset + bytes, Access::Write);
        self.file.co_pwrite_zeroes(co, offset, bytes, flags)
    }

    fn discard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let _tracked = self.requests.begin(co, offset..offset + bytes, Access::Write);
        self.file.co_pdiscard(co, offset, bytes)
    }

    fn child_permissions(
        &self,
        edge: &EdgeInfo,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        let (held, shared) = edge.role().default_permissions((held, shared), !self.is_read_only());
        match held.is_empty() || !self.copies() {
            true => (held, shared),
            false => (held | Permissions::WRITE_UNCHANGED, shared - Permissions::WRITE),
        }
    }
}

/// Options of `copy-on-read`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CopyOnReadOptions {
    /// `file`: the node that is copied to.
    pub file: NodeRef,
    /// `bottom`: the name of the last backing file that is copied from. All of them by default.
    pub bottom: Option<String>,
}

impl CopyOnReadOptions {
    /// Copies to a node from all of its backing files.
    pub fn new(file: impl Into<NodeRef>) -> CopyOnReadOptions {
        CopyOnReadOptions { file: file.into(), bottom: None }
    }
}

impl DriverOptions for CopyOnReadOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
    }
}

impl From<CopyOnReadOptions> for DriverConfig {
    fn from(options: CopyOnReadOptions) -> DriverConfig {
        DriverConfig::new("copy-on-read", options)
    }
}

impl Driver for CopyOnRead {
    const NAMES: &'static [&'static str] = &["copy-on-read"];
    type Options = CopyOnReadOptions;

    fn co_open(
        opening: &Opening<'_, '_>,
        options: &CopyOnReadOptions,
    ) -> Result<CopyOnRead, OpenError> {
        let file = opening.co_child("file", ChildRole::FILTER, &options.file)?;
        let Some(name) = &options.bottom else { return Ok(CopyOnRead::on(file, None)) };
        let node = file.node();
        let mut chain = node.chain();
        let place = chain.iter().position(|it| it.name() == name);
        let missing = || {
            let why = format!("node '{name}' is not in the chain of node '{}'", node.name());
            OpenError::option("bottom", why)
        };
        let bottom = chain.swap_remove(place.ok_or_else(missing)?);
        if bottom.filter_child().is_some() {
            let why = format!("node '{name}' is a filter, use a non-filter node as 'bottom'");
            return Err(OpenError::option("bottom", why));
        }
        let reason = format!("node '{}' copies from it", opening.node_name());
        let frozen = node.co_freeze_chain(opening.co(), Some(&bottom), reason)?;
        let filter = CopyOnRead::on(file, Some(bottom));
        filter.freeze(frozen);
        Ok(filter)
    }
}
