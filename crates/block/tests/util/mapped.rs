//! A format for tests: a table says where each of its clusters is, and the layer reads them.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{
    BlockDriver, BlockNode, Child, ChildRole, EdgeId, Filter, Piece, Place, ReadFlags, ReadMap,
    WriteFlags, co_read_mapped,
};

/// Where a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// In the file, from this offset on.
    File(u64),
    Zero,
    Backing,
}

/// What a test sees of a format.
#[derive(Default)]
pub struct Seen {
    /// Calls of the map.
    pub lookups: AtomicUsize,
    /// Reads that the map has called and that have not returned.
    pub inside: AtomicUsize,
}

pub struct Mapped {
    pub length: u64,
    pub cluster: u64,
    pub table: Vec<Cluster>,
    pub file: Child,
    pub backing: Option<Child>,
    /// Whether it shows its map to the layer.
    pub is_shown: bool,
    pub seen: Arc<Seen>,
}

impl Mapped {
    /// One that shows its map.
    pub fn new(
        cluster: u64,
        table: Vec<Cluster>,
        file: &Arc<BlockNode>,
        backing: Option<&Arc<BlockNode>>,
    ) -> Mapped {
        let backing = backing.map(|it| Child::new("backing", ChildRole::COW, Arc::clone(it)));
        Mapped {
            length: cluster * table.len() as u64,
            cluster,
            table,
            file: Child::new("file", ChildRole::IMAGE, Arc::clone(file)),
            backing,
            is_shown: true,
            seen: Arc::default(),
        }
    }

    /// The place of an offset, and how many bytes lie there in one piece.
    fn find(&self, range: Range<u64>) -> Piece {
        let index = (range.start / self.cluster) as usize;
        let skipped = range.start % self.cluster;
        let first = self.table[index];
        let mut bytes = self.cluster - skipped;
        for (number, next) in self.table[index + 1..].iter().enumerate() {
            let goes_on = match first {
                Cluster::File(at) => Cluster::File(at + (number as u64 + 1) * self.cluster),
                other => other,
            };
            if *next != goes_on || bytes >= range.end - range.start {
                break;
            }
            bytes += self.cluster;
        }
        let place = match first {
            Cluster::File(at) => Place::Stored { child: self.file.id(), offset: at + skipped },
            Cluster::Zero => Place::Zero,
            Cluster::Backing => Place::Backing,
        };
        Piece { bytes, place }
    }
}

struct Inside<'a>(&'a Seen);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ReadMap for Mapped {
    fn co_map(
        &self,
        _: &Co<'_>,
        range: Range<u64>,
        read: &mut dyn FnMut(Piece) -> io::Result<()>,
    ) -> io::Result<()> {
        self.seen.lookups.fetch_add(1, Ordering::SeqCst);
        self.seen.inside.fetch_add(1, Ordering::SeqCst);
        let _inside = Inside(&self.seen);
        read(self.find(range))
    }
}

impl BlockDriver for Mapped {
    fn format_name(&self) -> &'static str {
        "mapped"
    }
    fn length(&self) -> u64 {
        self.length
    }
    fn children(&self) -> Vec<EdgeId> {
        [Some(&self.file), self.backing.as_ref()].into_iter().flatten().map(Child::id).collect()
    }
    fn read_map(&self) -> Option<&dyn ReadMap> {
        self.is_shown.then_some(self)
    }
    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        let file = self.file.edge();
        match &self.backing {
            Some(backing) => co_read_mapped(co, self, &[file, backing.edge()], offset, target),
            None => co_read_mapped(co, self, &[file], offset, target),
        }
    }
    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// A filter that changes nothing.
pub struct Pass(Child);

impl Pass {
    pub fn node(name: &str, child: &Arc<BlockNode>) -> Arc<BlockNode> {
        BlockNode::new(name, Pass(Child::new("file", ChildRole::FILTER, Arc::clone(child))))
    }
}

impl Filter for Pass {
    fn name(&self) -> &'static str {
        "pass"
    }
    fn child(&self) -> &Child {
        &self.0
    }
}
