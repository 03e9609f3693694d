//! [`Linear`]: a small image format that is right, or wrong in one way: it proves the suites that judge
//! others.
//!
//! ```text
//! sector 0        root: which of two maps is in use, and its sum
//! sectors 1, 2    one map: for each cluster of the disk where it is, or 0
//! sectors 3, 4    the other one
//! from 8 on       clusters
//! ```
//!
//! A flush writes the map that is not in use, then the root; clusters that were given up are free after
//! that, when no request from before is left.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk::aio::sync::{CoMutex, CoMutexGuard, CoRwLock};
use coblk::block::{Child, ChildRole, EdgeId, ReadFlags, Truncate};
use coblk::{BlockDriver, BlockNode, Co, IoVector, IoVectorMut, WriteFlags, ZeroFlags};
use coblk_tests::recorded::SECTOR;

/// Clusters of the disk.
pub const CLUSTERS: usize = 24;
/// Sectors of a cluster.
pub const CLUSTER: usize = 4;
const BYTES: usize = CLUSTER * SECTOR;
const MAP_SECTORS: usize = 2;
const FIRST: usize = 8 * SECTOR;

/// One step that is left out, or comes too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The root is written before the map is durable.
    RootBeforeMap,
    /// A flush is answered before the root is durable.
    NoFlushAtEnd,
    /// The root is in two sectors.
    TornRoot,
    /// What is given up is free before that is durable.
    ReuseAtOnce,
    /// What is given up is free while older requests use it.
    NoGrace,
    /// A cluster is in the map before its data is written.
    LinkBeforeData,
    /// A new cluster has nothing but what is written.
    NoCopy,
    /// A commit forgets what was linked while it ran.
    LostLink,
}

/// All of them.
pub const BUGS: [Bug; 8] = [
    Bug::RootBeforeMap,
    Bug::NoFlushAtEnd,
    Bug::TornRoot,
    Bug::ReuseAtOnce,
    Bug::NoGrace,
    Bug::LinkBeforeData,
    Bug::NoCopy,
    Bug::LostLink,
];

/// The driver.
pub struct Linear {
    file: Child,
    bug: Option<Bug>,
    state: Mutex<State>,
    /// Held by a change of a cluster.
    locks: Vec<CoMutex<()>>,
    /// Shared by requests; alone while clusters become free.
    grace: CoRwLock<()>,
    commits: CoMutex<()>,
}

struct State {
    map: Vec<u32>,
    slot: usize,
    free: Vec<u32>,
    given_up: Vec<u32>,
    next: u32,
    changed: bool,
}

/// An image without data, with or without room for some.
pub fn empty_image(has_room: bool) -> Vec<u8> {
    let mut image = vec![0; if has_room { FIRST + 100 * BYTES } else { FIRST }];
    put_root(&mut image, 0, 0);
    image
}

fn sum(map: &[u32]) -> u32 {
    map.iter().zip(1..).fold(0, |sum, (entry, at)| entry.wrapping_mul(at).wrapping_add(sum))
}

/// The bytes of the root. A torn one has its sum at the end of the sector before map 0.
fn put_root(image: &mut [u8], slot: u32, sum: u32) {
    image[..4].copy_from_slice(&slot.to_le_bytes());
    image[4..8].copy_from_slice(&sum.to_le_bytes());
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"))
}

fn map_at(slot: usize) -> usize {
    (1 + slot * MAP_SECTORS) * SECTOR
}

/// Where an entry is. They are spread over all sectors of the map.
fn entry_at(cluster: usize) -> usize {
    cluster * MAP_SECTORS * SECTOR / CLUSTERS / 4 * 4
}

fn host(entry: u32) -> u64 {
    (FIRST + (entry as usize - 1) * BYTES) as u64
}

