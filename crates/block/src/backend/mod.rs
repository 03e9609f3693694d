//! [`BlockBackend`]: the device-facing top of the block graph.
//!
//! Requests come from coroutines (`coroutine.rs`), with callbacks (`callback.rs`), blocking
//! (`blocking.rs`) and from other threads (`remote.rs`). The latter three lead to the first.

pub(crate) mod accounting;
pub(crate) mod blocking;
pub(crate) mod callback;
mod coroutine;
pub(crate) mod entered;
pub(crate) mod error_policy;
pub(crate) mod in_flight;
pub(crate) mod length_watch;
pub(crate) mod merged;
pub(crate) mod options;
pub(crate) mod remote;
pub(crate) mod root;

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, AioHandle, Co, PoolShare};

use crate::accounting::Recorder;
use crate::backend::error_policy::ErrorState;
use crate::backend::root::{Medium, Request, Slot};
use crate::driver::permissions::PermissionError;
use crate::graph::backends::Claim;
use crate::graph::homes::co_settle_homes;
use crate::graph::life::{co_close_if_unused, co_close_unused};
use crate::graph::node::BlockNode;
use crate::graph::{DrainedSection, GraphError};
use crate::io::RequestPath;

/// Why a medium cannot be inserted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediumError {
    /// The backend has a medium.
    #[error("backend '{backend}' has a medium, node '{node}'")]
    Present {
        /// The backend.
        backend: String,
        /// The node that is its medium.
        node: String,
    },
    /// Other users of the node do not agree.
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

/// The device-facing top of the block graph: a device, an export or a daemon sends its requests to
/// it.
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
    /// Makes a backend of `ctx` on `node`; writable if the node is. It takes no permissions and
    /// shares all, with
    /// other users of the node and with other processes: for tests, and for set-up code that knows that
    /// no other user is there. A device is opened by
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

    /// The node that is its medium, if there is one.
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

    /// How many requests of this backend are in flight, callbacks that have not returned included.
    pub fn in_flight(&self) -> usize {
        self.inner.slot.in_flight()
    }

    /// Drains the node; see [`BlockNode::drain`]. `None` without a medium: nothing can be in
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

    /// Inserts a medium. Home thread.
    ///
    /// # Errors
    /// If there is one already, or other users of the node do not agree.
    pub fn insert_medium(&self, node: Arc<BlockNode>) -> Result<(), MediumError> {
        if let Some(medium) = self.node() {
            let (backend, node) = (self.name().to_owned(), medium.name().to_owned());
            return Err(MediumError::Present { backend, node });
        }
        Ok(self.insert(node)?)
    }

    /// Takes the medium out, and returns it. Requests in flight complete first, so this must not be
    /// called from a request's own callback; waiting requests, and later ones, fail with ENOMEDIUM
    /// (contract: C74) until there is another. Home thread.
    pub fn co_remove_medium(&self, co: &Co<'_>) -> Option<Arc<BlockNode>> {
        self.co_take_medium(co).inspect(|node| {
            co_close_if_unused(co, node);
            co_settle_homes(co, node);
        })
    }

    /// Ends the backend; its clones are left without a medium. Requests in flight complete, a worker gives
    /// back the locks of images before this returns, and the node is closed if it belongs to its users and
    /// has no other. A drop makes the system calls for the locks on the home thread, and closes the node
    /// later. Not to be called from a request's own callback. Home thread.
    ///
    /// # Errors
    /// If the node cannot be closed. The backend has ended all the same, and the node is open.
    pub fn co_close(self, co: &Co<'_>) -> Result<(), GraphError> {
        let Some(node) = self.co_take_medium(co) else { return Ok(()) };
        let closed = co_close_unused(co, &node);
        co_settle_homes(co, &node);
        // It may be the last to hold the node, whose files are closed then.
        PoolShare::once(co, || drop(node));
        closed
    }

    /// Takes the medium out when nothing is in flight.
    fn co_take_medium(&self, co: &Co<'_>) -> Option<Arc<BlockNode>> {
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
    pub(crate) fn writable<'a>(&self, medium: &'a Medium) -> io::Result<&'a RequestPath> {
        if medium.read_only.get() {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        Ok(&medium.node.path)
    }
}
