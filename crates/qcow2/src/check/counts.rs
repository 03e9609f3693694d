//! [`Counts`]: how often each cluster is referred to, and what as.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

/// Clusters of a piece.
const PIECE: u64 = 4096;
/// Most pieces: 1 GiB of memory.
const MAX_PIECES: usize = (1 << 30) / (PIECE as usize * 4);

/// Where the kind of a cluster is in its word.
const KIND_SHIFT: u32 = 29;
/// The largest count. 65,537 tables of L1 that share all that fits into a cluster stay below it.
pub(super) const MAX_COUNT: u64 = (1 << KIND_SHIFT) - 1;

/// What a cluster is referred to as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Data of the disk: any number of entries may share it.
    Data = 1,
    /// Compressed data: as many entries as have their parts of it.
    Compressed = 2,
    /// An L2 table: L1 tables share it, an entry each.
    Table = 3,
    /// All else. It has one owner.
    Structure = 4,
    /// More than one of these, or a structure with more than one owner.
    Mixed = 7,
}

/// The references to the clusters of a file, in pieces that are there only where there are any. A count
/// stays at its largest value.
#[derive(Default)]
pub(super) struct Counts {
    /// The pieces by their numbers: where their words are.
    pieces: BTreeMap<u64, usize>,
    words: Vec<Box<[u32]>>,
    /// The piece that was found last: a check goes from cluster to cluster.
    last: Cell<Option<(u64, usize)>>,
    /// The clusters that have a count end before this one.
    end: u64,
}

impl Counts {
    /// Counts a cluster.
    ///
    /// # Errors
    /// ENOMEM if clusters in use are too many, or too far apart.
    pub(super) fn add(&mut self, cluster: u64, times: u64, kind: Kind) -> io::Result<()> {
        let number = cluster / PIECE;
        let piece = match self.piece(number) {
            Some(piece) => piece,
            None => self.new_piece(number)?,
        };
        let word = &mut self.words[piece][(cluster % PIECE) as usize];
        *word = added(*word, times, kind);
        self.end = self.end.max(cluster + 1);
        Ok(())
    }

    /// Counts each cluster of a range.
    ///
    /// # Errors
    /// As of [`add`](Self::add).
    pub(super) fn add_run(
        &mut self,
        clusters: Range<u64>,
        times: u64,
        kind: Kind,
    ) -> io::Result<()> {
        let mut from = clusters.start;
        while from < clusters.end {
            // Makes the piece.
            self.add(from, times, kind)?;
            let end = clusters.end.min((from / PIECE + 1) * PIECE);
            if let Some(piece) = self.piece(from / PIECE) {
                let first = (from % PIECE) as usize;
                let words = &mut self.words[piece][first + 1..first + (end - from) as usize];
                words.iter_mut().for_each(|word| *word = added(*word, times, kind));
            }
            self.end = self.end.max(end);
            from = end;
        }
        Ok(())
    }

    #[inline]
    fn piece(&self, number: u64) -> Option<usize> {
        if let Some((last, piece)) = self.last.get()
            && last == number
        {
            return Some(piece);
        }
        let piece = *self.pieces.get(&number)?;
        self.last.set(Some((number, piece)));
        Some(piece)
    }

