//! Commits: they make durable what writes have linked, in the order in which a crash does no harm.
//!
//! ```text
//! plan      under the lock of the state: copies of all that has changed
//! stage 1   refcounts, new tables and blocks; a sync, also of data
//! stage 1b  the entry, or the header, that leads to a new refcount block or table that links need; a sync
//! stage 2   L2 and L1 entries; a sync
//! end       what was unlinked loses its references; the next commit writes that
//! ```
//!
//! One commit runs at a time, in the coroutine that needs it first; coroutines that come meanwhile join the next. What
//! is linked while a commit runs is not in its plan. A commit that fails leaves all of its plan dirty, as what
//! is in the file is not known then; but tables that stage 1 has made durable are tables like others from then on, as
//! stage 2 may have written an entry that leads to them.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk_aio::{Co, IoVector};
use coblk_block::{DebugEvent, WriteFlags};

use crate::image::Image;
use crate::layout::{COPIED, OFFSET_MASK};
use crate::refcount::{RefcountPlan, Refcounts};
use crate::rules::Rule;
use crate::source::Source;
use crate::state::{L1_UNIT, NewL1, PendingTable, State, wake_all};

/// Whose turn it is; part of the image's state.
#[derive(Default)]
pub(crate) struct Commits {
    is_active: bool,
    /// How many have begun.
    begun: u64,
    /// The latest of these that has succeeded, counted from 1.
    good: u64,
    /// The latest that has failed, and its errno.
    failed: (u64, i32),
}

impl Commits {
    /// Whether one runs.
    pub(crate) fn is_active(&self) -> bool {
        self.is_active
    }
}

/// What one commit writes.
#[derive(Default)]
struct Plan {
    refcounts: Option<RefcountPlan>,
    tables: Vec<TablePlan>,
    /// Slots with units that are written, those of new tables too.
    slots: Vec<(usize, u64)>,
    l1_units: Vec<u64>,
    /// The L1 table is written to another place, whole.
    new_l1: Option<NewL1>,
    /// L2 and L1 entries, by their offsets in the file.
    l2: Vec<(u64, Vec<u8>)>,
    l1: Vec<(u64, Vec<u8>)>,
    /// Data has to be durable before.
    is_ordered: bool,
    /// The new tables are in the file, whole.
    tables_are_durable: bool,
}

/// A table that is written whole.
struct TablePlan {
    index: u64,
    table: PendingTable,
    /// Slices that were in the cache, by their places in the table.
    slices: Vec<(u64, Vec<u8>)>,
}

impl Image {
    /// Makes all entries durable that were linked before, with all that they need.
    ///
    /// # Errors
    /// Those of writing. All is still to be written then.
    pub(crate) fn co_commit(&self, co: &Co<'_>) -> io::Result<()> {
        let mut state = self.lock();
        let before = state.commits.begun;
        loop {
            let Commits { is_active, good, failed, .. } = state.commits;
            if good > before {
                return Ok(());
            }
            if failed.0 > before {
                return Err(io::Error::from_raw_os_error(failed.1));
            }
            if !is_active {
                break;
            }
            self.co_wait_for_change(co, state);
            state = self.lock();
        }
        if state.is_clean() {
            return Ok(());
        }
        state.commits.is_active = true;
        state.commits.begun += 1;
        drop(state);
        let mut turn = CommitTurn { image: self, plan: Plan::default(), errno: libc::EIO };
        let result = turn.co_run(co);
        turn.errno = result.as_ref().err().map_or(0, |it| it.raw_os_error().unwrap_or(libc::EIO));
        drop(turn);
        result
    }

    /// [`co_commit`](Self::co_commit), and then frees what can be freed.
    ///
    /// # Errors
    /// As of that.
    pub(crate) fn co_commit_and_free(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_commit(co)?;
        self.co_pass_grace(co);
        Ok(())
    }

    /// Frees clusters that no request can reach any more, where requests have ended.
    pub(crate) fn co_pass_grace(&self, co: &Co<'_>) {
        // What a commit has unlinked is free after two steps.
        for _ in 0..2 {
            let waits = self.lock().refcounts.as_ref().is_some_and(Refcounts::has_quarantine);
            if !waits || !self.co_try_epoch(co) {
                return;
            }
        }
    }

