//! Random allocations, links and commits that fail or end in a crash, against a model.
//!
//! Links are slots that refer to a cluster, as entries of tables do. A commit writes them in its second stage.
//! At every step of a commit the file is looked at as a crash would leave it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use fastrand::Rng;

use super::disk::{Disk, Write};
use super::*;

const SLOTS: usize = 400;

/// A commit that is under way.
struct Commit {
    plan: RefcountPlan,
    links: Vec<(usize, Option<u64>)>,
    step: u32,
}

pub(super) struct Model {
    pub(super) random: Rng,
    pub(super) refcounts: Refcounts,
    pub(super) disk: Disk,
    cluster: u64,
    links: Vec<Option<u64>>,
    dirty: BTreeSet<usize>,
    /// Allocated, and not linked.
    flying: Vec<Range<u64>>,
    /// Clusters that were ever written to.
    written: BTreeSet<u64>,
    /// Clusters that requests found, and the epoch of each.
    readers: Vec<(u64, u64)>,
    epoch: u64,
    commit: Option<Commit>,
    pub(super) failures: u32,
}

impl Model {
    /// An image with nothing but a header, a table and a block, in a file of some length.
    pub(super) fn new(seed: u64, order: u32, end_clusters: u64, limit: Option<u64>) -> Model {
        let geometry = Geometry::new(9, false).unwrap();
        let (width, cluster) = (RefcountWidth::new(order).unwrap(), geometry.cluster_bytes());
        let mut disk = Disk::default();
        let mut table = vec![0; cluster as usize];
        table[..8].copy_from_slice(&(2 * cluster).to_be_bytes());
        let mut block = vec![0; cluster as usize];
        (0..3).for_each(|index| width.set(&mut block, index, 1).unwrap());
        disk.write(cluster, &table);
        disk.write(2 * cluster, &block);
        disk.push(Write::Header(cluster, 1));
        disk.flush();
        let metadata = Arc::new(MetadataSet::new(9));
        metadata.insert(0..cluster, Metadata::MAIN_HEADER);
        let words = table.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
        let mut random = Rng::with_seed(seed);
        let parts = RefcountParts {
            geometry,
            width,
            unit: [512, 4096][random.usize(..2)],
            table_offset: cluster,
            table_clusters: 1,
            table: words.collect(),
            file_end: end_clusters * cluster,
            limit: limit.map(|clusters| clusters * cluster),
            cache_bytes: random.u64(1..10) * cluster,
            metadata,
        };
        Model {
            random,
            refcounts: Refcounts::new(parts),
            disk,
            cluster,
            links: vec![None; SLOTS],
            dirty: BTreeSet::new(),
            flying: Vec::new(),
            written: (0..end_clusters).collect(),
            readers: Vec::new(),
            epoch: 0,
            commit: None,
            failures: 0,
        }
    }

    /// Does what a call needs, until it succeeds; `None` if there is no space.
    pub(super) fn until<T>(
        &mut self,
        mut call: impl FnMut(&mut Refcounts) -> Result<T, Need>,
    ) -> Option<T> {
        for _ in 0..1000 {
            match call(&mut self.refcounts) {
                Ok(result) => return Some(result),
                Err(Need::Block { index, offset }) => self.load(index, offset),
                Err(Need::HostSpace { index, offset }) => self.have_space(index, offset),
                Err(Need::Commit | Need::Memory) => {
                    self.readers.clear();
                    self.commit_whole();
                    self.grace();
                    self.grace();
                }
                Err(Need::Space | Need::Overflow) => return None,
                Err(need) => panic!("{need:?}"),
            }
        }
        panic!("a call needs something again and again");
    }

    fn load(&mut self, index: u64, offset: u64) {
        let bytes = self.disk.view().read(offset, self.cluster);
        self.refcounts.loaded(index, &bytes).unwrap();
    }

    /// The host has none, now and then; then the file counts as one that cannot grow.
    fn have_space(&mut self, index: u64, offset: u64) {
        if self.random.u32(..8) == 0 {
            return self.refcounts.limit_to(offset);
        }
        self.disk.write(offset, &vec![0; self.cluster as usize]);
        self.refcounts.has_host_space(index);
    }

    fn numbers(&self, host: Range<u64>) -> Range<u64> {
        host.start / self.cluster..host.end / self.cluster
    }

    /// Space that was just handed out belongs to no link, reader or other request.
    fn check_new(&mut self, clusters: &Range<u64>) {
        for cluster in clusters.clone() {
            let on_file = self.disk.durable.links.values();
            assert!(
                on_file.chain(self.links.iter().flatten()).all(|it| *it != cluster),
                "{cluster}"
            );
            assert!(self.readers.iter().all(|(it, _)| *it != cluster), "{cluster} is being read");
            assert!(self.flying.iter().all(|it| !it.contains(&cluster)), "{cluster} is in flight");
            let is_virgin = self.refcounts.is_virgin(cluster * self.cluster);
            assert!(!is_virgin || !self.written.contains(&cluster), "{cluster} was written");
            self.written.insert(cluster);
        }
    }

