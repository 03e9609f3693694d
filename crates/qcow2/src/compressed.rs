//! Compressed writes: whole clusters, packed behind one another.
//!
//! Data goes behind that of the compressed cluster before it, over the border to the next cluster of the file if
//! that is free; else it begins a new one. Each cluster that it touches counts once more. As soon as an entry gives
//! up a cluster that is being filled, nothing more is put there: it may be free, and another's, by the next commit.

use std::io;
use std::ops::Range;

use coblk_aio::{Co, IoVector};
use coblk_block::{DebugEvent, WriteFlags};

use crate::image::Image;
use crate::layout::{CompressedCluster, CompressionType, FormatError, L2Entry, deflate};
use crate::link::{Change, Obstacle};
use crate::live::Freed;
use crate::refcount::{Need, Refcounts};
use crate::space::Patience;
use crate::state::{Packer, State};

/// What a compressed write needs to begin.
type Begun<'a> = (Change<'a>, u64);

impl Image {
    /// Writes whole clusters, or up to the end of the disk, compressed. What cannot be made smaller is written
    /// as it is.
    ///
    /// # Errors
    /// EINVAL for other ranges; ENOTSUP if data is in a file of its own, or encrypted; else as of writes.
    pub(crate) fn co_write_compressed(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
    ) -> io::Result<()> {
        let cluster = self.geometry.cluster_bytes();
        let end = offset + source.len() as u64;
        if self.data_file.is_some() || self.encryption.is_some() {
            return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
        }
        let is_whole = self.geometry.is_aligned(end) || end == self.disk_bytes();
        if !self.geometry.is_aligned(offset) || !is_whole {
            let why = "compressed writes are of whole clusters";
            return Err(FormatError::invalid(why).into());
        }
        let mut at = offset;
        while at < end {
            let bytes = cluster.min(end - at) as usize;
            let mut content = vec![0; cluster as usize];
            source.copy_to((at - offset) as usize, &mut content[..bytes]);
            let is_packed = match self.new_compression() {
                Some(kind) => self.co_pack(co, at, kind, &content)?,
                None => false,
            };
            if !is_packed {
                let plain = source.slice((at - offset) as usize, bytes);
                self.co_write(co, at, &plain)?;
            }
            at += bytes as u64;
        }
        Ok(())
    }

    /// Writes a cluster compressed. False if it cannot be made smaller.
    fn co_pack(
        &self,
        co: &Co<'_>,
        guest: u64,
        kind: CompressionType,
        content: &[u8],
    ) -> io::Result<bool> {
        let mut packed = vec![0; content.len() - 1];
        let size = self.workers.submit_co(co, || deflate(kind, content, &mut packed));
        size.map_or(Ok(false), |size| self.co_write_packed(co, guest, kind, &packed[..size]))
    }

    /// Writes the data of one compressed cluster, and links it. False if clusters are not compressed in that way any
    /// more.
    fn co_write_packed(
        &self,
        co: &Co<'_>,
        guest: u64,
        kind: CompressionType,
        packed: &[u8],
    ) -> io::Result<bool> {
        let mut patience = Patience::default();
        loop {
            self.co_have_slice(co, guest)?;
            let mut state = self.lock();
            if self.new_compression() != Some(kind) {
                return Ok(false);
            }
            let (change, host) = match self.begin_packed(&mut state, guest, packed.len() as u64) {
                Err(obstacle) => {
                    self.co_overcome(co, state, obstacle, &mut patience)?;
                    continue;
                }
                Ok(begun) => begun,
            };
            drop(state);
            let taken = change.taken.clone();
            match self.co_put_packed(co, change, host, packed) {
                Err(error) => self.co_refused(co, taken, error, &mut patience)?,
                Ok(true) => return self.co_commit_if_wanted(co).map(|()| true),
                Ok(false) => {}
            }
        }
    }

    /// Writes compressed data to its place, and links it. False if the entry has changed meanwhile.
    fn co_put_packed(
        &self,
        co: &Co<'_>,
        change: Change<'_>,
        host: u64,
        packed: &[u8],
    ) -> io::Result<bool> {
        let place = CompressedCluster { offset: host, bytes: packed.len() as u64 };
        let too_big = || FormatError::too_big("compressed data would lie too far behind");
        let word = place.encode(self.geometry).ok_or_else(too_big)?;
        self.file.debug_event(DebugEvent::WriteCompressed);
        self.co_grow_file(co, host + packed.len() as u64)?;
        self.file.co_pwritev(co, host, &IoVector::from(packed), WriteFlags::empty())?;
        let new = |_: usize, _: L2Entry| L2Entry { word, bitmap: 0 };
        Ok(change.link(new, Freed::Never, true))
    }

    /// Begins the change of one entry, and has a place for `bytes` bytes of data.
    fn begin_packed(
        &self,
        state: &mut State,
        guest: u64,
        bytes: u64,
    ) -> Result<Begun<'_>, Obstacle> {
        let cluster = self.geometry.cluster_bytes();
        let slot = self.slot_to_change(state, guest)?;
        let range = guest..guest + cluster;
        if let Some(other) = state.locks.conflict(&range) {
            return Err(Obstacle::Locked(other));
        }
        let old = self.entries(slot, guest, 1);
        for entry in &old {
            self.rules.check(*entry, guest)?;
        }
        state.owed.check_promise(slot).map_err(Obstacle::Full)?;
        let (taken, host) = self.take_packed(state, bytes)?;
        Ok((self.begin_change(state, slot, range, old, Some(taken)), host))
    }

    /// Takes a place for compressed data: the clusters of the file that it touches, which count once more, and the
    /// offset.
    fn take_packed(&self, state: &mut State, bytes: u64) -> Result<(Range<u64>, u64), Obstacle> {
        let cluster = self.geometry.cluster_bytes();
        let Some(refcounts) = &mut state.refcounts else { return Err(Obstacle::Look) };
        let mut goal = None;
        if let Some(packer) = state.packer.filter(|packer| packer.used < cluster) {
            let (first, host) = (packer.cluster, packer.cluster + packer.used);
            let current = first..first + cluster;
            match refcounts.add_reference(current.clone()) {
                Ok(()) if packer.used + bytes <= cluster => {
                    state.packer = Some(Packer { used: packer.used + bytes, ..packer });
                    return Ok((current, host));
                }
                // It goes on in the next cluster, if that is free.
                Ok(()) => match self.take_next(refcounts, Some(current.end)) {
                    Ok(next) if next.start == current.end => {
                        let used = packer.used + bytes - cluster;
                        state.packer = Some(Packer { cluster: next.start, used });
                        return Ok((first..next.end, host));
                    }
                    other => {
                        refcounts.give_back(current);
                        let next = other?;
                        state.packer = Some(Packer { cluster: next.start, used: bytes });
                        return Ok((next.clone(), next.start));
                    }
                },
                // It takes no more.
                Err(Need::Overflow) => goal = Some(current.end),
                Err(need) => return Err(need.into()),
            }
        }
        let range = self.take_next(refcounts, goal)?;
        state.packer = Some(Packer { cluster: range.start, used: bytes });
        Ok((range.clone(), range.start))
    }

    /// Takes a cluster for compressed data, at `goal` if that is free.
    fn take_next(&self, refcounts: &mut Refcounts, goal: Option<u64>) -> Result<Range<u64>, Need> {
        self.file.debug_event(DebugEvent::ClusterAllocBytes);
        let range = refcounts.allocate(1, goal)?;
        self.inflated.forget(range.clone());
        Ok(range)
    }
}
