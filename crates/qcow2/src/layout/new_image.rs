//! [`NewImage`]: where everything is in an image that is to be made.

use std::ops::Range;

use super::space::{Space, refcount_clusters};
use super::{COPIED, FormatError, Geometry, Header, L2Entry, MAX_L1_BYTES, RefcountWidth};

/// How much of the disk is mapped from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// Nothing.
    Nothing,
    /// All, each cluster where the next free one is.
    Scattered,
    /// All, in one piece.
    OnePiece,
    /// All, in a data file: each cluster at its own offset.
    DataFile,
}

/// Most bytes that are mapped in one go, as by QEMU.
const MAX_GO_BYTES: u64 = i32::MAX as u64;

/// An image that is to be made: a header without places, and a plan of the file.
#[derive(Clone, Debug)]
pub struct NewImage {
    header: Header,
    geometry: Geometry,
    mapped: Mapped,
    /// Clusters of the disk.
    disk_clusters: u64,
    /// With all but what [`tables`](Self::tables) adds.
    space: Space,
    /// Where data is, if it is in one piece.
    data: u64,
}

/// An L2 table of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTable {
    /// The index of its L1 entry.
    pub index: u64,
    /// Its offset in the file.
    pub offset: u64,
    /// What it maps: the first entry, the offset of the cluster, and how many follow each other.
    pub runs: Vec<(u64, u64, u64)>,
}

impl NewTable {
    /// The content of the table; `blank` is the bitmap of each entry, or the flags of each word without
    /// extended entries.
    pub fn encode(&self, geometry: Geometry, blank: L2Entry) -> Vec<u8> {
        let entry_bytes = geometry.l2_entry_bytes() as usize;
        let mut bytes = vec![0; geometry.cluster_bytes() as usize];
        for (first, offset, count) in &self.runs {
            for place in 0..*count {
                let word = (offset + place * geometry.cluster_bytes()) | COPIED | blank.word;
                let at = (first + place) as usize * entry_bytes;
                let Some(entry) = bytes.get_mut(at..at + entry_bytes) else { break };
                entry[..8].copy_from_slice(&word.to_be_bytes());
                if entry_bytes > 8 {
                    entry[8..].copy_from_slice(&blank.bitmap.to_be_bytes());
                }
            }
        }
        bytes
    }
}

impl NewImage {
    /// Plans an image with this header, whose places of tables are not set yet. If it has a header of LUKS,
    /// only the length of that counts.
    ///
    /// # Errors
    /// EFBIG if the disk is too large for its clusters.
    pub fn new(header: Header, mapped: Mapped) -> Result<NewImage, FormatError> {
        let geometry = header.geometry()?;
        let mut space = Space::new(geometry, RefcountWidth::new(header.refcount_order)?);
        let l1_bytes = geometry.l1_entries(header.size)? * 8;
        if l1_bytes > MAX_L1_BYTES {
            return Err(FormatError::too_big("the disk is too large for its clusters"));
        }
        let (mut header, mut data) = (header, 0);
        let disk_clusters = header.size.div_ceil(geometry.cluster_bytes());
        header.l1_entries = (l1_bytes / 8) as u32;
        if l1_bytes > 0 {
            let l1 = space.allocate(l1_bytes.div_ceil(geometry.cluster_bytes()))?;
            header.l1_offset = l1 * geometry.cluster_bytes();
        }
        if mapped == Mapped::OnePiece {
            let tables = disk_clusters.div_ceil(geometry.l2_entries());
            data = space.reserve(disk_clusters + tables)?;
            space.allocate_at(data, disk_clusters)?;
        }
        Ok(NewImage { header, geometry, mapped, disk_clusters, space, data })
    }

    /// The L2 tables, in the order in which they find their places. May be gone through again.
    pub fn tables(&self) -> NewTables<'_> {
        let space = self.space.clone();
        NewTables { image: self, space, at: 0, left: 0, next: None }
    }

    /// Where data is in the file, in bytes, if it is in one piece.
    pub fn data_range(&self) -> Option<Range<u64>> {
        let [start, end] = [self.data, self.data + self.disk_clusters]
            .map(|it| it * self.geometry.cluster_bytes());
        (start > 0).then_some(start..end)
    }

    /// Sizes of clusters and tables.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The whole plan.
    ///
    /// # Errors
    /// EFBIG if the file or its refcount table would be too large.
    pub fn finish(&self) -> Result<Finished, FormatError> {
        let mut l1 = vec![0; self.header.l1_entries as usize];
        let mut tables = self.tables();
        while let Some(table) = tables.step()? {
            if let Some(entry) = l1.get_mut(table.index as usize) {
                *entry = table.offset | COPIED;
            }
        }
        let (mut space, mut header) = (tables.space, self.header.clone());
        let cluster_bytes = self.geometry.cluster_bytes();
        if let Some(mut luks) = header.extensions.luks(self.geometry)? {
            // Behind everything, as by QEMU.
            luks.offset = space.allocate(luks.bytes.div_ceil(cluster_bytes))? * cluster_bytes;
            header.extensions.set_luks(Some(luks));
        }
        let (table, clusters) = space.table();
        header.refcount_table_offset = table * cluster_bytes;
        header.refcount_table_clusters = clusters as u32;
        // The L1 table ends with its last entry, where it is the last of the file.
        let (l1_end, end) = (header.l1_offset + l1.len() as u64 * 8, space.end() * cluster_bytes);
        let is_last = l1_end > end.saturating_sub(cluster_bytes);
        Ok(Finished { file_bytes: if is_last { l1_end } else { end }, header, l1, space })
    }
}