/// Slot and map of an image.
///
/// # Errors
/// Says what is wrong.
pub fn parse(image: &[u8], torn: bool) -> Result<(usize, Vec<u32>), String> {
    let slot = word(image) as usize;
    if slot > 1 {
        return Err(format!("map {slot}"));
    }
    let map = &image[map_at(slot)..];
    let map: Vec<u32> = (0..CLUSTERS).map(|at| word(&map[entry_at(at)..])).collect();
    let there = word(&image[if torn { 5 * SECTOR } else { 4 }..]);
    if there != sum(&map) {
        return Err(format!("the sum of map {slot} is {there:#x}"));
    }
    let mut used: Vec<u32> = map.iter().copied().filter(|it| *it > 0).collect();
    used.sort_unstable();
    match used.windows(2).find(|it| it[0] == it[1]) {
        Some(twice) => Err(format!("cluster {} is used twice", twice[0])),
        None => Ok((slot, map)),
    }
}

impl Linear {
    /// Opens an image.
    pub fn open(co: &Co<'_>, file: &Arc<BlockNode>, bug: Option<Bug>) -> Result<Linear, String> {
        let file = Child::new("file", ChildRole::IMAGE, Arc::clone(file));
        let mut head = vec![0; FIRST];
        file.co_preadv(co, 0, &mut IoVectorMut::from(&mut head[..]), ReadFlags::empty())
            .map_err(|error| error.to_string())?;
        let (slot, map) = parse(&head, bug == Some(Bug::TornRoot))?;
        let next = map.iter().max().expect("entries") + 1;
        let free = (1..next).filter(|it| !map.contains(it)).collect();
        let state = State { map, slot, free, given_up: vec![], next, changed: false };
        Ok(Linear {
            file,
            bug,
            state: Mutex::new(state),
            locks: (0..CLUSTERS).map(|_| CoMutex::new(())).collect(),
            grace: CoRwLock::new(()),
            commits: CoMutex::new(()),
        })
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, co: &Co<'_>, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let source = IoVector::from(bytes);
        self.file.co_pwritev_growing(co, offset as u64, &source, WriteFlags::empty())
    }

    fn read_cluster(
        &self,
        co: &Co<'_>,
        entry: u32,
        range: Range<usize>,
        to: &mut [u8],
    ) -> io::Result<()> {
        if entry == 0 {
            to.fill(0);
            return Ok(());
        }
        let offset = host(entry) + range.start as u64;
        self.file.co_preadv(co, offset, &mut IoVectorMut::from(to), ReadFlags::empty())
    }

    fn co_lock<'a>(&'a self, co: &Co<'_>, clusters: Range<usize>) -> Vec<CoMutexGuard<'a, ()>> {
        self.locks[clusters].iter().map(|it| it.lock(co)).collect()
    }

    /// Writes into one cluster, which is locked.
    fn write_cluster(&self, co: &Co<'_>, cluster: usize, at: usize, data: &[u8]) -> io::Result<()> {
        let old = self.state().map[cluster];
        if old != 0 {
            return self.write(co, host(old) as usize + at, data);
        }
        let mut whole = vec![0; BYTES];
        whole[at..at + data.len()].copy_from_slice(data);
        let new = {
            let mut state = self.state();
            state.free.pop().unwrap_or_else(|| {
                state.next += 1;
                state.next - 1
            })
        };
        let link = || {
            let mut state = self.state();
            state.map[cluster] = new;
            state.changed = true;
        };
        if self.has(Bug::LinkBeforeData) {
            link();
        }
        match self.has(Bug::NoCopy) {
            true => self.write(co, host(new) as usize + at, data)?,
            false => self.write(co, host(new) as usize, &whole)?,
        }
        link();
        Ok(())
    }

