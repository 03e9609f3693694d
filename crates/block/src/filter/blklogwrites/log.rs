//! [`WriteLog`]: the end of the log, where entries are appended, and its superblock.
//!
//! An entry takes its place under the lock, and is written without it; so several are written at
//! once. The superblock says how many entries there are, and must not count one that is not written
//! yet: it is published up to the first that is still being written, by one request at a time, for
//! all that wait.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::{AioHandle, Co, CoWaker, IoVector};

use super::format::{ENTRY_BYTES, EntryFlags, RawEntry, Superblock};
use crate::driver::flags::{WriteFlags, ZeroFlags};
use crate::graph::Child;

/// A log that is being written. A handle: clones are the same log. Any thread.
#[derive(Clone)]
pub struct WriteLog {
    shared: Arc<Shared>,
}

struct Shared {
    node: Child,
    sector_size: u32,
    state: Mutex<State>,
}

struct State {
    /// Entries that have a place.
    entries: u64,
    /// Where the next one goes.
    next_sector: u64,
    /// Those being written, by number.
    writing: BTreeSet<u64>,
    /// Entries that the superblock counts.
    published: u64,
    publishing: bool,
    /// The errno that ended the log: there is a hole in it.
    broken: Option<i32>,
    /// Wait for any change.
    waiters: Vec<(AioHandle, CoWaker)>,
}

/// The data that follows an entry.
#[derive(Clone, Copy)]
pub(super) enum Data<'a> {
    Bytes(&'a IoVector<'a>),
    Zeroes(u64),
    None,
}

impl Data<'_> {
    fn len(&self) -> u64 {
        match self {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Zeroes(bytes) => *bytes,
            Data::None => 0,
        }
    }
}