/// The L2 tables of a [`NewImage`].
pub struct NewTables<'a> {
    image: &'a NewImage,
    space: Space,
    /// The cluster of the disk that is mapped next.
    at: u64,
    /// Clusters left of this go.
    left: u64,
    /// The cluster of the file that follows what was mapped last in this go.
    next: Option<u64>,
}

impl NewTables<'_> {
    /// The next table.
    ///
    /// # Errors
    /// EFBIG if the file or its refcount table would be too large.
    pub fn step(&mut self) -> Result<Option<NewTable>, FormatError> {
        let NewImage { geometry, mapped, disk_clusters, .. } = *self.image;
        if mapped == Mapped::Nothing || self.at >= disk_clusters {
            return Ok(None);
        }
        let (first, entries) = (self.at, geometry.l2_entries());
        let end = (first + entries).min(disk_clusters);
        if self.left == 0 {
            self.begin_go();
        }
        let offset = self.space.allocate(1)? * geometry.cluster_bytes();
        let mut runs = Vec::new();
        while self.at < end {
            let (host, count) = match mapped {
                Mapped::Nothing | Mapped::DataFile => (self.at, end - self.at),
                Mapped::OnePiece => (self.image.data + self.at, end - self.at),
                Mapped::Scattered => self.place(end)?,
            };
            if count > 0 {
                runs.push((self.at - first, host * geometry.cluster_bytes(), count));
            }
            self.at += count;
        }
        Ok(Some(NewTable { index: first / entries, offset, runs }))
    }

    fn begin_go(&mut self) {
        let most = MAX_GO_BYTES / self.image.geometry.cluster_bytes();
        self.left = (self.image.disk_clusters - self.at).min(most);
        self.next = None;
    }

    /// Finds a place for some clusters up to `end`, for none if a go has to begin.
    fn place(&mut self, end: u64) -> Result<(u64, u64), FormatError> {
        if self.left == 0 {
            self.begin_go();
        }
        let wanted = (end - self.at).min(self.left);
        let (host, count) = match self.next {
            None => (self.space.allocate(wanted)?, wanted),
            Some(next) => (next, self.space.allocate_at(next, wanted)?),
        };
        self.left = if count == 0 { 0 } else { self.left - count };
        self.next = Some(host + count);
        Ok((host, count))
    }
}

/// A new image, planned to its end.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The header.
    pub header: Header,
    /// The L1 table.
    pub l1: Vec<u64>,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    space: Space,
}

impl Finished {
    /// The refcount table: its offset and its bytes.
    pub fn refcount_table(&self) -> (u64, Vec<u8>) {
        let cluster_bytes = self.header.geometry().map_or(0, Geometry::cluster_bytes);
        let mut bytes = vec![0; (self.space.table().1 * cluster_bytes) as usize];
        for (index, cluster) in self.space.blocks() {
            let at = index as usize * 8;
            if let Some(entry) = bytes.get_mut(at..at + 8) {
                entry.copy_from_slice(&(cluster * cluster_bytes).to_be_bytes());
            }
        }
        (self.header.refcount_table_offset, bytes)
    }

    /// The refcount blocks: offset and bytes of each.
    pub fn refcount_blocks(&self) -> impl Iterator<Item = (u64, Vec<u8>)> + '_ {
        let cluster_bytes = self.header.geometry().map_or(0, Geometry::cluster_bytes);
        let blocks = self.space.blocks();
        blocks.map(move |(index, cluster)| (cluster * cluster_bytes, self.space.block(index)))
    }
}

/// The clusters of an image with `clusters` clusters of data that are not data: header, tables, and refcounts of
/// all, themselves included. Tables count as if all of the disk were mapped.
pub fn image_clusters(geometry: Geometry, width: RefcountWidth, clusters: u64) -> u64 {
    let tables = clusters.div_ceil(geometry.l2_entries());
    let l1 = tables.div_ceil(geometry.cluster_bytes() / 8);
    let others = 1 + tables + l1;
    let counted = refcount_clusters(geometry, width, u128::from(clusters + others), false);
    others + (counted.blocks + counted.table) as u64
}
