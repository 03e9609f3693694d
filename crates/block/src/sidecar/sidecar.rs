//! [`Sidecar`]: the bitmaps of a node, and the file that has them.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coblk_aio::sync::CoMutex;
use coblk_aio::{Co, CoWaker, PoolShare};

use super::format::{
    Contents, JournalPlace, MAX_BODY_BYTES, REGION_SHIFT, State, Stored, stored_bytes,
};
use super::in_flight::{Half, InFlight};
use super::store::Store;
use crate::bitmap::{Bitmaps, DirtyBitmap, DirtyBits, NewBitmap};
use crate::driver::stamp::StorageStamp;

/// How long regions stay in the journal, at least, that are not written any more.
const REST: Duration = Duration::from_secs(60);

/// The bitmaps of a node, and the file that has them. Any thread.
pub(super) struct Sidecar {
    store: Box<dyn Store>,
    pub(super) set: Arc<Bitmaps>,
    /// There are bitmaps in the file, so writes are entered.
    is_on: AtomicBool,
    /// Regions in which writes may begin: they are in the journal, durably, and in that of the next file.
    entered: DirtyBits,
    in_flight: InFlight,
    journal: CoMutex<Journal>,
    /// One at a time lets regions go.
    checkpoints: CoMutex<()>,
    /// A coroutine waits until regions may go.
    is_resting: AtomicBool,
}

/// What the file has besides bits. It is held while the file changes.
#[derive(Default)]
struct Journal {
    place: JournalPlace,
    /// Those that are in the file.
    regions: BTreeSet<u64>,
    /// How many entries there are.
    entries: u64,
    /// Regions that do not go before the file is stored clean.
    pinned: BTreeSet<u64>,
    /// While a checkpoint is made: what the next file has to have.
    next: Option<BTreeSet<u64>>,
    /// The file may not be what it is to be: another one is needed before anything relies on it.
    is_broken: bool,
    /// The file has bits that are not those in memory, or a journal.
    is_stale: bool,
    /// The storage of the disk when it was opened, or closed last.
    stamp: Option<StorageStamp>,
}

/// A write that is under way. When it ends its range is marked, however it ends.
#[must_use = "it is under way while this lives"]
pub(super) struct Writing<'a> {
    sidecar: &'a Sidecar,
    half: Half,
    range: Range<u64>,
}

impl Writing<'_> {
    /// Nothing was written, or bitmaps follow in another way.
    pub(super) fn mark_nothing(&mut self) {
        self.range = 0..0;
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.range.is_empty() {
            self.sidecar.set.mark(&self.range);
        }
        self.sidecar.in_flight.end(self.half).into_iter().for_each(CoWaker::wake);
    }
}

fn regions(range: &Range<u64>) -> Range<u64> {
    range.start >> REGION_SHIFT..((range.end - 1) >> REGION_SHIFT) + 1
}

impl Sidecar {
    pub(super) fn new(store: Box<dyn Store>) -> io::Result<Sidecar> {
        Ok(Sidecar {
            store,
            set: Bitmaps::new(),
            is_on: AtomicBool::new(false),
            entered: DirtyBits::new(0, 1 << REGION_SHIFT)?,
            in_flight: InFlight::default(),
            journal: CoMutex::new(Journal::default()),
            checkpoints: CoMutex::new(()),
            is_resting: AtomicBool::new(false),
        })
    }

