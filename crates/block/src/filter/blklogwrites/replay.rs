//! [`ReplayLog`]: does again what a log says.

use std::io;
use std::sync::Arc;

use coblk_aio::{Co, IoVector, IoVectorMut};

use super::format::{ENTRY_BYTES, EntryFlags, RawEntry, SUPERBLOCK_BYTES, Superblock, invalid};
use crate::driver::flags::{ReadFlags, WriteFlags};
use crate::graph::node::BlockNode;
use crate::io as request_path;

/// Data is copied through a buffer of this many bytes.
const COPY_BYTES: u64 = 1 << 20;

/// Reads a log entry by entry, and applies entries to an image.
///
/// ```
/// # use coblk_aio::Co;
/// # use coblk_block::BlockNode;
/// # use std::sync::Arc;
/// use coblk_block::filters::blklogwrites::{EntryFlags, ReplayLog};
///
/// /// Builds the image as it was after the first flush.
/// fn first_flush(co: &Co<'_>, log: Arc<BlockNode>, image: &BlockNode) -> std::io::Result<()> {
///     let mut log = ReplayLog::open(co, log)?;
///     while let Some(entry) = log.co_next(co)? {
///         log.co_apply(co, &entry, image)?;
///         if entry.flags.contains(EntryFlags::FLUSH) {
///             break;
///         }
///     }
///     Ok(())
/// }
/// ```
pub struct ReplayLog {
    node: Arc<BlockNode>,
    superblock: Superblock,
    /// The number of the next entry, and its sector.
    next: (u64, u64),
}

/// An entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// From 0.
    pub number: u64,
    /// Its kind.
    pub flags: EntryFlags,
    /// Where it changes the image, in bytes.
    pub offset: u64,
    /// How much it changes, in bytes.
    pub bytes: u64,
    /// The text of a mark.
    pub mark: Option<String>,
    /// Where its data is in the log, in bytes.
    data_offset: u64,
}

impl ReplayLog {
    /// Opens the log on `node`.
    ///
    /// # Errors
    /// Of kind `InvalidData` if there is none.
    pub fn open(co: &Co<'_>, node: Arc<BlockNode>) -> io::Result<ReplayLog> {
        let mut sector = vec![0; 512.max(node.limits().request_alignment as usize)];
        read(&node, co, 0, &mut sector)?;
        let bytes = sector.first_chunk::<SUPERBLOCK_BYTES>();
        let superblock = Superblock::decode(bytes.ok_or_else(|| invalid("no superblock"))?)?;
        Ok(ReplayLog { node, superblock, next: (0, 1) })
    }

    /// How many entries it has.
    pub fn entries(&self) -> u64 {
        self.superblock.entries
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// Of kind `InvalidData` if the log ends within it, and those of reading.
    pub fn co_next(&mut self, co: &Co<'_>) -> io::Result<Option<LogEntry>> {
        let (number, sector) = self.next;
        if number >= self.entries() {
            return Ok(None);
        }
        let sector_size = u64::from(self.superblock.sector_size);
        let mut bytes = vec![0; sector_size as usize];
        let offset = sector.checked_mul(sector_size).ok_or_else(|| invalid("too long a log"))?;
        read(&self.node, co, offset, &mut bytes)?;
        let raw = RawEntry::decode(&bytes);
        let in_bytes = |sectors: u64| {
            sectors.checked_mul(sector_size).ok_or_else(|| invalid("an entry of no image"))
        };
        let data_offset = offset + sector_size;
        let end = data_offset.checked_add(in_bytes(raw.data_sectors())?);
        if end.is_none_or(|end| end > self.node.length()) {
            return Err(invalid("the log ends within an entry"));
        }
        self.next = (number + 1, sector + 1 + raw.data_sectors());
        let mark = raw.flags.contains(EntryFlags::MARK).then(|| mark_in(&raw, &bytes));
        Ok(Some(LogEntry {
            number,
            flags: raw.flags,
            offset: in_bytes(raw.sector)?,
            bytes: in_bytes(raw.sectors)?,
            mark,
            data_offset,
        }))
    }

    /// Does again what `entry` says, on `image`. A mark does nothing.
    ///
    /// # Errors
    /// Those of reading the log and of writing the image.
    pub fn co_apply(&self, co: &Co<'_>, entry: &LogEntry, image: &BlockNode) -> io::Result<()> {
        if entry.flags.contains(EntryFlags::DISCARD) {
            let own = image.co_begin_own(co);
            return request_path::co_pdiscard(own.writable()?, co, None, entry.offset, entry.bytes);
        }
        let bytes = self.bytes_in(entry, image);
        let mut done = 0;
        while done < bytes {
            let mut buffer = vec![0; (bytes - done).min(COPY_BYTES) as usize];
            read(&self.node, co, entry.data_offset + done, &mut buffer)?;
            let source = IoVector::from(&buffer[..]);
            let (own, at) = (image.co_begin_own(co), entry.offset + done);
            request_path::co_pwritev(own.writable()?, co, at, &source, WriteFlags::empty())?;
            done += buffer.len() as u64;
        }
        if entry.flags.intersects(EntryFlags::FLUSH | EntryFlags::FUA) {
            let own = image.co_begin_own(co);
            request_path::co_flush(own.path(), co)?;
        }
        Ok(())
    }

    /// How much of an entry is before the end of an image that is not whole sectors of the log.
    fn bytes_in(&self, entry: &LogEntry, image: &BlockNode) -> u64 {
        let sector_size = u64::from(self.superblock.sector_size);
        let length = image.length();
        match entry.offset.checked_add(entry.bytes) {
            Some(end) if end <= length.next_multiple_of(sector_size) => {
                end.min(length) - entry.offset.min(length)
            }
            // It is not of this image.
            _ => entry.bytes,
        }
    }

    /// Applies the next `entries` entries, or those that are left; returns how many.
    ///
    /// # Errors
    /// Those of [`co_next`](Self::co_next) and [`co_apply`](Self::co_apply).
    pub fn co_apply_next(
        &mut self,
        co: &Co<'_>,
        entries: u64,
        image: &BlockNode,
    ) -> io::Result<u64> {
        for done in 0..entries {
            let Some(entry) = self.co_next(co)? else { return Ok(done) };
            self.co_apply(co, &entry, image)?;
        }
        Ok(entries)
    }
}

/// No coroutine waits at one gate while it is counted at another: each request by itself.
fn read(node: &BlockNode, co: &Co<'_>, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let own = node.co_begin_own(co);
    let target = &mut IoVectorMut::from(buffer);
    request_path::co_preadv(own.path(), co, offset, target, ReadFlags::empty())
}

fn mark_in(raw: &RawEntry, sector: &[u8]) -> String {
    let rest = &sector[ENTRY_BYTES..];
    let len = usize::try_from(raw.mark_bytes).unwrap_or(usize::MAX).min(rest.len());
    String::from_utf8_lossy(&rest[..len]).into_owned()
}
