//! [`InflatedClusters`]: decompressed clusters in memory.
//!
//! A guest that reads a compressed cluster in small pieces has it decompressed once. A cluster is known by its
//! L2 entry: where in the file it is and how long. Bytes in the file change only after the entry is gone and no
//! request that has seen it is left; then [`forget`](InflatedClusters::forget) drops what was kept of them.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::Co;

use crate::loading::Loading;

/// Decompressed clusters of an image, `max` of them at most. Any thread.
pub(crate) struct InflatedClusters {
    max: usize,
    kept: Mutex<Kept>,
    loading: Loading<()>,
}

#[derive(Default)]
struct Kept {
    places: HashMap<u64, usize>,
    clusters: Vec<Cluster>,
    /// Where the search for the next to be replaced goes on.
    hand: usize,
}

struct Cluster {
    word: u64,
    /// Where it is in the file.
    host: u64,
    bytes: Arc<Vec<u8>>,
    /// It was asked for since the hand passed.
    is_used: bool,
}

impl InflatedClusters {
    /// At most `bytes` bytes of clusters of `cluster_bytes` bytes; one cluster at least.
    pub(crate) fn new(bytes: u64, cluster_bytes: u64) -> InflatedClusters {
        let max = usize::try_from(bytes / cluster_bytes).unwrap_or(usize::MAX).max(1);
        InflatedClusters { max, kept: Mutex::default(), loading: Loading::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster of an L2 entry, if it is there.
    pub(crate) fn get(&self, word: u64) -> Option<Arc<Vec<u8>>> {
        let mut kept = self.kept();
        let place = *kept.places.get(&word)?;
        let cluster = kept.clusters.get_mut(place)?;
        cluster.is_used = true;
        Some(Arc::clone(&cluster.bytes))
    }

    /// The cluster of an L2 entry, which is at `host` bytes in the file. If it is not there, `inflate` makes
    /// it; others that want it wait.
    pub(crate) fn co_get(
        &self,
        co: &Co<'_>,
        word: u64,
        host: u64,
        inflate: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> io::Result<Arc<Vec<u8>>> {
        let load = self.loading.enter(word);
        let _turn = load.co_turn(co);
        if let Some(bytes) = self.get(word) {
            return Ok(bytes);
        }
        let bytes = Arc::new(inflate()?);
        let cluster = Cluster { word, host, bytes: Arc::clone(&bytes), is_used: false };
        self.kept().insert(cluster, self.max);
        Ok(bytes)
    }

    /// Drops what begins at these bytes of the file: they are about to get other content. No request that has
    /// seen their entries is left.
    pub(crate) fn forget(&self, hosts: Range<u64>) {
        let mut kept = self.kept();
        if kept.clusters.iter().any(|cluster| hosts.contains(&cluster.host)) {
            kept.retain(|cluster| !hosts.contains(&cluster.host));
        }
    }

    /// Drops all.
    pub(crate) fn clear(&self) {
        *self.kept() = Kept::default();
    }
}

impl Kept {
    fn insert(&mut self, cluster: Cluster, max: usize) {
        let word = cluster.word;
        let place = if self.clusters.len() < max {
            self.clusters.push(cluster);
            self.clusters.len() - 1
        } else {
            let place = self.pass_hand();
            let old = std::mem::replace(&mut self.clusters[place], cluster);
            self.places.remove(&old.word);
            place
        };
        self.places.insert(word, place);
    }

    /// The first place that was not asked for since the hand passed it; after a round of places that were,
    /// the one that it began at.
    fn pass_hand(&mut self) -> usize {
        loop {
            let place = self.hand % self.clusters.len();
            self.hand = place + 1;
            if !std::mem::take(&mut self.clusters[place].is_used) {
                return place;
            }
        }
    }

    fn retain(&mut self, stays: impl Fn(&Cluster) -> bool) {
        self.clusters.retain(stays);
        let places = self.clusters.iter().enumerate();
        self.places = places.map(|(place, cluster)| (cluster.word, place)).collect();
    }
}

#[cfg(test)]
mod tests {
    use coblk_aio::AioContext;

    use super::*;

    /// Gets each of `words`, and returns which of them had to be made.
    fn get(clusters: &InflatedClusters, words: &[u64]) -> Vec<u64> {
        let context = AioContext::for_test().unwrap();
        context.run(|co| {
            let mut made = Vec::new();
            for word in words {
                let make = || {
                    made.push(*word);
                    Ok(vec![*word as u8; 512])
                };
                let bytes = clusters.co_get(co, *word, word * 1000, make).unwrap();
                assert!(bytes.iter().all(|byte| *byte == *word as u8));
            }
            made
        })
    }

    #[test]
    fn q198_a_cluster_is_made_once_and_at_most_so_many_are_kept() {
        let clusters = InflatedClusters::new(4 * 512, 512);
        assert_eq!(get(&clusters, &[1, 2, 3, 4, 1, 2, 3, 4]), [1, 2, 3, 4]);
        // All were used: the first makes room, and those that are used again stay.
        assert_eq!(get(&clusters, &[5, 2, 6, 2, 7, 2, 5]), [5, 6, 7]);
        assert_eq!(clusters.kept().clusters.len(), 4);
        assert_eq!(get(&InflatedClusters::new(0, 512), &[1, 1, 2, 1]), [1, 2, 1]);
    }

    #[test]
    fn q198_what_cannot_be_made_is_not_kept() {
        let clusters = InflatedClusters::new(4 * 512, 512);
        AioContext::for_test().unwrap().run(|co| {
            let fail = || Err(io::Error::from_raw_os_error(libc::EIO));
            let error = clusters.co_get(co, 1, 0, fail).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        });
        assert_eq!(get(&clusters, &[1, 1]), [1]);
    }

    #[test]
    fn q198_bytes_that_get_other_content_are_forgotten() {
        let clusters = InflatedClusters::new(4 * 512, 512);
        assert_eq!(get(&clusters, &[1, 2, 3]), [1, 2, 3]);
        clusters.forget(1000..2001);
        assert_eq!(get(&clusters, &[1, 2, 3]), [1, 2]);
        clusters.clear();
        assert_eq!(get(&clusters, &[3]), [3]);
    }
}