    /// Ends the epoch, unless requests from before it are left, and frees what can be freed then.
    pub(crate) fn co_try_epoch(&self, co: &Co<'_>) -> bool {
        let ranges = {
            let mut state = self.lock();
            if !self.epochs.try_advance() && !self.rules_omit(Rule::Grace) {
                return false;
            }
            state
                .refcounts
                .as_mut()
                .map_or(Vec::new(), |it| it.pass_grace(|host| self.inflated.forget(host)))
        };
        let mut punching = Punching { image: self, ranges };
        while let Some(range) = punching.ranges.last() {
            self.file.debug_event(DebugEvent::ClusterFree);
            let bytes = range.end - range.start;
            // A hint: what is not punched is free all the same.
            let there = bytes.min(self.file.end().saturating_sub(range.start));
            if there > 0
                && let Err(error) = self.file.co_pdiscard(co, range.start, there)
            {
                tracing::debug!(%error, "free clusters cannot be discarded");
            }
            punching.end_one();
        }
        true
    }

    /// Writes metadata, which may make the file longer.
    pub(crate) fn co_write_metadata(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        let source = IoVector::from(bytes);
        self.file.co_pwritev_growing(co, offset, &source, WriteFlags::empty())
    }

    /// What is to be written, under the lock of the state.
    fn plan(&self, state: &mut State) -> Plan {
        let mut plan = Plan {
            refcounts: state.refcounts.as_mut().map(|it| it.begin_commit()),
            slots: state.owed.take_dirty(),
            l1_units: std::mem::take(&mut state.l1_dirty).into_iter().collect(),
            is_ordered: std::mem::take(&mut state.has_ordered_data) || self.has_growth_to_sync(),
            ..Plan::default()
        };
        for (index, table) in &state.pending {
            let mut slices = Vec::new();
            let per_table = self.geometry.cluster_bytes() / self.cache.slice_bytes();
            for place in 0..per_table {
                if let Some(slot) = self.cache.find(index * per_table + place) {
                    let bytes = self.cache.copy(slot, u64::MAX);
                    slices.extend(bytes.into_iter().map(|it| (place, it.bytes)));
                }
            }
            plan.tables.push(TablePlan { index: *index, table: *table, slices });
        }
        let slices = plan.slots.iter().flat_map(|(slot, units)| self.cache.copy(*slot, *units));
        for range in slices {
            let per_table = self.geometry.cluster_bytes() / self.cache.slice_bytes();
            let (index, place) = (range.slice / per_table, range.slice % per_table);
            if !state.pending.contains_key(&index) {
                let table = self.l1.get(index) & OFFSET_MASK;
                plan.l2.push((table + place * self.cache.slice_bytes() + range.at, range.bytes));
            }
        }
        self.plan_l1(state, &mut plan);
        plan
    }

    fn plan_l1(&self, state: &State, plan: &mut Plan) {
        plan.new_l1 = state.new_l1;
        if let Some(NewL1 { offset, entries }) = state.new_l1 {
            let words = (0..u64::from(entries)).map(|index| self.l1.get(index).to_be_bytes());
            let mut bytes: Vec<u8> = words.flatten().collect();
            // Nothing is known of the space behind.
            bytes.resize(bytes.len().next_multiple_of(self.geometry.cluster_bytes() as usize), 0);
            plan.l1.push((offset, bytes));
            return;
        }
        let l1_offset = self.header().l1_offset;
        for unit in &plan.l1_units {
            let words = unit * L1_UNIT..(unit + 1) * L1_UNIT;
            let bytes = words.flat_map(|index| self.l1.get(index).to_be_bytes()).collect();
            plan.l1.push((l1_offset + unit * L1_UNIT * 8, bytes));
        }
    }

