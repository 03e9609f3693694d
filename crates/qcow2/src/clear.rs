//! Zeroes and discards: changes of entries alone.
//!
//! Both lock their clusters as writes do. What an entry gives up is free, and is punched in the file, when no
//! entry that is durable and no request leads there any more. Clusters that keep their place are punched
//! within the request, before they are linked: writes to them wait for that.

use std::io;
use std::ops::Range;

use coblk_aio::{Co, IoVector};
use coblk_block::ZeroFlags;

use crate::image::Image;
use crate::layout::{Autoclear, COPIED, L2Entry, OFFSET_MASK, ZERO};
use crate::link::{Change, Obstacle};
use crate::live::Freed;
use crate::refcount::Discard;
use crate::space::Patience;
use crate::state::State;

/// What clusters become.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clear {
    /// Zeroes, which may keep their place, or not.
    Zeroes { may_unmap: bool },
    /// Zeroes, or nothing where nothing is seen then.
    Discarded,
    /// Nothing: it is not a part of the disk.
    Dropped,
    /// Nothing where they say zeroes, as nothing lies below; what else there is stays.
    Plain,
}

impl Clear {
    /// Whether clusters are given up.
    fn unmaps(self) -> bool {
        self != Clear::Zeroes { may_unmap: false }
    }

    /// Why what is given up becomes free.
    fn freed(self) -> Freed {
        match self {
            Clear::Dropped | Clear::Plain => Freed::Always,
            Clear::Zeroes { .. } | Clear::Discarded => Freed::Request,
        }
    }
}

fn not_supported() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOTSUP)
}

