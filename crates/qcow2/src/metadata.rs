//! [`MetadataSet`]: the clusters of the image file that have metadata.
//!
//! Writes of data look here whether they would meet one, and the allocator hands none of them out, whatever
//! its refcount is. A look takes no lock: the set is a row of hash tables of atomic words, a word a cluster.
//! One that is full gets a smaller neighbour instead of being copied, so a table never moves, and a word that
//! was found stays where it is until its cluster is freed.
//!
//! Which clusters have metadata is up to the author of an image, so their places in the tables follow from keys
//! that each set draws: no image can be made whose clusters all meet.
//!
//! Memory: 16 bytes a cluster at most, besides the first table.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use bitflags::bitflags;

bitflags! {
    /// Kinds of metadata, as option `overlap-check` has them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Metadata: u64 {
        const MAIN_HEADER = 1;
        const ACTIVE_L1 = 1 << 1;
        const ACTIVE_L2 = 1 << 2;
        const REFCOUNT_TABLE = 1 << 3;
        const REFCOUNT_BLOCK = 1 << 4;
        const SNAPSHOT_TABLE = 1 << 5;
        const INACTIVE_L1 = 1 << 6;
        const INACTIVE_L2 = 1 << 7;
        const BITMAP_DIRECTORY = 1 << 8;
    }
}

impl Metadata {
    /// The name of one of the kinds.
    pub(crate) fn describe(self) -> &'static str {
        const NAMES: [&str; 9] = [
            "the image header",
            "the active L1 table",
            "an active L2 table",
            "the refcount table",
            "a refcount block",
            "the snapshot table",
            "an L1 table of a snapshot",
            "an L2 table of a snapshot",
            "the bitmap directory",
        ];
        NAMES.get(self.bits().trailing_zeros() as usize).copied().unwrap_or("no metadata")
    }
}

/// Words of the first table.
const FIRST_WORDS: usize = 256;
/// Tables of a set: far more clusters than a header allows.
const MAX_TABLES: usize = 64;
/// Bits of a word that say the kinds; the others are the number of the cluster.
const KIND_BITS: u32 = 9;
/// A word that was never used, which ends a search, and one that is not used any more.
const EMPTY: u64 = 0;
const REMOVED: u64 = u64::MAX << KIND_BITS;

/// Clusters that have metadata. Any thread.
pub(crate) struct MetadataSet {
    cluster_bits: u32,
    /// What places follow from, beside the number of a cluster. Drawn for this set.
    keys: [u64; 2],
    tables: [OnceLock<Table>; MAX_TABLES],
    /// How many tables there are.
    count: AtomicUsize,
    /// Held by threads that change the set.
    changing: Mutex<()>,
}

struct Table {
    words: Box<[AtomicU64]>,
    /// Words that are not `EMPTY`. Changed under the lock.
    used: AtomicUsize,
}

impl Table {
    fn new(words: usize) -> Table {
        let words = (0..words).map(|_| AtomicU64::new(EMPTY)).collect();
        Table { words, used: AtomicUsize::new(0) }
    }

    /// The words that a cluster of this hash may be in, in the order of a search.
    fn places(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        // The high bits, scaled to the length.
        let first = ((u128::from(hash) * self.words.len() as u128) >> 64) as usize;
        let (before, from) = self.words.split_at(first);
        from.iter().chain(before)
    }

    #[inline]
    fn find(&self, cluster: u64, hash: u64) -> Option<&AtomicU64> {
        for place in self.places(hash) {
            match place.load(Ordering::Relaxed) {
                EMPTY => return None,
                word if word >> KIND_BITS == cluster => return Some(place),
                _ => {}
            }
        }
        None
    }

    /// A word that was removed, and that a search for the cluster comes to.
    fn removed_place(&self, hash: u64) -> Option<&AtomicU64> {
        for place in self.places(hash) {
            match place.load(Ordering::Relaxed) {
                EMPTY => return None,
                REMOVED => return Some(place),
                _ => {}
            }
        }
        None
    }

    fn is_full(&self) -> bool {
        // Three quarters: searches stay short.
        self.used.load(Ordering::Relaxed) >= self.words.len() / 4 * 3
    }
}