    /// Reads the file into an empty list, for a disk of `length` bytes whose storage has this stamp.
    ///
    /// # Errors
    /// If the file cannot be read, or is corrupt; without memory.
    pub(super) fn co_load(
        &self,
        co: &Co<'_>,
        length: u64,
        stamp: Option<StorageStamp>,
        read_only: bool,
    ) -> io::Result<()> {
        let mut journal = self.journal.lock(co);
        *journal = Journal { stamp, ..Journal::default() };
        let read = PoolShare::once(co, || {
            let Some(bytes) = self.store.read()? else { return Ok(None) };
            Contents::decode(&bytes).map(Some).map_err(io::Error::other)
        });
        let Some((contents, place)) = read? else { return Ok(()) };
        let is_foreign = contents.is_of_another(length, stamp);
        // The oldest comes first.
        for stored in &contents.bitmaps {
            let bitmap = self.add(stored, length)?;
            bitmap.set_read_only(read_only);
            match &contents.state {
                _ if is_foreign || stored.is_inconsistent => bitmap.set_inconsistent(),
                state if stored.is_recording => mark_written(&bitmap, stored, state, length),
                _ => {}
            }
        }
        journal.place = place;
        if let State::Written(regions) = contents.state {
            journal.entries = regions.len() as u64;
            regions.iter().for_each(|region| self.enter(&(*region..region + 1)));
            journal.regions = regions;
            journal.is_stale = true;
        } else if contents.state == State::Torn {
            (journal.is_broken, journal.is_stale) = (true, true);
        }
        self.is_on.store(!contents.bitmaps.is_empty(), Ordering::SeqCst);
        Ok(())
    }

    fn add(&self, stored: &Stored, length: u64) -> io::Result<Arc<DirtyBitmap>> {
        let mut new = NewBitmap::new(stored.name.clone(), stored.granularity);
        (new.is_recording, new.is_persistent) = (stored.is_recording, true);
        let bitmap = self.set.add(new, length).map_err(io::Error::other)?;
        for (place, word) in (0..).zip(&stored.words) {
            bitmap.bits().set_word(place, *word);
        }
        Ok(bitmap)
    }

    /// Regions may be written from now on.
    fn enter(&self, regions: &Range<u64>) {
        self.entered.mark(regions.start << REGION_SHIFT..regions.end << REGION_SHIFT);
    }

