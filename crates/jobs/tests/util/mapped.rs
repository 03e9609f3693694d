//! A disk that says which of its parts are stored, and is an image with clusters.

use std::io;
use std::sync::Arc;

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{
    BackingName, BlockDriver, BlockLimits, BlockNode, Extent, ImageFormat, ImageInfo, ReadFlags,
    WriteFlags, ZeroFlags,
};

use super::disk::{Disk, OnDisk};

/// How a part is stored, by one letter: `d`ata, `z`eroes, or not at all (`-`).
pub struct Mapped {
    disk: OnDisk,
    parts: &'static [u8],
    part: u64,
    info: ImageInfo,
}

impl Mapped {
    /// A node of this name over a disk, all parts of which have `part` bytes; the last letter is for the rest.
    pub fn node(
        name: &str,
        disk: &Arc<Disk>,
        (parts, part): (&'static str, u64),
        cluster: u64,
        backing: Option<&str>,
    ) -> Arc<BlockNode> {
        let disk = OnDisk(Arc::clone(disk));
        let mut info = ImageInfo::new(disk.length());
        info.cluster_size = Some(cluster);
        info.backing = backing.map(|name| BackingName::new(name, None));
        BlockNode::new(name, Mapped { disk, parts: parts.as_bytes(), part, info })
    }
}

impl ImageFormat for Mapped {
    fn info(&self) -> io::Result<ImageInfo> {
        Ok(self.info.clone())
    }
}

impl BlockDriver for Mapped {
    fn format_name(&self) -> &'static str {
        "mapped"
    }

    fn length(&self) -> u64 {
        self.disk.length()
    }

    fn limits(&self) -> BlockLimits {
        self.disk.limits()
    }

    fn image(&self) -> Option<&dyn ImageFormat> {
        Some(self)
    }

    fn co_block_status(&self, _: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let place = (offset / self.part) as usize;
        let bytes = bytes.min((place as u64 + 1) * self.part - offset);
        Ok(match self.parts[place.min(self.parts.len() - 1)] {
            b'd' => Extent::data(bytes),
            b'z' => Extent::hole(bytes),
            _ => Extent::unallocated(bytes),
        })
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.disk.co_preadv(co, offset, target, flags)
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.disk.co_pwritev(co, offset, source, flags)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.disk.co_flush(co)
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        self.disk.co_pwrite_zeroes(co, offset, bytes, flags)
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.disk.co_pdiscard(co, offset, bytes)
    }
}
