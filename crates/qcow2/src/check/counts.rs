//! [`Counts`]: how often each cluster is referred to.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

/// Clusters of a piece.
const PIECE: u64 = 4096;
/// Most pieces: 1 GiB of memory.
const MAX_PIECES: usize = (1 << 30) / (PIECE as usize * 4);

/// The references to the clusters of a file, in pieces that are there only where there are any. A count
/// stays at its largest value.
#[derive(Default)]
pub(super) struct Counts {
    pieces: BTreeMap<u64, Box<[u32]>>,
    /// The clusters that have a count end before this one.
    end: u64,
}

impl Counts {
    /// Counts a cluster.
    ///
    /// # Errors
    /// ENOMEM if clusters in use are too many, or too far apart.
    pub(super) fn add(&mut self, cluster: u64, times: u64) -> io::Result<()> {
        let number = cluster / PIECE;
        if self.pieces.len() >= MAX_PIECES && !self.pieces.contains_key(&number) {
            let why = "the check of an image as large as this needs too much memory";
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, why));
        }
        let new = || vec![0; PIECE as usize].into_boxed_slice();
        let piece = self.pieces.entry(number).or_insert_with(new);
        let count = &mut piece[(cluster % PIECE) as usize];
        *count = count.saturating_add(u32::try_from(times).unwrap_or(u32::MAX));
        self.end = self.end.max(cluster + 1);
        Ok(())
    }

    pub(super) fn get(&self, cluster: u64) -> u64 {
        let piece = self.pieces.get(&(cluster / PIECE));
        piece.map_or(0, |piece| piece[(cluster % PIECE) as usize].into())
    }

    /// Whether no cluster of a range has a count. It may say no where that is so all the same.
    pub(super) fn is_empty(&self, clusters: &Range<u64>) -> bool {
        let pieces = clusters.start / PIECE..=clusters.end / PIECE;
        self.pieces.range(pieces).next().is_none()
    }

    /// Where the clusters that have a count end.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// All clusters that have a count, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.pieces.iter().flat_map(|(number, piece)| {
            let used = piece.iter().zip(number * PIECE..).filter(|(count, _)| **count > 0);
            used.map(|(_, cluster)| cluster)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_where_there_are_any() {
        let mut counts = Counts::default();
        for cluster in [5, 5, 4096, 1 << 50] {
            counts.add(cluster, 1).unwrap();
        }
        counts.add(5, u64::MAX).unwrap();
        assert_eq!([counts.get(5), counts.get(4096), counts.get(6)], [u32::MAX.into(), 1, 0]);
        assert_eq!(counts.iter().collect::<Vec<_>>(), [5, 4096, 1 << 50]);
        assert!(counts.is_empty(&(8192..9000)) && !counts.is_empty(&(0..6)));
        assert_eq!((counts.end(), counts.pieces.len()), ((1 << 50) + 1, 3));
    }

    #[test]
    fn q143_the_memory_of_counts_is_bounded() {
        let mut counts = Counts::default();
        // As if all pieces but one were there.
        let empty = || (0..MAX_PIECES as u64 - 1).map(|number| (number, Box::default()));
        counts.pieces = empty().collect();
        counts.add(PIECE << 40, 1).unwrap();
        let error = counts.add(PIECE << 41, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        counts.add((PIECE << 40) + 1, 1).unwrap();
    }
}
