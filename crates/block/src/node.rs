//! [`BlockNode`]: a driver with a name, in the graph, behind a gate.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use coblk_aio::{Co, IoVector, IoVectorMut};

use crate::driver::{BlockDriver, BlockLimits};
use crate::flags::{WriteFlags, ZeroFlags};
use crate::gate::Gate;
use crate::graph::{self, NodeId};
use crate::io::{self as request_path, BlockStatus, PathState, ThresholdPassed};
use crate::node_info::{CacheMode, DetectZeroes};
use crate::versions::Versions;

/// A node of the block graph: a driver that requests reach through
/// [`BlockBackend`](crate::BlockBackend)s. Any thread; several contexts may use one at once.
pub struct BlockNode {
    id: NodeId,
    name: String,
    driver: Box<dyn BlockDriver>,
    limits: Versions<BlockLimits, 7>,
    pub(crate) gate: Gate,
    pub(crate) path: PathState,
    /// How it was asked to treat caches.
    cache_mode: Mutex<CacheMode>,
    force_share: AtomicBool,
}

/// What a node is told by options, whatever its driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeState {
    /// Refuse writes, whatever the driver allows.
    pub(crate) read_only: bool,
    pub(crate) discard: bool,
    pub(crate) detect_zeroes: DetectZeroes,
    /// Nobody is kept from anything.
    pub(crate) force_share: bool,
    pub(crate) cache_mode: CacheMode,
}

impl BlockNode {
    /// A node called `name`, for messages and commands, with this driver. One that is made above a
    /// node that is drained, or while [`drain_all`](crate::drain_all) holds, is born quiet
    /// (contract: C77).
    ///
    /// # Panics
    /// If the driver's limits contradict themselves, see [`BlockLimits`].
    pub fn new(name: impl Into<String>, driver: impl BlockDriver + 'static) -> Arc<BlockNode> {
        let limits = driver.limits();
        limits.check(driver.format_name());
        let limits = Versions::new(limits);
        let cache_mode = Mutex::new(driver.cache_mode());
        let mut graph = graph::lock();
        let node = Arc::new(BlockNode {
            id: graph.new_node_id(),
            name: name.into(),
            driver: Box::new(driver),
            limits,
            gate: Gate::default(),
            path: PathState::default(),
            cache_mode,
            force_share: AtomicBool::new(false),
        });
        graph.add_node(&node);
        node
    }

    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver below.
    #[inline]
    pub fn driver(&self) -> &dyn BlockDriver {
        &*self.driver
    }

    /// What the driver takes in one request. May change when the node is reopened.
    #[inline]
    pub fn limits(&self) -> &BlockLimits {
        self.limits.get()
    }

    /// Limits that hold when the driver is reopened, to be selected then.
    pub(crate) fn limits_versions(&self) -> &Versions<BlockLimits, 7> {
        &self.limits
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.driver.length()
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.path.is_read_only() || self.driver.is_read_only()
    }

    /// Whether its users let everybody do anything, whatever they say.
    pub(crate) fn is_force_share(&self) -> bool {
        self.force_share.load(Ordering::Relaxed)
    }

    /// Makes it what options say; returns what it was. While nothing is in flight.
    pub(crate) fn swap_state(&self, state: NodeState) -> NodeState {
        let mut cache_mode = self.cache_mode.lock().unwrap_or_else(PoisonError::into_inner);
        NodeState {
            read_only: self.path.swap_read_only(state.read_only),
            discard: self.path.swap_discard_enabled(state.discard),
            detect_zeroes: self.path.swap_detect_zeroes(state.detect_zeroes),
            force_share: self.force_share.swap(state.force_share, Ordering::Relaxed),
            cache_mode: std::mem::replace(&mut cache_mode, state.cache_mode),
        }
    }

    /// Whether discards reach the driver; at first they do. Without, a discard succeeds and does
    /// nothing, and zeroes keep their place (contract: C81). Any thread; requests in flight may
    /// still go by what was set before.
    pub fn set_discard_enabled(&self, enabled: bool) {
        self.path.swap_discard_enabled(enabled);
    }

    /// Calls `passed`, once, when a write, a request for zeroes or a discard that reaches the driver
    /// ends behind `threshold` bytes, whether it succeeds or not; then there is no threshold. One that
    /// was set before is forgotten.
    ///
    /// It is called on the thread of the request, before that is complete, and may set the next
    /// threshold. Any thread.
    pub fn set_write_threshold(
        &self,
        threshold: u64,
        passed: impl FnOnce(ThresholdPassed) + Send + 'static,
    ) {
        self.path.set_write_threshold(threshold, Some(Box::new(passed)));
    }

    /// Removes the threshold, and its listener. Any thread.
    pub fn unset_write_threshold(&self) {
        self.path.set_write_threshold(0, None);
    }

    /// How it was asked to treat caches.
    pub(crate) fn cache_mode(&self) -> CacheMode {
        *self.cache_mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether discards reach the driver.
    pub fn is_discard_enabled(&self) -> bool {
        self.path.is_discard_enabled()
    }
}

impl Drop for BlockNode {
    fn drop(&mut self) {
        graph::lock().remove_node(self.id);
    }
}

/// The door for drivers that stand on other nodes: formats and filters. A request comes in here as
/// part of one that a [`BlockBackend`](crate::BlockBackend) has counted in above, so it does not
/// wait at the gate. Errors are those of the backend's requests.
impl BlockNode {
    /// Fills `target` from `offset` bytes on.
    pub fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        request_path::co_preadv(self, co, offset, target)
    }

    /// Writes `source` at `offset` bytes.
    pub fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.check_writable()?;
        request_path::co_pwritev(self, co, offset, source, flags)
    }

    /// Makes all writes durable that completed before.
    pub fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        request_path::co_flush(self, co)
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        self.check_writable()?;
        request_path::co_pwrite_zeroes(self, co, offset, bytes, flags)
    }

    /// Gives `bytes` bytes from `offset` on back to the storage.
    pub fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.check_writable()?;
        request_path::co_pdiscard(self, co, offset, bytes)
    }

    /// A backend has asked this of the node at the top; those below may differ (contract: C74).
    fn check_writable(&self) -> io::Result<()> {
        if self.is_read_only() { Err(io::Error::from_raw_os_error(libc::EPERM)) } else { Ok(()) }
    }

    /// What is known of the bytes from `offset` on: how many of them, at least one, are of one kind.
    pub fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<BlockStatus> {
        request_path::co_block_status(self, co, offset, bytes)
    }

    /// Changes the length to `length` bytes; what is new reads as zeroes. Changes of length come one
    /// after the other. Whoever makes a device shorter sees to it that nobody writes beyond the new
    /// end meanwhile, as [`BlockBackend::co_truncate`](crate::BlockBackend::co_truncate) does.
    ///
    /// # Errors
    /// ENOTSUP if the driver cannot; EFBIG if `length` is beyond what a file can have.
    pub fn co_truncate(&self, co: &Co<'_>, length: u64) -> io::Result<()> {
        request_path::co_truncate(self, co, length)
    }

    /// How many bytes are taken where it stores things; `None` if nobody can tell.
    ///
    /// # Errors
    /// What the system says.
    pub fn co_allocated_bytes(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        self.driver.co_allocated_bytes(co)
    }

    /// Looks how long the storage is now, and returns it in bytes.
    pub fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        request_path::co_refresh_length(self, co)
    }
}
