//! [`BlockBackend`]: the device-facing top of the block graph.
//!
//! Requests come in by three doors: from a coroutine (here), with a callback (`aio.rs`), blocking
//! (`blocking.rs`). The latter two lead to the first.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, AioHandle, Co, IoVector, IoVectorMut, trace_event};

use crate::accounting::{Recorder, RequestKind};
use crate::backend_options::Claim;
use crate::error_policy::{Attempt, ErrorState};
use crate::flags::{WriteFlags, ZeroFlags};
use crate::graph::{self, Child, DrainedSection, GraphError};
use crate::in_flight;
use crate::io::{self as request_path, BlockStatus};
use crate::medium::{Medium, Request, Slot};
use crate::node::BlockNode;
use crate::permissions::PermissionError;

/// Why a medium cannot be put in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediumError {
    /// There is one.
    #[error("backend '{backend}' has a medium, node '{node}'")]
    Present {
        /// The backend.
        backend: String,
        /// What is in.
        node: String,
    },
    /// Others do not agree.
    #[error(transparent)]
    Permission(#[from] PermissionError),
}

/// Why a length is not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResizeError {
    #[error(transparent)]
    Permission(#[from] PermissionError),
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

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
    slot: Rc<Slot>,
    recorder: Recorder,
    errors: ErrorState,
}

impl BlockBackend {
    /// A backend of `ctx` on `node`; writable if the node is. It asks nobody for permission, neither
    /// other users of the node nor other processes, and minds nobody: for tests, and for set-up
    /// code that knows what it does. A device is opened by
    /// [`BackendOptions`](crate::BackendOptions).
    pub fn new(ctx: &AioContext, name: impl Into<String>, node: Arc<BlockNode>) -> BlockBackend {
        Self::unasked(ctx, name, Some(node), false)
    }

    /// [`new`](Self::new), but refuses writes, whatever the node allows.
    pub fn read_only(
        ctx: &AioContext,
        name: impl Into<String>,
        node: Arc<BlockNode>,
    ) -> BlockBackend {
        Self::unasked(ctx, name, Some(node), true)
    }

    /// [`new`](Self::new), without a medium: every request fails with ENOMEDIUM (contract: C74),
    /// until one is [put in](Self::insert_medium).
    pub fn empty(ctx: &AioContext, name: impl Into<String>) -> BlockBackend {
        Self::unasked(ctx, name, None, false)
    }

    fn unasked(
        ctx: &AioContext,
        name: impl Into<String>,
        node: Option<Arc<BlockNode>>,
        read_only: bool,
    ) -> BlockBackend {
        let backend = Self::with_claim(ctx, name.into(), Claim::none(read_only));
        if let Some(node) = node {
            backend.insert(node).expect("who holds nothing and shares all is not refused");
        }
        backend
    }

    pub(crate) fn with_claim(ctx: &AioContext, name: String, claim: Claim) -> BlockBackend {
        let (recorder, errors) = (Recorder::new(ctx), ErrorState::default());
        let slot = Slot::new(name, ctx.handle(), claim, recorder.statistics());
        BlockBackend { inner: Rc::new(Inner { slot, recorder, errors }) }
    }

    pub(crate) fn insert(&self, node: Arc<BlockNode>) -> Result<(), PermissionError> {
        self.inner.slot.insert(node)
    }

    pub(crate) fn co_insert(
        &self,
        co: &Co<'_>,
        node: Arc<BlockNode>,
    ) -> Result<(), PermissionError> {
        self.inner.slot.co_insert(co, node)
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        self.inner.slot.name()
    }

    /// The context it belongs to.
    pub(crate) fn home(&self) -> &AioHandle {
        self.inner.slot.home()
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
    pub fn node(&self) -> Option<Arc<BlockNode>> {
        self.inner.slot.medium().map(|medium| Arc::clone(&medium.node))
    }

    /// Length in bytes.
    ///
    /// # Errors
    /// ENOMEDIUM without a medium.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.medium()?.node.length())
    }

    pub(crate) fn slot(&self) -> &Slot {
        &self.inner.slot
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.inner.slot.is_read_only()
    }

