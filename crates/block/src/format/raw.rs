//! `raw`: the bytes of another node as they are, all of them or a part.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_qapi::Size;
use serde::{Deserialize, Serialize};

use crate::backend::BlockBackend;
use crate::driver::debug_event::DebugEvent;
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags};
use crate::driver::role::ChildRole;
use crate::graph::Child;
use crate::graph::filter::Filter;
use crate::graph::node::BlockNode;
use crate::options::{DriverConfig, DriverOptions, NodeRef, OptionsError};
use crate::registry::{
    CreateError, Driver, Measure, Measures, OpenError, Opening, Reopen, Reopening,
};

/// Fixed sizes are whole sectors.
const SECTOR_BYTES: u64 = 512;

/// A driver that passes requests on, from `offset` on, without a copy.
///
/// Neither the offset nor, without a size of its own, the length need be multiples of anything: the
/// child pads.
pub struct Raw {
    child: Child,
    /// These change while nothing is in flight.
    offset: AtomicU64,
    /// If the length is fixed; else [`ALL`].
    size: AtomicU64,
}

/// No size of one's own. A size is whole sectors, so this is none.
const ALL: u64 = u64::MAX;

/// Why a node has no such part. All figures are bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RawError {
    /// A size is not whole sectors.
    #[error("size {size} is not a multiple of 512")]
    Unaligned {
        /// The size that was asked for.
        size: u64,
    },
    /// The offset is beyond the end of the child.
    #[error("offset {offset} is beyond the end of node '{node}', which has {length} bytes")]
    OffsetBeyondEnd {
        /// The offset that was asked for.
        offset: u64,
        /// The child.
        node: String,
        /// Its length.
        length: u64,
    },
    /// The part ends beyond the end of the child.
    #[error(
        "offset {offset} and size {size} reach beyond the end of node '{node}', \
         which has {length} bytes"
    )]
    SizeBeyondEnd {
        /// The offset that was asked for.
        offset: u64,
        /// The size that was asked for.
        size: u64,
        /// The child.
        node: String,
        /// Its length.
        length: u64,
    },
}

impl Raw {
    /// All of `child`.
    pub fn new(child: Arc<BlockNode>) -> Raw {
        let child = Child::new("file", ChildRole::FILTER, child);
        Raw { child, offset: 0.into(), size: ALL.into() }
    }

    /// The part of `child` from `offset` bytes on: `size` bytes, or all there are. Fewer if `child`
    /// becomes shorter, never more than `size`.
    ///
    /// # Errors
    /// If the part is not within `child`, or `size` is not a multiple of 512.
    pub fn part(child: Arc<BlockNode>, offset: u64, size: Option<u64>) -> Result<Raw, RawError> {
        Raw::on(Child::new("file", ChildRole::FILTER, child), offset, size)
    }

    fn on(child: Child, offset: u64, size: Option<u64>) -> Result<Raw, RawError> {
        check_part(&child.node(), offset, size)?;
        Ok(Raw { child, offset: offset.into(), size: size.unwrap_or(ALL).into() })
    }

    fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    fn size(&self) -> Option<u64> {
        Some(self.size.load(Ordering::Relaxed)).filter(|size| *size != ALL)
    }

    fn length_in(&self, child: u64) -> u64 {
        let there = child.saturating_sub(self.offset());
        self.size().map_or(there, |size| size.min(there))
    }
}

fn check_part(child: &BlockNode, offset: u64, size: Option<u64>) -> Result<(), RawError> {
    let (node, length) = (|| child.name().to_owned(), child.length());
    if offset > length {
        return Err(RawError::OffsetBeyondEnd { offset, node: node(), length });
    }
    if let Some(size) = size {
        if !size.is_multiple_of(SECTOR_BYTES) {
            return Err(RawError::Unaligned { size });
        }
        if size > length - offset {
            return Err(RawError::SizeBeyondEnd { offset, size, node: node(), length });
        }
    }
    Ok(())
}

/// Options of `raw`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct RawOptions {
    /// `file`: the child.
    pub file: NodeRef,
    /// `offset` of the part that is used, in bytes; 0 by default.
    #[serde(default)]
    pub offset: u64,
    /// `size` of the part that is used, in bytes; up to the end by default.
    pub size: Option<u64>,
}

