//! The seam between the block layer and what stands below a node: [`BlockDriver`].

use std::io;

use coblk_aio::{Co, IoVector, IoVectorMut};

use crate::flags::{WriteFlags, ZeroFlags};

/// What a driver can take in one request. The request path makes every request fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLimits {
    /// Offsets and lengths, also those of the ranges in a vector, are multiples of this many bytes;
    /// a power of two.
    pub request_alignment: u32,
    /// Memory addresses are multiples of this many bytes; a power of two.
    pub memory_alignment: u32,
    /// Longest read or write in bytes.
    pub max_transfer: u64,
    /// Most ranges in one vector.
    pub max_iov: usize,
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
        }
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
/// padded the request to [`limits`](Self::limits).
///
/// Errors carry the OS errno.
pub trait BlockDriver: Send + Sync {
    /// The driver's name in options and messages, such as `file`.
    fn format_name(&self) -> &'static str;

    /// Length in bytes.
    fn length(&self) -> u64;

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool {
        false
    }

    /// What it can take in one request. Asked once, when the node is made.
    fn limits(&self) -> BlockLimits {
        BlockLimits::default()
    }

    /// Fills all of `target` from `offset` on.
    fn co_preadv(&self, co: &Co<'_>, offset: u64, target: &mut IoVectorMut<'_>) -> io::Result<()>;

    /// Writes all of `source` at `offset`. With [`WriteFlags::FUA`] it is durable on success.
    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()>;

    /// Makes everything durable that was written, and completed, before.
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()>;

    /// Makes a range read as zeroes by other means than writing them, or fails with ENOTSUP.
    fn co_pwrite_zeroes(
        &self,
        _co: &Co<'_>,
        _offset: u64,
        _bytes: u64,
        _flags: ZeroFlags,
    ) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOTSUP))
    }

    /// Gives a range back to whoever stores it; what it reads as afterwards is unspecified. Does
    /// nothing by default: discard is a hint.
    fn co_pdiscard(&self, _co: &Co<'_>, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    /// The first of nested drains begins: start no work of your own (contract: C77). Must neither
    /// block nor drain.
    fn drained_begin(&self) {}

    /// The last of nested drains ends (contract: C77). Must neither block nor drain.
    fn drained_end(&self) {}
}
