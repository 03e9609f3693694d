//! References that were given up: what is lowered when, and which clusters wait until they are free.
//!
//! ```text
//! give_up -> unlinked -> (commit) -> lowered -> count 0: quarantine -> (grace) -> punched -> free
//!            (failed: again)         (block not in memory: owed)
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use super::ranges::Ranges;
use super::{Need, Refcounts};

/// Ranges of a generation of the quarantine that are kept exactly. Beyond, whole blocks are closed.
const MAX_RANGES: usize = 1 << 16;
/// Ranges that are parked at most, before requests wait that would give up more.
const MAX_PARKED: usize = 1 << 16;
/// Ranges that were given up from which on a commit is wanted.
const MANY_UNLINKED: usize = 1 << 14;

/// What happens on the host to a cluster that becomes free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discard {
    /// Nothing.
    Keep,
    /// It is punched, before it can be allocated again.
    Punch,
}

/// Clusters that have one reference less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GivenUp {
    pub(super) clusters: Range<u64>,
    /// `None`: they were never linked, and are free at once.
    pub(super) discard: Option<Discard>,
}

/// Clusters with count 0 that are not free yet, of one epoch.
#[derive(Default)]
pub(super) struct Generation {
    closed: Ranges,
    punch: Ranges,
}

impl Generation {
    /// Closes clusters of a block; all of the block if there are too many ranges already.
    pub(super) fn close(&mut self, clusters: Range<u64>, block: Range<u64>, discard: Discard) {
        if discard == Discard::Punch && self.punch.len() < MAX_RANGES {
            self.punch.insert(clusters.clone());
        }
        let is_exact = self.closed.len() < MAX_RANGES;
        self.closed.insert(if is_exact { clusters } else { block });
    }
}

/// See the head of the file.
#[derive(Default)]
pub(super) struct Owed {
    /// Given up since the last commit began.
    pub(super) unlinked: Vec<GivenUp>,
    /// To be lowered when their blocks are in memory.
    pub(super) lowers: BTreeMap<u64, Vec<GivenUp>>,
    /// Of this epoch, and of the one before.
    pub(super) fresh: Generation,
    pub(super) old: Generation,
    /// Being punched.
    pub(super) punching: Ranges,
    /// Given up durably, while counts must not fall.
    pub(super) parked: Option<Vec<GivenUp>>,
    /// Of blocks that were dropped, until that is durable: since the last commit began, and before.
    pub(super) dropped: Ranges,
    pub(super) dropping: Ranges,
}

impl Owed {
    /// The first clusters of a range that are closed to allocation.
    pub(super) fn first_closed(&self, clusters: &Range<u64>) -> Option<Range<u64>> {
        let Owed { fresh, old, punching, dropped, dropping, .. } = self;
        let sets = [&fresh.closed, &old.closed, punching, dropped, dropping];
        sets.iter().filter_map(|set| set.first_in(clusters)).min_by_key(|it| it.start)
    }

    #[cfg(test)]
    pub(super) fn closed(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let sets = [&self.fresh.closed, &self.old.closed, &self.punching];
        sets.into_iter().flat_map(Ranges::iter)
    }

    pub(super) fn has_closed(&self) -> bool {
        let Owed { fresh, old, punching, dropped, dropping, .. } = self;
        let sets = [&fresh.closed, &old.closed, punching, dropped, dropping];
        sets.into_iter().any(|set| !set.is_empty())
    }
}

impl Refcounts {
    /// Gives back clusters that were allocated and never linked. No I/O to them is left.
    pub(crate) fn give_back(&mut self, host: Range<u64>) {
        self.lower(GivenUp { clusters: self.clusters(&host), discard: None });
    }

    /// Gives up a reference to each cluster that a range of host bytes touches. The entry that had it has
    /// changed in memory; the counts fall when a commit that began later has made that durable.
    pub(crate) fn give_up(&mut self, host: Range<u64>, how: Discard) {
        let (clusters, discard) = (self.clusters(&host), Some(how));
        if let Some(last) = self.owed.unlinked.last_mut()
            && last.clusters.end == clusters.start
            && last.discard == discard
        {
            last.clusters.end = clusters.end;
            return;
        }
        self.owed.unlinked.push(GivenUp { clusters, discard });
    }

    /// From here on counts do not fall: what is given up is parked.
    pub(crate) fn park(&mut self) {
        self.owed.parked.get_or_insert_default();
    }

    /// Counts fall again, and those that were parked do.
    pub(crate) fn unpark(&mut self) {
        for given_up in self.owed.parked.take().unwrap_or_default() {
            self.lower(given_up);
        }
    }

    /// Whether so much is parked that no more should be given up.
    pub(crate) fn is_parking_full(&self) -> bool {
        self.owed.parked.as_ref().is_some_and(|parked| parked.len() >= MAX_PARKED)
    }

    /// References of this are durably given up.
    pub(super) fn lower_or_park(&mut self, given_up: GivenUp) {
        match &mut self.owed.parked {
            Some(parked) => parked.push(given_up),
            None => self.lower(given_up),
        }
    }