    /// Makes all that is linked durable.
    fn co_commit(&self, co: &Co<'_>) -> io::Result<()> {
        let _one = self.commits.lock(co);
        let (map, slot, given_up) = {
            let mut state = self.state();
            if !state.changed {
                drop(state);
                return self.file.co_flush(co);
            }
            state.changed = false;
            (state.map.clone(), 1 - state.slot, std::mem::take(&mut state.given_up))
        };
        let result = self.co_write_map(co, &map, slot);
        let mut state = self.state();
        if let Err(error) = result {
            state.changed = true;
            state.given_up.extend(given_up);
            return Err(error);
        }
        state.slot = slot;
        if self.has(Bug::LostLink) {
            state.changed = false;
        }
        drop(state);
        let _alone = (!self.has(Bug::NoGrace)).then(|| self.grace.write(co));
        self.state().free.extend(given_up);
        Ok(())
    }

    fn co_write_map(&self, co: &Co<'_>, map: &[u32], slot: usize) -> io::Result<()> {
        let mut bytes = vec![0; MAP_SECTORS * SECTOR];
        for (cluster, entry) in map.iter().enumerate() {
            bytes[entry_at(cluster)..][..4].copy_from_slice(&entry.to_le_bytes());
        }
        self.write(co, map_at(slot), &bytes)?;
        if !self.has(Bug::RootBeforeMap) {
            self.file.co_flush(co)?;
        }
        let mut root = vec![0; 8];
        put_root(&mut root, slot as u32, sum(map));
        if self.has(Bug::TornRoot) {
            self.write(co, 5 * SECTOR, &root[4..])?;
            root.truncate(4);
        }
        self.write(co, 0, &root)?;
        if self.has(Bug::NoFlushAtEnd) { Ok(()) } else { self.file.co_flush(co) }
    }

    fn co_give_up(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let end = offset + bytes;
        let whole = (offset as usize).div_ceil(BYTES)..end as usize / BYTES;
        if whole.len() * BYTES != bytes as usize {
            return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
        }
        let _locks = self.co_lock(co, whole.clone());
        let mut state = self.state();
        for cluster in whole {
            let entry = std::mem::take(&mut state.map[cluster]);
            if entry != 0 {
                state.changed = true;
                match self.has(Bug::ReuseAtOnce) {
                    true => state.free.push(entry),
                    false => state.given_up.push(entry),
                }
            }
        }
        Ok(())
    }
}

/// Pieces of a request: cluster, offset within it, and where in the request.
fn pieces(offset: u64, bytes: usize) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
    let (start, end) = (offset as usize, offset as usize + bytes);
    (start / BYTES..end.div_ceil(BYTES)).map(move |cluster| {
        let from = start.max(cluster * BYTES);
        let to = end.min((cluster + 1) * BYTES);
        (cluster, from - cluster * BYTES, from - start..to - start)
    })
}

impl BlockDriver for Linear {
    fn format_name(&self) -> &'static str {
        "linear"
    }

    fn length(&self) -> u64 {
        (CLUSTERS * BYTES) as u64
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.file.id()]
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        let mut data = vec![0; target.len()];
        for (cluster, at, range) in pieces(offset, data.len()) {
            let _shared = self.grace.read(co);
            let entry = self.state().map[cluster];
            self.read_cluster(co, entry, at..at + range.len(), &mut data[range])?;
        }
        target.copy_from(0, &data);
        Ok(())
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _flags: WriteFlags,
    ) -> io::Result<()> {
        let mut data = vec![0; source.len()];
        source.copy_to(0, &mut data);
        for (cluster, at, range) in pieces(offset, data.len()) {
            let _lock = self.co_lock(co, cluster..cluster + 1);
            let _shared = self.grace.read(co);
            self.write_cluster(co, cluster, at, &data[range])?;
        }
        Ok(())
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_commit(co)
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        _flags: ZeroFlags,
    ) -> io::Result<()> {
        self.co_give_up(co, offset, bytes)
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.co_give_up(co, offset, bytes)
    }

    fn co_close(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_commit(co)
    }

    fn co_truncate(&self, _co: &Co<'_>, _length: u64, _how: Truncate) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOTSUP))
    }
}