    /// Writes a new table: what was cached of it, and else what its former place has.
    fn co_write_table(&self, co: &Co<'_>, plan: &TablePlan) -> io::Result<()> {
        let PendingTable { new, old } = plan.table;
        let slice_bytes = self.cache.slice_bytes();
        self.file.debug_event(DebugEvent::L2AllocWrite);
        let Some(old) = old else {
            // Its space reads as zeroes.
            for (place, bytes) in &plan.slices {
                self.co_write_metadata(co, new + place * slice_bytes, bytes)?;
            }
            return Ok(());
        };
        let mut content = vec![0; self.geometry.cluster_bytes() as usize];
        self.file.debug_event(DebugEvent::L2AllocCowRead);
        self.file.co_read_at(co, old, &mut content)?;
        self.strip_copied(&mut content);
        for (place, bytes) in &plan.slices {
            let at = (place * slice_bytes) as usize;
            content[at..at + bytes.len()].copy_from_slice(bytes);
        }
        self.co_write_metadata(co, new, &content)
    }

    /// Clears the COPIED flags of a table, or a part of one: its copies share what it maps.
    pub(crate) fn strip_copied(&self, table: &mut [u8]) {
        // Entries of an image with a data file always have the flag, and it has no snapshots.
        if self.rules.has_data_file {
            return;
        }
        let step = (self.geometry.l2_entry_bytes() / 8) as usize;
        for word in table.as_chunks_mut::<8>().0.iter_mut().step_by(step) {
            *word = (u64::from_be_bytes(*word) & !COPIED).to_be_bytes();
        }
    }

    /// Makes the children durable that have data and tables.
    pub(crate) fn co_flush_files(&self, co: &Co<'_>) -> io::Result<()> {
        if let Some(data_file) = &self.data_file
            && !self.rules_omit(Rule::FlushAfterData)
        {
            data_file.co_flush(co)?;
        }
        self.co_flush_file(co)
    }
}

/// Ranges that are closed until they are punched, from the last one to the first. If the coroutine is unwound they are
/// free, too: its request to the file has ended with it.
struct Punching<'a> {
    image: &'a Image,
    ranges: Vec<Range<u64>>,
}

impl Punching<'_> {
    /// The last range is free.
    fn end_one(&mut self) {
        if let (Some(range), Some(refcounts)) =
            (self.ranges.pop(), &mut self.image.lock().refcounts)
        {
            refcounts.freed(range);
        }
    }
}

impl Drop for Punching<'_> {
    fn drop(&mut self) {
        while !self.ranges.is_empty() {
            self.end_one();
        }
    }
}

/// A commit that runs. When it is dropped it has failed, unless there is no errno.
struct CommitTurn<'a> {
    image: &'a Image,
    plan: Plan,
    errno: i32,
}