    fn allocate(&mut self) {
        let clusters = [1, 1, 3, 16, 100][self.random.usize(..5)];
        let goal = self.random.bool().then(|| self.random.u64(..5000) * self.cluster);
        let host = match self.random.u32(..4) {
            0 => self
                .until(|it| it.allocate_exact(clusters, Metadata::ACTIVE_L2))
                .map(|start| start..start + clusters * self.cluster),
            _ => self.until(|it| it.allocate(clusters, goal)),
        };
        let Some(host) = host else { return };
        let host = self.numbers(host);
        assert!(!host.is_empty() && host.end - host.start <= clusters);
        self.check_new(&host);
        self.flying.push(host);
    }

    fn set(&mut self, slot: usize, cluster: Option<u64>) {
        let old = std::mem::replace(&mut self.links[slot], cluster);
        self.dirty.insert(slot);
        if let Some(old) = old {
            let how = if self.random.bool() { Discard::Keep } else { Discard::Punch };
            self.refcounts.give_up(old * self.cluster..(old + 1) * self.cluster, how);
        }
    }

    fn land(&mut self) {
        if self.flying.is_empty() {
            return;
        }
        let clusters = self.flying.swap_remove(self.random.usize(..self.flying.len()));
        if self.random.u32(..4) == 0 {
            let host = clusters.start * self.cluster..clusters.end * self.cluster;
            return self.refcounts.give_back(host);
        }
        for cluster in clusters {
            let slot = self.random.usize(..SLOTS);
            self.set(slot, Some(cluster));
        }
    }

    fn share(&mut self) {
        let (from, to) = (self.random.usize(..SLOTS), self.random.usize(..SLOTS));
        let Some(cluster) = self.links[from].filter(|_| from != to) else { return };
        let host = cluster * self.cluster..(cluster + 1) * self.cluster;
        if self.until(|it| it.add_reference(host.clone())).is_none() {
            return;
        }
        // The commit that gave room may not have changed the links.
        assert_eq!(self.links[from], Some(cluster));
        self.set(to, Some(cluster));
    }

    fn read(&mut self) {
        let slot = self.random.usize(..SLOTS);
        if let Some(cluster) = self.links[slot].filter(|_| self.readers.len() < 20) {
            self.readers.push((cluster, self.epoch));
        } else if !self.readers.is_empty() {
            self.readers.swap_remove(self.random.usize(..self.readers.len()));
        }
    }

    pub(super) fn grace(&mut self) {
        if self.readers.iter().any(|(_, epoch)| *epoch < self.epoch) {
            return;
        }
        self.epoch += 1;
        for host in self.refcounts.pass_grace(|_| ()) {
            for cluster in self.numbers(host.clone()) {
                let is_read = self.readers.iter().any(|(it, _)| *it == cluster);
                assert!(!is_read, "{cluster} is punched while it is read");
                assert!(!self.disk.durable.links.values().any(|it| *it == cluster));
            }
            self.refcounts.freed(host);
        }
    }

    /// Begins a commit, or does its next step. `true` if it has ended.
    fn commit_step(&mut self) -> bool {
        let Some(mut commit) = self.commit.take() else {
            while let Some(Need::Block { index, offset }) = self.refcounts.next_owed() {
                self.load(index, offset);
            }
            let plan = self.refcounts.begin_commit();
            let dirty = std::mem::take(&mut self.dirty);
            let links = dirty.into_iter().map(|slot| (slot, self.links[slot])).collect();
            self.commit = Some(Commit { plan, links, step: 0 });
            return false;
        };
        let (plan, disk) = (&mut commit.plan, &mut self.disk);
        let needed = plan.entries_are_needed;
        match commit.step {
            0 => plan.stage1.iter().for_each(|(at, bytes)| disk.write(*at, bytes)),
            2 if needed => {
                plan.entries.iter().for_each(|(at, bytes)| disk.write(*at, bytes));
                plan.table
                    .iter()
                    .for_each(|(at, clusters)| disk.push(Write::Header(*at, *clusters)));
            }
            4 => {
                if !needed {
                    assert_eq!(plan.table, None);
                    plan.entries.iter().for_each(|(at, bytes)| disk.write(*at, bytes));
                }
                commit.links.iter().for_each(|(slot, link)| disk.push(Write::Link(*slot, *link)));
            }
            _ => {}
        }
        self.check_crash();
        if self.failures > 0 && self.random.u32(..8) == 0 {
            self.failures -= 1;
            self.disk.fail_flush(&mut self.random);
            self.dirty.extend(commit.links.iter().map(|(slot, _)| *slot));
            self.refcounts.end_commit(commit.plan, false);
            return true;
        }
        if commit.step % 2 == 1 {
            self.disk.flush();
        }
        commit.plan.stage1_is_durable |= commit.step == 1;
        commit.step += 1;
        if commit.step < 6 {
            self.commit = Some(commit);
            return false;
        }
        self.refcounts.end_commit(commit.plan, true);
        true
    }