    /// Whether a read may succeed and leave its buffer, or a part of it, as it was, as one of
    /// [`Null`](crate::drivers::Null) does. A buffer that is sent out of the process must have been
    /// written, so a caller that sends what it reads, and uses buffers again, fills them first if this is
    /// so. It may be another after a change of the graph, but not while a request is in flight. Home
    /// thread.
    pub fn leaves_reads_unwritten(&self) -> bool {
        self.inner.slot.medium().is_some_and(|medium| medium.unwritten_reads.get())
    }

    /// Requests of this backend in flight, callbacks that have not returned included.
    pub fn in_flight(&self) -> usize {
        self.inner.slot.in_flight()
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

    /// Puts a medium in. Home thread.
    ///
    /// # Errors
    /// If there is one, or other users of the node do not agree.
    pub fn insert_medium(&self, node: Arc<BlockNode>) -> Result<(), MediumError> {
        if let Some(medium) = self.node() {
            let (backend, node) = (self.name().to_owned(), medium.name().to_owned());
            return Err(MediumError::Present { backend, node });
        }
        Ok(self.insert(node)?)
    }

    /// Takes the medium out, and gives it back. Requests in flight complete first, so this must not
    /// be called from a request's own callback; those that wait, and later ones, fail with
    /// ENOMEDIUM (contract: C74) until there is another. Home thread.
    pub fn co_remove_medium(&self, co: &Co<'_>) -> Option<Arc<BlockNode>> {
        // No change of the graph is waited for: a disk that does not answer may be in its way. The
        // node may be replaced until it is drained, and then it is another one that has requests.
        loop {
            let node = self.node()?;
            let _drained = node.co_drain(co);
            if self.node().is_some_and(|now| Arc::ptr_eq(&now, &node)) {
                return self.inner.slot.co_take(co);
            }
        }
    }

    /// [`co_remove_medium`](Self::co_remove_medium) from outside of coroutines. Polls `ctx`
    /// meanwhile.
    ///
    /// # Panics
    /// If called inside a coroutine.
    pub fn remove_medium(&self, ctx: &AioContext) -> Option<Arc<BlockNode>> {
        ctx.run(|co| self.co_remove_medium(co))
    }

    #[inline]
    fn medium(&self) -> io::Result<Rc<Medium>> {
        self.inner.slot.medium().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEDIUM))
    }

    /// Counts a request in, for as long as the guard lives; waits while the node is drained.
    #[inline]
    pub(crate) fn begin_request(&self, co: &Co<'_>) -> Option<Request> {
        debug_assert!(self.home().is_home_thread());
        self.inner.slot.enter(co)
    }

    fn writable_medium(&self) -> io::Result<Rc<Medium>> {
        let medium = self.medium()?;
        self.writable(&medium)?;
        Ok(medium)
    }

    #[inline]
    pub(crate) fn writable<'a>(&self, medium: &'a Medium) -> io::Result<&'a BlockNode> {
        if medium.read_only.get() {
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
    /// not be called from a request's own callback then, as [`BlockNode::drain`].
    ///
    /// # Errors
    /// ENOTSUP if the driver cannot; EINVAL if it cannot be of this length, as a device has its own;
    /// EFBIG if `length` is beyond [`MAX_LENGTH`](crate::MAX_LENGTH); EPERM if another user of the
    /// node, or another process, does not share the permission to resize; ETIMEDOUT if it is to become
    /// shorter, and requests have not ended within [`WAIT_LIMIT`](crate::WAIT_LIMIT).
    pub fn co_truncate(&self, co: &Co<'_>, length: u64) -> io::Result<()> {
        self.co_resize(co, length).map_err(|error| match error {
            // A driver that says why in words.
            ResizeError::Io(error) if error.raw_os_error().is_none() => {
                tracing::warn!(backend = self.name(), %error, "cannot change the length");
                io::Error::from_raw_os_error(libc::EINVAL)
            }
            ResizeError::Io(error) => error,
            ResizeError::Permission(error) => {
                tracing::warn!(backend = self.name(), %error, "cannot change the length");
                io::Error::from_raw_os_error(libc::EPERM)
            }
            ResizeError::Graph(error) => {
                tracing::warn!(backend = self.name(), %error, "cannot change the length");
                io::Error::from_raw_os_error(libc::ETIMEDOUT)
            }
        })
    }

    /// [`co_truncate`](Self::co_truncate), that says who does not agree.
    pub(crate) fn co_resize(&self, co: &Co<'_>, length: u64) -> Result<(), ResizeError> {
        trace_event!("blk_co_truncate", length);
        let medium = self.writable_medium()?;
        let _resize = self.inner.slot.resize()?;
        if length >= medium.node.length() {
            let _request = self.begin_request(co);
            if request_path::co_grow(&self.writable_medium()?.node, co, length)? {
                return Ok(());
            }
        }
        self.co_shrink(co, length)
    }

    /// In a drained section, in which it counts itself in: a drain that begins meanwhile waits. What is
    /// drained is where the bytes are: other users of it, below filters of this one, write too.
    fn co_shrink(&self, co: &Co<'_>, length: u64) -> Result<(), ResizeError> {
        let node = self.node().map(storage_of);
        let _drained = node.map(|node| graph::co_drain_for_change(co, &node)).transpose()?;
        // The node must not be replaced meanwhile.
        let _change = graph::lock_changes(co)?;
        let medium = self.writable_medium()?;
        let _request = Request::count_in(Rc::clone(&medium));
        Ok(request_path::co_truncate(&medium.node, co, length)?)
    }
}

