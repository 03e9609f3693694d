//! Version 3 becomes version 2, as `qemu-img amend -o compat=0.10` has it.
//!
//! ```text
//! no more     from here on no entry is made that says zeroes: requests do as in version 2
//! expand      entries that say zeroes get data, or become none where nothing lies below: of the disk, and then of
//!             snapshots, which get new tables for it
//! hold        changes wait, all is durable, and no entry is left that says zeroes
//! header      one switch
//! ```
//!
//! Each step leaves an image of version 3 that reads as before. A node goes on with what both versions know.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use coblk_aio::{Co, IoVector};

use crate::clear::Clear;
use crate::image::Image;
use crate::layout::{
    CompressionType, FormatError, Header, Incompatible, L2Entry, Snapshot, l1_offset,
};
use crate::link::{Change, Obstacle};
use crate::snapshot::Held;
use crate::space::Patience;
use crate::state::State;
use crate::tables;

/// Most bytes of zeroes that are written at once.
const PIECE_BYTES: u64 = 1 << 20;
/// The widest refcounts of version 2, as a logarithm; and the only ones.
const V2_REFCOUNT_ORDER: u32 = 4;

/// Entries that say zeroes are made again, unless the image has become version 2.
struct Without<'a> {
    image: &'a Image,
    is_done: bool,
}

impl Drop for Without<'_> {
    fn drop(&mut self) {
        self.image.is_downgraded.store(self.is_done, Ordering::SeqCst);
    }
}

impl Image {
    /// Whether entries must not say zeroes, as those of version 2 cannot.
    pub(crate) fn is_v2(&self) -> bool {
        self.rules.is_v2 || self.is_downgraded.load(Ordering::SeqCst)
    }

    /// Checks whether an image with this header can be of version 2, but for entries that say zeroes.
    ///
    /// # Errors
    /// What it has that version 2 does not know.
    pub(crate) fn check_downgrade(&self, header: &Header) -> Result<(), FormatError> {
        let refuse = |why: &str| Err(FormatError::unsupported(format!("'compat': {why}")));
        if header.refcount_order != V2_REFCOUNT_ORDER {
            return Err(FormatError::invalid("'compat': version 2 needs refcount_bits=16"));
        }
        if header.incompatible.contains(Incompatible::DATA_FILE) {
            return refuse("an image with a data file cannot become version 2");
        }
        // Whether there are compressed clusters is known later.
        let others = (header.incompatible - Incompatible::COMPRESSION).bits();
        if others != 0 {
            return refuse(&format!("version 2 has no incompatible features, such as {others:#x}"));
        }
        if header.extensions.has_bitmaps() || self.bitmaps.needs_store() {
            return refuse("an image with bitmaps cannot become version 2");
        }
        let is_other = |it: &Snapshot| {
            it.disk_bytes.is_some_and(|bytes| bytes != header.size)
                || it.vm_state_bytes > u64::from(u32::MAX)
        };
        match self.snapshots().iter().any(is_other) {
            true => {
                refuse("a snapshot has another size than the disk, or a state of 4 GiB or more")
            }
            false => Ok(()),
        }
    }

    /// Has the image become version 2. It has been [checked](Self::check_downgrade), and no snapshot or length
    /// changes meanwhile.
    ///
    /// # Errors
    /// ENOTSUP if clusters are compressed by zstd; ECANCELED; those of reading and writing. The image is of version 3
    /// then, and reads as before.
    pub(crate) fn co_downgrade(&self, co: &Co<'_>, progress: &dyn Fn(u64, u64)) -> io::Result<()> {
        let mut without = Without { image: self, is_done: false };
        self.is_downgraded.store(true, Ordering::SeqCst);
        // What is being changed was looked at before that, perhaps.
        let is_zstd = self.compression() == CompressionType::Zstd;
        let (held, has_zstd) = self.co_hold_with(co, is_zstd.then_some(L2Entry::is_compressed))?;
        if has_zstd {
            let why = "'compat': an image with clusters that are compressed by zstd cannot become \
                       version 2";
            return Err(FormatError::unsupported(why).into());
        }
        drop(held);
        let has_backing = self.backing.node().is_some() || self.header().backing.is_some();
        self.co_expand(co, has_backing, progress)?;
        self.co_expand_snapshots(co, has_backing)?;
        let (held, has_zeroes) = self.co_hold_with(co, Some(L2Entry::says_zeroes))?;
        if has_zeroes {
            return Err(io::Error::other("entries that say zeroes are left"));
        }
        self.co_flush_files(co)?;
        self.co_update_header(co, Header::downgrade)?;
        without.is_done = true;
        drop(held);
        Ok(())
    }

