//! The seam between the block layer and its drivers: [`BlockDriver`]. Imports bitmaps, and nothing else of the crate.

pub(crate) mod background;
pub(crate) mod debug_event;
pub(crate) mod edge;
pub(crate) mod extent;
pub(crate) mod flags;
pub(crate) mod image;
mod limits;
pub(crate) mod map;
pub(crate) mod mode;
pub(crate) mod permissions;
pub(crate) mod role;
pub(crate) mod snapshot;
pub(crate) mod stamp;

use std::any::Any;
use std::io;
use std::sync::Arc;

use coblk_aio::{AioHandle, Co, IoVector, IoVectorMut};

use crate::bitmap::Bitmaps;
use crate::driver::background::Background;
use crate::driver::debug_event::DebugEvent;
use crate::driver::edge::{EdgeId, EdgeInfo, ListId, NewChild};
use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags, ZeroFlags};
use crate::driver::image::ImageFormat;
use crate::driver::map::ReadMap;
use crate::driver::mode::{CacheMode, Engine};
use crate::driver::permissions::{PermissionError, Permissions};
use crate::driver::snapshot::SnapshotReads;
use crate::driver::stamp::StorageStamp;

pub use limits::BlockLimits;

/// Longest node in bytes, as in QEMU. Any offset up to it, with any block that a request is padded
/// to, fits into a signed number of 64 bits, as system calls and clients have.
pub const MAX_LENGTH: u64 = i64::MAX as u64 & !((1 << 30) - 1);