    /// Whether so much was given up that a commit should not wait.
    pub(super) fn has_many_unlinked(&self) -> bool {
        self.owed.unlinked.len() >= MANY_UNLINKED
    }

    /// Takes one reference away, now or when the blocks are in memory.
    pub(super) fn lower(&mut self, given_up: GivenUp) {
        let GivenUp { clusters, discard } = given_up;
        for index in self.blocks_of(&clusters) {
            let range = self.range_of(index);
            let part = clusters.start.max(range.start)..clusters.end.min(range.end);
            if self.blocks.contains_key(&index) {
                self.lower_now(part, discard);
            } else {
                let lowers = self.owed.lowers.entry(index).or_default();
                lowers.push(GivenUp { clusters: part, discard });
            }
        }
    }

    /// Lowers what is owed to a block that has come to memory.
    pub(super) fn pay(&mut self, index: u64) {
        for GivenUp { clusters, discard } in self.owed.lowers.remove(&index).unwrap_or_default() {
            self.lower_now(clusters, discard);
        }
    }

    fn lower_now(&mut self, clusters: Range<u64>, discard: Option<Discard>) {
        let mut unused = None;
        // Those that follow each other and fall to 0.
        let mut run = clusters.start..clusters.start;
        for cluster in clusters {
            let mut old = 0;
            let lowered = |count: u64| {
                old = count;
                count.saturating_sub(1)
            };
            self.change(cluster, lowered);
            if old == 0 {
                unused.get_or_insert(cluster);
            }
            if old != 1 {
                self.close(run, discard);
                run = cluster + 1..cluster + 1;
            } else {
                run.end = cluster + 1;
            }
        }
        self.close(run, discard);
        if let Some(cluster) = unused {
            let corruption = self.unused(cluster);
            self.corruption.get_or_insert(corruption);
        }
    }

    /// Begins the quarantine of clusters of one block whose counts fell to 0.
    fn close(&mut self, clusters: Range<u64>, discard: Option<Discard>) {
        if clusters.is_empty() {
            return;
        }
        self.touch_space(clusters.clone());
        self.metadata.remove(self.bytes(&clusters));
        let block = self.range_of(clusters.start / self.per_block);
        if let Some(discard) = discard {
            self.owed.fresh.close(clusters, block, discard);
        }
    }

    /// How many blocks count what has lost references, and are not in memory.
    pub(crate) fn owed_blocks(&self) -> usize {
        self.owed.lowers.len()
    }

    /// A block that has to be loaded so that counts can fall; to be asked again and again before a commit.
    pub(crate) fn next_owed(&mut self) -> Option<Need> {
        loop {
            let index = *self.owed.lowers.keys().next()?;
            match self.block(index) {
                Err(need @ Need::Block { .. }) => return Some(need),
                Err(Need::Corrupt(corruption)) => {
                    self.corruption.get_or_insert(corruption);
                    self.owed.lowers.remove(&index);
                }
                // A block that came to memory in another way was paid there.
                Ok(Some(_)) => self.pay(index),
                Ok(None) => {
                    let lowers = self.owed.lowers.remove(&index).unwrap_or_default();
                    if let Some(GivenUp { clusters, .. }) = lowers.first() {
                        let corruption = self.unused(clusters.start);
                        self.corruption.get_or_insert(corruption);
                    }
                }
                Err(_) => return None,
            }
        }
    }

    /// Whether clusters wait for a grace, or to be counted no more.
    pub(crate) fn has_quarantine(&self) -> bool {
        let Owed { fresh, old, parked, .. } = &self.owed;
        let is_parked = parked.as_ref().is_some_and(|parked| !parked.is_empty());
        !(fresh.closed.is_empty() && old.closed.is_empty()) || is_parked
    }

    /// Whether clusters wait until they are punched.
    pub(crate) fn is_punching(&self) -> bool {
        !self.owed.punching.is_empty()
    }

    /// An epoch has ended: what was freed in the one before it is used by no request. Returns what is to be
    /// punched; it is free when [`freed`](Self::freed) is told so. The rest is free at once. `forget` is told of
    /// all bytes that may get other content from now on.
    pub(crate) fn pass_grace(&mut self, forget: impl Fn(Range<u64>)) -> Vec<Range<u64>> {
        let fresh = std::mem::take(&mut self.owed.fresh);
        let old = std::mem::replace(&mut self.owed.old, fresh);
        for range in old.punch.iter() {
            self.owed.punching.insert(range);
        }
        for range in old.closed.iter() {
            forget(self.bytes(&range));
            self.reopen(&range);
        }
        old.punch.iter().map(|range| self.bytes(&range)).collect()
    }

    /// Host bytes that [`pass_grace`](Self::pass_grace) returned are free now, punched or not.
    pub(crate) fn freed(&mut self, host: Range<u64>) {
        let clusters = self.clusters(&host);
        self.owed.punching.remove(&clusters);
        self.reopen(&clusters);
    }

    /// Space has become free that searches have stepped over.
    pub(super) fn reopen(&mut self, clusters: &Range<u64>) {
        for index in self.blocks_of(clusters) {
            if let Some(gap) = self.gaps.get_mut(&index) {
                gap.reopen();
            }
        }
    }
}