    /// Before a write: enters its regions. The write waits until that is durable.
    ///
    /// # Errors
    /// Those of the file. Nothing may be written then.
    pub(super) fn co_begin(
        self: &Arc<Self>,
        co: &Co<'_>,
        range: Range<u64>,
    ) -> io::Result<Writing<'_>> {
        // Counted first: a checkpoint forgets regions first, and waits then.
        let half = self.in_flight.begin();
        let mut writing = Writing { sidecar: self, half, range: 0..0 };
        if self.is_on.load(Ordering::SeqCst) && !range.is_empty() && !self.is_entered(&range) {
            self.co_enter(co, &range, false)?;
        }
        writing.range = range;
        Ok(writing)
    }

    /// [`co_begin`](Self::co_begin), before a change of length: the regions of the range stay entered.
    pub(super) fn co_begin_resize(
        self: &Arc<Self>,
        co: &Co<'_>,
        range: Range<u64>,
    ) -> io::Result<Writing<'_>> {
        let half = self.in_flight.begin();
        let writing = Writing { sidecar: self, half, range: 0..0 };
        if self.is_on.load(Ordering::SeqCst) && !range.is_empty() {
            self.co_enter(co, &range, true)?;
        }
        Ok(writing)
    }

    fn is_entered(&self, range: &Range<u64>) -> bool {
        range.end <= self.entered.length() && self.entered.next_clean(range.clone()).is_none()
    }

    #[cold]
    #[inline(never)]
    fn co_enter(self: &Arc<Self>, co: &Co<'_>, range: &Range<u64>, pins: bool) -> io::Result<()> {
        let regions = regions(range);
        let mut journal = self.journal.lock(co);
        let missing = regions.clone().filter(|region| !journal.regions.contains(region));
        let missing: Vec<u64> = missing.collect();
        let has_room = journal.entries + missing.len() as u64 <= journal.place.capacity;
        journal.is_stale = true;
        if journal.is_broken || !has_room {
            let mut all = journal.regions.clone();
            all.extend(&missing);
            self.co_replace(co, &mut journal, State::Written(all), None)?;
        } else if !missing.is_empty() {
            self.co_append(co, &mut journal, &missing)?;
        }
        if pins {
            journal.pinned.extend(regions.clone());
        }
        if let Some(next) = &mut journal.next {
            next.extend(regions.clone());
        }
        self.enter(&regions);
        self.rest_later(co);
        Ok(())
    }

    fn co_append(&self, co: &Co<'_>, journal: &mut Journal, missing: &[u64]) -> io::Result<()> {
        let (offset, mut bytes) = (journal.place.entry(journal.entries, 0).0, Vec::new());
        for (index, region) in (journal.entries..).zip(missing) {
            bytes.extend(journal.place.entry(index, *region).1);
        }
        // What is there after an error is not known, and another sync would not tell.
        PoolShare::once(co, || self.store.append(offset, &bytes))
            .inspect_err(|_| journal.is_broken = true)?;
        journal.entries += missing.len() as u64;
        journal.regions.extend(missing);
        Ok(())
    }

    /// Puts another file in place, with the bits of now. They have all writes that have ended; `state` is to have
    /// the regions of those that are under way.
    fn co_replace(
        &self,
        co: &Co<'_>,
        journal: &mut Journal,
        state: State,
        without: Option<&str>,
    ) -> io::Result<()> {
        let regions = match &state {
            State::Written(regions) => regions.clone(),
            State::Clean | State::Torn => BTreeSet::new(),
        };
        let (is_clean, stamp) = (state == State::Clean, journal.stamp);
        let bitmaps = self.persistent(without);
        let (is_on, generation) = (!bitmaps.is_empty(), fastrand::u64(..));
        let replaced = PoolShare::once(co, || {
            let bitmaps: Vec<_> = bitmaps.iter().map(|bitmap| stored(bitmap)).collect();
            let length = bitmaps.iter().map(|it| it.length).max().unwrap_or(0);
            let (bytes, place) = Contents { length, generation, bitmaps, state, stamp }.encode();
            self.store.replace(&bytes).map(|()| place)
        });
        match replaced {
            Ok(place) => {
                journal.place = place;
                journal.entries = regions.len() as u64;
                journal.regions = regions;
                (journal.is_broken, journal.is_stale) = (false, !is_clean);
                self.is_on.store(is_on, Ordering::SeqCst);
                Ok(())
            }
            Err(failed) => {
                journal.is_broken |= failed.may_be_replaced;
                Err(failed.error)
            }
        }
    }

    /// Has the file tell of the bitmaps as they are now, but for one.
    ///
    /// # Errors
    /// Those of the file, which is as before then.
    pub(super) fn co_note(&self, co: &Co<'_>, without: Option<&str>) -> io::Result<()> {
        let mut journal = self.journal.lock(co);
        let regions = journal.regions.clone();
        self.co_replace(co, &mut journal, State::Written(regions), without)
    }

    /// Stores the bitmaps of a disk that is not written any more, and whose storage has this stamp.
    ///
    /// # Errors
    /// Those of the file, which is as before then.
    pub(super) fn co_store(&self, co: &Co<'_>, stamp: Option<StorageStamp>) -> io::Result<()> {
        let _one = self.checkpoints.lock(co);
        let mut journal = self.journal.lock(co);
        if !self.is_on.load(Ordering::SeqCst) {
            return Ok(());
        }
        // Writes that come after all, as the node stays open, are entered anew.
        self.entered.clear_all();
        journal.stamp = stamp;
        self.co_replace(co, &mut journal, State::Clean, None)?;
        journal.pinned.clear();
        Ok(())
    }

    /// Whether the file has a journal, or other bits than memory.
    pub(super) fn co_is_stale(&self, co: &Co<'_>) -> bool {
        self.journal.lock(co).is_stale
    }

    /// Lets regions go that are not written any more.
    pub(super) fn co_checkpoint(&self, co: &Co<'_>) -> io::Result<()> {
        let _one = self.checkpoints.lock(co);
        {
            let mut journal = self.journal.lock(co);
            if journal.regions.is_empty() || !self.is_on.load(Ordering::SeqCst) {
                return Ok(());
            }
            journal.next = Some(journal.pinned.clone());
            self.entered.clear_all();
        }
        // Those that have found their regions entered before.
        self.in_flight.co_wait(co);
        let mut journal = self.journal.lock(co);
        let next = journal.next.take().unwrap_or_default();
        self.co_replace(co, &mut journal, State::Written(next), None)
    }

    /// Has a coroutine of this context let regions go after a while, unless there is one. The journal is held.
    fn rest_later(self: &Arc<Self>, co: &Co<'_>) {
        if self.is_resting.swap(true, Ordering::SeqCst) {
            return;
        }
        let resting = Resting(Arc::downgrade(self));
        co.context().spawn("bitmaps rest", move |co| {
            loop {
                co.sleep(REST);
                let Some(sidecar) = resting.0.upgrade() else { return };
                if let Err(error) = sidecar.co_checkpoint(co) {
                    tracing::warn!(%error, "bitmaps beside an image stay as they were stored");
                }
                // Held until there may be another coroutine.
                let journal = sidecar.journal.lock(co);
                if journal.regions.is_empty() {
                    drop(resting);
                    return;
                }
            }
        });
    }

    /// Those that are to be in the file, the oldest first.
    fn persistent(&self, without: Option<&str>) -> Vec<Arc<DirtyBitmap>> {
        let mut list = self.set.list();
        list.retain(|it| it.is_persistent() && !without.is_some_and(|name| it.is_named(name)));
        list.reverse();
        list
    }

    /// That one more bitmap fits.
    ///
    /// # Errors
    /// With a text.
    pub(super) fn check_new(&self, name: &str, granularity: u64, length: u64) -> io::Result<()> {
        let bytes = |it: &Arc<DirtyBitmap>| {
            stored_bytes(&it.name().unwrap_or_default(), length, it.bits().granularity())
        };
        let all: u64 = self.persistent(None).iter().map(bytes).sum();
        match all.saturating_add(stored_bytes(name, length, granularity)) > MAX_BODY_BYTES {
            true => Err(io::Error::other("the file would be too large; use a larger granularity")),
            false => Ok(()),
        }
    }

    /// Forgets the bitmaps that the file has, and lets others have it.
    pub(super) fn co_forget(&self, co: &Co<'_>) {
        let mut journal = self.journal.lock(co);
        *journal = Journal::default();
        self.is_on.store(false, Ordering::SeqCst);
        self.entered.clear_all();
        self.persistent(None).iter().for_each(|bitmap| self.set.remove(bitmap));
        PoolShare::once(co, || self.store.give_back());
    }
}