impl Image {
    /// Makes a range of whole subclusters read as zeroes.
    ///
    /// # Errors
    /// ENOTSUP if entries cannot say so; nothing has changed then. Else as of writes.
    pub(crate) fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        range: Range<u64>,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        if self.is_v2() {
            // No entry says zeroes; but none at all does, where nothing lies below.
            return match self.backing.node() {
                Some(_) => Err(not_supported()),
                None => self.co_clear(co, range, Clear::Discarded),
            };
        }
        if let Some(data_file) = &self.data_file
            && self.header().autoclear.contains(Autoclear::RAW_DATA_FILE)
        {
            let there = range.end.min(data_file.length());
            if range.start < there {
                data_file.co_pwrite_zeroes(co, range.start, there - range.start, flags)?;
            }
        }
        let may_unmap = flags.contains(ZeroFlags::MAY_UNMAP);
        self.co_clear(co, range, Clear::Zeroes { may_unmap })
    }

    /// Deallocates a range of whole clusters.
    ///
    /// # Errors
    /// As of writes.
    pub(crate) fn co_pdiscard(&self, co: &Co<'_>, range: Range<u64>) -> io::Result<()> {
        if self.is_v2() && self.backing.node().is_some() {
            return Ok(());
        }
        self.co_clear(co, range, Clear::Discarded)
    }

    /// Clears a range of whole clusters, or for zeroes of whole subclusters.
    pub(crate) fn co_clear(&self, co: &Co<'_>, range: Range<u64>, clear: Clear) -> io::Result<()> {
        let (mut at, mut patience) = (range.start, Patience::default());
        while at < range.end {
            let part = at..range.end.min(self.slice_end(at));
            if self.has_nothing(at, clear) {
                let index = self.geometry.l1_index(at);
                at = self.geometry.l1_start(index + 1).unwrap_or(u64::MAX).min(range.end);
                continue;
            }
            self.co_have_slice(co, at)?;
            let mut state = self.lock();
            match self.begin_clear(&mut state, part, clear) {
                // A part of a compressed cluster at the end: the rest is cleared by now.
                Err(Obstacle::Unsupported) if at > range.start => {
                    drop(state);
                    let zeroes = vec![0; (range.end - at) as usize];
                    self.co_write(co, at, &IoVector::from(&zeroes[..]))?;
                    at = range.end;
                }
                Err(obstacle) => self.co_overcome(co, state, obstacle, &mut patience)?,
                Ok((None, part)) => at = part.end,
                Ok((Some(change), part)) => {
                    drop(state);
                    self.co_punch_kept(co, &change, clear)?;
                    let new = |_: usize, old: L2Entry| self.cleared(old, &part, clear);
                    if change.link(new, clear.freed(), false) {
                        (at, patience) = (part.end, Patience::default());
                        self.co_commit_if_wanted(co)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether nothing is mapped by the L1 entry of an offset, and nothing has to be said of it.
    fn has_nothing(&self, offset: u64, clear: Clear) -> bool {
        let is_seen =
            !matches!(clear, Clear::Dropped | Clear::Plain) && self.backing.node().is_some();
        !is_seen && self.l1.get(self.geometry.l1_index(offset)) == 0
    }

    /// Commits, if much has changed since the last time; and has free space looked for.
    pub(crate) fn co_commit_if_wanted(&self, co: &Co<'_>) -> io::Result<()> {
        let (is_wanted, has_unread) = loop {
            let state = self.lock();
            let Some(refcounts) = &state.refcounts else { return Ok(()) };
            if !refcounts.is_parking_full() {
                break (refcounts.wants_commit(), refcounts.has_unread());
            }
            self.co_wait_for_change(co, state);
        };
        if has_unread {
            self.begin_survey(co);
        }
        if is_wanted { self.co_commit_and_free(co) } else { Ok(()) }
    }

    /// Begins the change of the first clusters of a range, within one slice, of which whole clusters go
    /// together. There is none if they are as they are to be.
    fn begin_clear(
        &self,
        state: &mut State,
        mut part: Range<u64>,
        clear: Clear,
    ) -> Result<(Option<Change<'_>>, Range<u64>), Obstacle> {
        let cluster = self.geometry.cluster_bytes();
        // The image may have become version 2 meanwhile.
        if self.is_v2() && self.backing.node().is_some() {
            match clear {
                Clear::Zeroes { .. } => return Err(Obstacle::Unsupported),
                Clear::Discarded => return Ok((None, part)),
                Clear::Dropped | Clear::Plain => {}
            }
        }
        let slot = self.slot_to_change(state, part.start)?;
        let first = self.geometry.cluster_start(part.start);
        let is_whole = part.start == first && part.end - first >= cluster;
        part.end = match is_whole {
            true => self.geometry.cluster_start(part.end),
            false => part.end.min(first + cluster),
        };
        if let Some(other) = state.locks.conflict(&part) {
            part.end = self.geometry.cluster_start(other);
            if part.end <= part.start {
                return Err(Obstacle::Locked(other));
            }
        }
        let clusters = (part.end - first).div_ceil(cluster) as usize;
        let mut old = self.entries(slot, first, clusters);
        for (index, entry) in (0..).zip(&old) {
            self.rules.check(*entry, first + index * cluster)?;
        }
        if !is_whole && old.first().is_some_and(|entry| entry.is_compressed()) {
            return Err(Obstacle::Unsupported);
        }
        // Those at both ends that stay as they are need no change.
        let changes = |entry: &L2Entry| self.cleared(*entry, &part, clear) != *entry;
        let Some(start) = old.iter().position(changes) else { return Ok((None, part)) };
        if start > 0 {
            part.end = first + start as u64 * cluster;
            return Ok((None, part));
        }
        let last = old.iter().rposition(changes).unwrap_or(0);
        old.truncate(last + 1);
        part.end = part.end.min(first + old.len() as u64 * cluster);
        state.owed.check_promise(slot).map_err(Obstacle::Full)?;
        Ok((Some(self.begin_change(state, slot, part.clone(), old, None)), part))
    }

    /// What becomes of an entry, of which a range of the disk is cleared: whole clusters, or a part of one.
    fn cleared(&self, old: L2Entry, part: &Range<u64>, clear: Clear) -> L2Entry {
        let has_place = !old.is_compressed() && old.word & (COPIED | OFFSET_MASK) != 0;
        let is_part = part.end - part.start < self.geometry.cluster_bytes();
        if is_part {
            let first = self.geometry.subcluster(part.start);
            let last = self.geometry.subcluster(part.end - 1);
            let bits = (first..=last).fold(0_u64, |bits, at| bits | 1 << at);
            return L2Entry { word: old.word, bitmap: (old.bitmap & !bits) | bits << 32 };
        }
        match clear {
            Clear::Dropped => return L2Entry::default(),
            Clear::Plain if old.is_compressed() || old.word & ZERO == 0 => return old,
            Clear::Plain => return L2Entry::default(),
            Clear::Zeroes { .. } | Clear::Discarded => {}
        }
        let has_backing = self.backing.node().is_some();
        let is_extended = self.geometry.is_extended();
        let is_nothing = clear == Clear::Discarded && old == L2Entry::default();
        if !has_backing && (self.is_v2() || is_nothing) {
            return L2Entry::default();
        }
        let keeps_place = has_place && (!clear.unmaps() || self.options.keeps_discarded());
        let word = if keeps_place { old.word & !ZERO } else { 0 };
        match is_extended {
            true => L2Entry { word, bitmap: u64::MAX << 32 },
            false => L2Entry { word: word | ZERO, bitmap: 0 },
        }
    }

    /// Has the file deallocate what clusters keep, or what a data file has.
    fn co_punch_kept(&self, co: &Co<'_>, change: &Change<'_>, clear: Clear) -> io::Result<()> {
        let is_passed = self.options.discard(Freed::Request) == Discard::Punch;
        let is_request = matches!(clear, Clear::Zeroes { .. } | Clear::Discarded);
        if !is_request || !clear.unmaps() || !is_passed {
            return Ok(());
        }
        let cluster = self.geometry.cluster_bytes();
        if let Some(data_file) = &self.data_file {
            // What is discarded may be anything; zeroes are to be zeroes after a crash, too.
            let there = change.locked.end.min(data_file.length());
            if clear == Clear::Discarded && change.locked.start < there {
                let start = change.locked.start;
                return data_file.co_pdiscard(co, start, there - start);
            }
            return Ok(());
        }
        if !self.options.keeps_discarded() || !change.is_whole() {
            return Ok(());
        }
        for entry in &change.old {
            // A snapshot may have others.
            let is_own = !entry.is_compressed() && entry.word & COPIED != 0 && entry.offset() != 0;
            let there = self.file.length().saturating_sub(entry.offset()).min(cluster);
            if is_own && there > 0 {
                self.file.co_pdiscard(co, entry.offset(), there)?;
            }
        }
        Ok(())
    }
}
