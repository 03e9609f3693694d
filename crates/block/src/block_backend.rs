//! [`BlockBackend`]: the device-facing top of the block graph.
//!
//! Requests come in by three doors: from a coroutine (here), with a callback (`aio.rs`), blocking
//! (`blocking.rs`). The latter two lead to the first.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, AioHandle, Co, IoVector, IoVectorMut, trace_event};

use crate::accounting::{Recorder, RequestKind};
use crate::error_policy::ErrorState;
use crate::flags::{WriteFlags, ZeroFlags};
use crate::gate::{InFlight, Request};
use crate::io::{self as request_path, BlockStatus};
use crate::node::{BlockNode, DrainedSection};

/// What a device, an export or a daemon sends its requests to.
///
/// It belongs to one context and stays on its thread; a handle: clones are the same backend. A
/// device with queues on several contexts has a backend on each, on the same
/// [`BlockNode`], which any number of contexts may use at once.
///
/// ```
/// use coblk_aio::{AioContext, IoVector, IoVectorMut};
/// use coblk_block::{BlockBackend, BlockNode, WriteFlags, drivers::Null};
///
/// let ctx = AioContext::new()?;
/// let node = BlockNode::new("disk0", Null::new(1 << 30).read_zeroes(true));
/// let backend = BlockBackend::new(&ctx, "drive", node);
/// ctx.run(|co| {
///     let mut sector = [1u8; 512];
///     backend.co_preadv(co, 0, &mut IoVectorMut::from(&mut sector[..]))?;
///     assert_eq!(sector, [0u8; 512]);
///     backend.co_pwritev(co, 0, &IoVector::from(&sector[..]), WriteFlags::FUA)
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct BlockBackend {
    inner: Rc<Inner>,
}

struct Inner {
    name: String,
    medium: Option<Medium>,
    read_only: bool,
    home: AioHandle,
    recorder: Recorder,
    errors: ErrorState,
}

/// A node, and our counter on its gate.
struct Medium {
    node: Arc<BlockNode>,
    in_flight: Arc<InFlight>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(medium) = &self.medium {
            medium.node.gate.leave(&medium.in_flight);
        }
    }
}

impl BlockBackend {
    /// A backend of `ctx` on `node`; writable if the node is.
    pub fn new(ctx: &AioContext, name: impl Into<String>, node: Arc<BlockNode>) -> BlockBackend {
        let read_only = node.is_read_only();
        Self::with_medium(ctx, name, Some(node), read_only)
    }

    /// A backend that refuses writes, whatever the node allows.
    pub fn read_only(
        ctx: &AioContext,
        name: impl Into<String>,
        node: Arc<BlockNode>,
    ) -> BlockBackend {
        Self::with_medium(ctx, name, Some(node), true)
    }

    /// A backend without a medium: every request fails with ENOMEDIUM (contract: C74).
    pub fn empty(ctx: &AioContext, name: impl Into<String>) -> BlockBackend {
        Self::with_medium(ctx, name, None, false)
    }