    pub(super) fn commit_whole(&mut self) {
        while !self.commit_step() {}
    }

    /// References on file, and to the tables themselves, are counted, whatever is left of the file.
    fn check_crash(&mut self) {
        for _ in 0..3 {
            let content = self.disk.crash(&mut self.random);
            let (counts, own) = content.counts(self.refcounts.width, self.cluster);
            let mut references = own.clone();
            for (slot, cluster) in &content.links {
                assert!(
                    !own.contains_key(cluster),
                    "slot {slot} and tables have cluster {cluster}"
                );
                *references.entry(*cluster).or_insert(0) += 1;
            }
            for (cluster, references) in references {
                let count = counts.get(&cluster).copied().unwrap_or(0);
                assert!(references <= count, "cluster {cluster}: {references} references, {count}");
            }
        }
    }

    pub(super) fn check(&self) {
        self.refcounts.check_invariants();
        let view = self.disk.view();
        for (index, block) in &self.refcounts.blocks {
            let Some(offset) = block_offset(self.refcounts.table[*index as usize]) else {
                panic!("block {index} has no place");
            };
            let on_file = view.read(offset, self.cluster);
            let units = on_file.chunks(block.unit()).zip(block.bytes().chunks(block.unit()));
            for ((on_file, memory), unit) in units.zip(0..) {
                let differs = block.dirty.get(unit) || block.committing.get(unit);
                assert!(differs || on_file == memory, "block {index}, unit {unit}");
            }
        }
    }

    /// As [`step`](Self::step), with nothing that allocates.
    pub(super) fn step(&mut self) {
        match self.random.u32(..14) {
            0..4 => self.allocate(),
            4..7 => self.land(),
            7 => self.share(),
            8 => {
                // Often what is being read.
                let read = self.readers.first().map(|(cluster, _)| *cluster);
                let slot = self.links.iter().position(|it| it.is_some() && *it == read);
                let slot = slot.unwrap_or(self.random.usize(..SLOTS));
                self.set(slot, None);
            }
            9 => self.read(),
            10 => self.grace(),
            11 => drop(self.until(Refcounts::drop_empty_blocks)),
            12 if self.random.u32(..4) == 0 => match self.random.u32(..3) {
                0 => self.refcounts.end_run(),
                1 => drop(self.refcounts.lift_limit()),
                _ => self.survey(),
            },
            _ => drop(self.commit_step()),
        }
        self.check();
    }

    /// Reads blocks as a coroutine in the background does.
    fn survey(&mut self) {
        while let Some(Need::Block { index, offset }) = self.refcounts.next_unread() {
            let bytes = self.disk.view().read(offset, self.cluster);
            let free = self.refcounts.width.count_free(&bytes);
            self.refcounts.surveyed(index, Some(free));
        }
    }

    /// Closes the image: nothing leaks, and every count is that of the links.
    pub(super) fn close(&mut self) {
        self.failures = 0;
        for host in std::mem::take(&mut self.flying) {
            self.refcounts.give_back(host.start * self.cluster..host.end * self.cluster);
        }
        self.refcounts.end_run();
        while let Some(Need::HostSpace { index, offset }) = self.refcounts.block_without_space() {
            self.have_space(index, offset);
        }
        for _ in 0..100 {
            if self.commit.is_none() && self.refcounts.is_clean() && self.dirty.is_empty() {
                break;
            }
            self.commit_whole();
            self.check();
        }
        assert!(self.refcounts.is_clean());
        self.readers.clear();
        (0..2).for_each(|_| self.grace());
        assert!(!self.refcounts.has_quarantine());
        let (counts, mut references) = self.disk.durable.counts(self.refcounts.width, self.cluster);
        let links: BTreeMap<usize, u64> = self
            .links
            .iter()
            .enumerate()
            .filter_map(|(slot, it)| it.map(|it| (slot, it)))
            .collect();
        assert_eq!(self.disk.durable.links, links);
        for cluster in links.values() {
            *references.entry(*cluster).or_insert(0) += 1;
        }
        assert_eq!(counts, references);
        let end = self.until(Refcounts::last_used).unwrap();
        assert_eq!(end / self.cluster - 1, *references.keys().next_back().unwrap());
    }
}
