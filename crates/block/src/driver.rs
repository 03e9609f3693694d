//! The seam between the block layer and what stands below a node: [`BlockDriver`].

use std::any::Any;
use std::io;

use coblk_aio::{Co, IoVector, IoVectorMut};

use crate::drivers::Engine;
use crate::flags::{WriteFlags, ZeroFlags};
use crate::graph::Child;
use crate::io::{BlockStatus, BlockStatusKind};
use crate::node_info::CacheMode;
use crate::permissions::{PermissionError, Permissions};

/// What a driver can take in one request. The request path makes every request fit.
///
/// Alignments are powers of two, and lengths at least as long as one aligned unit. A driver that
/// stands on another node and passes requests on asks for no alignment: that node pads them, and
/// knows where its last block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLimits {
    /// Offsets and lengths of reads and writes, also those of the ranges in a vector, are multiples
    /// of this many bytes, "blocks".
    pub request_alignment: u32,
    /// Memory addresses are multiples of this many bytes.
    pub memory_alignment: u32,
    /// Longest read or write in bytes.
    pub max_transfer: u64,
    /// Most ranges in one vector.
    pub max_iov: usize,
    /// Longest write-zeroes in bytes.
    pub max_pwrite_zeroes: u64,
    /// Offsets and lengths of write-zeroes are multiples of this many bytes, and of
    /// `request_alignment`.
    pub pwrite_zeroes_alignment: u32,
    /// Longest discard in bytes.
    pub max_pdiscard: u64,
    /// Offsets and lengths of discards are multiples of this many bytes, and of
    /// `request_alignment`.
    pub pdiscard_alignment: u32,
    /// The driver makes a single write durable for less than a flush costs, and gets
    /// [`WriteFlags::FUA`] and [`ZeroFlags::FUA`]. Without this it never sees them: a flush follows
    /// the write, and requests that come together share it.
    pub native_fua: bool,
}

impl Default for BlockLimits {
    /// No alignment, as much as a Linux system call transfers, and IOV_MAX ranges.
    fn default() -> BlockLimits {
        BlockLimits {
            request_alignment: 1,
            memory_alignment: 1,
            // 2 GiB less a page is where the kernel stops; stay aligned below it.
            max_transfer: 1 << 30,
            max_iov: coblk_aio::sys::IOV_MAX,
            max_pwrite_zeroes: u64::MAX,
            pwrite_zeroes_alignment: 1,
            max_pdiscard: u64::MAX,
            pdiscard_alignment: 1,
            native_fua: false,
        }
    }
}

impl BlockLimits {
    /// # Panics
    /// If they contradict themselves: that is a bug of the driver.
    pub(crate) fn check(&self, driver: &str) {
        let block = self.request_alignment;
        let longest = [
            (block, self.max_transfer),
            (block.max(self.pwrite_zeroes_alignment), self.max_pwrite_zeroes),
            (block.max(self.pdiscard_alignment), self.max_pdiscard),
        ];
        let fit = longest.iter().all(|(unit, most)| {
            unit.is_power_of_two() && block.is_power_of_two() && *most >= u64::from(*unit)
        });
        assert!(
            fit && self.memory_alignment.is_power_of_two() && self.max_iov > 0,
            "driver '{driver}' has impossible limits: {self:?}"
        );
    }
}

/// A block driver: reads and writes bytes at offsets.
///
/// All methods with a `co` run in a coroutine, on the home thread of the context that the request
/// came from; several contexts may call at once, so per-request state stays in the coroutine and
/// shared state behind atomics or locks (design decision D9). They may suspend. They must not hold
/// a lock guard, a `RefCell` borrow or a thread-local borrow across a call that takes `co`.
///
/// The request path above has checked range and permissions: `offset + length` is within
/// [`length`](Self::length), and nothing is written to a node that is read-only. It has cut and
/// padded the request to [`limits`](Self::limits). If the length is not whole blocks, a request may
/// reach to the end of the last block: what is read there is zero, and a write there puts zeroes.
///
/// What a write has done, a flush that is called after the write has returned, in any thread,
/// makes durable. Whoever writes with system calls, or keeps its state behind a lock, has that.
///
/// A filter passes on what it does not do itself: it says to [which node](Self::filtered), and
/// writes down only what it does otherwise.
///
/// Errors carry the OS errno.
pub trait BlockDriver: Any + Send + Sync {
    /// The driver's name in options and messages, such as `file`.
    fn format_name(&self) -> &'static str;

    /// Length in bytes.
    fn length(&self) -> u64;

    /// The node that a filter passes requests on to: all those below that have a default.
    fn filtered(&self) -> Option<&Child> {
        None
    }

