//! [`Layer`]: an image above another one, of which it has some clusters. Its storage is a disk of a run.

use std::io;
use std::sync::{Arc, Mutex};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{
    BackingName, BlockDriver, BlockLimits, BlockNode, Child, ChildRole, ChildSlot, EdgeId, Extent,
    ImageFormat, ImageInfo, ReadFlags, WriteFlags,
};

/// Bytes of a cluster. Requests are whole ones, so that none is there in part.
pub const CLUSTER: u64 = 4096;

pub struct Layer {
    file: Child,
    backing: ChildSlot,
    /// The clusters that it has.
    has: Mutex<Vec<bool>>,
    header: Mutex<Option<BackingName>>,
}

impl Layer {
    /// A node of this name over a disk.
    pub fn node(
        name: &str,
        file: &Arc<BlockNode>,
        backing: Option<&Arc<BlockNode>>,
        has: Vec<bool>,
    ) -> Arc<BlockNode> {
        let file = Child::new("file", ChildRole::DATA | ChildRole::PRIMARY, Arc::clone(file));
        let header = backing.map(|node| BackingName::new(node.name(), None));
        let slot = ChildSlot::new("backing", ChildRole::COW, backing.map(Arc::clone));
        let (has, header) = (Mutex::new(has), Mutex::new(header));
        BlockNode::new(name, Layer { file, backing: slot, has, header })
    }

    /// How many bytes from an offset on it has, or has not.
    fn extent(&self, offset: u64, bytes: u64) -> (bool, u64) {
        let has = self.has.lock().unwrap();
        let first = (offset / CLUSTER) as usize;
        let alike = has[first..].iter().take_while(|it| **it == has[first]).count() as u64;
        (has[first], bytes.min((first as u64 + alike) * CLUSTER - offset))
    }
}

impl ImageFormat for Layer {
    fn info(&self) -> io::Result<ImageInfo> {
        let mut info = ImageInfo::new(self.file.length());
        info.cluster_size = Some(CLUSTER);
        info.backing = self.header.lock().unwrap().clone();
        Ok(info)
    }

    fn co_change_backing(&self, co: &Co<'_>, backing: Option<&BackingName>) -> io::Result<()> {
        // A request to the disk, which may fail.
        self.file.co_flush(co)?;
        *self.header.lock().unwrap() = backing.cloned();
        Ok(())
    }
}

impl BlockDriver for Layer {
    fn format_name(&self) -> &'static str {
        "layer"
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits { request_alignment: CLUSTER as u32, ..BlockLimits::default() }
    }

    fn image(&self) -> Option<&dyn ImageFormat> {
        Some(self)
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.file.id(), self.backing.id()]
    }

    fn co_block_status(&self, _: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let (has, bytes) = self.extent(offset, bytes);
        Ok(if has { Extent::data(bytes) } else { Extent::unallocated(bytes) })
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let end = offset + target.len() as u64;
        let mut at = offset;
        while at < end {
            let (has, bytes) = self.extent(at, end - at);
            let mut piece = target.slice((at - offset) as usize, bytes as usize);
            match (has, self.backing.get()) {
                (true, _) => self.file.co_preadv(co, at, &mut piece, flags)?,
                (false, Some(backing)) => backing.co_preadv(co, at, &mut piece, flags)?,
                (false, None) => piece.fill_from(0, 0),
            }
            at += bytes;
        }
        Ok(())
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.file.co_pwritev(co, offset, source, flags)?;
        let clusters = offset / CLUSTER..(offset + source.len() as u64) / CLUSTER;
        let mut has = self.has.lock().unwrap();
        has[clusters.start as usize..clusters.end as usize].fill(true);
        Ok(())
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.file.co_flush(co)
    }
}

/// The names that lead from a node down, as the headers say, and as the nodes do.
pub fn names(top: &Arc<BlockNode>) -> (Vec<String>, Vec<String>) {
    let nodes = top.chain();
    let headers = nodes.iter().filter_map(|node| {
        let info = node.driver().image()?.info().ok()?;
        Some(info.backing.map_or_else(|| "none".to_owned(), |backing| backing.name))
    });
    let below = nodes.iter().map(|node| node.backing_child());
    let below = below.map(|it| it.map_or_else(|| "none".to_owned(), |it| it.name().to_owned()));
    (headers.collect(), below.collect())
}

/// The disk, whose clusters are there or not.
pub fn random(rng: &mut fastrand::Rng, length: u64) -> Vec<bool> {
    let count = length / CLUSTER;
    (0..count).map(|_| rng.u8(..3) == 0).collect()
}