/// Marks what may have been written since a file was stored.
fn mark_written(bitmap: &DirtyBitmap, stored: &Stored, state: &State, length: u64) {
    let mark = |range: Range<u64>| bitmap.bits().mark(range.start..range.end.min(length));
    match state {
        State::Clean => return,
        State::Torn => mark(0..length),
        State::Written(regions) => {
            for region in regions.iter().filter(|it| **it < length.div_ceil(1 << REGION_SHIFT)) {
                mark(region << REGION_SHIFT..(region + 1) << REGION_SHIFT);
            }
        }
    }
    // The disk has become longer.
    if stored.length < length {
        mark(stored.length..length);
    }
}

/// A bitmap as it is stored, with what a successor has recorded.
fn stored(bitmap: &DirtyBitmap) -> Stored {
    let bits = bitmap.bits();
    let (length, words) = (bits.length(), bits.granules().div_ceil(64).max(1));
    let successor = bitmap.successor();
    let word = |place| bits.word(place) | successor.as_ref().map_or(0, |it| it.bits().word(place));
    Stored {
        name: bitmap.name().unwrap_or_default(),
        is_recording: bitmap.is_recording(),
        is_inconsistent: bitmap.is_inconsistent(),
        granularity: bits.granularity(),
        length,
        words: (0..words).map(word).collect(),
    }
}

/// A coroutine that waits until regions may go. However it ends, there may be another one.
struct Resting(std::sync::Weak<Sidecar>);

impl Drop for Resting {
    fn drop(&mut self) {
        if let Some(sidecar) = self.0.upgrade() {
            sidecar.is_resting.store(false, Ordering::SeqCst);
        }
    }
}