/// The place of an entry. Dropped before the entry is written, it breaks the log.
pub(super) struct Place<'a> {
    log: &'a WriteLog,
    number: u64,
    sector: u64,
    written: Result<(), i32>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        state.writing.remove(&self.number);
        state.break_if(self.written);
        state.wake_waiters();
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        self.broken.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn break_if(&mut self, result: Result<(), i32>) {
        if let Err(errno) = result {
            self.broken.get_or_insert(errno);
        }
    }

    fn wake_waiters(&mut self) {
        for (home, waker) in self.waiters.drain(..) {
            home.schedule(move |_| waker.wake());
        }
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

impl WriteLog {
    /// Begins an empty log on `node`.
    pub(super) fn create(co: &Co<'_>, node: Child, sector_size: u32) -> io::Result<WriteLog> {
        let state = State {
            entries: 0,
            next_sector: 1,
            writing: BTreeSet::new(),
            published: 0,
            publishing: false,
            broken: None,
            waiters: Vec::new(),
        };
        let shared = Shared { node, sector_size, state: Mutex::new(state) };
        let log = WriteLog { shared: Arc::new(shared) };
        {
            let _own = log.shared.node.co_begin_own(co);
            log.write_superblock(co, 0)?;
        }
        Ok(log)
    }

    /// The node that holds it.
    pub(super) fn child(&self) -> &Child {
        &self.shared.node
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a sector of the log.
    pub fn sector_size(&self) -> u32 {
        self.shared.sector_size
    }

    /// Entries so far, those being written included.
    pub fn entries(&self) -> u64 {
        self.lock().entries
    }

    /// Puts a mark into the log, behind everything that was acknowledged before.
    ///
    /// # Errors
    /// EINVAL if it is too long: it must fit into a sector with 32 bytes before it. ENOSPC if the
    /// log is full.
    pub fn co_mark(&self, co: &Co<'_>, mark: &str) -> io::Result<()> {
        if mark.len() + ENTRY_BYTES > self.sector_size() as usize {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let _own = self.shared.node.co_begin_own(co);
        self.take_place(0)?.write_mark(co, mark)
    }

    /// Makes all entries durable that were written before, and counts them in the superblock. Each
    /// flush does it too.
    pub fn co_publish(&self, co: &Co<'_>) -> io::Result<()> {
        let _own = self.shared.node.co_begin_own(co);
        let entries = self.entries();
        self.publish(co, entries)
    }

    /// Gives the next place to an entry with so much data.
    ///
    /// # Errors
    /// ENOSPC if it does not fit; the log goes on without it. Otherwise the error that broke the
    /// log.
    pub(super) fn take_place(&self, data_bytes: u64) -> io::Result<Place<'_>> {
        let sector_size = u64::from(self.sector_size());
        let mut state = self.lock();
        state.check()?;
        let sector = state.next_sector;
        let end = sector + 1 + data_bytes / sector_size;
        if end > self.shared.node.length() / sector_size {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let number = state.entries;
        state.next_sector = end;
        state.entries += 1;
        state.writing.insert(number);
        Ok(Place { log: self, number, sector, written: Err(libc::EIO) })
    }

    /// Appends an entry about `bytes` bytes from `offset` on.
    pub(super) fn append(
        &self,
        co: &Co<'_>,
        (offset, bytes): (u64, u64),
        flags: EntryFlags,
        data: Data<'_>,
    ) -> io::Result<()> {
        let sector_size = u64::from(self.sector_size());
        let place = self.take_place(data.len())?;
        let entries = place.number + 1;
        let entry = RawEntry {
            sector: offset / sector_size,
            sectors: bytes / sector_size,
            flags,
            mark_bytes: 0,
        };
        place.write(co, &entry, data)?;
        if flags.contains(EntryFlags::FUA) { self.publish(co, entries) } else { Ok(()) }
    }

    /// Returns when the superblock counts the first `entries` entries, and all that is durable.
    pub(super) fn publish(&self, co: &Co<'_>, entries: u64) -> io::Result<()> {
        loop {
            let mut state = self.lock();
            state.check()?;
            if state.published >= entries {
                return Ok(());
            }
            let whole = state.writing.first().copied().unwrap_or(state.entries);
            if state.publishing || whole < entries {
                // The lock is held until the waker is stored: a change of the state finds it.
                co.suspend_for("the log of writes", |waker| {
                    state.waiters.push((co.context().handle(), waker));
                    drop(state);
                });
                continue;
            }
            state.publishing = true;
            drop(state);
            let mut publishing = Publishing { log: self, result: Err(libc::EIO) };
            let result = self.write_superblock(co, whole);
            publishing.result = result.as_ref().map(|_| whole).map_err(errno);
        }
    }

    fn write_superblock(&self, co: &Co<'_>, entries: u64) -> io::Result<()> {
        let node = &self.shared.node;
        let mut sector = vec![0; self.sector_size() as usize];
        let superblock = Superblock { entries, sector_size: self.sector_size() }.encode();
        sector[..superblock.len()].copy_from_slice(&superblock);
        // The entries first: the superblock must not count what a crash would take away.
        node.co_flush(co)?;
        node.co_pwritev(co, 0, &IoVector::from(&sector[..]), WriteFlags::FUA)
    }
}

/// The superblock is being written.
struct Publishing<'a> {
    log: &'a WriteLog,
    result: Result<u64, i32>,
}

impl Drop for Publishing<'_> {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        state.publishing = false;
        if let Ok(entries) = self.result {
            state.published = entries;
        }
        state.break_if(self.result.map(|_| ()));
        state.wake_waiters();
    }
}

impl Place<'_> {
    /// Which entry it is, from 0.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn write(self, co: &Co<'_>, entry: &RawEntry, data: Data<'_>) -> io::Result<()> {
        self.write_sector(co, entry, &[], data)
    }

    pub(super) fn write_mark(self, co: &Co<'_>, mark: &str) -> io::Result<()> {
        let mark_bytes = mark.len() as u64;
        let entry = RawEntry { flags: EntryFlags::MARK, mark_bytes, ..RawEntry::default() };
        self.write_sector(co, &entry, mark.as_bytes(), Data::None)
    }

    fn write_sector(
        mut self,
        co: &Co<'_>,
        entry: &RawEntry,
        mark: &[u8],
        data: Data<'_>,
    ) -> io::Result<()> {
        let sector_size = self.log.sector_size();
        let mut sector = vec![0; sector_size as usize];
        sector[..ENTRY_BYTES].copy_from_slice(&entry.encode());
        sector[ENTRY_BYTES..ENTRY_BYTES + mark.len()].copy_from_slice(mark);
        let mut vector = IoVector::from(&sector[..]);
        if let Data::Bytes(bytes) = data {
            vector.extend(bytes);
        }
        let node = &self.log.shared.node;
        let offset = self.sector * u64::from(sector_size);
        let mut result = node.co_pwritev(co, offset, &vector, WriteFlags::empty());
        if let (Data::Zeroes(bytes), Ok(())) = (data, &result) {
            let from = offset + u64::from(sector_size);
            result = node.co_pwrite_zeroes(co, from, bytes, ZeroFlags::empty());
        }
        self.written = result.as_ref().map(|_| ()).map_err(errno);
        result
    }
}