    fn with_medium(
        ctx: &AioContext,
        name: impl Into<String>,
        node: Option<Arc<BlockNode>>,
        read_only: bool,
    ) -> BlockBackend {
        let home = ctx.handle();
        let medium = node.map(|node| {
            let in_flight = node.gate.join(home.clone());
            Medium { node, in_flight }
        });
        let recorder = Recorder::new(ctx);
        let inner = Inner {
            name: name.into(),
            medium,
            read_only,
            home,
            recorder,
            errors: ErrorState::default(),
        };
        BlockBackend { inner: Rc::new(inner) }
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The context it belongs to.
    pub(crate) fn home(&self) -> &AioHandle {
        &self.inner.home
    }

    #[inline]
    pub(crate) fn recorder(&self) -> &Recorder {
        &self.inner.recorder
    }

    #[inline]
    pub(crate) fn errors(&self) -> &ErrorState {
        &self.inner.errors
    }

    /// The node below, if there is a medium.
    pub fn node(&self) -> Option<&Arc<BlockNode>> {
        self.inner.medium.as_ref().map(|medium| &medium.node)
    }

    /// Length in bytes.
    ///
    /// # Errors
    /// ENOMEDIUM without a medium.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.medium()?.node.length())
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// Requests of this backend in flight, callbacks that have not returned included.
    pub fn in_flight(&self) -> usize {
        self.inner.medium.as_ref().map_or(0, |medium| medium.in_flight.count())
    }

    /// Drains the node below; see [`BlockNode::drain`]. `None` without a medium: nothing can be in
    /// flight.
    ///
    /// # Panics
    /// If called inside a coroutine.
    pub fn drain(&self, ctx: &AioContext) -> Option<DrainedSection> {
        self.node().map(|node| node.drain(ctx))
    }

    /// [`drain`](Self::drain), from a coroutine (contract: C78).
    pub fn co_drain(&self, co: &Co<'_>) -> Option<DrainedSection> {
        self.node().map(|node| node.co_drain(co))
    }

    #[inline]
    fn medium(&self) -> io::Result<&Medium> {
        self.inner.medium.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEDIUM))
    }

    /// Counts a request in, for as long as the guard lives; waits while the node is drained.
    #[inline]
    pub(crate) fn begin_request(&self, co: &Co<'_>) -> Option<Request<'_>> {
        debug_assert!(self.inner.home.is_home_thread());
        let medium = self.inner.medium.as_ref()?;
        Some(medium.node.gate.enter(co, &medium.in_flight))
    }

    #[inline]
    fn writable_node(&self) -> io::Result<&BlockNode> {
        let medium = self.medium()?;
        if self.inner.read_only {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        Ok(&medium.node)
    }
}

/// The coroutine door. All of it runs on the backend's home thread.
///
/// # Errors
/// of every request: ENOMEDIUM without a medium; EIO if the range is not within the length; EPERM
/// for a write to a read-only backend (contract: C74); and what the driver reports, with its errno.
impl BlockBackend {
    /// Fills `target` from `offset` bytes on.
    #[inline]
    pub fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        let mut request = self.begin_request(co);
        self.preadv_entered(co, &mut request, offset, target)
    }

    /// Writes `source` at `offset` bytes.
    #[inline]
    pub fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let mut request = self.begin_request(co);
        self.pwritev_entered(co, &mut request, offset, source, flags)
    }

    /// Makes all writes durable that completed before.
    pub fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        let mut request = self.begin_request(co);
        self.flush_entered(co, &mut request)
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let mut request = self.begin_request(co);
        self.pwrite_zeroes_entered(co, &mut request, offset, bytes, flags)
    }

    /// Gives `bytes` bytes from `offset` on back to the storage.
    pub fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let mut request = self.begin_request(co);
        self.pdiscard_entered(co, &mut request, offset, bytes)
    }

    /// What is known of the bytes from `offset` on, without reading them: how many of them, at
    /// least one, are of one kind. Asking about no bytes gives none.
    pub fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<BlockStatus> {
        let _request = self.begin_request(co);
        trace_event!("blk_co_block_status", offset, bytes);
        request_path::co_block_status(&self.medium()?.node, co, offset, bytes)
    }

    /// Changes the length to `length` bytes; what is new reads as zeroes.
    ///
    /// Making a device shorter drains it first, so that nothing is written beyond its new end: must
    /// not be called from a request's own callback then, as [`BlockNode::drain`]. A drain that
    /// begins meanwhile may end before it does.
    ///
    /// # Errors
    /// ENOTSUP if the driver cannot; EFBIG if `length` is beyond what a file can have.
    pub fn co_truncate(&self, co: &Co<'_>, length: u64) -> io::Result<()> {
        trace_event!("blk_co_truncate", length);
        self.writable_node()?;
        let node = Arc::clone(&self.medium()?.node);
        if length < node.length() {
            let _drained = node.co_drain(co);
            return request_path::co_truncate(&node, co, length);
        }
        let _request = self.begin_request(co);
        request_path::co_truncate(&node, co, length)
    }
}

/// The requests themselves, for callers that hold a [`Request`]. It is given up while
/// the request is held (`error_policy.rs`).
impl BlockBackend {
    #[inline]
    pub(crate) fn preadv_entered<'a>(
        &'a self,
        co: &Co<'_>,
        request: &mut Option<Request<'a>>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        trace_event!("blk_co_preadv", offset, bytes = target.len());
        self.perform(co, request, RequestKind::Read, (offset, target.len() as u64), || {
            request_path::co_preadv(&self.medium()?.node, co, offset, target)
        })
    }

    #[inline]
    pub(crate) fn pwritev_entered<'a>(
        &'a self,
        co: &Co<'_>,
        request: &mut Option<Request<'a>>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        trace_event!("blk_co_pwritev", offset, bytes = source.len());
        self.perform(co, request, RequestKind::Write, (offset, source.len() as u64), || {
            request_path::co_pwritev(self.writable_node()?, co, offset, source, flags)
        })
    }

    pub(crate) fn flush_entered<'a>(
        &'a self,
        co: &Co<'_>,
        request: &mut Option<Request<'a>>,
    ) -> io::Result<()> {
        trace_event!("blk_co_flush");
        self.perform(co, request, RequestKind::Flush, (0, 0), || {
            request_path::co_flush(&self.medium()?.node, co)
        })
    }

    pub(crate) fn pwrite_zeroes_entered<'a>(
        &'a self,
        co: &Co<'_>,
        request: &mut Option<Request<'a>>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        trace_event!("blk_co_pwrite_zeroes", offset, bytes);
        self.perform(co, request, RequestKind::WriteZeroes, (offset, bytes), || {
            request_path::co_pwrite_zeroes(self.writable_node()?, co, offset, bytes, flags)
        })
    }

    pub(crate) fn pdiscard_entered<'a>(
        &'a self,
        co: &Co<'_>,
        request: &mut Option<Request<'a>>,
        offset: u64,
        bytes: u64,
    ) -> io::Result<()> {
        trace_event!("blk_co_pdiscard", offset, bytes);
        self.perform(co, request, RequestKind::Discard, (offset, bytes), || {
            request_path::co_pdiscard(self.writable_node()?, co, offset, bytes)
        })
    }

    #[inline]
    fn perform<'a>(
        &'a self,
        co: &Co<'_>,
        request: &mut Option<Request<'a>>,
        kind: RequestKind,
        range: (u64, u64),
        attempt: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        self.account(co, kind, range, || self.with_policy(co, request, kind, range, attempt))
    }
}
