//! [`Facts`]: what must not become worse in an image.

use std::collections::{BTreeMap, BTreeSet};

use coblk_aio::Co;

use super::disk::Disk;
use crate::check::Checker;
use crate::check::options::Progress;
use crate::layout::{
    COPIED, CompressedCluster, EntryRules, Header, Incompatible, L2Entry, OFFSET_MASK, Purpose,
    SubclusterKind, l1_offset,
};
use crate::tables;

/// What a cluster of the disk has, in a table of tables: the kind of each subcluster, and its bytes in the
/// file; `None` if it cannot be read.
type Content = Option<(Vec<SubclusterKind>, Vec<u8>)>;

/// What an image says.
pub struct Facts {
    pub header: Header,
    /// How many references each cluster has that its refcount lacks.
    lacking: BTreeMap<u64, u64>,
    /// Where entries with COPIED are that lead to clusters with more references, or with another refcount
    /// than 1.
    copied: BTreeSet<u64>,
    /// The disk, and the disk of each snapshot.
    disks: BTreeMap<u64, BTreeMap<u64, Content>>,
}

impl Facts {
    pub fn co_of(co: &Co<'_>, bytes: &[u8]) -> Facts {
        let disk = Disk::new(bytes.to_vec());
        let (header, _) = tables::co_header(co, &disk).expect("a header");
        header.check(Purpose::Check).expect("a header that is checked");
        let header = *header;
        let progress = Progress::whole(&|_, _| ());
        let mut checker = Checker::new(co, &disk, header.clone().into(), progress).unwrap();
        checker.count_all().unwrap();
        let clusters: Vec<u64> = checker.counts.iter().collect();
        let mut lacking = BTreeMap::new();
        for cluster in clusters {
            let refcount = checker.refcounts.co_get(co, &disk, cluster).unwrap_or(0);
            let count = checker.counts.get(cluster);
            if count > refcount {
                lacking.insert(cluster, count - refcount);
            }
        }
        let mut facts = Facts { header, lacking, copied: BTreeSet::new(), disks: BTreeMap::new() };
        let l1 = (facts.header.l1_offset, facts.header.l1_entries);
        let mut is_wrong = |word: u64| {
            let cluster = (word & OFFSET_MASK) >> checker.geometry.cluster_bits();
            let refcount = checker.refcounts.co_get(co, &disk, cluster);
            word & COPIED != 0 && (refcount != Some(1) || checker.counts.get(cluster) > 1)
        };
        facts.add_disk(bytes, l1, Some(&mut is_wrong));
        let snapshots = tables::co_snapshots(co, &disk, &facts.header, true).unwrap().0;
        for snapshot in snapshots {
            facts.add_disk(bytes, (snapshot.l1_offset, snapshot.l1_entries), None);
        }
        facts
    }

    fn add_disk(
        &mut self,
        bytes: &[u8],
        (l1, entries): (u64, u32),
        mut is_wrong: Option<&mut dyn FnMut(u64) -> bool>,
    ) {
        let geometry = self.header.geometry().unwrap();
        let has_data_file = self.header.incompatible.contains(Incompatible::DATA_FILE);
        let rules = EntryRules { geometry, is_v2: self.header.version == 2, has_data_file };
        let mut disk = BTreeMap::new();
        let mut is_wrong = |word: u64| is_wrong.as_mut().is_some_and(|it| it(word));
        for index in 0..u64::from(entries) {
            let entry = word(bytes, l1 + index * 8);
            let Ok(Some(table)) = l1_offset(entry, geometry) else { continue };
            if is_wrong(entry) {
                self.copied.insert(l1 + index * 8);
            }
            for number in 0..geometry.l2_entries() {
                let at = table + number * geometry.l2_entry_bytes();
                let second = if geometry.is_extended() { word(bytes, at + 8) } else { 0 };
                let entry = L2Entry { word: word(bytes, at), bitmap: second };
                if entry == L2Entry::default() {
                    continue;
                }
                if is_wrong(entry.word) && !entry.is_compressed() {
                    self.copied.insert(at);
                }
                let content = content(bytes, &rules, entry);
                disk.insert(index * geometry.l2_entries() + number, content);
            }
        }
        self.disks.insert(l1, disk);
    }

    /// Panics if the image of these facts is worse than the one of `before`.
    #[track_caller]
    pub fn assert_not_worse(&self, before: &Facts, what: &str) {
        for (cluster, lacking) in &self.lacking {
            let before = before.lacking.get(cluster).copied().unwrap_or(0);
            assert!(*lacking <= before, "{what}: cluster {cluster} lacks {lacking}, not {before}");
        }
        let more: Vec<_> = self.copied.difference(&before.copied).collect();
        assert!(more.is_empty(), "{what}: wrong COPIED, at {more:?}");
        for (l1, disk) in &before.disks {
            let after = self.disks.get(l1).unwrap_or_else(|| panic!("{what}: a disk is lost"));
            for (cluster, content) in disk.iter().filter(|it| it.1.is_some()) {
                let after = after.get(cluster);
                assert!(after == Some(content), "{what}: cluster {cluster} of the disk changed");
            }
        }
    }
}

fn content(bytes: &[u8], rules: &EntryRules, entry: L2Entry) -> Content {
    let geometry = rules.geometry;
    rules.check(entry, 0).ok()?;
    if entry.is_compressed() {
        let place = CompressedCluster::parse(entry.word, geometry);
        return Some((Vec::new(), part(bytes, place.offset, place.bytes)));
    }
    let kinds = (0..geometry.subclusters()).map(|it| rules.kind(entry, it));
    let kinds: Vec<_> = kinds.collect::<Result<_, _>>().ok()?;
    let has_data = kinds.contains(&SubclusterKind::Data);
    let data = has_data.then(|| part(bytes, entry.offset(), geometry.cluster_bytes()));
    Some((kinds, data.unwrap_or_default()))
}

/// Behind the end there are zeroes.
fn part(bytes: &[u8], offset: u64, len: u64) -> Vec<u8> {
    let end = bytes.len();
    let (start, until) = (offset as usize, offset.saturating_add(len) as usize);
    let mut part = bytes[start.min(end)..until.min(end)].to_vec();
    part.resize(len as usize, 0);
    part
}

fn word(bytes: &[u8], offset: u64) -> u64 {
    u64::from_be_bytes(part(bytes, offset, 8).try_into().unwrap())
}
