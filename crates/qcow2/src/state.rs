//! [`State`]: what changes of mappings need, behind one lock.
//!
//! The lock is a plain one, held for short steps, and never across a suspension. Reads, and writes to bytes
//! that have a place of their own, do not take it. As all changes are made under it, what a commit copies
//! under it is one instant: each entry with its table, its refcounts, and what it gave up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::MutexGuard;

use coblk_aio::{Co, CoWaker};

use crate::cache::Owed;
use crate::cluster_locks::ClusterLocks;
use crate::commit::Commits;
use crate::image::Image;
use crate::refcount::Refcounts;

/// A table that was made since the last commit, which the next one writes whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PendingTable {
    /// Where it will be.
    pub(crate) new: u64,
    /// The table whose copy it is. Until the new one is written, slices are read from there; without one
    /// they are zeroes.
    pub(crate) old: Option<u64>,
}

/// A place for a longer L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewL1 {
    pub(crate) offset: u64,
    /// How many words it has.
    pub(crate) entries: u32,
}

/// A cluster of the file that compressed data is put into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packer {
    pub(crate) cluster: u64,
    /// How much of it has data, in bytes.
    pub(crate) used: u64,
}

impl Packer {
    /// Nothing more is put into a cluster that is among those of a range, which are given up.
    pub(crate) fn leave(packer: &mut Option<Packer>, clusters: &std::ops::Range<u64>) {
        packer.take_if(|packer| clusters.contains(&packer.cluster));
    }
}

/// What changes of mappings need.
pub(crate) struct State {
    /// What slots of the cache owe.
    pub(crate) owed: Owed,
    /// Tables that were made since the last commit, by their L1 index.
    pub(crate) pending: BTreeMap<u64, PendingTable>,
    /// A place for a longer L1 table, which the next commit writes and switches to.
    pub(crate) new_l1: Option<NewL1>,
    /// L1 entries that have changed, in units of [`L1_UNIT`].
    pub(crate) l1_dirty: BTreeSet<u64>,
    pub(crate) locks: ClusterLocks,
    /// The refcounts; an image that is not written has none.
    pub(crate) refcounts: Option<Refcounts>,
    pub(crate) packer: Option<Packer>,
    /// Clusters for L2 tables, which have space on the host and read as zeroes.
    pub(crate) reserve: Vec<u64>,
    /// Data was written that has to be durable before the entries that lead to it.
    pub(crate) has_ordered_data: bool,
    pub(crate) commits: Commits,
    /// The mapping stands still: all of the disk is locked, and nothing is taken for tables either.
    pub(crate) is_held: bool,
    /// Wait for any change of the above.
    waiting: Vec<CoWaker>,
}

/// L1 entries that are written together.
pub(crate) const L1_UNIT: u64 = 64;

impl State {
    pub(crate) fn new(owed: Owed, refcounts: Option<Refcounts>) -> State {
        State {
            owed,
            pending: BTreeMap::new(),
            new_l1: None,
            l1_dirty: BTreeSet::new(),
            locks: ClusterLocks::default(),
            refcounts,
            packer: None,
            reserve: Vec::new(),
            has_ordered_data: false,
            commits: Commits::default(),
            is_held: false,
            waiting: Vec::new(),
        }
    }

    /// Forgets all that was to be written. No change is in flight, and no commit.
    pub(crate) fn forget(&mut self, owed: Owed) {
        self.owed = owed;
        self.pending.clear();
        self.new_l1 = None;
        self.l1_dirty.clear();
        self.refcounts = None;
        self.packer = None;
        self.reserve.clear();
        self.has_ordered_data = false;
    }

    /// An L1 entry has changed.
    pub(crate) fn mark_l1(&mut self, index: u64) {
        self.l1_dirty.insert(index / L1_UNIT);
    }

    /// Those that wait for any change. They are to be woken, without the lock.
    #[must_use]
    pub(crate) fn take_waiting(&mut self) -> Vec<CoWaker> {
        std::mem::take(&mut self.waiting)
    }

    /// Whether nothing has to be written.
    pub(crate) fn is_clean(&self) -> bool {
        self.pending.is_empty()
            && self.new_l1.is_none()
            && self.l1_dirty.is_empty()
            && self.owed.is_clean()
            && self.refcounts.as_ref().is_none_or(Refcounts::is_clean)
    }
}

/// Wakes coroutines, when no lock is held.
pub(crate) fn wake_all(wakers: Vec<CoWaker>) {
    wakers.into_iter().for_each(CoWaker::wake);
}

impl Image {
    /// Waits until something has changed in the state; the lock is given up.
    pub(crate) fn co_wait_for_change(&self, co: &Co<'_>, mut state: MutexGuard<'_, State>) {
        co.suspend_for("a change of an image's tables", |waker| {
            state.waiting.push(waker);
            drop(state);
        });
    }

    /// Waits until the locked range that begins at `start` is unlocked; the lock of the state is given up.
    pub(crate) fn co_wait_for_range(
        &self,
        co: &Co<'_>,
        mut state: MutexGuard<'_, State>,
        start: u64,
    ) {
        if state.locks.conflict(&(start..start + 1)) != Some(start) {
            return;
        }
        co.suspend_for("a change of the same clusters", |waker| {
            let left = state.locks.wait(start, waker);
            debug_assert!(left.is_none());
            drop(state);
        });
    }
}
