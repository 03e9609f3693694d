//! Writes.
//!
//! A write to bytes that have a place of their own goes there at once: it takes no lock, allocates nothing,
//! and does no read-modify-write. Any other is cut at slices, and where clusters are not contiguous in the
//! file. Each part takes new clusters (or, with subclusters, a place that is there), writes its data with
//! what is around it, and then links. Readers see the old content until then, whole.

use std::io;
use std::ops::Range;

use coblk_aio::{AlignedBuffer, Co, IoVector};
use coblk_block::{DebugEvent, WriteFlags};

use crate::encryption::Encryption;
use crate::image::Image;
use crate::layout::{COPIED, Corruption, L2Entry, SubclusterKind};
use crate::link::{Change, Obstacle};
use crate::live::Freed;
use crate::map::{Look, Run};
use crate::read::BUFFER_ALIGNMENT;
use crate::rules::Rule;
use crate::space::{Patience, is_no_space};
use crate::state::State;

/// Most bytes of data that are read, for nothing, so that what is around them is had by one read.
const MAX_GAP_BYTES: u64 = 16 << 10;

/// The bytes around data that are written with it. A side has none if it needs none, or its bytes are there
/// already, as zeroes.
struct Around {
    /// The head, perhaps something between, the tail.
    bytes: Vec<u8>,
    head: usize,
    tail: usize,
}

impl Around {
    fn head(&self) -> &[u8] {
        &self.bytes[..self.head]
    }

    fn tail(&self) -> &[u8] {
        &self.bytes[self.bytes.len() - self.tail..]
    }
}

impl Run {
    /// Whether it may be written where it is.
    #[inline]
    fn is_in_place(&self) -> bool {
        self.is_own && self.kind == SubclusterKind::Data
    }
}

/// Clusters that a write may take together.
struct Group {
    entries: Vec<L2Entry>,
    /// They stay where they are.
    keeps_place: bool,
}

impl Image {
    /// Writes all of `source` at `offset` bytes of the disk.
    ///
    /// # Errors
    /// EIO for what is corrupt; ENOSPC; those of the children. What was written before an error stays.
    pub(crate) fn co_write(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
    ) -> io::Result<()> {
        let bytes = source.len() as u64;
        {
            let _pin = self.epochs.pin(co);
            if let Some(host) = self.find_data((offset, bytes), Look::Write) {
                return self.co_write_at(co, (offset, host), source);
            }
            let run = self.co_find(co, offset..offset + bytes, Look::Write)?;
            if run.bytes == bytes && run.is_in_place() {
                match self.co_write_at(co, (offset, run.host), source) {
                    Err(error) if is_no_space(&error) => {}
                    result => return result,
                }
            }
        }
        self.co_write_parts(co, offset, source)
    }

    /// Writes data of `guest` bytes of the disk at `host` bytes of the file that has it; the caller has pinned
    /// the epoch, or the clusters are its own.
    #[inline]
    pub(crate) fn co_write_at(
        &self,
        co: &Co<'_>,
        (guest, host): (u64, u64),
        source: &IoVector<'_>,
    ) -> io::Result<()> {
        match &self.encryption {
            None => self.co_write_plain(co, host, source),
            Some(encryption) => self.co_write_encrypted(co, encryption, (guest, host), source),
        }
    }

    /// Writes whole sectors, which are encrypted in a buffer: those of the client stay as they are.
    #[inline(never)]
    fn co_write_encrypted(
        &self,
        co: &Co<'_>,
        encryption: &Encryption,
        (guest, host): (u64, u64),
        source: &IoVector<'_>,
    ) -> io::Result<()> {
        let most = encryption.chunk_bytes(self.geometry).min(source.len());
        let mut buffer = AlignedBuffer::new(most, BUFFER_ALIGNMENT)?;
        let mut done = 0;
        while done < source.len() {
            let chunk = &mut buffer[..most.min(source.len() - done)];
            source.copy_to(done, chunk);
            let place = (guest + done as u64, host + done as u64);
            encryption.co_encrypt(co, place, chunk)?;
            self.co_write_plain(co, place.1, &IoVector::from(&*chunk))?;
            done += chunk.len();
        }
        Ok(())
    }

    #[inline]
    fn co_write_plain(&self, co: &Co<'_>, host: u64, source: &IoVector<'_>) -> io::Result<()> {
        let end = host + source.len() as u64;
        self.file.debug_event(DebugEvent::WriteAio);
        match &self.data_file {
            None => {
                self.co_check_overlap(co, host..end)?;
                if end > self.end_behind(end - 1) {
                    self.co_grow_file(co, end)?;
                }
                self.file.co_pwritev(co, host, source, WriteFlags::empty())
            }
            Some(data_file) => data_file.co_pwritev_growing(co, host, source, WriteFlags::empty()),
        }
    }

