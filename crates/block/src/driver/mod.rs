//! The seam between the block layer and its drivers: [`BlockDriver`]. Imports nothing else of the crate.

pub(crate) mod background;
pub(crate) mod debug_event;
pub(crate) mod edge;
pub(crate) mod extent;
pub(crate) mod flags;
pub(crate) mod map;
pub(crate) mod mode;
pub(crate) mod permissions;
pub(crate) mod role;

use std::any::Any;
use std::io;

use coblk_aio::{AioHandle, Co, IoVector, IoVectorMut};

use crate::driver::background::Background;
use crate::driver::debug_event::DebugEvent;
use crate::driver::edge::{EdgeId, EdgeInfo, ListId, NewChild};
use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags, ZeroFlags};
use crate::driver::map::ReadMap;
use crate::driver::mode::{CacheMode, Engine};
use crate::driver::permissions::{PermissionError, Permissions};

/// Longest node in bytes: what is not above it fits, with any offset and any block that a request is
/// padded to, into a signed number of 64 bits, which is what system calls and clients have. QEMU's
/// limit.
pub const MAX_LENGTH: u64 = i64::MAX as u64 & !((1 << 30) - 1);

/// What a driver can take in one request. The request path makes every request fit.
///
/// Alignments are powers of two, and lengths at least as long as one aligned unit. A driver that
/// passes requests on to another node asks for no alignment: that node pads them, and knows where its last
/// block ends.
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
    /// The flags of reads that the driver takes; it never sees others. The layer does what they ask
    /// for, drops them where they change nothing, or refuses the request with ENOTSUP.
    pub read_flags: ReadFlags,
    /// Those of writes. With [`WriteFlags::FUA`] the driver makes a single write durable for less than
    /// a flush costs, and gets [`ZeroFlags::FUA`], too. Without it a flush follows the write, and
    /// requests that come together share it.
    pub write_flags: WriteFlags,
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
            read_flags: ReadFlags::empty(),
            write_flags: WriteFlags::empty(),
        }
    }
}

impl BlockLimits {
    /// Those of a driver that passes requests on: anything is taken, for the node below pads and cuts,
    /// and refuses flags.
    pub fn passing_on() -> BlockLimits {
        BlockLimits {
            read_flags: ReadFlags::all(),
            write_flags: WriteFlags::all(),
            ..BlockLimits::default()
        }
    }

    /// Whether requests, or their memory, must be aligned.
    pub(crate) fn is_aligned(&self) -> bool {
        self.request_alignment | self.memory_alignment != 1
    }