    /// Whether writes are refused. As on the filtered node by default, or not.
    fn is_read_only(&self) -> bool {
        self.filtered().is_some_and(Child::is_read_only)
    }

    /// What it can take in one request. Asked when the node is made. By default anything; a
    /// filter's child pads and cuts, and gets durable writes as they are.
    fn limits(&self) -> BlockLimits {
        BlockLimits { native_fua: self.filtered().is_some(), ..BlockLimits::default() }
    }

    /// Fills all of `target` from `offset` on.
    fn co_preadv(&self, co: &Co<'_>, offset: u64, target: &mut IoVectorMut<'_>) -> io::Result<()>;

    /// Writes all of `source` at `offset`. With [`WriteFlags::FUA`], which it gets only if its
    /// limits ask for it, the data is durable on success.
    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()>;

    /// Makes everything durable that was written, and completed, before. Called once at a time
    /// (contract: C79).
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()>;

    /// Makes a range read as zeroes by other means than writing them, or fails with ENOTSUP and
    /// has changed nothing. [`ZeroFlags::NO_FALLBACK`] is for drivers that pass the request on.
    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        or_enotsup(self.filtered())?.co_pwrite_zeroes(co, offset, bytes, flags)
    }

    /// Gives a range back to whoever stores it; what it reads as afterwards is unspecified. May fail
    /// with ENOTSUP, which the client does not see: discard is a hint.
    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        or_enotsup(self.filtered())?.co_pdiscard(co, offset, bytes)
    }

    /// What is known of the bytes from `offset` on, without reading them: how many of them, from 1 to
    /// `bytes`, are of one kind. By default all may be data. Offset and length need not be aligned.
    fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<BlockStatus> {
        match self.filtered() {
            Some(child) => child.co_block_status(co, offset, bytes),
            None => Ok(BlockStatus { kind: BlockStatusKind::Data, bytes }),
        }
    }

    /// Cuts the device, or makes it longer by zeroes, to `length` bytes, and reports that from then
    /// on. Called once at a time. May fail with ENOTSUP.
    fn co_truncate(&self, co: &Co<'_>, length: u64) -> io::Result<()> {
        or_enotsup(self.filtered())?.co_truncate(co, length)
    }

    /// Looks how long the storage is now, if it may change by itself; returns the length in bytes
    /// that it reports from then on.
    fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        match self.filtered() {
            Some(child) => child.co_refresh_length(co),
            None => Ok(self.length()),
        }
    }

    /// How many bytes are taken where it stores things, if it can tell.
    fn co_allocated_bytes(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        self.filtered().map_or(Ok(None), |child| child.node().co_allocated_bytes(co))
    }

    /// The nodes it stands on: every [`Child`] that it holds, always the same ones.
    fn children(&self) -> Vec<&Child> {
        Vec::from_iter(self.filtered())
    }

    /// Where its bytes are, if that can be said in a word, as a path can.
    fn filename(&self) -> Option<String> {
        None
    }

    /// How it treats caches, if it has to do with any.
    fn cache_mode(&self) -> CacheMode {
        CacheMode::default()
    }

    /// What does its I/O, if it has a choice.
    fn engine(&self) -> Option<Engine> {
        None
    }

    /// What it holds of a node it stands on, and what it lets others hold of that, while the users
    /// of its own node together hold `held` and share `shared`. Passed on by default.
    fn child_permissions(
        &self,
        _child: &Child,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        (held, shared)
    }

    /// [`set_permissions`](Self::set_permissions) will be called, but first other nodes give up what
    /// they have, perhaps of the same storage. A driver that agrees with others by locks takes its
    /// own here, and looks at those of others then: so nobody can come in between.
    fn reserve_permissions(&self, _held: Permissions, _shared: Permissions) {}

    /// What all users of the node together hold is about to become `held`, and what every one of
    /// them shares `shared`. A driver that has to agree with others on that, as on the locks of a
    /// file, does it here, and on an error changes nothing. Called once at a time, without the lock of the
    /// graph: it may block for as long as a file system takes.
    fn set_permissions(
        &self,
        _held: Permissions,
        _shared: Permissions,
    ) -> Result<(), PermissionError> {
        Ok(())
    }

    /// The first of nested drains begins: start no work of your own (contract: C77). Must neither
    /// block nor touch the graph, which is locked.
    fn drained_begin(&self) {}

    /// The last of nested drains ends (contract: C77). Must neither block nor touch the
    /// graph, which is locked.
    fn drained_end(&self) {}
}

fn or_enotsup(filtered: Option<&Child>) -> io::Result<&Child> {
    filtered.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTSUP))
}