    fn new_piece(&mut self, number: u64) -> io::Result<usize> {
        if self.pieces.len() >= MAX_PIECES {
            let why = "the check of an image as large as this needs too much memory";
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, why));
        }
        let piece = self.words.len();
        self.words.push(vec![0; PIECE as usize].into_boxed_slice());
        self.pieces.insert(number, piece);
        Ok(piece)
    }

    /// Takes a reference to a cluster back. It keeps its kind, and is not [free](Self::is_free): what it
    /// has is not to be overwritten.
    pub(super) fn forget(&mut self, cluster: u64) {
        if let Some(word) = self.word(cluster)
            && (1..MAX_COUNT).contains(&count(*word))
        {
            *word -= 1;
        }
    }

    /// Says that a cluster has owners that cannot share it, though all are of one kind.
    pub(super) fn set_mixed(&mut self, cluster: u64) {
        if let Some(word) = self.word(cluster) {
            *word |= (Kind::Mixed as u32) << KIND_SHIFT;
        }
    }

    fn word(&mut self, cluster: u64) -> Option<&mut u32> {
        let piece = self.piece(cluster / PIECE)?;
        Some(&mut self.words[piece][(cluster % PIECE) as usize])
    }

    fn at(&self, cluster: u64) -> u32 {
        let piece = self.piece(cluster / PIECE);
        piece.map_or(0, |piece| self.words[piece][(cluster % PIECE) as usize])
    }

    /// The count of a cluster, and whether it [is mixed](Self::is_mixed).
    pub(super) fn look(&self, cluster: u64) -> (u64, bool) {
        let word = self.at(cluster);
        (count(word), word >> KIND_SHIFT == Kind::Mixed as u32)
    }

    pub(super) fn get(&self, cluster: u64) -> u64 {
        count(self.at(cluster))
    }

    /// Whether a cluster has owners that cannot share it.
    pub(super) fn is_mixed(&self, cluster: u64) -> bool {
        self.look(cluster).1
    }

    /// Whether a cluster was never referred to.
    pub(super) fn is_free(&self, cluster: u64) -> bool {
        self.at(cluster) == 0
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

    /// Ranges that all clusters with a count are in, in their order.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.pieces.keys().map(|number| number * PIECE..(number + 1) * PIECE)
    }

    /// All clusters that have a count, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.range(0..u64::MAX)
    }

    /// Those of a range.
    pub(super) fn range(&self, clusters: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let pieces = self.pieces.range(clusters.start / PIECE..=clusters.end / PIECE);
        let all = pieces.flat_map(|(number, piece)| {
            let used = self.words[*piece]
                .iter()
                .zip(number * PIECE..)
                .filter(|(word, _)| count(**word) > 0);
            used.map(|(_, cluster)| cluster)
        });
        all.filter(move |cluster| clusters.contains(cluster))
    }
}

/// The word of a cluster that has `times` references more.
#[inline]
fn added(word: u32, times: u64, kind: Kind) -> u32 {
    let count = count(word).saturating_add(times).min(MAX_COUNT);
    let is_of_kind = word == 0 || word >> KIND_SHIFT == kind as u32;
    let kind = match kind {
        _ if !is_of_kind => Kind::Mixed,
        Kind::Structure if count > 1 => Kind::Mixed,
        kind => kind,
    };
    (kind as u32) << KIND_SHIFT | count as u32
}

fn count(word: u32) -> u64 {
    u64::from(word) & MAX_COUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_where_there_are_any() {
        let mut counts = Counts::default();
        for cluster in [5, 5, 4096, 1 << 50] {
            counts.add(cluster, 1, Kind::Data).unwrap();
        }
        assert_eq!(counts.get(5), 2);
        counts.add(5, u64::MAX, Kind::Data).unwrap();
        assert_eq!([counts.get(5), counts.get(4096), counts.get(6)], [MAX_COUNT, 1, 0]);
        assert_eq!(counts.iter().collect::<Vec<_>>(), [5, 4096, 1 << 50]);
        assert!(counts.is_empty(&(8192..9000)) && !counts.is_empty(&(0..6)));
        assert_eq!((counts.end(), counts.pieces.len()), ((1 << 50) + 1, 3));
        for cluster in [5, 6, 4096, 4096] {
            counts.forget(cluster);
        }
        assert_eq!([counts.get(5), counts.get(4096)], [MAX_COUNT, 0]);
        assert!(!counts.is_free(4096) && counts.is_free(6));
    }

    #[test]
    fn q214_a_cluster_has_one_kind_and_a_structure_one_owner() {
        let kinds = [Kind::Data, Kind::Compressed, Kind::Table, Kind::Structure];
        for (first, at) in kinds.into_iter().zip(0..) {
            for (second, cluster) in kinds.into_iter().zip(at * 10..) {
                let mut counts = Counts::default();
                counts.add(cluster, 1, first).unwrap();
                assert!(!counts.is_mixed(cluster));
                counts.add(cluster, 1, second).unwrap();
                let is_shared = first == second && first != Kind::Structure;
                assert_eq!(counts.is_mixed(cluster), !is_shared, "{first:?} {second:?}");
                counts.add(cluster, 1, second).unwrap();
                assert_eq!(counts.get(cluster), 3);
                assert_eq!(counts.is_mixed(cluster), !is_shared, "{first:?} {second:?}");
                counts.set_mixed(cluster);
                assert!(counts.is_mixed(cluster) && counts.get(cluster) == 3);
            }
        }
    }

    #[test]
    fn q143_the_memory_of_counts_is_bounded() {
        // As if all pieces but one were there.
        let pieces = (0..MAX_PIECES as u64 - 1).map(|number| (number, 0)).collect();
        let mut counts = Counts { pieces, ..Counts::default() };
        counts.add(PIECE << 40, 1, Kind::Data).unwrap();
        let error = counts.add(PIECE << 41, 1, Kind::Data).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        counts.add((PIECE << 40) + 1, 1, Kind::Data).unwrap();
    }
}