    /// Fails if a range of the file, which is about to be written, has metadata.
    #[inline]
    fn co_check_overlap(&self, co: &Co<'_>, host: Range<u64>) -> io::Result<()> {
        let kinds = self.metadata.overlap(host.clone(), self.options.overlap());
        if kinds.is_empty() {
            return Ok(());
        }
        let what = format_args!("write would overwrite {}: prevented", kinds.describe());
        Err(self.co_corrupt(co, &Corruption::new(what, Some(host.start))))
    }

    #[inline(never)]
    fn co_write_parts(&self, co: &Co<'_>, offset: u64, source: &IoVector<'_>) -> io::Result<()> {
        let end = offset + source.len() as u64;
        let (mut at, mut patience) = (offset, Patience::default());
        while at < end {
            let left = source.slice((at - offset) as usize, (end - at) as usize);
            if let Some((bytes, result)) = self.co_write_in_place(co, at, &left)? {
                match result {
                    Ok(()) => at += bytes,
                    Err(error) => self.co_refused(co, None, error, &mut patience)?,
                }
                continue;
            }
            let mut state = self.lock();
            match self.begin_write(&mut state, at..end.min(self.slice_end(at))) {
                Err(obstacle) => self.co_overcome(co, state, obstacle, &mut patience)?,
                Ok((change, range)) => {
                    drop(state);
                    let bytes = range.end - range.start;
                    let part = left.slice(0, bytes as usize);
                    let taken = change.taken.clone().filter(|_| self.data_file.is_none());
                    match self.co_write_new(co, change, range, &part) {
                        Err(error) => self.co_refused(co, taken, error, &mut patience)?,
                        Ok(false) => {}
                        Ok(true) => {
                            (at, patience) = (at + bytes, Patience::default());
                            self.co_commit_if_wanted(co)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the first bytes of a part that are in one place of their own, if there are any: how many, and how
    /// that went.
    fn co_write_in_place(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
    ) -> io::Result<Option<(u64, io::Result<()>)>> {
        let _pin = self.epochs.pin(co);
        let run = self.co_find(co, offset..offset + source.len() as u64, Look::Write)?;
        if !run.is_in_place() {
            return Ok(None);
        }
        let part = source.slice(0, run.bytes as usize);
        Ok(Some((run.bytes, self.co_write_at(co, (offset, run.host), &part))))
    }

    /// Begins the change for as much of a range, within one slice, as can be had together.
    pub(crate) fn begin_write(
        &self,
        state: &mut State,
        range: Range<u64>,
    ) -> Result<(Change<'_>, Range<u64>), Obstacle> {
        let cluster = self.geometry.cluster_bytes();
        let slot = self.slot_to_change(state, range.start)?;
        let group = self.group(slot, &range)?;
        let start = self.geometry.cluster_start(range.start);
        let mut end = start + group.entries.len() as u64 * cluster;
        // In place a write keeps others from the subclusters that it changes alone.
        let lock_of = |end: u64| match group.keeps_place {
            true => {
                let size = self.geometry.subcluster_bytes();
                let last = range.end.min(end).next_multiple_of(size);
                range.start - range.start % size..last
            }
            false => start..end,
        };
        if let Some(other) = state.locks.conflict(&lock_of(end)) {
            end = end.min(self.geometry.cluster_start(other));
            if end <= range.start || state.locks.conflict(&lock_of(end)).is_some() {
                return Err(Obstacle::Locked(other));
            }
        }
        state.owed.check_promise(slot).map_err(Obstacle::Full)?;
        let taken = match group.keeps_place {
            true => None,
            false => Some(self.take(state, slot, start..end)?),
        };
        if let Some(taken) = &taken {
            end = start + (taken.end - taken.start);
        }
        let old = group.entries[..((end - start) / cluster) as usize].to_vec();
        let change = self.begin_change(state, slot, lock_of(end), old, taken);
        Ok((change, range.start..range.end.min(end)))
    }

    /// The clusters from the beginning of a range on that can be written in one way.
    fn group(&self, slot: usize, range: &Range<u64>) -> Result<Group, Obstacle> {
        let cluster = self.geometry.cluster_bytes();
        let start = self.geometry.cluster_start(range.start);
        let clusters = (range.end - start).div_ceil(cluster) as usize;
        let all = self.entries(slot, start, clusters);
        let Some(first) = all.first().copied() else { return Err(Obstacle::Look) };
        self.rules.check(first, start)?;
        let keeps_place = self.is_own_place(first);
        if keeps_place
            && self.rules.kind(first, self.geometry.subcluster(range.start))?
                == SubclusterKind::Data
        {
            return Err(Obstacle::Look);
        }
        let mut entries = vec![first];
        for (guest, entry) in (1..).map(|i| start + i * cluster).zip(all.into_iter().skip(1)) {
            let last = entries[entries.len() - 1];
            let goes_on = self.rules.check(entry, guest).is_ok()
                && self.is_own_place(entry) == keeps_place
                && (!keeps_place
                    || entry.offset() == last.offset() + cluster && !self.has_data(entry));
            if !goes_on {
                break;
            }
            entries.push(entry);
        }
        Ok(Group { entries, keeps_place })
    }

    /// Whether a cluster has a place that may be written.
    fn is_own_place(&self, entry: L2Entry) -> bool {
        let has_place = self.rules.has_data_file || entry.offset() != 0;
        !entry.is_compressed() && has_place && entry.word & COPIED != 0
    }

    /// Whether a subcluster has data.
    fn has_data(&self, entry: L2Entry) -> bool {
        let kinds = (0..self.geometry.subclusters()).map(|at| self.rules.kind(entry, at));
        kinds.into_iter().any(|kind| kind == Ok(SubclusterKind::Data))
    }

    /// Takes places for clusters, or for the first of them.
    pub(crate) fn take(
        &self,
        state: &mut State,
        slot: usize,
        guest: Range<u64>,
    ) -> Result<Range<u64>, Obstacle> {
        let cluster = self.geometry.cluster_bytes();
        if self.rules.has_data_file {
            return Ok(guest);
        }
        // Behind what comes before on the disk.
        let before = guest
            .start
            .checked_sub(cluster)
            .filter(|before| self.slice(*before) == self.slice(guest.start));
        let before = before.and_then(|before| self.entries(slot, before, 1).first().copied());
        let before = before.filter(|entry| !entry.is_compressed() && entry.offset() != 0);
        let Some(refcounts) = &mut state.refcounts else { return Err(Obstacle::Look) };
        self.file.debug_event(DebugEvent::ClusterAlloc);
        let goal = before.map(|entry| entry.offset() + cluster);
        Ok(refcounts.allocate((guest.end - guest.start) / cluster, goal)?)
    }

    /// Writes data, with what is around it, to the places of a change, and links them. False if the entries
    /// have changed meanwhile.
    pub(crate) fn co_write_new(
        &self,
        co: &Co<'_>,
        change: Change<'_>,
        range: Range<u64>,
        source: &IoVector<'_>,
    ) -> io::Result<bool> {
        let cluster = self.geometry.cluster_bytes();
        let start = self.geometry.cluster_start(range.start);
        let host = match &change.taken {
            Some(taken) => taken.start,
            None => change.old[0].offset(),
        };
        let is_zero = change.taken.is_some() && self.is_virgin(host, change.old.len() as u64);
        let all = self.with_neighbours(&change, &range);
        let around = self.co_read_around(co, &all, &range, is_zero)?;
        let mut vector = IoVector::new();
        vector.push(around.head());
        vector.extend(source);
        vector.push(around.tail());
        let at = range.start - around.head as u64;
        self.co_write_at(co, (at, host + (at - start)), &vector)?;
        // Data may come late where zeroes were read before, and are if it does.
        let is_free = is_zero
            && around.bytes.is_empty()
            && change.old.iter().all(|entry| self.reads_zero(*entry));
        let new = |index: usize, old: L2Entry| {
            let guest = start + index as u64 * cluster;
            let place = host + index as u64 * cluster;
            let written = all.start.max(guest)..all.end.min(guest + cluster);
            self.entry_of_data(old, place, written)
        };
        Ok(change.link(new, Freed::Never, !is_free))
    }

    /// Whether clusters at `host` bytes read as zeroes.
    pub(crate) fn is_virgin(&self, host: u64, clusters: u64) -> bool {
        let cluster = self.geometry.cluster_bytes();
        if self.rules_omit(Rule::ZeroFill) {
            return true;
        }
        // Zeroes are none when they are decrypted.
        if self.encryption.is_some() {
            return false;
        }
        match &self.data_file {
            Some(data_file) => host >= data_file.length(),
            None => {
                let state = self.lock();
                let mut hosts = (0..clusters).map(|index| host + index * cluster);
                state.refcounts.as_ref().is_some_and(|it| hosts.all(|host| it.is_virgin(host)))
            }
        }
    }

    /// The range that is written for a range of data, and that has data then.
    fn with_neighbours(&self, change: &Change<'_>, range: &Range<u64>) -> Range<u64> {
        let size = self.geometry.subcluster_bytes();
        let first = self.geometry.cluster_start(range.start);
        let last = self.geometry.cluster_start(range.end - 1);
        let units = |offset: u64| offset - offset % size..(offset + 1).next_multiple_of(size);
        let (mut start, mut end) = (units(range.start).start, units(range.end - 1).end);
        let has_data = |entry: L2Entry, offset: u64| {
            let kind = self.rules.kind(entry, self.geometry.subcluster(offset));
            matches!(kind, Ok(SubclusterKind::Data | SubclusterKind::Compressed))
        };
        let (old_first, old_last) = (change.old[0], change.old[change.old.len() - 1]);
        if change.taken.is_none() {
            // What is around in a subcluster with data is there.
            start = if has_data(old_first, range.start) { range.start } else { start };
            end = if has_data(old_last, range.end - 1) { range.end } else { end };
            return start..end;
        }
        let count = u64::from(self.geometry.subclusters());
        let offsets = |cluster: u64| (0..count).map(move |at| cluster + at * size);
        if let Some(data) = offsets(first).find(|offset| has_data(old_first, *offset)) {
            start = start.min(data);
        }
        if let Some(data) = offsets(last).rev().find(|offset| has_data(old_last, *offset)) {
            end = end.max(data + size);
        }
        start..end
    }

    /// Reads what is now in `all` around `range`, but zeroes if the new place `is_zero`. Both sides are read at
    /// once if they are near each other.
    fn co_read_around(
        &self,
        co: &Co<'_>,
        all: &Range<u64>,
        range: &Range<u64>,
        is_zero: bool,
    ) -> io::Result<Around> {
        let needed = |side: Range<u64>| -> io::Result<usize> {
            let bytes = (side.end - side.start) as usize;
            if bytes == 0 || self.rules_omit(Rule::ZeroFill) {
                return Ok(0);
            }
            let on_disk = side.start..side.end.min(self.disk_bytes());
            Ok(if is_zero && self.co_is_zero(co, on_disk)? { 0 } else { bytes })
        };
        let (head, tail) = (needed(all.start..range.start)?, needed(range.end..all.end)?);
        if head > 0 && tail > 0 && range.end - range.start <= MAX_GAP_BYTES {
            let mut bytes = vec![0; (all.end - all.start) as usize];
            // What is between may fail for itself: it is about to be written.
            if self.co_read_old(co, all.start, &mut bytes).is_ok() {
                return Ok(Around { bytes, head, tail });
            }
        }
        let mut bytes = vec![0; head + tail];
        let (at_head, at_tail) = bytes.split_at_mut(head);
        self.co_read_old(co, all.start, at_head)?;
        self.co_read_old(co, range.end, at_tail)?;
        Ok(Around { bytes, head, tail })
    }

    /// Reads what is on the disk now. Behind its end there is nothing.
    fn co_read_old(&self, co: &Co<'_>, start: u64, target: &mut [u8]) -> io::Result<()> {
        let there = self.disk_bytes().saturating_sub(start).min(target.len() as u64) as usize;
        if there == 0 {
            return Ok(());
        }
        self.file.debug_event(DebugEvent::CowRead);
        self.co_read_pieces(co, start, &mut (&mut target[..there]).into())
    }

    /// Whether a range reads as zeroes, by the tables alone.
    pub(crate) fn co_is_zero(&self, co: &Co<'_>, range: Range<u64>) -> io::Result<bool> {
        let mut at = range.start;
        while at < range.end {
            let run = self.co_find(co, at..range.end, Look::Read)?;
            if !self.kind_reads_zero(run.kind) {
                return Ok(false);
            }
            at += run.bytes;
        }
        Ok(true)
    }

    fn kind_reads_zero(&self, kind: SubclusterKind) -> bool {
        match kind {
            SubclusterKind::Zero | SubclusterKind::ZeroStored => true,
            SubclusterKind::Unallocated | SubclusterKind::UnallocatedStored => {
                self.backing.node().is_none()
            }
            SubclusterKind::Data | SubclusterKind::Compressed => false,
        }
    }

    /// Whether all of a cluster reads as zeroes.
    fn reads_zero(&self, entry: L2Entry) -> bool {
        let mut kinds = (0..self.geometry.subclusters()).map(|at| self.rules.kind(entry, at));
        kinds.all(|kind| kind.is_ok_and(|kind| self.kind_reads_zero(kind)))
    }

    /// What becomes of an entry when bytes of its cluster, whole subclusters of it, have data at `place`.
    fn entry_of_data(&self, old: L2Entry, place: u64, written: Range<u64>) -> L2Entry {
        let word = place | COPIED;
        if !self.geometry.is_extended() {
            return L2Entry { word, bitmap: 0 };
        }
        let first = self.geometry.subcluster(written.start);
        let last = self.geometry.subcluster(written.end - 1);
        let bits = (first..=last).fold(0_u64, |bits, at| bits | 1 << at);
        L2Entry { word, bitmap: (old.bitmap | bits) & !(bits << 32) }
    }
}