/// The requests themselves, for callers that hold a [`Request`]. It is given up while
/// the request is held (`error_policy.rs`).
impl BlockBackend {
    #[inline]
    pub(crate) fn preadv_entered(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        trace_event!("blk_co_preadv", offset, bytes = target.len());
        let range = (offset, target.len() as u64);
        self.carry_out(co, request, RequestKind::Read, range, Read { co, offset, target })
    }

    #[inline]
    pub(crate) fn pwritev_entered(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        trace_event!("blk_co_pwritev", offset, bytes = source.len());
        self.perform(co, request, RequestKind::Write, (offset, source.len() as u64), |medium| {
            request_path::co_pwritev(self.writable(medium)?, co, offset, source, flags)
        })
    }

    pub(crate) fn flush_entered(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
    ) -> io::Result<()> {
        trace_event!("blk_co_flush");
        self.perform(co, request, RequestKind::Flush, (0, 0), |medium| {
            request_path::co_flush(&medium.node, co)
        })
    }

    pub(crate) fn pwrite_zeroes_entered(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        trace_event!("blk_co_pwrite_zeroes", offset, bytes);
        self.perform(co, request, RequestKind::WriteZeroes, (offset, bytes), |medium| {
            request_path::co_pwrite_zeroes(self.writable(medium)?, co, offset, bytes, flags)
        })
    }

    pub(crate) fn pdiscard_entered(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        offset: u64,
        bytes: u64,
    ) -> io::Result<()> {
        trace_event!("blk_co_pdiscard", offset, bytes);
        self.perform(co, request, RequestKind::Discard, (offset, bytes), |medium| {
            request_path::co_pdiscard(self.writable(medium)?, co, offset, bytes)
        })
    }

    #[inline]
    fn perform(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        kind: RequestKind,
        range: (u64, u64),
        attempt: impl FnMut(&Medium) -> io::Result<()>,
    ) -> io::Result<()> {
        self.carry_out(co, request, kind, range, attempt)
    }

    #[inline]
    fn carry_out(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        kind: RequestKind,
        range: (u64, u64),
        attempt: impl Attempt,
    ) -> io::Result<()> {
        in_flight::noted(co, request, kind, range, |request| {
            self.account(co, kind, range, || self.with_policy(co, request, kind, range, attempt))
        })
    }
}

/// The node that filters pass requests on to in the end.
fn storage_of(node: Arc<BlockNode>) -> Arc<BlockNode> {
    let mut node = node;
    while let Some(below) = node.driver().filtered().map(Child::node) {
        node = below;
    }
    node
}

/// A read.
struct Read<'a, 'b, 'co> {
    co: &'a Co<'co>,
    offset: u64,
    target: &'a mut IoVectorMut<'b>,
}

impl Attempt for Read<'_, '_, '_> {
    #[inline]
    fn try_on(&mut self, medium: &Medium) -> io::Result<()> {
        request_path::co_preadv(&medium.node, self.co, self.offset, self.target)
    }

    /// What was in the buffer before is none of the reader's business: it may be another client's.
    #[cold]
    fn ignored(&mut self) {
        self.target.fill_from(0, 0);
    }
}
