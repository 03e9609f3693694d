//! [`Disk`]: an image file that forgets what was not flushed.

use std::collections::BTreeMap;

use fastrand::Rng;

use crate::layout::{RefcountWidth, block_offset};

pub(super) const SECTOR: u64 = 512;

/// What is written whole, or not at all.
#[derive(Clone, Debug)]
pub(super) enum Write {
    Sector(u64, Vec<u8>),
    /// Offset and clusters of the refcount table.
    Header(u64, u32),
    /// A slot, and the cluster that it refers to.
    Link(usize, Option<u64>),
}

#[derive(Clone, Default)]
pub(super) struct Content {
    sectors: BTreeMap<u64, Vec<u8>>,
    pub(super) table: (u64, u32),
    pub(super) links: BTreeMap<usize, u64>,
}

impl Content {
    fn write(&mut self, write: Write) {
        match write {
            Write::Sector(at, bytes) => drop(self.sectors.insert(at, bytes)),
            Write::Header(offset, clusters) => self.table = (offset, clusters),
            Write::Link(slot, Some(cluster)) => drop(self.links.insert(slot, cluster)),
            Write::Link(slot, None) => drop(self.links.remove(&slot)),
        }
    }

    pub(super) fn read(&self, offset: u64, bytes: u64) -> Vec<u8> {
        let zeroes = || vec![0; SECTOR as usize];
        let sectors = offset / SECTOR..(offset + bytes) / SECTOR;
        sectors.flat_map(|at| self.sectors.get(&at).cloned().unwrap_or_else(zeroes)).collect()
    }

    /// All refcounts that are not 0, by the tables of the file, and the clusters of those tables.
    pub(super) fn counts(
        &self,
        width: RefcountWidth,
        cluster: u64,
    ) -> (BTreeMap<u64, u64>, BTreeMap<u64, u64>) {
        let (mut counts, mut own) = (BTreeMap::new(), BTreeMap::from([(0, 1)]));
        let (offset, clusters) = self.table;
        for it in 0..u64::from(clusters) {
            *own.entry(offset / cluster + it).or_insert(0) += 1;
        }
        let table = self.read(offset, u64::from(clusters) * cluster);
        let per_block = cluster * 8 / u64::from(width.bits());
        for (entry, index) in table.as_chunks::<8>().0.iter().zip(0..) {
            let Some(offset) = block_offset(u64::from_be_bytes(*entry)) else { continue };
            *own.entry(offset / cluster).or_insert(0) += 1;
            let block = self.read(offset, cluster);
            for at in 0..per_block {
                let count = width.get(&block, at as usize);
                if count > 0 {
                    counts.insert(index * per_block + at, count);
                }
            }
        }
        (counts, own)
    }
}

#[derive(Default)]
pub(super) struct Disk {
    pub(super) durable: Content,
    pending: Vec<Write>,
}

impl Disk {
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert_eq!((offset % SECTOR, bytes.len() as u64 % SECTOR), (0, 0));
        let sectors = bytes.chunks(SECTOR as usize).zip(offset / SECTOR..);
        self.pending.extend(sectors.map(|(bytes, at)| Write::Sector(at, bytes.to_vec())));
    }

    pub(super) fn push(&mut self, write: Write) {
        self.pending.push(write);
    }

    pub(super) fn flush(&mut self) {
        self.pending.drain(..).for_each(|write| self.durable.write(write));
    }

    /// A flush that fails: of what was pending each part is on file, or is not.
    pub(super) fn fail_flush(&mut self, random: &mut Rng) {
        self.pending.retain(|_| random.bool());
        self.flush();
    }

    /// As reads see it.
    pub(super) fn view(&self) -> Content {
        let mut content = self.durable.clone();
        self.pending.iter().cloned().for_each(|write| content.write(write));
        content
    }

    /// As it is after a crash.
    pub(super) fn crash(&self, random: &mut Rng) -> Content {
        let mut content = self.durable.clone();
        let keep = random.u32(..=4);
        let kept = self.pending.iter().filter(|_| random.u32(..4) < keep);
        kept.cloned().for_each(|write| content.write(write));
        content
    }
}