impl MetadataSet {
    /// An empty set for an image with clusters of `2^cluster_bits` bytes.
    pub(crate) fn new(cluster_bits: u32) -> MetadataSet {
        let drawn = RandomState::new();
        MetadataSet {
            cluster_bits,
            keys: [drawn.hash_one(0), drawn.hash_one(1) | 1],
            tables: [const { OnceLock::new() }; MAX_TABLES],
            count: AtomicUsize::new(0),
            changing: Mutex::default(),
        }
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        let count = self.count.load(Ordering::Acquire);
        self.tables[..count].iter().filter_map(OnceLock::get)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clusters(&self, host: &Range<u64>) -> Range<u64> {
        let last = host.end.saturating_sub(1) >> self.cluster_bits;
        let first = host.start >> self.cluster_bits;
        if host.is_empty() { first..first } else { first..last + 1 }
    }

    /// Where a search for a cluster begins, as a part of 2^64.
    #[inline]
    fn hash(&self, cluster: u64) -> u64 {
        let [key, factor] = self.keys;
        let product = u128::from(cluster ^ key) * u128::from(factor);
        (product >> 64) as u64 ^ product as u64
    }

    #[inline]
    fn find(&self, cluster: u64) -> Option<&AtomicU64> {
        let hash = self.hash(cluster);
        self.tables().find_map(|table| table.find(cluster, hash))
    }

    /// Adds the clusters of a range of host bytes. Returns the kinds that one of them had before.
    pub(crate) fn insert(&self, host: Range<u64>, kind: Metadata) -> Metadata {
        let _one = self.lock();
        let mut before = Metadata::empty();
        for cluster in self.clusters(&host) {
            match self.find(cluster) {
                Some(place) => {
                    let kinds = place.fetch_or(kind.bits(), Ordering::Relaxed);
                    before |= Metadata::from_bits_truncate(kinds);
                }
                None => self.add(cluster << KIND_BITS | kind.bits()),
            }
        }
        before
    }

    /// Adds a word. Called under the lock.
    fn add(&self, word: u64) {
        let hash = self.hash(word >> KIND_BITS);
        if let Some(place) = self.tables().find_map(|table| table.removed_place(hash)) {
            place.store(word, Ordering::Relaxed);
            return;
        }
        let has_room = |table: &&Table| !table.is_full();
        let table = self.tables().find(has_room).unwrap_or_else(|| self.add_table());
        let mut places = table.places(hash);
        if let Some(place) = places.find(|place| place.load(Ordering::Relaxed) == EMPTY) {
            place.store(word, Ordering::Relaxed);
            table.used.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn add_table(&self) -> &Table {
        let all = self.tables().map(|table| table.words.len()).sum::<usize>();
        let count = self.count.load(Ordering::Relaxed);
        // Half of what there is: a table that is new and empty wastes little.
        let table = self.tables[count].get_or_init(|| Table::new((all / 2).max(FIRST_WORDS)));
        self.count.store(count + 1, Ordering::Release);
        table
    }

    /// Removes the clusters of a range of host bytes.
    pub(crate) fn remove(&self, host: Range<u64>) {
        let _one = self.lock();
        for cluster in self.clusters(&host) {
            if let Some(place) = self.find(cluster) {
                place.store(REMOVED, Ordering::Relaxed);
            }
        }
    }

    /// Removes all clusters. No look is in flight that has to find one.
    pub(crate) fn clear(&self) {
        let _one = self.lock();
        for table in self.tables() {
            table.words.iter().for_each(|word| word.store(EMPTY, Ordering::Relaxed));
            table.used.store(0, Ordering::Relaxed);
        }
    }

    /// Kinds in `of` that a cluster of a range of host bytes has; empty if a write there meets none. Takes no
    /// lock.
    #[inline]
    pub(crate) fn overlap(&self, host: Range<u64>, of: Metadata) -> Metadata {
        let mut found = Metadata::empty();
        for cluster in self.clusters(&host) {
            if let Some(place) = self.find(cluster) {
                let word = place.load(Ordering::Relaxed);
                if word >> KIND_BITS == cluster {
                    found |= Metadata::from_bits_truncate(word & ((1 << KIND_BITS) - 1));
                }
            }
        }
        found & of
    }

    /// Memory of the tables, in bytes.
    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> usize {
        self.tables().map(|table| table.words.len() * 8).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    #[test]
    fn q134_a_set_has_what_was_added_and_not_removed() {
        let mut random = fastrand::Rng::with_seed(134);
        let set = MetadataSet::new(16);
        let mut model = BTreeMap::new();
        for _ in 0..50_000 {
            let (cluster, kind) =
                (random.u64(..20_000), Metadata::from_bits_retain(1 << random.u32(..9)));
            let host = cluster << 16..(cluster << 16) + random.u64(1..=1 << 16);
            let kinds = model.entry(cluster).or_insert(Metadata::empty());
            match random.u32(..3) {
                0 => {
                    set.remove(host);
                    *kinds = Metadata::empty();
                }
                _ => {
                    assert_eq!(set.insert(host, kind), *kinds);
                    *kinds |= kind;
                }
            }
        }
        for cluster in 0..20_000 {
            let kinds = model.get(&cluster).copied().unwrap_or(Metadata::empty());
            let host = cluster << 16..(cluster + 1) << 16;
            assert_eq!(set.overlap(host.clone(), Metadata::all()), kinds, "{cluster}");
            assert_eq!(
                set.overlap(host.start + 5..host.start + 5, Metadata::all()),
                Metadata::empty()
            );
            let of = Metadata::ACTIVE_L2;
            assert_eq!(set.overlap(host, of), kinds & of);
        }
    }

    /// Clusters whose numbers a multiplication with the golden ratio brings close together.
    fn close_together(count: usize) -> Vec<u64> {
        let mut random = fastrand::Rng::with_seed(134);
        let is_close = |it: &u64| it.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52 == 0;
        let all = std::iter::repeat_with(|| random.u64(..1 << 40));
        all.filter(is_close).take(count).collect()
    }

    #[test]
    fn q134_q204_no_choice_of_clusters_makes_a_look_slow() {
        let clusters = close_together(1500);
        let mut keys = Vec::new();
        for _ in 0..4 {
            let set = MetadataSet::new(16);
            for cluster in &clusters {
                set.insert(cluster << 16..(cluster << 16) + 1, Metadata::ACTIVE_L2);
            }
            // A look goes on to the first word that was never used.
            let is_used = |word: &&AtomicU64| word.load(Ordering::Relaxed) != EMPTY;
            let steps = |hash: u64| {
                set.tables().map(|it| it.places(hash).take_while(is_used).count()).sum::<usize>()
            };
            let all: usize = clusters.iter().map(|it| steps(set.hash(*it))).sum();
            let (mean, tables) = (all / clusters.len(), set.tables().count());
            assert!(mean <= 32 * tables, "{mean} words in {tables} tables");
            keys.push(set.keys);
        }
        assert!(keys.windows(2).all(|two| two[0] != two[1]));
    }

    #[test]
    fn q134_memory_is_16_bytes_a_cluster() {
        let set = MetadataSet::new(9);
        for cluster in 0..300_000_u64 {
            set.insert(cluster << 20..(cluster << 20) + 1, Metadata::ACTIVE_L2);
            let bytes = set.memory_bytes();
            assert!(
                bytes <= 8 * FIRST_WORDS + 16 * (cluster as usize + 1),
                "{bytes} for {cluster}"
            );
        }
        // The last cluster that an offset reaches.
        let last = (1 << 56) - 512..1 << 56;
        assert!(set.overlap(last.clone(), Metadata::all()).is_empty());
        set.insert(last.clone(), Metadata::REFCOUNT_BLOCK);
        assert_eq!(set.overlap(last, Metadata::all()).describe(), "a refcount block");
    }

    #[test]
    fn q199_clusters_that_come_and_go_take_no_more_memory() {
        let set = MetadataSet::new(16);
        for cluster in 0..200_000_u64 {
            set.insert(cluster << 16..(cluster + 1) << 16, Metadata::ACTIVE_L2);
            if let Some(old) = cluster.checked_sub(1000) {
                set.remove(old << 16..(old + 1) << 16);
            }
        }
        assert!(set.memory_bytes() <= 32 * 1000, "{}", set.memory_bytes());
    }

    #[test]
    fn q134_a_look_beside_changes_finds_what_stays() {
        let (set, is_over) = (MetadataSet::new(16), AtomicBool::new(false));
        let host = |cluster: u64| cluster << 16..(cluster + 1) << 16;
        for cluster in 0..100 {
            set.insert(host(cluster * 7), Metadata::ACTIVE_L2);
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for cluster in 0..100 {
                        let found = set.overlap(host(cluster * 7), Metadata::all());
                        assert_eq!(found, Metadata::ACTIVE_L2);
                        assert!(set.overlap(host(cluster * 7 + 1), Metadata::all()).is_empty());
                    }
                }
            });
            for round in 0..50_u64 {
                for cluster in 1000 + round * 1000..1500 + round * 1000 {
                    set.insert(host(cluster * 7 + 3), Metadata::REFCOUNT_BLOCK);
                    set.remove(host((cluster - 900) * 7 + 3));
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_set_that_is_cleared_takes_others_in_the_same_memory() {
        let set = MetadataSet::new(16);
        for round in 0..10_u64 {
            let clusters = round * 1000..round * 1000 + 500;
            for cluster in clusters.clone() {
                set.insert(cluster << 16..(cluster + 1) << 16, Metadata::ACTIVE_L2);
            }
            let tables = set.tables().count();
            set.clear();
            let all = 0..((round + 1) * 1000) << 16;
            assert!(set.overlap(all, Metadata::all()).is_empty());
            assert!(tables <= 4, "{tables}");
        }
    }
}