/// A block driver: reads and writes bytes at offsets.
///
/// All methods with a `co` run in a coroutine, on the home thread of the context that the request
/// came from; several contexts may call at once, so per-request state stays in the coroutine and
/// shared state behind atomics or locks (design decision D9). They may suspend. They must not hold
/// a lock guard, a `RefCell` borrow or a thread-local borrow across a call that takes `co`.
///
/// The request path has checked range and permissions: `offset + length` is within
/// [`length`](Self::length), and nothing is written to a node that is read-only. It has cut and
/// padded the request to [`limits`](Self::limits). If the length is not whole blocks, a request may
/// reach to the end of the last block: bytes read there are zero, and a write there puts zeroes.
///
/// A flush that is called after a write has returned, in any thread, makes that write durable. A driver
/// that writes with system calls, or keeps its state behind a lock, fulfils that.
///
/// A driver that passes requests on to one child is a [`Filter`](crate::Filter), which implements
/// only the hooks that it changes.
///
/// Errors carry the OS errno.
///
/// # A format
///
/// A format finds the bytes of its disk by a header and tables in an image, which is a child with the role
/// [`ChildRole::IMAGE`](crate::ChildRole::IMAGE). This one has a header of a sector, with the length of the
/// disk, which follows it:
///
/// ```
/// # use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
/// # use coblk_block::options::{DriverOptions, NodeOptions, NodeRef};
/// use coblk_block::{BlockDriver, Child, ChildRole, Driver, EdgeId, OpenError, Opening};
/// # use coblk_block::{Blockdevs, ReadFlags, WriteFlags};
/// # use std::io;
/// # use serde::{Deserialize, Serialize};
///
/// struct Boxed {
///     file: Child,
///     length: u64,
/// }
///
/// const HEADER_BYTES: u64 = 512;
///
/// #[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
/// struct BoxedOptions {
///     file: NodeRef,
/// }
///
/// impl DriverOptions for BoxedOptions {
///     fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
///         visit("file", &mut self.file);
///     }
/// }
///
/// impl Driver for Boxed {
///     const NAMES: &'static [&'static str] = &["boxed"];
///     type Options = BoxedOptions;
///
///     fn co_open(opening: &Opening<'_, '_>, options: &BoxedOptions) -> Result<Boxed, OpenError> {
///         let file = opening.co_child("file", ChildRole::IMAGE, &options.file)?;
///         // The image may be anything: each number is checked before it is used.
///         let mut header = [0; 16];
///         file.co_read(opening.co(), 0, &mut header)?;
///         let (magic, length) = header.split_at(8);
///         let length = u64::from_le_bytes(length.try_into().expect("8 bytes"));
///         if magic != b"boxed-01" || length > file.length().saturating_sub(HEADER_BYTES) {
///             return Err(OpenError::of_driver("not a box, or cut short"));
///         }
///         Ok(Boxed { file, length })
///     }
/// }
///
/// impl BlockDriver for Boxed {
///     fn format_name(&self) -> &'static str {
///         "boxed"
///     }
///     fn length(&self) -> u64 {
///         self.length
///     }
///     fn children(&self) -> Vec<EdgeId> {
///         vec![self.file.id()]
///     }
///     fn co_preadv(
///         &self,
///         co: &Co<'_>,
///         offset: u64,
///         target: &mut IoVectorMut<'_>,
///         flags: ReadFlags,
///     ) -> io::Result<()> {
///         self.file.co_preadv(co, HEADER_BYTES + offset, target, flags)
///     }
///     fn co_pwritev(
///         &self,
///         co: &Co<'_>,
///         offset: u64,
///         source: &IoVector<'_>,
///         flags: WriteFlags,
///     ) -> io::Result<()> {
///         self.file.co_pwritev(co, HEADER_BYTES + offset, source, flags)
///     }
///     fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
///         self.file.co_flush(co)
///     }
/// }
///
/// let mut drivers = coblk_block::drivers();
/// drivers.add::<Boxed>();
/// # let (dir, ctx, blockdevs) = (tempfile::tempdir()?, AioContext::new()?, Blockdevs::new(drivers));
/// # let image = dir.path().join("image");
/// # std::fs::write(&image, [b"boxed-01", &4096u64.to_le_bytes()[..], &[7; 4592]].concat())?;
/// # let options = format!("boxed,node-name=disk,file.driver=file,file.filename={}", image.display());
/// # let disk = blockdevs.open(&ctx, NodeOptions::from_keyval(&options)?)?;
/// # assert_eq!(disk.length(), 4096);
/// # drop(disk);
/// # blockdevs.close(&ctx, "disk")?;
/// # std::fs::File::create(&image)?.set_len(4000)?;
/// # let refused = blockdevs.open(&ctx, NodeOptions::from_keyval(&options)?).err().unwrap();
/// # assert!(refused.to_string().contains("not a box"), "{refused}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What a format with tables implements besides:
///
/// * [`read_map`](Self::read_map), so that the layer reads ([`co_read_mapped`](crate::co_read_mapped)): pieces
///   side by side, a chain of backing files by a loop.
/// * [`co_pwritev`](Self::co_pwritev) that writes data first, then what leads to it: a reader that finds the new
///   place finds the data. What counts the references to a place is durable before the first of them.
/// * [`co_write_back`](Self::co_write_back), which writes tables that changed in memory;
///   [`co_flush`](Self::co_flush) then makes all durable, in the format's order.
/// * [`needs_close`](Self::needs_close), [`co_close`](Self::co_close), [`co_inactivate`](Self::co_inactivate) and
///   [`co_activate`](Self::co_activate): nothing of the image is in memory alone when another process takes it.
/// * [`co_pwrite_zeroes`](Self::co_pwrite_zeroes), [`co_pdiscard`](Self::co_pdiscard) and
///   [`co_block_status`](Self::co_block_status), for clusters without data.
/// * [`co_truncate`](Self::co_truncate), for another length.
/// * [`limits`](Self::limits): what a request must be aligned to, and the flags that the format takes.
/// * [`image`](Self::image): check, repair, snapshots, another backing name ([`ImageFormat`]).
///
/// Clusters of the child that no table leads to any more may still be read, or written, by requests that have
/// found them before. They get another owner only when these have ended, and when the change of the table is
/// durable.
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

    /// Whether the node is on the way to an image, and no image itself: a chain of images goes on below it.
    fn is_filter(&self) -> bool {
        false
    }

    /// Maps an offset of this node to one of the child at [that edge](Self::filtered), both in
    /// bytes.
    fn at_filtered(&self, offset: u64) -> u64 {
        offset
    }

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool {
        false
    }

    /// The limits of one request. Asked when the node is made, after a reopen, and after an edge has
    /// turned to another child. By default there are none.
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

    /// The driver as a [`ReadMap`], if it only finds where bytes are, and has the layer
    /// [read](crate::co_read_mapped) them: a chain of such drivers is read by a loop. It is asked
    /// by its map instead of [`co_preadv`](Self::co_preadv) then, and both read the same.
    fn read_map(&self) -> Option<&dyn ReadMap> {
        None
    }

    /// The driver as [`SnapshotReads`], if it keeps the bytes of an instant beside those of now.
    fn snapshot(&self) -> Option<&dyn SnapshotReads> {
        None
    }

    /// The driver as [`ImageFormat`], if it has operations on a whole image. A
    /// [`Filter`](crate::Filter) has none, and does not pass on its child's.
    fn image(&self) -> Option<&dyn ImageFormat> {
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

    /// Closes the driver before its node is dropped, as a drop cannot suspend. The node has no
    /// users any more, and no request is in flight. The driver ends its own work, and writes to its
    /// children what must be there. After an error the node stays open, with all that it had, and
    /// is closed again later.
    fn co_close(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_write_back(co)
    }

    /// Hands the storage over to another process. What was written is durable. The driver writes
    /// what it keeps, and does no I/O from then on, until [`co_activate`](Self::co_activate).
    fn co_inactivate(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_write_back(co)
    }

    /// Takes the storage back, which another process may have changed: the driver reads anew what
    /// it keeps. Called after the children are active.
    fn co_activate(&self, _co: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    /// Whether something is lost if the node is dropped now without [`co_close`](Self::co_close).
    /// Such a drop is an error in the log.
    fn needs_close(&self) -> bool {
        false
    }

    /// The node's bitmaps, if the driver loads and stores them. Always the same; asked once. It changes the
    /// list while the node is not used: before it is made, and when it becomes active or inactive.
    fn bitmaps(&self) -> Option<Arc<Bitmaps>> {
        None
    }

    /// The driver's [`Background`], if it does work of its own: timers, reconnects, coroutines that
    /// no request has begun. Always the same.
    fn background(&self) -> Option<&Background> {
        None
    }

    /// Moves the [background work](Self::background) to `home`; until this returns
    /// [`Background::home`] is the former one. The node is drained, and other changes wait. A
    /// context is reached by [`Co::call_at`](coblk_aio::Co::call_at); the former one may have
    /// ended.
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

    /// Describes the bytes from `offset` on as this layer has them, without reading them: how many
    /// of them, from 1 to `bytes`, are of one kind. By default all may be data. Offset and length
    /// need not be aligned.
    fn co_block_status(&self, _co: &Co<'_>, _offset: u64, bytes: u64) -> io::Result<Extent> {
        Ok(Extent::data(bytes))
    }

    /// Changes the length to `length` bytes: cuts the device, or makes it longer by zeroes, and
    /// reports that from then on. Called once at a time. May fail with ENOTSUP, or with an error
    /// that has a text if it cannot be of this length or not in this way; others see ENOTSUP if its
    /// kind is `Unsupported`, else EINVAL.
    fn co_truncate(&self, _co: &Co<'_>, _length: u64, _how: Truncate) -> io::Result<()> {
        Err(not_supported())
    }

    /// Looks up the length of the storage, if it may change by itself; returns the length in bytes
    /// that it reports from then on.
    fn co_refresh_length(&self, _co: &Co<'_>) -> io::Result<u64> {
        Ok(self.length())
    }

    /// How many bytes are allocated in its storage, if it can tell.
    fn co_allocated_bytes(&self, _co: &Co<'_>) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// The identity of its storage, and when that was changed last, if the bytes of the node are those of a file
    /// and nothing else.
    fn co_stamp(&self, _co: &Co<'_>) -> io::Result<Option<StorageStamp>> {
        Ok(None)
    }

    /// Drops what this host caches of its storage, of bytes that are durable, so that they are read from the storage
    /// next. A driver without a cache, or whose cache is that of its children, does nothing.
    fn co_drop_cache(&self, _co: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    /// The driver that this one adds something to without being a node: it is that of the node's options.
    fn wrapped(&self) -> Option<&dyn BlockDriver> {
        None
    }

    /// The driver's edges: every [`Child`](crate::Child::id) and
    /// [`ChildSlot`](crate::ChildSlot::id) that it holds, always the same ones.
    fn children(&self) -> Vec<EdgeId> {
        Vec::new()
    }

    /// The driver's [list](crate::ChildList::id) of children that come and go. `None` if it takes
    /// no others than it was made with.
    fn child_list(&self) -> Option<ListId> {
        None
    }

    /// Checks whether an edge may lead to `new`; to nothing, if that is `None`: a slot, or a child
    /// that is to be removed from the [list](Self::child_list). An error says why not. Asked before
    /// the node is drained, and again while it is; by a reopen only then, when the drivers have become
    /// what they are to be. Must neither block nor touch the graph.
    fn check_child(&self, _edge: &EdgeInfo, _new: Option<NewChild<'_>>) -> Result<(), String> {
        Ok(())
    }

    /// The path or URL of its bytes, if one word can name them.
    fn filename(&self) -> Option<String> {
        None
    }

    /// How the driver treats caches, if it uses any.
    fn cache_mode(&self) -> CacheMode {
        CacheMode::default()
    }

    /// The I/O engine (threads, io_uring), if selectable.
    fn engine(&self) -> Option<Engine> {
        None
    }

    /// The permissions that the driver holds on a child, and those that it shares there, while the
    /// users of its own node together hold `held` and share `shared`. By default those of the
    /// child's [role](crate::ChildRole::default_permissions).
    fn child_permissions(
        &self,
        edge: &EdgeInfo,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        edge.role().default_permissions((held, shared), !self.is_read_only())
    }

    /// Takes permissions in advance: [`set_permissions`](Self::set_permissions) will be called, but
    /// first other nodes give up theirs, perhaps of the same storage. A driver that agrees with
    /// other processes by locks takes its own here, and looks at those of others then: so no other
    /// user can come in between.
    fn reserve_permissions(&self, _held: Permissions, _shared: Permissions) {}

    /// Tells the driver which permissions all users of the node together are about to hold, and
    /// which all of them share. A driver that has to agree with other processes on that, as by the
    /// locks of a file, does it here, and on an error changes nothing. Called once at a time,
    /// without the lock of the graph: it may block for as long as a file system takes.
    fn set_permissions(
        &self,
        _held: Permissions,
        _shared: Permissions,
    ) -> Result<(), PermissionError> {
        Ok(())
    }

    /// Tells the driver that a step of a request has been reached, in this node or in a parent. For
    /// drivers that disturb requests, for which [`wants_debug_events`](Self::wants_debug_events) is
    /// true.
    fn debug_event(&self, _event: DebugEvent) {}

    /// Passes a step of the request path on to the child of a [`Filter`](crate::Filter).
    fn debug_event_below(&self, _event: DebugEvent) {}

    /// Whether the driver is told of steps of requests. Asked once.
    fn wants_debug_events(&self) -> bool {
        false
    }

    /// Ends with an error what waits for something outside of this process, such as a reconnect. A
    /// request that makes progress goes on. Must neither block nor touch the graph.
    fn cancel_in_flight(&self) {}

    /// The node becomes quiesced, by the first of nested drains: the driver starts no work of its
    /// own (contract: C77). Must neither block nor touch the graph, which is locked.
    fn drained_begin(&self) {}

    /// The last of nested drains has ended (contract: C77). Must neither block nor touch the graph,
    /// which is locked.
    fn drained_end(&self) {}
}

fn not_supported() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOTSUP)
}