impl RawOptions {
    /// Options for all of a node.
    pub fn new(file: impl Into<NodeRef>) -> RawOptions {
        RawOptions { file: file.into(), offset: 0, size: None }
    }

    /// For a part of it, from `offset` bytes on: `size` bytes, or all up to the end.
    #[must_use]
    pub fn part(self, offset: u64, size: Option<u64>) -> RawOptions {
        RawOptions { offset, size, ..self }
    }
}

/// What an image in `raw` is measured by: its bytes, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct RawMeasureOptions {
    /// `size` in bytes, if there is no source.
    pub size: Option<Size>,
}

impl Measures for Raw {
    const NAME: &'static str = "raw";
    type Options = RawMeasureOptions;

    fn co_measure(
        _: &Co<'_>,
        options: RawMeasureOptions,
        source: Option<&BlockBackend>,
    ) -> Result<Measure, CreateError> {
        let length = source.and_then(BlockBackend::node).map(|node| node.length());
        let length = length.or(options.size.map(|Size(bytes)| bytes));
        let length = length.ok_or_else(|| OptionsError::missing("size"))?;
        let length = length.checked_next_multiple_of(SECTOR_BYTES);
        let length = length.ok_or_else(|| OptionsError::invalid("size", "it is too large"))?;
        Ok(Measure::new(length, length))
    }
}

impl DriverOptions for RawOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
    }
}

impl From<RawOptions> for DriverConfig {
    fn from(options: RawOptions) -> DriverConfig {
        DriverConfig::new("raw", options)
    }
}

impl Driver for Raw {
    const NAMES: &'static [&'static str] = &["raw"];
    const CHANGEABLE: &'static [&'static str] = &["offset", "size"];
    type Options = RawOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &RawOptions) -> Result<Raw, OpenError> {
        let file = opening.co_child("file", ChildRole::FILTER, &options.file)?;
        Raw::on(file, options.offset, options.size).map_err(OpenError::of_driver)
    }

    fn co_prepare_reopen<'a>(
        &'a self,
        reopening: &Reopening<'_, '_>,
        options: &RawOptions,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError> {
        let now = self.child.node();
        let child = reopening.child("file").unwrap_or(&now);
        let (offset, size) = (options.offset, options.size);
        check_part(child, offset, size).map_err(OpenError::of_driver)?;
        let mut part = (offset, size.unwrap_or(ALL));
        Ok(Box::new(move || {
            part.0 = self.offset.swap(part.0, Ordering::Relaxed);
            part.1 = self.size.swap(part.1, Ordering::Relaxed);
        }))
    }
}

/// A request ends within the length, and so its place in the child does not overflow: `offset` and
/// length together are no more than the length that the child has, or had.
impl Filter for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn is_filter(&self) -> bool {
        false
    }

    fn length(&self) -> u64 {
        self.length_in(self.child.length())
    }

    fn child(&self) -> &Child {
        &self.child
    }

    #[inline]
    fn at(&self, offset: u64) -> u64 {
        self.offset() + offset
    }

    #[inline]
    fn read(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.child.debug_event(DebugEvent::ReadAio);
        self.child.co_preadv(co, self.at(offset), target, flags)
    }

    #[inline]
    fn write(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.child.debug_event(DebugEvent::WriteAio);
        self.child.co_pwritev(co, self.at(offset), source, flags)
    }

    /// The name of the child's bytes, if it is all of the child.
    fn filename(&self) -> Option<String> {
        let whole = self.offset() == 0 && self.size().is_none();
        if whole { self.child.node().driver().filename() } else { None }
    }

    /// ENOTSUP if the size is fixed.
    fn truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        if self.size().is_some() {
            return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
        }
        let too_long = || io::Error::from_raw_os_error(libc::EFBIG);
        self.child.co_truncate(co, self.offset().checked_add(length).ok_or_else(too_long)?, how)
    }

    fn refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        Ok(self.length_in(self.child.co_refresh_length(co)?))
    }
}