    /// Has the mapping stand still. Returns whether the disk, or a snapshot, has such an entry then, if asked for.
    fn co_hold_with(
        &self,
        co: &Co<'_>,
        is_such: Option<fn(L2Entry) -> bool>,
    ) -> io::Result<(Held<'_>, bool)> {
        self.co_interruptible(co, |gives_way| {
            let held = self.co_hold_unmarked(co)?;
            let has = is_such.map(|is_such| self.co_has_entry(co, is_such, gives_way));
            Ok((held, has.transpose()? == Some(true)))
        })
    }

    /// Whether the disk, or a snapshot, has such an entry, as the file has them. Ends with EINTR if it `gives_way` to a
    /// drain.
    fn co_has_entry(
        &self,
        co: &Co<'_>,
        is_such: fn(L2Entry) -> bool,
        gives_way: bool,
    ) -> io::Result<bool> {
        let mut l1: BTreeSet<u64> = (0..self.l1.entries()).map(|it| self.l1.get(it)).collect();
        let snapshots = self.snapshots().clone();
        for snapshot in snapshots {
            let (offset, entries) = (snapshot.l1_offset, u64::from(snapshot.l1_entries));
            l1.extend(tables::co_words(co, &self.file, offset, entries)?);
        }
        let words = self.geometry.cluster_bytes() / 8;
        for entry in l1 {
            if !co.is_wanted() {
                return Err(io::Error::from_raw_os_error(libc::ECANCELED));
            }
            if gives_way {
                self.check_drain()?;
            }
            let Some(table) = l1_offset(entry, self.geometry)
                .map_err(|corruption| self.co_corrupt(co, &corruption))?
            else {
                continue;
            };
            let table = tables::co_words(co, &self.file, table, words)?;
            if table.iter().any(|word| is_such(L2Entry { word: *word, bitmap: 0 })) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Has no entry of the disk say zeroes.
    fn co_expand(
        &self,
        co: &Co<'_>,
        has_backing: bool,
        progress: &dyn Fn(u64, u64),
    ) -> io::Result<()> {
        let cluster = self.geometry.cluster_bytes();
        let end = self.disk_bytes().next_multiple_of(cluster);
        // What lies behind the disk is no part of it.
        let all = self.geometry.l1_start(self.l1.entries()).unwrap_or(u64::MAX) & !(cluster - 1);
        self.co_clear(co, end..all.max(end), Clear::Dropped)?;
        let mut at = 0;
        while at < end {
            if !co.is_wanted() {
                return Err(io::Error::from_raw_os_error(libc::ECANCELED));
            }
            let next = self.geometry.l1_start(self.geometry.l1_index(at) + 1);
            let part = at..next.unwrap_or(u64::MAX).min(end);
            at = part.end;
            if self.l1.get(self.geometry.l1_index(part.start)) == 0 {
                continue;
            }
            self.co_give_way(co);
            match has_backing {
                false => self.co_clear(co, part, Clear::Plain)?,
                true => self.co_write_out(co, part)?,
            }
            progress(at, end);
        }
        Ok(())
    }

    /// Gives data to the entries of a range that say zeroes.
    fn co_write_out(&self, co: &Co<'_>, range: Range<u64>) -> io::Result<()> {
        let zeroes = vec![0; PIECE_BYTES.max(self.geometry.cluster_bytes()) as usize];
        let (mut at, mut patience) = (range.start, Patience::default());
        while at < range.end {
            self.co_give_way(co);
            let most = (at + zeroes.len() as u64).min(self.slice_end(at));
            let part = at..range.end.min(most);
            self.co_have_slice(co, at)?;
            let mut state = self.lock();
            match self.begin_write_out(&mut state, part) {
                Err(obstacle) => self.co_overcome(co, state, obstacle, &mut patience)?,
                Ok((None, part)) => at = part.end,
                Ok((Some(change), part)) => {
                    drop(state);
                    let source = IoVector::from(&zeroes[..(part.end - part.start) as usize]);
                    let end = part.end;
                    if self.co_write_new(co, change, part, &source)? {
                        (at, patience) = (end, Patience::default());
                        self.co_commit_if_wanted(co)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Begins the change of the first entries of a range that say zeroes; there is none if none of them does.
    fn begin_write_out(
        &self,
        state: &mut State,
        range: Range<u64>,
    ) -> Result<(Option<Change<'_>>, Range<u64>), Obstacle> {
        let cluster = self.geometry.cluster_bytes();
        let slot = self.slot_to_change(state, range.start)?;
        let clusters = ((range.end - range.start) / cluster) as usize;
        let entries = self.entries(slot, range.start, clusters);
        let first = entries.iter().position(|entry| entry.says_zeroes());
        let Some(first) = first else { return Ok((None, range)) };
        let others = entries[first..].iter().position(|entry| !entry.says_zeroes());
        let start = range.start + first as u64 * cluster;
        let end = others.map_or(range.end, |count| start + count as u64 * cluster);
        if first > 0 {
            return Ok((None, range.start..start));
        }
        let (change, range) = self.begin_write(state, start..end)?;
        Ok((Some(change), range))
    }
}