    /// Whether they do not contradict themselves.
    pub(crate) fn are_possible(&self) -> bool {
        let block = self.request_alignment;
        let longest = [
            (block, self.max_transfer),
            (block.max(self.pwrite_zeroes_alignment), self.max_pwrite_zeroes),
            (block.max(self.pdiscard_alignment), self.max_pdiscard),
        ];
        let fit = longest.iter().all(|(unit, most)| {
            unit.is_power_of_two() && block.is_power_of_two() && *most >= u64::from(*unit)
        });
        fit && self.memory_alignment.is_power_of_two() && self.max_iov > 0
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
/// A flush that is called after a write has returned, in any thread, makes that write durable. A driver
/// that writes with system calls, or keeps its state behind a lock, fulfils that.
///
/// A driver that passes requests on to one node is a [`Filter`](crate::Filter), which writes down only
/// what it does otherwise.
///
/// Errors carry the OS errno.
pub trait BlockDriver: Any + Send + Sync {
    /// The driver's name in options and messages, such as `file`.
    fn format_name(&self) -> &'static str;

    /// Length in bytes, [`MAX_LENGTH`] at most. It becomes another only in a call that says so, such as
    /// [`co_truncate`](Self::co_truncate), while the node is drained, or with that of a child: the layer
    /// remembers it meanwhile.
    fn length(&self) -> u64;

    /// The edge on which a [`Filter`](crate::Filter) passes requests on.
    fn filtered(&self) -> Option<EdgeId> {
        None
    }

    /// Where in the node of [that edge](Self::filtered) an offset of this one is, both in bytes.
    fn at_filtered(&self, offset: u64) -> u64 {
        offset
    }

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool {
        false
    }

    /// What it can take in one request. Asked when the node is made. By default anything.
    fn limits(&self) -> BlockLimits {
        BlockLimits::default()
    }

    /// Whether reads may succeed and leave `target`, or a part of it, as it was: for measurements,
    /// where nothing looks at the bytes. Where buffers
    /// leave the process they are filled first, see
    /// [`BlockBackend::leaves_reads_unwritten`](crate::BlockBackend::leaves_reads_unwritten).
    fn leaves_reads_unwritten(&self) -> bool {
        false
    }

    /// Fills all of `target` from `offset` on, unless it
    /// [leaves reads unwritten](Self::leaves_reads_unwritten). It gets the flags that its limits ask for.
    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()>;

    /// Itself, if it only finds where bytes are, and has the layer [read](crate::co_read_mapped) them: then
    /// a chain of such drivers is read by a loop. It is asked by its map instead of
    /// [`co_preadv`](Self::co_preadv) then, and both read the same.
    fn read_map(&self) -> Option<&dyn ReadMap> {
        None
    }

    /// Writes all of `source` at `offset`. It gets the flags that its limits ask for.
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

    /// Writes what the driver keeps in memory to its children, and makes nothing durable. Every flush calls
    /// it first, and so does the default of [`co_close`](Self::co_close).
    fn co_write_back(&self, _co: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    /// The node is about to be dropped, which cannot suspend. It has no users any more, and no
    /// request is in flight. The driver ends its own work, and writes to its children what must be there.
    /// After an error the node stays open, with all that it had, and is closed again later.
    fn co_close(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_write_back(co)
    }

    /// Another process is about to use the storage. What was written is durable. The driver writes what
    /// it keeps, and does no I/O from then on, until [`co_activate`](Self::co_activate).
    fn co_inactivate(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_write_back(co)
    }

    /// The storage is this process's again, and another may have changed it: the driver reads anew what
    /// it keeps. Called after the nodes below are active.
    fn co_activate(&self, _co: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    /// Whether something is lost if the node is dropped now without [`co_close`](Self::co_close).
    /// Such a drop is an error in the log.
    fn needs_close(&self) -> bool {
        false
    }

    /// What it needs for work of its own, if it does any: timers, reconnects, coroutines that no request
    /// has begun. Always the same.
    fn background(&self) -> Option<&Background> {
        None
    }

    /// Its [background work](Self::background) is to run in `home` from now on; until this returns
    /// [`Background::home`] is where it ran before. The node is drained, and changes of others wait. A
    /// context is reached by [`Co::call_at`](coblk_aio::Co::call_at); the one before may have ended.
    fn co_set_home(&self, _co: &Co<'_>, _home: AioHandle) {}

    /// Makes a range read as zeroes by other means than writing them, or fails with ENOTSUP and
    /// has changed nothing. [`ZeroFlags::NO_FALLBACK`] is for drivers that pass the request on.
    fn co_pwrite_zeroes(
        &self,
        _co: &Co<'_>,
        _offset: u64,
        _bytes: u64,
        _flags: ZeroFlags,
    ) -> io::Result<()> {
        Err(not_supported())
    }

    /// Deallocates a range; its bytes are unspecified afterwards. May fail with ENOTSUP, which the client
    /// does not see: discard is a hint.
    fn co_pdiscard(&self, _co: &Co<'_>, _offset: u64, _bytes: u64) -> io::Result<()> {
        Err(not_supported())
    }

    /// What this layer knows of the bytes from `offset` on, without reading them: how many of them, from
    /// 1 to `bytes`, are of one kind. By default all may be data. Offset and length need not be
    /// aligned.
    fn co_block_status(&self, _co: &Co<'_>, _offset: u64, bytes: u64) -> io::Result<Extent> {
        Ok(Extent::data(bytes))
    }

    /// Cuts the device, or makes it longer by zeroes, to `length` bytes, and reports that from then
    /// on. Called once at a time. May fail with ENOTSUP, or with an error of words if it cannot be of
    /// this length or not in this way; others see ENOTSUP if its kind is `Unsupported`, else EINVAL.
    fn co_truncate(&self, _co: &Co<'_>, _length: u64, _how: Truncate) -> io::Result<()> {
        Err(not_supported())
    }

    /// Looks how long the storage is now, if it may change by itself; returns the length in bytes
    /// that it reports from then on.
    fn co_refresh_length(&self, _co: &Co<'_>) -> io::Result<u64> {
        Ok(self.length())
    }

    /// How many bytes are taken where it stores things, if it can tell.
    fn co_allocated_bytes(&self, _co: &Co<'_>) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Its edges: every [`Child`](crate::Child::id) and [`ChildSlot`](crate::ChildSlot::id) that it holds,
    /// always the same ones.
    fn children(&self) -> Vec<EdgeId> {
        Vec::new()
    }

    /// Its [list](crate::ChildList::id) of children that come and go. `None` if it takes no others than it
    /// was made with.
    fn child_list(&self) -> Option<ListId> {
        None
    }

    /// Whether an edge may lead to `new`; to nothing, if that is `None`: a slot, or a child that is to be
    /// removed from the [list](Self::child_list). An error says why not. Asked before the node is
    /// drained, and again while it is. Must neither block nor touch the graph.
    fn check_child(&self, _edge: &EdgeInfo, _new: Option<NewChild<'_>>) -> Result<(), String> {
        Ok(())
    }

    /// Where its bytes are, if that can be said in a word, as a path can.
    fn filename(&self) -> Option<String> {
        None
    }

    /// How it treats caches, if it has to do with any.
    fn cache_mode(&self) -> CacheMode {
        CacheMode::default()
    }

    /// The I/O engine (threads, io_uring), if selectable.
    fn engine(&self) -> Option<Engine> {
        None
    }

    /// The permissions that it holds on a child, and those that it shares there, while the users of its own
    /// node together hold `held` and share `shared`. By default what the
    /// [role](crate::ChildRole::default_permissions) of the child says.
    fn child_permissions(
        &self,
        edge: &EdgeInfo,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        edge.role().default_permissions((held, shared), !self.is_read_only())
    }

    /// [`set_permissions`](Self::set_permissions) will be called, but first other nodes give up what
    /// they have, perhaps of the same storage. A driver that agrees with others by locks takes its
    /// own here, and looks at those of others then: so no other user can come in between.
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

    /// A step of a request has been reached, in this node or in a driver above. For drivers that
    /// disturb requests, which say by [`wants_debug_events`](Self::wants_debug_events) that they are
    /// to be told.
    fn debug_event(&self, _event: DebugEvent) {}

    /// The request path has reached a step, of which a [`Filter`](crate::Filter) tells the node that it
    /// passes requests on to.
    fn debug_event_below(&self, _event: DebugEvent) {}

    /// Whether it is told of steps of requests. Asked once.
    fn wants_debug_events(&self) -> bool {
        false
    }

    /// What waits for something outside of this process, such as a reconnect, ends now with an error. A request
    /// that makes progress goes on. Must neither block nor touch the graph.
    fn cancel_in_flight(&self) {}

    /// The first of nested drains begins: start no work of your own (contract: C77). Must neither
    /// block nor touch the graph, which is locked.
    fn drained_begin(&self) {}

    /// The last of nested drains ends (contract: C77). Must neither block nor touch the
    /// graph, which is locked.
    fn drained_end(&self) {}
}

fn not_supported() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOTSUP)
}
