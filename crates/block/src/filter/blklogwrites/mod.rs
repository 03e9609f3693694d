//! `blklogwrites`: writes a log of everything that changes a node, in the format of dm-log-writes,
//! so that its state at any moment can be built again: after each flush, by [`ReplayLog`] or by the
//! tools that others have.

mod config;
mod format;
mod log;
mod replay;

use std::io;
use std::sync::Arc;

use coblk_aio::{Co, IoVector, IoVectorMut};

use self::format::RawEntry;
use self::log::Data;
use crate::driver::BlockLimits;
use crate::driver::edge::{EdgeId, EdgeInfo};
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags, ZeroFlags};
use crate::driver::permissions::Permissions;
use crate::driver::role::ChildRole;
use crate::graph::Child;
use crate::graph::filter::Filter;
use crate::graph::node::BlockNode;

pub use self::config::BlkLogWritesOptions;
pub use self::format::EntryFlags;
pub use self::log::WriteLog;
pub use self::replay::{LogEntry, ReplayLog};

/// A filter that passes requests on, and logs those that change something.
///
/// The order of the log tells what a flush covers: a write comes before a flush exactly if it was
/// complete when the flush began. A write is acknowledged when it is in the log; a flush when the
/// log is durable up to it and its superblock counts it. A flush that fails leaves a mark.
///
/// When the log is full, changes fail with ENOSPC, after they were made. When it cannot be written,
/// all later ones fail with the error of the first.
pub struct BlkLogWrites {
    child: Child,
    log: WriteLog,
}

impl BlkLogWrites {
    /// A filter on `child`, with an empty log on the node `log`, which loses what it holds. Its
    /// sectors are the blocks of the coarser of both nodes, of 512 bytes at least.
    ///
    /// # Errors
    /// Those of writing the superblock.
    pub fn create(
        co: &Co<'_>,
        child: Arc<BlockNode>,
        log: Arc<BlockNode>,
    ) -> io::Result<BlkLogWrites> {
        let child = Child::new("file", ChildRole::FILTER, child);
        Self::on(co, child, Child::new("log", ChildRole::METADATA, log), None)
    }

    /// With sectors of so many bytes in the log: a power of two from 512 to 65536.
    fn on(
        co: &Co<'_>,
        child: Child,
        log: Child,
        sector_size: Option<u32>,
    ) -> io::Result<BlkLogWrites> {
        let blocks = [&child, &log].map(|edge| edge.limits().request_alignment);
        let coarser = blocks.into_iter().fold(512, u32::max);
        let log = WriteLog::create(co, log, sector_size.unwrap_or(coarser))?;
        Ok(BlkLogWrites { child, log })
    }

    /// The log, to put marks into.
    pub fn log(&self) -> &WriteLog {
        &self.log
    }
}

fn fua(durable: bool) -> EntryFlags {
    if durable { EntryFlags::FUA } else { EntryFlags::empty() }
}

impl Filter for BlkLogWrites {
    fn name(&self) -> &'static str {
        "blklogwrites"
    }

    fn child(&self) -> &Child {
        &self.child
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.child.id(), self.log.child().id()]
    }

    fn child_permissions(
        &self,
        edge: &EdgeInfo,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        if held.is_empty() || edge.id() != self.log.child().id() {
            return (held, shared);
        }
        // No other user writes the log while it is one.
        let written = Permissions::WRITE | Permissions::RESIZE;
        (Permissions::WRITE, Permissions::all() - written)
    }

    fn limits(&self) -> BlockLimits {
        // The log counts in sectors; the rest is the child's business.
        BlockLimits { request_alignment: self.log.sector_size(), ..BlockLimits::passing_on() }
    }

    /// The log has no entry for it.
    fn truncate(&self, _co: &Co<'_>, _length: u64, _how: Truncate) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOTSUP))
    }

    fn read(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.child.co_preadv_blocks(co, offset, target, flags)
    }

    fn write(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.child.co_pwritev_blocks(co, offset, source, flags)?;
        let range = (offset, source.len() as u64);
        self.log.append(co, range, fua(flags.contains(WriteFlags::FUA)), Data::Bytes(source))
    }

    fn flush(&self, co: &Co<'_>) -> io::Result<()> {
        // Writes that complete from now on come behind: this flush does not cover them.
        let place = self.log.take_place(0)?;
        let entries = place.number() + 1;
        if let Err(error) = self.child.co_flush(co) {
            place.write_mark(co, "flush failed")?;
            return Err(error);
        }
        let entry = RawEntry { flags: EntryFlags::FLUSH, ..RawEntry::default() };
        place.write(co, &entry, Data::None)?;
        self.log.publish(co, entries)
    }

    fn zero(&self, co: &Co<'_>, offset: u64, bytes: u64, flags: ZeroFlags) -> io::Result<()> {
        // The log may have to be written, whatever the child can do.
        if flags.contains(ZeroFlags::NO_FALLBACK) {
            return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
        }
        self.child.co_pwrite_zeroes(co, offset, bytes, flags)?;
        let flags = fua(flags.contains(ZeroFlags::FUA));
        self.log.append(co, (offset, bytes), flags, Data::Zeroes(bytes))
    }

    fn discard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.child.co_pdiscard(co, offset, bytes)?;
        self.log.append(co, (offset, bytes), EntryFlags::DISCARD, Data::None)
    }
}