impl CommitTurn<'_> {
    fn co_run(&mut self, co: &Co<'_>) -> io::Result<()> {
        self.co_load_owed(co)?;
        self.plan = {
            let mut state = self.image.lock();
            self.image.plan(&mut state)
        };
        self.co_stage_1(co)?;
        self.co_stage_1b(co)?;
        self.co_stage_2(co)
    }

    /// Loads the refcount blocks of what has lost references.
    fn co_load_owed(&self, co: &Co<'_>) -> io::Result<()> {
        loop {
            let mut state = self.image.lock();
            let Some(need) = state.refcounts.as_mut().and_then(|it| it.next_owed()) else {
                return Ok(());
            };
            drop(state);
            self.image.co_load_need(co, need)?;
        }
    }

    fn co_stage_1(&mut self, co: &Co<'_>) -> io::Result<()> {
        let (image, plan) = (self.image, &mut self.plan);
        let mut is_written = plan.is_ordered || image.data_file.is_some();
        for (offset, bytes) in plan.refcounts.iter().flat_map(|it| &it.stage1) {
            image.file.debug_event(DebugEvent::RefblockUpdatePart);
            image.co_write_metadata(co, *offset, bytes)?;
            is_written = true;
        }
        if !image.rules_omit(Rule::NewTableBeforeL1) {
            for table in &plan.tables {
                image.co_write_table(co, table)?;
                is_written = true;
            }
        }
        if is_written && !image.rules_omit(Rule::FlushAfterRefcounts) {
            image.co_flush_files(co)?;
            plan.tables_are_durable = !image.rules_omit(Rule::NewTableBeforeL1);
        }
        if let Some(refcounts) = &mut plan.refcounts {
            refcounts.stage1_is_durable = true;
        }
        Ok(())
    }

    /// What links of this commit need to be counted at all.
    fn co_stage_1b(&mut self, co: &Co<'_>) -> io::Result<()> {
        let Some(refcounts) = self.plan.refcounts.as_ref().filter(|it| it.entries_are_needed)
        else {
            return Ok(());
        };
        for (offset, bytes) in &refcounts.entries {
            self.image.file.debug_event(DebugEvent::RefblockAllocHookup);
            self.image.co_write_metadata(co, *offset, bytes)?;
        }
        if let Some((offset, clusters)) = refcounts.table {
            self.image.file.debug_event(DebugEvent::RefblockAllocSwitchTable);
            self.image.co_update_header(co, |header| {
                header.refcount_table_offset = offset;
                header.refcount_table_clusters = clusters;
            })?;
        }
        if self.image.rules_omit(Rule::BlockBeforeEntry) {
            return Ok(());
        }
        self.image.co_flush_file(co)
    }

    fn co_stage_2(&self, co: &Co<'_>) -> io::Result<()> {
        let (image, plan) = (self.image, &self.plan);
        for (offset, bytes) in &plan.l2 {
            image.file.debug_event(DebugEvent::L2Update);
            image.co_write_metadata(co, *offset, bytes)?;
        }
        for (offset, bytes) in &plan.l1 {
            image.file.debug_event(DebugEvent::L1Update);
            image.co_write_metadata(co, *offset, bytes)?;
        }
        if image.rules_omit(Rule::NewTableBeforeL1) {
            plan.tables.iter().try_for_each(|table| image.co_write_table(co, table))?;
        }
        let made_ahead = plan.refcounts.iter().filter(|it| !it.entries_are_needed);
        for (offset, bytes) in made_ahead.flat_map(|it| &it.entries) {
            image.file.debug_event(DebugEvent::RefblockAllocHookup);
            image.co_write_metadata(co, *offset, bytes)?;
        }
        if !image.rules_omit(Rule::FlushAtEnd) {
            image.co_flush_file(co)?;
        }
        let Some(NewL1 { offset, entries }) = plan.new_l1 else { return Ok(()) };
        image.file.debug_event(DebugEvent::L1GrowActivateTable);
        image.co_update_header(co, |header| {
            (header.l1_offset, header.l1_entries) = (offset, entries);
        })
    }
}

impl Drop for CommitTurn<'_> {
    fn drop(&mut self) {
        let (plan, is_done) = (std::mem::take(&mut self.plan), self.errno == 0);
        let mut guard = self.image.lock();
        let state = &mut *guard;
        state.owed.end_commit(&plan.slots, is_done);
        if is_done && plan.new_l1.is_some() {
            state.new_l1 = None;
        }
        // Also after a failure: an L1 entry that leads to such a table may be in the file by then, so what is linked
        // from now on comes to the table in stage 2, as to any other.
        if is_done || plan.tables_are_durable {
            for TablePlan { index, table, .. } in &plan.tables {
                if state.pending.get(index) == Some(table) {
                    state.pending.remove(index);
                }
            }
        }
        if !is_done {
            state.l1_dirty.extend(plan.l1_units);
            state.has_ordered_data |= plan.is_ordered;
        }
        if let (Some(refcounts), Some(plan)) = (&mut state.refcounts, plan.refcounts) {
            refcounts.end_commit(plan, is_done);
        }
        let commits = &mut state.commits;
        commits.is_active = false;
        match is_done {
            true => commits.good = commits.begun,
            false => commits.failed = (commits.begun, self.errno),
        }
        let waiting = state.take_waiting();
        drop(guard);
        wake_all(waiting);
    }
}

/// How many refcount blocks were read: a coroutine that waited for one tries again.
#[derive(Default)]
pub(crate) struct BlockLoads(AtomicU64);

impl BlockLoads {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}
